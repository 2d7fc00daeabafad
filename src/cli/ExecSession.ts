/**
 * A process in a guest as if it ran here: its stdin, stdout, stderr and signals over one WebSocket, a terminal where one
 * is asked for.
 *
 *   handshake ──open──► request sent ──► running ──"exit" or "error"──► ended
 *       └── refused: the problem              └── closed without either ──► lost
 *
 * While it runs, signals and the terminal are the guest's; both are given back however it ends. Both directions are
 * bounded: the socket is not read while stdout is full, stdin is not while the socket is.
 */
import { Socket } from "node:net"
import { type RawData, WebSocket } from "@effect/platform-node/NodeWS"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Failure, exitCodes, failure, problemFailure, ProblemLike } from "./Failure.ts"
import { printable } from "./text.ts"

export interface ExecRequest {
  readonly command: ReadonlyArray<string>
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly user?: string
  readonly tty?: { readonly rows: number; readonly cols: number }
  readonly timeout_ms?: number
}

export interface ExecOptions {
  /** Of the service: http or https. */
  readonly url: string
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  readonly request: ExecRequest
  /** Hands stdin on; without it the process reads an empty one. */
  readonly interactive: boolean
}

const Last = Schema.fromJsonString(
  Schema.Union([
    Schema.Struct({
      exit: Schema.Union([
        Schema.Struct({ code: Schema.Int }),
        Schema.Struct({ signal: Schema.String }),
        Schema.Struct({ timeout: Schema.Literal(true) })
      ])
    }),
    Schema.Struct({ error: ProblemLike })
  ])
)
const decodeLast = Schema.decodeOption(Last)
const decodeProblem = Schema.decodeOption(Schema.fromJsonString(ProblemLike))

/** How the process ended. */
export type ExecEnd = { readonly code: number } | { readonly signal: string } | { readonly timeout: true }

const handshakeTimeoutMs = 30_000
/** Bytes on their way to the service beyond which stdin is not read. */
const sendingMaxBytes = 1024 * 1024
/** Of a body that refuses a handshake. */
const problemMaxBytes = 64 * 1024
const sideMax = 4096
/** So many interrupts say that the person means this program, not the guest's. */
const interruptsToLeave = 3
const passedOn: ReadonlyArray<NodeJS.Signals> = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"]

/** The size of the terminal on stdout. */
export const windowSize = (): { readonly rows: number; readonly cols: number } => {
  const side = (size: number, otherwise: number) => (size > 0 ? Math.min(size, sideMax) : otherwise)
  return { rows: side(process.stdout.rows, 24), cols: side(process.stdout.columns, 80) }
}

/** The terminal in raw mode, so that every key reaches the guest; its size follows. Gives its release. */
const takeTerminal = (resized: () => void): (() => void) => {
  process.stdin.setRawMode(true)
  process.stdout.on("resize", resized)
  return () => {
    process.stdin.setRawMode(false)
    process.stdout.off("resize", resized)
  }
}

/** Signals go to `handle` alone. Gives their release. */
const takeSignals = (handle: (signal: NodeJS.Signals) => void): (() => void) => {
  const before = passedOn.map((signal) => [signal, process.listeners(signal)] as const)
  for (const signal of passedOn) {
    process.removeAllListeners(signal)
    process.on(signal, handle)
  }
  return () => {
    for (const [signal, listeners] of before) {
      process.removeAllListeners(signal)
      for (const listener of listeners) process.on(signal, listener)
    }
  }
}

const bytesOf = (data: RawData): Buffer =>
  Buffer.isBuffer(data) ? data : Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data)

/** stdin to the socket, no faster than the socket takes it. Gives its release. */
const feed = (socket: WebSocket): (() => void) => {
  const { stdin } = process
  const give = (piece: Buffer) => {
    socket.send(piece, () => {
      if (socket.bufferedAmount <= sendingMaxBytes) stdin.resume()
    })
    if (socket.bufferedAmount > sendingMaxBytes) stdin.pause()
  }
  const end = () => socket.send(JSON.stringify({ stdin_end: true }))
  stdin.on("data", give)
  stdin.once("end", end)
  stdin.once("error", end)
  return () => {
    stdin.off("data", give)
    stdin.off("end", end)
    stdin.off("error", end)
    stdin.pause()
    // A file or a pipe that is left unread must not keep this process.
    if (stdin instanceof Socket) stdin.unref()
  }
}

