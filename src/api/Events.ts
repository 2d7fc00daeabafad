/** Every state change of every instance, in one order, with cursors that survive restarts of the service. */
import * as Schema from "effect/Schema"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import { InstanceEvent } from "../domain/Event.ts"
import { Authorization } from "./Authorization.ts"
import { IntParameter } from "./parameters.ts"
import { Validation } from "./Validation.ts"

const cursor = (description: string) =>
  Schema.optionalKey(IntParameter({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER, description }))

export class EventsGroup extends HttpApiGroup.make("events")
  .add(
    HttpApiEndpoint.get("read", "/", {
      query: { since: cursor("Resumes behind this event; Last-Event-ID goes before it.") },
      headers: { "last-event-id": cursor("Resumes behind this event, without loss and without repetition.") },
      success: HttpApiSchema.StreamSse({
        events: Schema.Struct({
          id: Schema.String.annotate({ description: "The event's own id: the cursor." }),
          data: Schema.fromJsonString(Schema.Struct(InstanceEvent.fields))
        })
      })
    }).annotateMerge(
      OpenApi.annotations({
        summary: "State changes as server-sent events",
        description:
          "Without a cursor: new events only. A comment is sent as heartbeat while nothing happens."
      })
    )
  )
  .middleware(Validation)
  .middleware(Authorization)
  .prefix("/events")
  .annotateMerge(OpenApi.annotations({ title: "events", description: "What happens to instances." })) {}
