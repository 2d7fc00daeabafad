/**
 * One run of the real service that is there to be killed: started on a DATA_DIR, spoken to over HTTP as any client does,
 * and ended by itself (DATAPLANE_KILL_AT), by SIGTERM or by SIGKILL.
 */
import { spawn } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { createInterface } from "node:readline"
import * as Schema from "effect/Schema"
import { Instance } from "../../src/domain/Instance.ts"
import type { Survey } from "./ground.ts"
import { within } from "./within.ts"

/** About 0.3 s alone; test machines are busy. */
const startTimeoutMs = 60_000
/** A verb on a simulated host takes milliseconds, on a real one seconds. */
export const requestTimeoutMs = 120_000

export interface Answer {
  readonly status: number
  readonly body: unknown
}

/** How a request reaches the service: from here, or from inside its network namespace. */
export type Door = (
  port: number,
  method: string,
  route: string,
  body?: string | Uint8Array
) => Promise<Answer>

/** Where a service runs: how it is started there, how it is spoken to, and how one looks at its host. */
export interface Stage {
  readonly command: (argv: ReadonlyArray<string>) => ReadonlyArray<string>
  readonly door: Door
  readonly survey: Survey
}

export const parse = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

export const loopbackDoor: Door = async (port, method, route, body) => {
  const json = typeof body === "string"
  const answer = await fetch(`http://127.0.0.1:${port}${route}`, {
    method,
    signal: AbortSignal.timeout(requestTimeoutMs),
    ...(body === undefined
      ? {}
      : {
          body: json ? body : Uint8Array.from(body),
          headers: { "content-type": json ? "application/json" : "application/x-tar" }
        })
  })
  return { status: answer.status, body: parse(await answer.text()) }
}

const Started = Schema.Struct({ event: Schema.Literal("server.started"), message: Schema.String })
const isStarted = Schema.is(Started)
const decodeList = Schema.decodeUnknownSync(Schema.Array(Instance))
const decodeOne = Schema.decodeUnknownSync(Instance)

export class ServiceFailed extends Error {}

export interface Victim {
  readonly pid: number
  readonly request: (method: string, route: string, body?: string | Uint8Array) => Promise<Answer>
  /** A verb that has to succeed. */
  readonly ask: (method: string, route: string, body?: unknown) => Promise<Instance>
  readonly list: () => Promise<ReadonlyArray<Instance>>
  /** The boundaries that it passed so far, in order; only where it was told to trace them. */
  readonly boundaries: () => ReadonlyArray<string>
  /** Its end: the signal that it died of, or its exit code. */
  readonly ended: Promise<NodeJS.Signals | number>
  readonly signal: (name: NodeJS.Signals) => Promise<NodeJS.Signals | number>
  /** What it said last, for people. */
  readonly words: () => string
}

const lastLines = 15

/** Many at once, and each listens for the end of this process. */
process.setMaxListeners(0)

/** Starts the service; ends when it listens. `directory` takes its stderr, whose writes are then synchronous. */
export const startVictim = async (
  argv: ReadonlyArray<string>,
  env: Readonly<Record<string, string>>,
  directory: string,
  stage: Stage
): Promise<Victim> => {
  const errorFile = path.join(directory, `stderr-${process.hrtime.bigint()}`)
  const errors = fs.openSync(errorFile, "a", 0o600)
  const [program, ...args] = stage.command(argv)
  if (program === undefined) throw new ServiceFailed("no command")
  const child = spawn(program, [...args], { env: { ...env }, stdio: ["ignore", "pipe", errors] })
  fs.closeSync(errors)
  // However this process ends, no service of its own stays behind.
  const strike = () => void child.kill("SIGKILL")
  process.once("exit", strike)
  child.once("exit", () => process.off("exit", strike))
  const spoken: Array<string> = []
  const ended = new Promise<NodeJS.Signals | number>((resolve) =>
    child.once("exit", (code, signal) => resolve(signal ?? code ?? 0))
  )
  const words = () =>
    [...spoken.slice(-lastLines), fs.readFileSync(errorFile, "utf8").slice(-2_000)].join("\n")
  const started = new Promise<number>((resolve) => {
    const { stdout } = child
    if (stdout === null) return
    createInterface(stdout).on("line", (line) => {
      spoken.push(line)
      const entry = parse(line)
      const port = isStarted(entry) ? /:(\d+)/u.exec(entry.message.replace(/^.*\/\//u, "")) : null
      if (port?.[1] !== undefined) resolve(Number(port[1]))
    })
  })
  const gone = ended.then((how) =>
    Promise.reject(new ServiceFailed(`the service ended (${how}):\n${words()}`))
  )
  const port = await within(startTimeoutMs, Promise.race([started, gone]), () => `the start:\n${words()}`)
  const request = (method: string, route: string, body?: string | Uint8Array) =>
    stage.door(port, method, route, body)
  return {
    pid: child.pid ?? 0,
    request,
    ask: async (method, route, body) => {
      const { status, body: answer } = await request(
        method,
        route,
        body === undefined ? undefined : JSON.stringify(body)
      )
      if (status >= 300) throw new ServiceFailed(`${method} ${route}: ${status} ${JSON.stringify(answer)}`)
      return decodeOne(answer)
    },
    list: async () => decodeList((await request("GET", "/instances")).body),
    boundaries: () =>
      fs
        .readFileSync(errorFile, "utf8")
        .split("\n")
        .flatMap((line) => (line.startsWith("boundary ") ? [line.slice("boundary ".length)] : [])),
    ended,
    signal: (name) => {
      child.kill(name)
      return ended
    },
    words
  }
}
