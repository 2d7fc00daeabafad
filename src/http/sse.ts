/**
 * Streams on the wire: server-sent events with heartbeats, or lines of plain text. Nothing is held for a slow client:
 * pieces are pulled only as fast as the socket takes them, and a client that takes none is cut off. A failure in the middle
 * ends the stream and is reported here; its cause never reaches the client, who comes back with the last id.
 */
import { IncomingMessage } from "node:http"
import type * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Stream from "effect/Stream"
import { reportDefects } from "../telemetry/defects.ts"
import type { HttpBounds } from "./Bounds.ts"
import type { Drain } from "./Drain.ts"

/**
 * The first thing that an event stream says. A comment and no `retry`: typed clients take that for the end of the
 * connection (effect/encoding/Sse), browsers come back without it as well.
 */
const greeting = ": connected\n\n"

/** One event. JSON keeps the data on one line, whatever control characters it holds. */
export const sseEvent = (id: number, data: object): string => `id: ${id}\ndata: ${JSON.stringify(data)}\n\n`

/** Opens with a comment, which sends the headers at once; another every `heartbeatMs` while it lives. */
export const sseStream = (events: Stream.Stream<string>, heartbeatMs: number): Stream.Stream<string> => {
  const heartbeat = Stream.tick(heartbeatMs).pipe(
    Stream.drop(1),
    Stream.map(() => ": heartbeat\n\n")
  )
  return Stream.prepend(Stream.merge(events, heartbeat, { haltStrategy: "left" }), [greeting])
}

/** The empty first piece sends the headers at once. */
export const textStream = (pieces: Stream.Stream<string>): Stream.Stream<string> =>
  Stream.prepend(pieces, [""])

/** Ends with the service's drain, and with its own failure, which is reported. */
export const ending = <A>(stream: Stream.Stream<A>, drain: Drain["Service"]): Stream.Stream<A> =>
  stream.pipe(
    Stream.interruptWhen(drain.begun),
    Stream.catchCause((cause) =>
      Stream.fromEffectDrain(reportDefects(cause, "a stream failed and was ended"))
    )
  )

/** Nobody reads: node destroys a socket on which no byte moved for so long, and with it goes the stream. */
const cutStalled = (request: HttpServerRequest.HttpServerRequest, stalledMs: number): void => {
  const { source } = request
  if (source instanceof IncomingMessage) source.socket.setTimeout(stalledMs)
}

/** Neither caches nor proxies may hold a stream back. */
export const streamResponse = (
  request: HttpServerRequest.HttpServerRequest,
  bounds: HttpBounds,
  contentType: string,
  pieces: Stream.Stream<string>
): HttpServerResponse.HttpServerResponse => {
  cutStalled(request, bounds.stalledClientMs)
  return HttpServerResponse.stream(Stream.encodeText(pieces), {
    contentType,
    headers: { "cache-control": "no-store", "x-accel-buffering": "no" }
  })
}
