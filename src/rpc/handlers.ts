/** Handlers of the calls: thin, since `Instances` and `Images` hold the rules. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Drain } from "../http/Drain.ts"
import { ending } from "../http/sse.ts"
import { neverLaunches, waitFor } from "../http/verbs.ts"
import { Images } from "../image/Images.ts"
import { Instances } from "../instance/Instances.ts"
import { DataplaneRpcs } from "./Rpcs.ts"

export const layerHandlers = DataplaneRpcs.toLayer(
  Effect.gen(function* () {
    const instances = yield* Instances
    const images = yield* Images
    const drain = yield* Drain
    return DataplaneRpcs.of({
      "images.list": () => images.list,
      "images.get": ({ id }) => images.get(id),
      "images.create": (request) => images.create(request),
      "images.remove": ({ id }) => instances.removeImage(id),
      "instances.list": (filter) => instances.list(filter),
      "instances.get": ({ id }) => instances.get(id),
      "instances.create": (request) => instances.create(request),
      "instances.patch": ({ id, ...changes }) => instances.patch(id, changes),
      "instances.remove": ({ id }) => neverLaunches(instances.remove(id)),
      "instances.start": ({ id }) => instances.command(id, "start"),
      "instances.pause": ({ id }) => neverLaunches(instances.command(id, "pause")),
      "instances.resume": ({ id }) => neverLaunches(instances.command(id, "resume")),
      "instances.shutdown": ({ id }) => neverLaunches(instances.command(id, "shutdown")),
      "instances.stop": ({ id, discard_snapshot = false }) =>
        neverLaunches(instances.command(id, "stop", { discardSnapshot: discard_snapshot })),
      "instances.standby": ({ id }) => neverLaunches(instances.command(id, "standby")),
      "instances.restore": ({ id, resume = true }) => instances.command(id, "restore", { resume }),
      "instances.wait": ({ id, ...request }) => waitFor(instances, id, request),
      "instances.logs": ({ id, source = "app", follow = false, tail, after }) =>
        Stream.unwrap(
          Effect.map(
            instances.logs(id, {
              source,
              follow,
              tail: Option.fromUndefinedOr(tail),
              after: Option.fromUndefinedOr(after)
            }),
            (lines) => ending(lines, drain)
          )
        ),
      "events.read": ({ since }) => ending(instances.events(Option.fromUndefinedOr(since)), drain)
    })
  })
)
