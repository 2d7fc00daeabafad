/**
 * What the service adds to QEMU: the verbs of the API beside the same command line and the same QMP commands by hand
 * (byHand.ts), in the same run, in turns, on the same image and in the same network namespace.
 *
 *   service   POST /instances ──► Running ──► its first line ──► ready ──► (standby ──► restore) ... ──► delete
 *   by hand   spawn, cont     ──► running ──► its first line            ──► (standby ──► restore) ... ──► kill
 *
 * Times are taken where the work is asked for: of the API outside the namespace, with the connection made before; by
 * hand inside of the process that does it.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs/promises"
import * as http from "node:http"
import * as path from "node:path"
import { setTimeout } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import * as Effect from "effect/Effect"
import { importImage } from "../../test/support/guests.ts"
import { type Service, startService } from "../../test/support/Service.ts"
import { temporaryDirectory } from "../../test/support/temporary.ts"
import type { HandAnswer, HandOrder, HandVm } from "./byHand.ts"
import { atMost, type Row, spread } from "./table.ts"

export interface LifecycleOptions {
  /** Guests that boot to their first line, on each side. */
  readonly boots?: number
  /** Standbys and restores of each of them. */
  readonly cycles?: number
  /** Further starts that only go as far as Running. */
  readonly starts?: number
  readonly memoryMb?: number
}

const image = "bench"
const marker = "demo: serving"
/** The same on both sides. */
const consolePollMs = 2
const consoleBoundMs = 60_000
/** A guest that was just restored has its clock set, and a guest by hand what it would do in that time. */
const settleMs = 300

const epochNow = () => performance.timeOrigin + performance.now()

interface Asked {
  readonly startedAt: number
  readonly ms: number
  readonly text: string
}

/** One request over a connection that was made before the clock starts. */
const ask = async (service: Service, method: string, target: string, body?: object): Promise<Asked> => {
  const socket = await service.namespace.dial("127.0.0.1", 8080)
  const payload = body === undefined ? "" : JSON.stringify(body)
  const startedAt = epochNow()
  const request = http.request({
    method,
    path: target,
    headers: { "content-type": "application/json", "content-length": Buffer.byteLength(payload) },
    createConnection: () => socket
  })
  request.end(payload)
  const [response]: Array<http.IncomingMessage> = await once(request, "response")
  if (response === undefined) throw new Error("no answer")
  const chunks: Array<Buffer> = await response.toArray()
  const ms = epochNow() - startedAt
  const text = Buffer.concat(chunks).toString("utf8")
  socket.destroy()
  if ((response.statusCode ?? 500) >= 300) throw new Error(`${method} ${target}: ${text}`)
  return { startedAt, ms, text }
}

/** When the line is there, as milliseconds since `startedAt`. */
const untilLine = async (file: string, startedAt: number): Promise<number> => {
  while (epochNow() - startedAt < consoleBoundMs) {
    const text = await fs.readFile(file, "latin1").catch(() => "")
    if (text.includes(marker)) return epochNow() - startedAt
    await setTimeout(consolePollMs)
  }
  throw new Error(`no "${marker}" in ${file}`)
}

const request = (id: string, memoryMb: number) => ({
  id,
  name: id,
  image,
  memory_mb: memoryMb,
  vcpus: 1,
  overlay_mb: 128
})

interface Taken {
  readonly running: Array<number>
  readonly line: Array<number>
  readonly standby: Array<number>
  readonly restore: Array<number>
}

const taken = (): Taken => ({ running: [], line: [], standby: [], restore: [] })

/** The baseline's process, inside the namespace. */
class Hand {
  readonly #child: ChildProcess

