/**
 * GET /instances with 100 instances: the dataplane's HTTP layer beside a bare node:http server that answers the same
 * bytes, in the same run, in turns. Requests per second depend on what else the machine does; the ratio and the CPU time
 * per request say more.
 *
 *   node scripts/bench/api.ts
 */
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { connect, type Socket } from "node:net"
import { fileURLToPath } from "node:url"

export interface ApiBenchRow {
  readonly server: "bare" | "dataplane"
  readonly requestsPerSecond: number
  readonly cpuUsPerRequest: number
  readonly bytes: number
  /** Against `bare`, same run: 1 is as fast, and as cheap. */
  readonly rateRatio: number
  readonly cpuRatio: number
}

export interface ApiBenchOptions {
  readonly rounds?: number
  readonly roundMs?: number
  readonly connections?: number
}

interface Round {
  readonly requests: number
  readonly bytes: number
}

const request = "GET /instances HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
const headEnd = Buffer.from("\r\n\r\n")
const headMaxBytes = 8192

/** One kept-alive connection that asks again as soon as it is answered, until the deadline. */
const ask = (port: number, deadline: number): Promise<Round> =>
  new Promise((resolve, reject) => {
    const socket: Socket = connect({ port, host: "127.0.0.1", noDelay: true })
    let requests = 0
    let bytes = 0
    let head: Buffer = Buffer.alloc(0)
    let left = 0
    const answered = () => {
      requests += 1
      if (performance.now() < deadline) socket.write(request)
      else {
        socket.destroy()
        resolve({ requests, bytes })
      }
    }
    socket.on("error", reject)
    socket.on("connect", () => socket.write(request))
    socket.on("data", (chunk: Buffer) => {
      if (left > 0) {
        left -= chunk.length
        if (left === 0) answered()
        return
      }
      head = head.length === 0 ? chunk : Buffer.concat([head, chunk])
      const end = head.indexOf(headEnd)
      if (end < 0) {
        if (head.length > headMaxBytes) socket.destroy(new Error("the answer has no head"))
        return
      }
      const text = head.subarray(0, end).toString("latin1")
      const length = /\r\ncontent-length: (\d+)/iu.exec(text)?.[1]
      if (!text.startsWith("HTTP/1.1 200") || length === undefined) {
        socket.destroy(new Error(`unexpected answer: ${text.slice(0, 200)}`))
        return
      }
      bytes = Number(length)
      left = bytes - (head.length - end - headEnd.length)
      head = Buffer.alloc(0)
      if (left === 0) answered()
    })
  })

const say = async <A>(child: ChildProcess): Promise<A> => {
  const [message] = await once(child, "message")
  return message
}

const cpuUs = async (child: ChildProcess): Promise<number> => {
  child.send("cpu")
  return (await say<{ cpuUs: number }>(child)).cpuUs
}

const measure = async (child: ChildProcess, port: number, connections: number, roundMs: number) => {
  const before = await cpuUs(child)
  const started = performance.now()
  const rounds = await Promise.all(Array.from({ length: connections }, () => ask(port, started + roundMs)))
  const elapsedMs = performance.now() - started
  const requests = rounds.reduce((sum, round) => sum + round.requests, 0)
  return {
    rate: (requests / elapsedMs) * 1000,
    cpu: ((await cpuUs(child)) - before) / requests,
    bytes: rounds[0]?.bytes ?? 0
  }
}

const median = (values: ReadonlyArray<number>): number =>
  values.toSorted((left, right) => left - right)[Math.floor(values.length / 2)] ?? Number.NaN

/** Load is bounded: `rounds` times `roundMs` for each of the two servers, over `connections` connections. */
export const benchApi = async (options: ApiBenchOptions = {}): Promise<ReadonlyArray<ApiBenchRow>> => {
  const { rounds = 5, roundMs = 1_500, connections = 16 } = options
  const program = fileURLToPath(new URL("./apiServer.ts", import.meta.url))
  const names = ["bare", "dataplane"] as const
  const children = names.map((name) => ({ name, child: fork(program, [name]) }))
  try {
    const servers = await Promise.all(
      children.map(async ({ name, child }) => ({
        name,
        child,
        port: (await say<{ port: number }>(child)).port
      }))
    )
    for (const { child, port } of servers) await measure(child, port, connections, roundMs / 2)
    const taken = new Map(names.map((name) => [name, { rates: [0], cpus: [0], bytes: 0 }]))
    for (const name of names) taken.set(name, { rates: [], cpus: [], bytes: 0 })
    for (let round = 0; round < rounds; round++)
      for (const { name, child, port } of servers) {
        const { rate, cpu, bytes } = await measure(child, port, connections, roundMs)
        const before = taken.get(name)
        taken.set(name, {
          rates: [...(before?.rates ?? []), rate],
          cpus: [...(before?.cpus ?? []), cpu],
          bytes
        })
      }
    const rate = (name: ApiBenchRow["server"]) => median(taken.get(name)?.rates ?? [])
    const cpu = (name: ApiBenchRow["server"]) => median(taken.get(name)?.cpus ?? [])
    return names.map((name) => ({
      server: name,
      requestsPerSecond: Math.round(rate(name)),
      cpuUsPerRequest: Math.round(cpu(name) * 10) / 10,
      bytes: taken.get(name)?.bytes ?? 0,
      rateRatio: Math.round((rate(name) / rate("bare")) * 100) / 100,
      cpuRatio: Math.round((cpu(name) / cpu("bare")) * 100) / 100
    }))
  } finally {
    for (const { child } of children) child.disconnect()
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.table(await benchApi())
