/**
 * What misbehaving clients cost the others: GET /instances with 100 instances from the whole service (on a simulated host),
 * with nobody else there and under each attack, in the same run, in turns. And what one reader of events costs.
 *
 *   node scripts/bench/clients.ts
 */
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { connect, type Socket } from "node:net"
import { fileURLToPath } from "node:url"
import { percentile, type Row, spread } from "./table.ts"

export interface ClientsBenchOptions {
  readonly rounds?: number
  readonly requests?: number
}

/** Under attack the others still get at least so much of what they get alone. */
const underAttackAim = 0.5
const instancesCount = 100
const readers = 500
const idleSockets = 1_500
const slowSockets = 500
/** A reader's stream, its fiber and its socket. */
const readerKibAim = 256

interface Server {
  readonly child: ChildProcess
  readonly port: number
  readonly url: string
}

const say = async (child: ChildProcess): Promise<number> => {
  const [message] = await once(child, "message")
  return Number(message)
}

const start = async (): Promise<Server> => {
  const program = fileURLToPath(new URL("../../test/support/attackedServer.ts", import.meta.url))
  const child = fork(program, [JSON.stringify({ headersMs: 600_000 })])
  const port = await say(child)
  const url = `http://127.0.0.1:${port}`
  for (let index = 0; index < instancesCount; index++) {
    const body = { id: `vm-${index}`, name: `vm-${index}`, image: "img-demo", memory_mb: 128, start: false }
    const headers = { "content-type": "application/json" }
    const answer = await fetch(`${url}/instances`, { method: "POST", headers, body: JSON.stringify(body) })
    if (answer.status !== 201) throw new Error(`an instance was not created: ${await answer.text()}`)
  }
  return { child, port, url }
}

const memory = async ({ child }: Server): Promise<number> => {
  child.send("memory")
  return say(child)
}

const open = (port: number, count: number, greeting: string): Promise<ReadonlyArray<Socket>> =>
  Promise.all(
    Array.from(
      { length: count },
      () =>
        new Promise<Socket>((resolve) => {
          const socket = connect({ port, host: "127.0.0.1" })
          socket.on("error", () => resolve(socket))
          socket.on("connect", () => {
            if (greeting !== "") socket.write(greeting)
            resolve(socket)
          })
        })
    )
  )

/** Requests per second of one client that asks again as soon as it is answered. */
const rate = async ({ url }: Server, requests: number): Promise<number> => {
  const startedAt = performance.now()
  for (let index = 0; index < requests; index++) {
    const answer = await fetch(`${url}/instances`)
    if (answer.status !== 200) throw new Error(`the list was answered with ${answer.status}`)
    await answer.arrayBuffer()
  }
  return (requests / (performance.now() - startedAt)) * 1000
}

const head = "HTTP/1.1\r\nhost: 127.0.0.1\r\n"
const attacks: ReadonlyArray<{ readonly name: string; readonly count: number; readonly greeting: string }> = [
  { name: `${readers} readers of events`, count: readers, greeting: `GET /events ${head}\r\n` },
  { name: `${idleSockets} idle sockets`, count: idleSockets, greeting: "" },
  { name: `${slowSockets} endless headers`, count: slowSockets, greeting: `GET /instances ${head}x-a: ` }
]

export const benchClients = async (options: ClientsBenchOptions = {}): Promise<ReadonlyArray<Row>> => {
  const { rounds = 5, requests = 400 } = options
  const server = await start()
  try {
    await rate(server, requests)
    const rows: Array<Row> = []
    for (const { name, count, greeting } of attacks) {
      const [alone, under]: [Array<number>, Array<number>] = [[], []]
      for (let round = 0; round < rounds; round++) {
        alone.push(await rate(server, requests))
        const sockets = await open(server.port, count, greeting)
        under.push(await rate(server, requests))
        for (const socket of sockets) socket.destroy()
      }
      rows.push({
        part: "clients",
        what: `GET /instances beside ${name}`,
        unit: "req/s",
        ours: spread(under),
        baseline: { name: "the same with nobody else there", spread: spread(alone) },
        aim: `>= ${underAttackAim}x`,
        met: percentile(under, 50) >= underAttackAim * percentile(alone, 50)
      })
    }
    return [...rows, await readerMemory(server)]
  } finally {
    server.child.disconnect()
  }
}

/** Beside what one kept-alive connection costs that has been answered once. */
const readerMemory = async (server: Server): Promise<Row> => {
  const each = async (greeting: string): Promise<number> => {
    const before = await memory(server)
    const sockets = await open(server.port, readers, greeting)
    await Promise.all(sockets.map((socket) => once(socket, "data")))
    const after = await memory(server)
    for (const socket of sockets) socket.destroy()
    return Math.max(1, (after - before) / readers / 1024)
  }
  const plain = await each(`GET /health ${head}\r\n`)
  const reading = await each(`GET /events ${head}\r\n`)
  return {
    part: "clients",
    what: "heap and buffers of one reader of events",
    unit: "KiB",
    ours: spread([reading]),
    baseline: { name: "a kept-alive connection", spread: spread([plain]) },
    aim: `<= ${readerKibAim} KiB`,
    met: reading <= readerKibAim
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.table(await benchClients())
