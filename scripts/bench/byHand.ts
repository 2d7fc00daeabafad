/**
 * QEMU as somebody with a terminal would run it: a command line, a monitor, a file. The baseline of the lifecycle
 * benchmark; it runs inside the service's network namespace and does what it is told over its IPC channel.
 *
 *   start     spawn ──► greeting ──► qmp_capabilities ──► cont ──► query-status until running
 *   standby   stop ──► migrate over unix: to a file ──► fsync ──► quit ──► exit
 *   restore   spawn -incoming ──► stream in ──► paused ──► cont ──► running
 */
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { closeSync, createReadStream, openSync } from "node:fs"
import * as fs from "node:fs/promises"
import * as net from "node:net"
import { setTimeout } from "node:timers/promises"

export interface HandVm {
  readonly argv: ReadonlyArray<string>
  readonly log: string
  readonly qmp: string
  readonly migration: string
  readonly state: string
}

export type HandOrder =
  | { readonly _tag: "start" | "standby" | "restore"; readonly vm: HandVm }
  | { readonly _tag: "end" }

/** `startedAt` and `endedAt`: milliseconds since the epoch, with fractions. */
export type HandAnswer =
  | { readonly _tag: "done"; readonly startedAt: number; readonly endedAt: number }
  | { readonly _tag: "failed"; readonly reason: string }

const connectPollMs = 1
const statusPollMs = 1
/** QEMU's default would make memory wait for nothing. */
const bandwidthMax = 1_000_000_000_000
const writeBatchBytes = 1024 * 1024

interface Message {
  readonly QMP?: unknown
  readonly return?: { readonly status?: string }
  readonly error?: { readonly desc: string }
  readonly event?: string
  readonly data?: { readonly status?: string }
}

/** One command after the other, and events between them. */
class Monitor {
  readonly #socket: net.Socket
  readonly #waiting: Array<(message: Message) => boolean> = []

  constructor(socket: net.Socket) {
    this.#socket = socket
    let text = ""
    socket.on("data", (bytes: Buffer) => {
      text += bytes.toString("utf8")
      const lines = text.split("\n")
      text = lines.pop() ?? ""
      for (const line of lines) this.#take(JSON.parse(line))
    })
    socket.on("error", () => undefined)
  }

  #take(message: Message): void {
    const at = this.#waiting.findIndex((wants) => wants(message))
    if (at >= 0) this.#waiting.splice(at, 1)
  }

  next(wanted: (message: Message) => boolean): Promise<Message> {
    return new Promise((resolve) => {
      this.#waiting.push((message) => {
        if (!wanted(message)) return false
        resolve(message)
        return true
      })
    })
  }

  async execute(command: string, args: object = {}): Promise<Message> {
    const answer = this.next((message) => "return" in message || "error" in message)
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`)
    const message = await answer
    if (message.error !== undefined) throw new Error(`${command}: ${message.error.desc}`)
    return message
  }

  async until(status: string): Promise<void> {
    while ((await this.execute("query-status")).return?.status !== status) await setTimeout(statusPollMs)
  }

  migrated(): Promise<Message> {
    return this.next((it) => it.event === "MIGRATION" && /^(completed|failed)$/u.test(it.data?.status ?? ""))
  }

  async ready(): Promise<void> {
    await this.execute("qmp_capabilities")
  }

  async prepare(): Promise<void> {
    await this.execute("migrate-set-capabilities", { capabilities: [{ capability: "events", state: true }] })
    await this.execute("migrate-set-parameters", { "max-bandwidth": bandwidthMax })
  }
}

let running: { readonly child: ChildProcess; readonly monitor: Monitor } | undefined

const connected = async (path: string, child: ChildProcess): Promise<net.Socket> => {
  for (;;) {
    const socket = net.connect({ path })
    try {
      await once(socket, "connect")
      return socket
    } catch {
      if (child.exitCode !== null) throw new Error(`QEMU ended with ${child.exitCode}`)
      await setTimeout(connectPollMs)
    }
  }
}

const launch = async (vm: HandVm, more: ReadonlyArray<string>) => {
  const [program, ...args] = [...vm.argv, ...more]
  const log = openSync(vm.log, "a")
  const child = spawn(program ?? "qemu-system-x86_64", args, { stdio: ["ignore", log, log], cwd: "/" })
  closeSync(log)
  const socket = await connected(vm.qmp, child)
  const monitor = new Monitor(socket)
  await monitor.next((it) => it.QMP !== undefined)
  await monitor.ready()
  running = { child, monitor }
  return running
}

const start = async (vm: HandVm) => {
  const { monitor } = await launch(vm, [])
  await monitor.execute("cont")
  await monitor.until("running")
}

const receive = async (socket: net.Socket, file: string) => {
  const handle = await fs.open(file, "w")
  let batch: Array<Buffer> = []
  let bytes = 0
  for await (const chunk of socket) {
    if (!Buffer.isBuffer(chunk)) continue
    batch.push(chunk)
    bytes += chunk.length
    if (bytes < writeBatchBytes) continue
    await handle.writev(batch)
    batch = []
    bytes = 0
  }
  if (batch.length > 0) await handle.writev(batch)
  await handle.sync()
  await handle.close()
}

const gone = async (child: ChildProcess) => {
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit")
}

const standby = async (vm: HandVm) => {
  if (running === undefined) throw new Error("no QEMU runs")
  const { child, monitor } = running
  await monitor.execute("stop")
  await monitor.prepare()
  const server = net.createServer()
  const connection = once(server, "connection")
  await once(server.listen(vm.migration), "listening")
  const over = monitor.migrated()
  await monitor.execute("migrate", { uri: `unix:${vm.migration}` })
  const [socket] = await connection
  server.close()
  await Promise.all([receive(socket, vm.state), over])
  await monitor.execute("quit")
  await gone(child)
  running = undefined
}

const restore = async (vm: HandVm) => {
  const { monitor } = await launch(vm, ["-incoming", "defer"])
  await monitor.prepare()
  const over = monitor.migrated()
  await monitor.execute("migrate-incoming", { uri: `unix:${vm.migration}` })
  const socket = net.connect({ path: vm.migration })
  createReadStream(vm.state, { highWaterMark: writeBatchBytes }).pipe(socket)
  const end = await over
  if (end.data?.status !== "completed") throw new Error("QEMU did not take the stream")
  await monitor.until("paused")
  await monitor.execute("cont")
  await monitor.until("running")
  socket.destroy()
}

const end = async () => {
  if (running === undefined) return
  running.child.kill("SIGKILL")
  await gone(running.child)
  running = undefined
}

const epochNow = () => performance.timeOrigin + performance.now()

const obey = async (order: HandOrder): Promise<HandAnswer> => {
  const startedAt = epochNow()
  try {
    switch (order._tag) {
      case "start":
        await start(order.vm)
        break
      case "standby":
        await standby(order.vm)
        break
      case "restore":
        await restore(order.vm)
        break
      case "end":
        await end()
    }
    return { _tag: "done", startedAt, endedAt: epochNow() }
  } catch (cause) {
    return { _tag: "failed", reason: String(cause) }
  }
}

if (import.meta.main) {
  process.on("message", (order: HandOrder) => void obey(order).then((answer) => process.send?.(answer)))
  process.on("disconnect", () => void end().then(() => process.exit(0)))
}
