/** Processes and files in a real guest, through the API as any client would. */
import { once } from "node:events"
import * as NodeWS from "@effect/platform-node/NodeWS"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { ExecLine } from "../../src/api/Exec.ts"
import type { ExecCall, ExecExit, ExecRequest } from "../../src/domain/Exec.ts"
import type { Service } from "./Service.ts"

/** A guest under software emulation, on a machine that does other things as well. */
const outputMaxMs = 30_000

const decodeLine = Schema.decodeUnknownSync(Schema.fromJsonString(ExecLine))

/** The lines of an exec as they come. Dies where it is refused. */
export const execLines = (
  service: Service,
  id: string,
  call: typeof ExecCall.Encoded
): Stream.Stream<ExecLine> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const response = yield* service.api.execute(
        HttpClientRequest.post(`/instances/${id}/exec`).pipe(
          HttpClientRequest.bodyText(JSON.stringify(call), "application/json")
        )
      )
      if (response.status === 200) return HttpClientResponse.stream(Effect.succeed(response))
      return yield* Effect.die(new Error(`exec: ${response.status} ${yield* response.text}`))
    }).pipe(Effect.orDie)
  ).pipe(
    Stream.orDie,
    Stream.decodeText(),
    Stream.splitLines,
    Stream.map((line) => decodeLine(line))
  )

export interface Ran {
  readonly stdout: string
  readonly stderr: string
  /** How it ended, or the title of the problem that kept this from being known. */
  readonly end: ExecExit | string
}

const together = (lines: ReadonlyArray<ExecLine>): Ran => {
  let ran: Ran = { stdout: "", stderr: "", end: "nothing" }
  for (const line of lines) {
    if ("stdout" in line) ran = { ...ran, stdout: ran.stdout + line.stdout }
    else if ("stderr" in line) ran = { ...ran, stderr: ran.stderr + line.stderr }
    else ran = { ...ran, end: "exit" in line ? line.exit : line.error.title }
  }
  return ran
}

/** Runs a process to its end. */
export const run = (service: Service, id: string, call: typeof ExecCall.Encoded): Effect.Effect<Ran> =>
  Effect.map(Stream.runCollect(execLines(service, id, call)), together)

/** A shell's line, with its output. */
export const sh = (service: Service, id: string, line: string): Effect.Effect<string> =>
  Effect.map(run(service, id, { command: ["sh", "-c", line] }), ({ stdout, stderr, end }) => {
    if (typeof end === "string" || !("code" in end) || end.code !== 0)
      throw new Error(`${line}: ${JSON.stringify(end)} ${stderr}`)
    return stdout
  })

export interface Terminal {
  /** Ends when the connection has taken it. */
  readonly input: (bytes: string | Uint8Array) => Effect.Effect<void>
  readonly order: (order: object) => Effect.Effect<void>
  /** All output since the last one, until it matches. */
  readonly until: (pattern: RegExp) => Effect.Effect<string>
  /** The last message. */
  readonly end: Effect.Effect<unknown>
}

/** A process over a WebSocket. `onOutput` gets what it says, in place of `until`. */
export const terminal = (
  service: Service,
  id: string,
  request: ExecRequest,
  onOutput?: (bytes: Uint8Array) => void
) =>
  Effect.gen(function* () {
    const connection = yield* Effect.promise(() => service.namespace.dial("127.0.0.1", 8080))
    const socket = yield* Effect.acquireRelease(
      Effect.sync(
        () =>
          new NodeWS.WebSocket(`ws://127.0.0.1:8080/instances/${id}/exec`, {
            createConnection: () => connection
          })
      ),
      (it) => Effect.sync(() => it.terminate())
    )
    const end = yield* Deferred.make<unknown>()
    let text = ""
    let wake = (): void => undefined
    socket.on("error", (cause) => Deferred.doneUnsafe(end, Effect.succeed(String(cause))))
    socket.on("message", (data: Buffer, binary: boolean) => {
      if (!binary) Deferred.doneUnsafe(end, Effect.succeed(JSON.parse(data.toString())))
      else if (onOutput !== undefined) onOutput(data.subarray(1))
      else {
        text += data.subarray(1).toString()
        wake()
      }
    })
    yield* Effect.promise(() => once(socket, "open"))
    const send = (message: string | Uint8Array) =>
      Effect.callback<void>((resume) => {
        socket.send(message, () => resume(Effect.void))
      })
    yield* send(JSON.stringify(request))
    const until = (pattern: RegExp) =>
      Effect.callback<string>((resume) => {
        wake = () => {
          if (!pattern.test(text)) return
          wake = () => undefined
          resume(Effect.succeed(text))
          text = ""
        }
        wake()
      }).pipe(
        Effect.timeoutOrElse({
          duration: outputMaxMs,
          orElse: () => Effect.die(new Error(`no ${pattern.source} in ${JSON.stringify(text)}`))
        })
      )
    return {
      input: (bytes) => send(typeof bytes === "string" ? Buffer.from(bytes) : bytes),
      order: (order) => send(JSON.stringify(order)),
      until,
      end: Deferred.await(end)
    } satisfies Terminal
  })

const filesPath = (id: string, path: string) => `/instances/${id}/files?path=${encodeURIComponent(path)}`

/** A tar out of the guest. */
export const readFiles = (service: Service, id: string, path: string) =>
  Effect.gen(function* () {
    const response = yield* service.api.get(filesPath(id, path))
    const body = Buffer.from(yield* response.arrayBuffer)
    return { status: response.status, type: response.headers["content-type"], body }
  })

/** A tar into the guest; its answer. */
export const writeFiles = (service: Service, id: string, path: string, archive: Stream.Stream<Uint8Array>) =>
  Effect.gen(function* () {
    const response = yield* service.api.execute(
      HttpClientRequest.put(filesPath(id, path)).pipe(
        HttpClientRequest.bodyStream(archive, { contentType: "application/x-tar" })
      )
    )
    return { status: response.status, text: yield* response.text }
  })
