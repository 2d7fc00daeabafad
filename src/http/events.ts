/** GET /events on the wire. */
import * as Effect from "effect/Effect"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Api } from "../api/Api.ts"
import { Instances } from "../instance/Instances.ts"
import { HttpBounds } from "./Bounds.ts"
import { Drain } from "./Drain.ts"
import { ending, sseEvent, sseStream, streamResponse } from "./sse.ts"

export const layerEvents = HttpApiBuilder.group(
  Api,
  "events",
  Effect.fnUntraced(function* (handlers) {
    const instances = yield* Instances
    const bounds = yield* HttpBounds
    const drain = yield* Drain
    return handlers.handleAll({
      read: ({ query, headers, request }) =>
        Effect.sync(() => {
          const after = Option.fromUndefinedOr(headers["last-event-id"] ?? query.since)
          const events = ending(instances.events(after), drain).pipe(
            Stream.map((event) => sseEvent(event.id, event))
          )
          return streamResponse(request, bounds, "text/event-stream", sseStream(events, bounds.heartbeatMs))
        })
    })
  })
)
