/** Log lines on the wire: server-sent events, or the lines alone for those who accept text/plain. */
import * as Effect from "effect/Effect"
import type * as HttpServerRequest from "effect/http/HttpServerRequest"
import type * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { InstanceId } from "../domain/Ids.ts"
import type { InstanceNotFound } from "../domain/problems.ts"
import type { Instances, LogSource } from "../instance/Instances.ts"
import type { HttpBounds } from "./Bounds.ts"
import type { Drain } from "./Drain.ts"
import { ending, sseEvent, sseStream, streamResponse, textStream } from "./sse.ts"

interface LogsQuery {
  readonly follow?: boolean
  readonly tail?: number
  readonly source?: LogSource
}

interface Services {
  readonly instances: Instances["Service"]
  readonly bounds: HttpBounds
  readonly drain: Drain["Service"]
}

const prefersPlainText = (accept: string | undefined): boolean =>
  accept !== undefined && accept.includes("text/plain") && !accept.includes("text/event-stream")

export const logsResponse = (
  { instances, bounds, drain }: Services,
  id: InstanceId,
  query: LogsQuery,
  after: number | undefined,
  request: HttpServerRequest.HttpServerRequest
): Effect.Effect<HttpServerResponse.HttpServerResponse, InstanceNotFound> =>
  Effect.gen(function* () {
    const lines = yield* instances.logs(id, {
      source: query.source ?? "app",
      follow: query.follow ?? false,
      tail: Option.fromUndefinedOr(query.tail),
      after: Option.fromUndefinedOr(after)
    })
    const safe = ending(lines, drain)
    if (prefersPlainText(request.headers.accept)) {
      const text = textStream(Stream.map(safe, ({ line }) => `${line}\n`))
      return streamResponse(request, bounds, "text/plain; charset=utf-8", text)
    }
    const events = Stream.map(safe, ({ cursor, time, line }) => sseEvent(cursor, { time, line }))
    return streamResponse(request, bounds, "text/event-stream", sseStream(events, bounds.heartbeatMs))
  })
