/**
 * The command `dataplane` as people have it: the bundle, as processes of its own, against a server of its own on the
 * simulated driver. Both end with the scope.
 */
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { createInterface } from "node:readline"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { bundle } from "../../scripts/bundle.ts"
import { demoImage } from "../../scripts/demoImage.ts"
import { ociArchive } from "../../scripts/imageArchive.ts"
import { layout } from "../../src/host/Paths.ts"
import { temporaryDirectory } from "./temporary.ts"

/** A command that hangs is a failure; machines are busy. */
const commandTimeoutMs = 60_000

/** What a process needs of this one's environment, and nothing of a developer's own settings. */
const baseEnvironment = {
  PATH: process.env["PATH"] ?? "",
  HOME: "/nonexistent",
  TERM: "xterm",
  LANG: "C.UTF-8"
}

/** The built command, once for a file of tests. */
export class Bundle extends Context.Service<Bundle, string>()("test/Bundle") {
  static readonly layer = Layer.effect(
    Bundle,
    Effect.flatMap(temporaryDirectory("bundle"), (directory) =>
      Effect.promise(() => bundle(path.join(directory, "dist")))
    )
  )
}

export interface Ended {
  readonly code: number | undefined
  readonly out: string
  readonly err: string
}

export interface Running {
  /** Resolves once stdout and stderr together match. */
  readonly until: (pattern: RegExp) => Promise<void>
  readonly signal: (name: NodeJS.Signals) => void
  readonly write: (text: string | Uint8Array) => void
  readonly closeInput: () => void
  readonly ended: Promise<Ended>
}

export interface CommandOptions {
  readonly env?: Readonly<Record<string, string>>
  readonly input?: string | Uint8Array
  readonly cwd?: string
}

/** Starts one command. Its stdin holds `input`; with `open` it stays open until it is closed. */
export const startCommand = (
  command: string,
  words: ReadonlyArray<string>,
  options: CommandOptions & { readonly open?: boolean } = {}
): Running => {
  const child = spawn(process.execPath, [command, ...words], {
    env: { ...baseEnvironment, ...options.env },
    stdio: "pipe",
    timeout: commandTimeoutMs,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd })
  })
  const out: Array<Buffer> = []
  const err: Array<Buffer> = []
  const text = (pieces: ReadonlyArray<Buffer>) => Buffer.concat(pieces).toString("utf8")
  const waiting = new Set<() => void>()
  const taking = (pieces: Array<Buffer>) => (piece: Buffer) => {
    pieces.push(piece)
    for (const look of waiting) look()
  }
  child.stdout.on("data", taking(out))
  child.stderr.on("data", taking(err))
  // A command may end without having read all.
  child.stdin.on("error", () => {})
  if (options.open !== true) child.stdin.end(options.input ?? "")
  return {
    until: (pattern) =>
      new Promise((resolve, reject) => {
        const look = () => {
          if (!pattern.test(text(out) + text(err))) return
          waiting.delete(look)
          resolve()
        }
        waiting.add(look)
        look()
        child.once("close", () => reject(new Error(`ended before ${pattern}: ${text(out)}${text(err)}`)))
      }),
    signal: (name) => void child.kill(name),
    write: (piece) => void child.stdin.write(piece),
    closeInput: () => void child.stdin.end(),
    ended: new Promise((resolve) => {
      child.once("close", (code) => resolve({ code: code ?? undefined, out: text(out), err: text(err) }))
    })
  }
}

/** One command line against a server, to its end. */
export const commandLine =
  (url: string) =>
  (...words: ReadonlyArray<string>) =>
    Effect.flatMap(Bundle, (command) =>
      Effect.promise(() => startCommand(command, words, { env: { DATAPLANE_URL: url } }).ended)
    )

export interface Server {
  readonly url: string
  readonly dataDir: string
  readonly stop: Effect.Effect<number | null>
}

const Started = Schema.fromJsonString(
  Schema.Struct({ event: Schema.Literal("server.started"), address: Schema.String })
)

/** `dataplane serve` on a free port of loopback, until the scope closes. */
export const startServer = (env: Readonly<Record<string, string>> = {}, given?: string) =>
  Effect.gen(function* () {
    const command = yield* Bundle
    const dataDir = given ?? (yield* temporaryDirectory("data"))
    yield* Effect.addFinalizer(() =>
      Effect.promise(() => fs.rm(layout(dataDir).run, { recursive: true, force: true }))
    )
    const child = spawn(process.execPath, [command, "serve"], {
      env: {
        ...baseEnvironment,
        VMM: "simulated",
        HOST: "127.0.0.1",
        PORT: "0",
        DATA_DIR: dataDir,
        LOG_FORMAT: "json",
        ...env
      },
      stdio: ["ignore", "pipe", "inherit"]
    })
    const ended = once(child, "exit")
    yield* Effect.addFinalizer(() =>
      Effect.promise(async () => {
        child.kill("SIGKILL")
        await ended
      })
    )
    const url = yield* Effect.promise(async () => {
      for await (const line of createInterface(child.stdout)) {
        const started = Schema.decodeOption(Started)(line)
        if (started._tag === "Some") {
          child.stdout.resume()
          return started.value.address
        }
      }
      throw new Error("the server ended before it said that it started")
    })
    return {
      url,
      dataDir,
      stop: Effect.promise(async () => {
        child.kill("SIGTERM")
        await ended
        return child.exitCode
      })
    }
  })

/** An archive of the demo image in a directory of its own. */
export const demoArchive = Effect.flatMap(temporaryDirectory("archive"), (directory) =>
  Effect.promise(async () => {
    const file = path.join(directory, "demo.tar")
    await fs.writeFile(file, await ociArchive(demoImage({})))
    return file
  })
)
