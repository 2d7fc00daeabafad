/**
 * A process in the guest over a WebSocket, for interactive use.
 *
 *   handshake ──first text message: the request──► running ──exit, or a problem──► last text message, closed
 *       └── none in time, or not valid ─────────────────────────────────────────────┘
 *
 * Both directions are pulled: a client's messages only as fast as the guest takes stdin, the guest's output only as fast
 * as the client's socket has room. The process belongs to the connection.
 */
import { IncomingMessage } from "node:http"
import * as Effect from "effect/Effect"
import type * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Schema from "effect/Schema"
import * as Socket from "effect/socket/Socket"
import * as Stream from "effect/Stream"
import { type ExecLine, ExecOrder, execSocketKinds } from "../api/Exec.ts"
import { type ExecOutput, ExecRequest } from "../domain/Exec.ts"
import type { InstanceId } from "../domain/Ids.ts"
import { InvalidRequest, RequestTimeout } from "../domain/problems.ts"
import type { RunningExec } from "../instance/Instances.ts"
import { type GuestServices, lateProblem, whileServing } from "./exec.ts"
import { untilRead } from "./slowClient.ts"

const strict = { onExcessProperty: "error" } as const
const decodeRequest = Schema.decodeUnknownEffect(Schema.fromJsonString(ExecRequest), strict)
const decodeOrder = Schema.decodeUnknownEffect(Schema.fromJsonString(ExecOrder), strict)

const keepAliveMs = 30_000
/** Close codes (RFC 6455, section 7.4.1): all was said, or it ended otherwise. */
const closedNormally = 1000
const closedByProblem = 1011

/** What is shown of why a request is not valid. */
const saidMaxChars = 300

type Message = string | Uint8Array

interface Wire {
  /** The next messages; waits for as long as the client says nothing. */
  readonly pull: Effect.Effect<ReadonlyArray<Message>, Socket.SocketError>
  /** Ends when the client's socket has room for more. */
  readonly send: (message: Message) => Effect.Effect<void, Socket.SocketError>
  readonly close: (code: number) => Effect.Effect<void, Socket.SocketError>
}

const invalid = (detail: string): InvalidRequest => new InvalidRequest({ detail })

const open = Effect.fnUntraced(function* (request: HttpServerRequest.HttpServerRequest, stalledMs: number) {
  const { source } = request
  if (!(source instanceof IncomingMessage))
    return yield* Effect.die(new Error("a request without a connection"))
  const connection = source.socket
  const socket = yield* Effect.mapError(request.upgrade, () =>
    invalid("Ask with a WebSocket handshake here; without one, POST runs a process.")
  )
  const reader = yield* socket.reader
  const writer = yield* socket.writer
  connection.setKeepAlive(true, keepAliveMs)
  const wire: Wire = {
    pull: reader.pull,
    send: (message) => Effect.andThen(writer.write(message), untilRead(connection, stalledMs)),
    close: (code) => writer.write(new Socket.CloseEvent(code))
  }
  return wire
})

const orderFrom = (text: string): Effect.Effect<ExecOrder, InvalidRequest> =>
  Effect.mapError(decodeOrder(text), () =>
    invalid("A text message is `{resize}`, `{signal}` or `{stdin_end: true}`; input is binary.")
  )

const obey = (running: RunningExec, order: ExecOrder) => {
  if ("resize" in order) return running.resize(order.resize)
  if ("signal" in order) return running.signal(order.signal)
  return running.endInput
}

/** What the client says, one message at a time; ends when it goes away. */
const listen = (wire: Wire, running: RunningExec, first: ReadonlyArray<Message>) => {
  const take = (message: Message) =>
    typeof message === "string"
      ? Effect.flatMap(orderFrom(message), (order) => obey(running, order))
      : running.write(message)
  return Effect.forEach(first, take, { discard: true }).pipe(
    Effect.andThen(
      Effect.forever(Effect.flatMap(wire.pull, (some) => Effect.forEach(some, take, { discard: true })))
    )
  )
}

const framed = (kind: "Stdout" | "Stderr", bytes: Uint8Array): Uint8Array => {
  const message = new Uint8Array(bytes.length + 1)
  message[0] = execSocketKinds[kind]
  message.set(bytes, 1)
  return message
}

const say = (wire: Wire, output: ExecOutput) =>
  wire.send(
    output._tag === "Exit" ? JSON.stringify({ exit: output.exit }) : framed(output._tag, output.bytes)
  )

const requestFrom = (text: string): Effect.Effect<ExecRequest, InvalidRequest> =>
  Effect.mapError(decodeRequest(text), (error) =>
    invalid(`The request is not valid: ${error.message.split("\n")[0]?.slice(0, saidMaxChars) ?? ""}`)
  )

/** The request is the first message; what came right behind it is kept. */
const firstMessage = Effect.fnUntraced(function* (wire: Wire, withinMs: number) {
  const [first, ...rest] = yield* Effect.timeoutOrElse(wire.pull, {
    duration: withinMs,
    orElse: () => Effect.fail(new RequestTimeout({ detail: `No request came within ${withinMs / 1000} s.` }))
  })
  if (typeof first !== "string") return yield* invalid("The first message is the request, as text.")
  return { request: yield* requestFrom(first), rest }
})

const serve = Effect.fnUntraced(function* (
  { instances, bounds, drain }: GuestServices,
  id: InstanceId,
  wire: Wire
) {
  const { request, rest } = yield* firstMessage(wire, bounds.bodyMs)
  const running = yield* instances.exec(id, request)
  const output = running.output.pipe(
    whileServing(drain),
    Stream.runForEach((it) => say(wire, it))
  )
  yield* Effect.raceFirst(output, listen(wire, running, rest))
})

const isProblem = <E>(error: E): error is Exclude<E, Socket.SocketError> => !Socket.isSocketError(error)

const farewell = (wire: Wire, problem: Parameters<typeof lateProblem>[0]) => {
  const last: ExecLine = lateProblem(problem)
  return Effect.andThen(wire.send(JSON.stringify(last)), wire.close(closedByProblem))
}

/** The answer is discarded: the connection is not HTTP's any more by then. */
export const execSocketResponse = Effect.fnUntraced(function* (
  services: GuestServices,
  id: InstanceId,
  request: HttpServerRequest.HttpServerRequest
) {
  yield* services.instances.get(id)
  yield* open(request, services.bounds.stalledClientMs).pipe(
    Effect.flatMap((wire) =>
      serve(services, id, wire).pipe(
        Effect.scoped,
        Effect.andThen(wire.close(closedNormally)),
        Effect.catchIf(isProblem, (problem) => farewell(wire, problem))
      )
    ),
    // A client that goes away, also in the middle of the handshake, is nobody's failure.
    Effect.catchIf(Socket.isSocketError, () => Effect.void)
  )
  return HttpServerResponse.empty()
})