  constructor(namespace: string) {
    const program = fileURLToPath(new URL("./byHand.ts", import.meta.url))
    this.#child = spawn("ip", ["netns", "exec", namespace, process.execPath, program], {
      stdio: ["ignore", "inherit", "inherit", "ipc"]
    })
  }

  async order(order: HandOrder) {
    const said = once(this.#child, "message")
    this.#child.send(order)
    const [answer]: Array<HandAnswer> = await said
    if (answer === undefined || answer._tag === "failed")
      throw new Error(`by hand, ${order._tag}: ${answer?.reason ?? "no answer"}`)
    return { startedAt: answer.startedAt, ms: answer.endedAt - answer.startedAt }
  }

  async end() {
    const exit = once(this.#child, "exit")
    this.#child.disconnect()
    await exit
  }
}

interface Bench {
  readonly service: Service
  readonly hand: Hand
  readonly directory: string
  readonly vm: HandVm
  readonly memoryMb: number
}

const cmdline = async (pid: number): Promise<ReadonlyArray<string>> =>
  (await fs.readFile(`/proc/${pid}/cmdline`, "utf8")).split("\0").slice(0, -1)

const pidOf = (text: string): number => {
  const { vmm }: { readonly vmm?: { readonly pid?: number | null } | null } = JSON.parse(text)
  return vmm?.pid ?? 0
}

/**
 * The service's own command line for an instance that has not started, with the paths of this benchmark, and that
 * instance's disks as they were before their first boot.
 */
const takeOver = async (service: Service, directory: string, memoryMb: number): Promise<HandVm> => {
  const id = "bench-template"
  const { text } = await ask(service, "POST", "/instances", { ...request(id, memoryMb), start: false })
  const argv = await cmdline(pidOf(text))
  const instance = path.join(service.dataDir, "instances", id)
  for (const name of ["console", "run"]) await fs.mkdir(path.join(directory, name))
  for (const name of ["config.raw", "overlay.raw"])
    await fs.copyFile(path.join(instance, name), path.join(directory, `${name}.new`))
  const { network }: { readonly network: { readonly tap: string } } = JSON.parse(text)
  await ask(service, "DELETE", `/instances/${id}`)
  await Effect.runPromise(
    service.namespace.run("ip", ["tuntap", "add", "dev", "byhand0", "mode", "tap", "vnet_hdr"])
  )
  await Effect.runPromise(service.namespace.run("ip", ["link", "set", "dev", "byhand0", "up"]))
  const run = path.join(directory, "run")
  return {
    argv: argv.map((it) =>
      it
        .replaceAll(instance, directory)
        .replaceAll(path.join(service.runDirectory, id), run)
        .replaceAll(network.tap, "byhand0")
    ),
    log: path.join(directory, "vmm.log"),
    qmp: path.join(run, "qmp.sock"),
    migration: path.join(run, "migrate.sock"),
    state: path.join(directory, "state")
  }
}

const freshHand = async ({ directory }: Bench) => {
  for (const name of ["config.raw", "overlay.raw"])
    await fs.copyFile(path.join(directory, `${name}.new`), path.join(directory, name))
  for (const name of ["console", "run"]) {
    await fs.rm(path.join(directory, name), { recursive: true, force: true })
    await fs.mkdir(path.join(directory, name))
  }
}

const consoleOf = async (directory: string): Promise<string> => {
  const [name] = await fs.readdir(path.join(directory, "console"))
  return path.join(directory, "console", name ?? "1.0.log")
}

const serviceBoot = async (bench: Bench, id: string, cycles: number, into: Taken) => {
  const { service, memoryMb } = bench
  const created = await ask(service, "POST", "/instances", request(id, memoryMb))
  into.running.push(created.ms)
  const file = await consoleOf(path.join(service.dataDir, "instances", id))
  into.line.push(await untilLine(file, created.startedAt))
  for (let cycle = 0; cycle < cycles; cycle++) {
    await ask(service, "GET", `/instances/${id}/wait?ready=true&timeout_ms=60000`)
    await setTimeout(settleMs)
    into.standby.push((await ask(service, "POST", `/instances/${id}/standby`)).ms)
    into.restore.push((await ask(service, "POST", `/instances/${id}/restore`)).ms)
  }
  await ask(service, "DELETE", `/instances/${id}`)
}

const handBoot = async (bench: Bench, cycles: number, into: Taken) => {
  const { directory, hand, vm } = bench
  await freshHand(bench)
  const started = await hand.order({ _tag: "start", vm })
  into.running.push(started.ms)
  into.line.push(await untilLine(await consoleOf(directory), started.startedAt))
  for (let cycle = 0; cycle < cycles; cycle++) {
    await setTimeout(settleMs)
    into.standby.push((await hand.order({ _tag: "standby", vm })).ms)
    into.restore.push((await hand.order({ _tag: "restore", vm })).ms)
  }
  await hand.order({ _tag: "end" })
}

const serviceStart = async ({ service, memoryMb }: Bench, id: string, into: Taken) => {
  into.running.push((await ask(service, "POST", "/instances", request(id, memoryMb))).ms)
  await ask(service, "DELETE", `/instances/${id}`)
}

const handStart = async (bench: Bench, into: Taken) => {
  await freshHand(bench)
  into.running.push((await bench.hand.order({ _tag: "start", vm: bench.vm })).ms)
  await bench.hand.order({ _tag: "end" })
}

/** Who is first alternates, so that what grows over the run counts against both. */
const inTurns = async (
  rounds: number,
  ours: (round: number) => Promise<void>,
  theirs: () => Promise<void>
) => {
  for (let round = 0; round < rounds; round++) {
    if (round % 2 === 0) await ours(round)
    await theirs()
    if (round % 2 === 1) await ours(round)
  }
}

const rowsOf = (ours: Taken, theirs: Taken, memoryMb: number): ReadonlyArray<Row> => {
  const row = (part: string, what: string, name: string, key: keyof Taken) => ({
    part,
    what,
    unit: "ms" as const,
    ours: spread(ours[key]),
    baseline: { name, spread: spread(theirs[key]) }
  })
  return [
    atMost(
      row("start", `POST /instances to Running, ${memoryMb} MiB`, "the same QEMU by hand", "running"),
      1.15,
      20
    ),
    {
      ...row("start", "POST /instances to the guest's first line", "the same QEMU by hand", "line"),
      aim: "",
      met: null
    },
    atMost(row("standby", "POST standby to Standby", "the same QMP commands by hand", "standby"), 1.15, 30),
    atMost(row("restore", "POST restore to Running", "the same QMP commands by hand", "restore"), 1.15, 30)
  ]
}

export interface StepTime {
  readonly name: string
  readonly at: number
}

const prepare = (service: Service, directory: string, memoryMb: number) =>
  Effect.gen(function* () {
    yield* importImage(service, image)
    const hand = yield* Effect.acquireRelease(
      Effect.sync(() => new Hand(service.namespace.name)),
      (it) => Effect.promise(() => it.end())
    )
    const vm = yield* Effect.promise(() => takeOver(service, directory, memoryMb))
    return { service, hand, directory, vm, memoryMb } satisfies Bench
  })

/** About 8 s for each boot under software emulation, and 1 s for each cycle and start. */
export const benchLifecycle = (options: LifecycleOptions = {}): Promise<ReadonlyArray<Row>> => {
  const { boots = 4, cycles = 3, starts = 10, memoryMb = 256 } = options
  const env = {
    VMM: "qemu",
    QEMU_ACCEL: process.env["QEMU_ACCEL"] ?? "tcg",
    ...(process.env["BENCH_STEPS"] === undefined
      ? {}
      : { BENCH_STEPS: "1", NODE_OPTIONS: `--import ${new URL("./probe.ts", import.meta.url).href}` })
  }
  const measured = Effect.gen(function* () {
    const service = yield* startService({ env })
    const directory = yield* temporaryDirectory("hand")
    const bench = yield* prepare(service, directory, memoryMb)
    const [ours, theirs] = [taken(), taken()]
    yield* Effect.promise(async () => {
      await inTurns(
        1,
        () => serviceStart(bench, "bench-warm", taken()),
        () => handStart(bench, taken())
      )
      await inTurns(
        boots,
        (round) => serviceBoot(bench, `bench-boot-${round}`, cycles, ours),
        () => handBoot(bench, cycles, theirs)
      )
      await inTurns(
        starts,
        (round) => serviceStart(bench, `bench-start-${round}`, ours),
        () => handStart(bench, theirs)
      )
    })
    if (process.env["BENCH_STEPS"] !== undefined) tellSteps(service)
    return rowsOf(ours, theirs, memoryMb)
  })
  return Effect.runPromise(Effect.scoped(measured))
}

/** What the service did when, for a person who looks for lost time: BENCH_STEPS=1 node scripts/bench/lifecycle.ts */
const tellSteps = (service: Service) => {
  let last = 0
  for (const { event, at, name, path: target, from, to, time } of service.log) {
    const when = typeof at === "number" ? at : Date.parse(String(time))
    if (!["bench.step", "instance.transition", "http.request"].includes(String(event))) continue
    const what =
      event === "bench.step" ? name : event === "http.request" ? target : `${String(from)} -> ${String(to)}`
    process.stdout.write(`${(when - last).toFixed(1).padStart(9)}  ${String(event)} ${String(what)}\n`)
    last = when
  }
}

if (import.meta.main) console.table(await benchLifecycle())