/** The first byte says which stream the rest is. The socket is not read until there is room for more. */
const write = (socket: WebSocket, message: Buffer): void => {
  const stream = message[0] === 2 ? process.stderr : process.stdout
  if (stream.write(message.subarray(1))) return
  socket.pause()
  stream.once("drain", () => socket.resume())
}

const lost = failure(
  "The connection to the service was lost; whether the command has ended is not known.",
  "unreachable"
)

/** Why the service did not make it a WebSocket. */
const refusal = (body: string, status: number): Failure =>
  Option.match(decodeProblem(body), {
    onNone: () => failure(`The service does not run commands that way: it answered ${status}.`),
    onSome: problemFailure
  })

const endOf = (text: string): Effect.Effect<ExecEnd, Failure> =>
  Option.match(decodeLast(text), {
    onNone: () =>
      Effect.fail(failure(`The service said something else than an end: ${printable(text.slice(0, 200))}`)),
    onSome: (last) => ("exit" in last ? Effect.succeed(last.exit) : Effect.fail(problemFailure(last.error)))
  })

/** The socket's handshake; a refusal is the service's own problem. */
const connect = ({ url, path, headers }: ExecOptions) => {
  const socket = new WebSocket(url.replace(/^http/u, "ws") + path, {
    headers: { ...headers },
    perMessageDeflate: false,
    handshakeTimeout: handshakeTimeoutMs
  })
  const opened = Effect.callback<WebSocket, Failure>((resume) => {
    socket.once("open", () => resume(Effect.succeed(socket)))
    socket.once("error", (error) =>
      resume(
        Effect.fail(failure(`Nothing answers as a dataplane at ${url} (${error.message}).`, "unreachable"))
      )
    )
    socket.once("unexpected-response", (request, response) => {
      let body = ""
      response.on("data", (piece: Buffer) => {
        if (body.length < problemMaxBytes) body += piece.toString("utf8")
      })
      response.once("end", () => {
        request.destroy()
        resume(Effect.fail(refusal(body, response.statusCode ?? 0)))
      })
    })
  })
  return { socket, opened }
}

/** Runs it to its end on a socket that is open. */
const converse = (socket: WebSocket, { request, interactive }: ExecOptions) =>
  Effect.callback<ExecEnd, Failure>((resume) => {
    const order = (message: object) => {
      if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message))
    }
    let end: Effect.Effect<ExecEnd, Failure> = Effect.fail(lost)
    let interrupts = 0
    socket.on("message", (data, isBinary) => {
      if (isBinary) write(socket, bytesOf(data))
      else end = endOf(bytesOf(data).toString("utf8"))
    })
    socket.once("close", () => resume(end))
    order(request)
    const releases = [
      takeSignals((signal) => {
        interrupts += signal === "SIGINT" ? 1 : 0
        if (interrupts >= interruptsToLeave)
          resume(Effect.fail(new Failure({ sentence: "", exitCode: exitCodes.interrupted })))
        else order({ signal: signal.slice("SIG".length) })
      }),
      ...(request.tty === undefined ? [] : [takeTerminal(() => order({ resize: windowSize() }))]),
      ...(interactive ? [feed(socket)] : [])
    ]
    if (!interactive) order({ stdin_end: true })
    return Effect.sync(() => {
      for (const release of releases) release()
    })
  })

/** Runs the request in the guest with this process's stdin, stdout, stderr and signals. */
export const execute = (options: ExecOptions): Effect.Effect<ExecEnd, Failure> =>
  Effect.acquireUseRelease(
    Effect.sync(() => connect(options)),
    ({ opened }) => Effect.flatMap(opened, (socket) => converse(socket, options)),
    ({ socket }) =>
      Effect.sync(() => {
        socket.on("error", () => {})
        socket.terminate()
      })
  )
