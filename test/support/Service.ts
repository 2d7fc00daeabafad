/**
 * The real service, `node src/main.ts serve`, in a network namespace and with a DATA_DIR of its own, as a scoped
 * resource. Tests talk to it over HTTP and by signals only, as its users do.
 *
 *   start ──server.started──► serving ──signal──► ended ──restart──► serving
 *
 * When the scope closes, the service and whatever VMM it left are ended, and namespace, DATA_DIR and run directory go.
 * A test that cares about leftovers looks before that (`leaks.ts`).
 */
import { type ChildProcessByStdio, spawn } from "node:child_process"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { createInterface } from "node:readline"
import type { Readable } from "node:stream"
import { fileURLToPath } from "node:url"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpApiClient from "effect/http-api/HttpApiClient"
import { Api } from "../../src/api/Api.ts"
import { layout } from "../../src/host/Paths.ts"
import { processes } from "../../src/host/Proc.ts"
import { guestSystem } from "./liveHost.ts"
import { makeNamespace, type Namespace } from "./Namespace.ts"
import { temporaryDirectory } from "./temporary.ts"

const repository = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..")
const port = 8080
/** About a second alone; test machines are busy. */
const startTimeoutMs = 60_000
/** Above the service's own bound for draining. */
const stopTimeoutMs = 45_000
const errorLinesKept = 60

/** A line of the service's log, as it came (contract §5); `src/telemetry/LogEvent.ts` has its schema. */
export type LogLine = Readonly<Record<string, unknown>>

export interface ServiceOptions {
  /** Added to, or set over, the environment that the service starts with. */
  readonly env?: Readonly<Record<string, string>>
  /** A namespace that the test made, for instance to prepare it; the service makes its own otherwise. */
  readonly namespace?: Namespace
}

export interface Service {
  readonly namespace: Namespace
  readonly dataDir: string
  /** Where its sockets and FIFOs live. */
  readonly runDirectory: string
  /** Requests to paths (`/instances`) go to the service. */
  readonly api: HttpClient.HttpClient
  /** The same, typed: payloads, answers and problems as the API defines them. */
  readonly client: ApiClient
  /** Of the service's process now; that of its last one while it is stopped. */
  readonly pid: () => number
  /** All log lines since the first start. */
  readonly log: ReadonlyArray<LogLine>
  /** The first log line that matches, past or to come. Dies with the service's last words where the service ends first. */
  readonly logged: (matches: (line: LogLine) => boolean) => Effect.Effect<LogLine>
  /** Signals the service and waits for its end; gives its exit code, or the signal it died from. */
  readonly stop: (signal?: NodeJS.Signals) => Effect.Effect<number | NodeJS.Signals>
  /** Starts it again on the same DATA_DIR; `env` replaces single variables from now on. */
  readonly start: (env?: Readonly<Record<string, string>>) => Effect.Effect<void>
  /** `stop`, then `start`. */
  readonly restart: (signal?: NodeJS.Signals) => Effect.Effect<void>
}

const clientOf = (httpClient: HttpClient.HttpClient) => HttpApiClient.makeWith(Api, { httpClient })
export type ApiClient = Effect.Success<ReturnType<typeof clientOf>>

type ServiceProcess = ChildProcessByStdio<null, Readable, Readable>

/** One run after the other of the same service: its process, its log, and who waits for a line of it. */
class Runs {
  readonly log: Array<LogLine> = []
  readonly #errors: Array<string> = []
  readonly #waiting = new Set<{ readonly seen: (line: LogLine) => void; readonly ended: () => void }>()
  #child: ServiceProcess | undefined
  #ended: Promise<number | NodeJS.Signals> = Promise.resolve(0)

  readonly #namespace: string

  constructor(namespace: string) {
    this.#namespace = namespace
  }

  get pid(): number {
    return this.#child?.pid ?? 0
  }

  /** What the service said last, for the message of a test that fails. */
  get lastWords(): string {
    return this.#errors.slice(-errorLinesKept).join("\n")
  }

  #take(text: string): void {
    const line = parseLine(text)
    this.#errors.push(text)
    if (this.#errors.length > 2 * errorLinesKept) this.#errors.splice(0, errorLinesKept)
    if (line === undefined) return
    this.log.push(line)
    for (const waiter of this.#waiting) waiter.seen(line)
  }

  spawn(env: Readonly<Record<string, string>>): void {
    const child = spawn("ip", ["netns", "exec", this.#namespace, process.execPath, "src/main.ts", "serve"], {
      cwd: repository,
      env,
      stdio: ["ignore", "pipe", "pipe"]
    })
    this.#child = child
    createInterface(child.stdout).on("line", (text) => this.#take(text))
    createInterface(child.stderr).on("line", (text) => this.#take(text))
    // "close" comes after both streams are read to their end, so that no line is missed.
    this.#ended = new Promise((resolve) => {
      child.once("close", (code, signal) => {
        for (const waiter of this.#waiting) waiter.ended()
        resolve(signal ?? code ?? 0)
      })
    })
  }

  waitFor(matches: (line: LogLine) => boolean, from: number): Promise<LogLine> {
    const past = this.log.slice(from).find(matches)
    if (past !== undefined) return Promise.resolve(past)
    return new Promise((resolve, reject) => {
      const waiter = {
        seen: (line: LogLine) => {
          if (!matches(line)) return
          this.#waiting.delete(waiter)
          resolve(line)
        },
        ended: () => {
          this.#waiting.delete(waiter)
          reject(new Error(`the service ended before it said what was waited for:\n${this.lastWords}`))
        }
      }
      this.#waiting.add(waiter)
    })
  }

  signal(name: NodeJS.Signals): Promise<number | NodeJS.Signals> {
    this.#child?.kill(name)
    return this.#ended
  }
}

const parseLine = (text: string): LogLine | undefined => {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === "object" && value !== null ? { ...value } : undefined
  } catch {
    return undefined
  }
}

const bounded = <A>(what: string, boundMs: number, runs: Runs, body: () => Promise<A>): Effect.Effect<A> =>
  Effect.promise(async () => {
    const late = AbortSignal.timeout(boundMs)
    return Promise.race([
      body(),
      new Promise<never>((_, reject) => {
        late.addEventListener("abort", () =>
          reject(
            new Error(`${what} took longer than ${boundMs} ms; the service's last words:\n${runs.lastWords}`)
          )
        )
      })
    ])
  })

/** Kills, by pid, every process whose command line names one of the directories: VMMs outlive the service by design. */
const killOwned = (directories: ReadonlyArray<string>) =>
  Effect.map(processes, (all) => {
    for (const { pid, argv } of all) {
      if (pid === process.pid || !argv.some((it) => directories.some((directory) => it.includes(directory))))
        continue
      try {
        process.kill(pid, "SIGKILL")
      } catch {
        // Gone since it was listed.
      }
    }
  })

/** Starts the service; ends when it says `server.started`. Dies with its last words where it does not. */
export const startService = (options: ServiceOptions = {}): Effect.Effect<Service, never, Scope.Scope> =>
  Effect.gen(function* () {
    const dataDir = yield* temporaryDirectory("data")
    const runDirectory = layout(dataDir).run
    yield* Effect.addFinalizer(() =>
      Effect.promise(() => fs.rm(runDirectory, { recursive: true, force: true }))
    )
    const namespace = options.namespace ?? (yield* makeNamespace)
    const system = guestSystem()
    let env: Readonly<Record<string, string>> = {
      PATH: process.env["PATH"] ?? "",
      HOME: dataDir,
      HOST: "127.0.0.1",
      PORT: `${port}`,
      DATA_DIR: dataDir,
      // QEMU runs everywhere; `VMM=cloud-hypervisor npm run test:live` leads the same tests over the other driver.
      VMM: process.env["VMM"] ?? "qemu",
      ...(process.env["CLOUD_HYPERVISOR_BIN"] === undefined
        ? {}
        : { CLOUD_HYPERVISOR_BIN: process.env["CLOUD_HYPERVISOR_BIN"] }),
      KERNEL_PATH: system.kernel,
      INITRD_PATH: system.initrd,
      LOG_FORMAT: "json",
      ...options.env
    }
    const runs = new Runs(namespace.name)
    yield* Effect.addFinalizer(() =>
      Effect.promise(() => runs.signal("SIGKILL")).pipe(Effect.andThen(killOwned([dataDir, runDirectory])))
    )
    const start = (changes: Readonly<Record<string, string>> = {}) =>
      Effect.suspend(() => {
        env = { ...env, ...changes }
        const from = runs.log.length
        runs.spawn(env)
        return bounded("the start", startTimeoutMs, runs, () =>
          runs.waitFor((line) => line["event"] === "server.started", from)
        )
      }).pipe(Effect.asVoid)
    const stop = (signal: NodeJS.Signals = "SIGTERM") =>
      bounded("the stop", stopTimeoutMs, runs, () => runs.signal(signal))
    yield* start()
    const toService = HttpClientRequest.prependUrl(`http://127.0.0.1:${env["PORT"] ?? port}`)
    const api = HttpClient.mapRequest(namespace.http, toService)
    return {
      namespace,
      dataDir,
      runDirectory,
      api,
      client: yield* clientOf(api),
      pid: () => runs.pid,
      log: runs.log,
      logged: (matches) => Effect.promise(() => runs.waitFor(matches, 0)),
      stop,
      start,
      restart: (signal) => stop(signal).pipe(Effect.andThen(start()))
    }
  })
