/** Handlers of the calls: thin, since `Instances` and `Images` hold the rules. */
import * as Effect from "effect/Effect"
import type * as Headers from "effect/http/Headers"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { preconditionOf } from "../api/IfMatch.ts"
import type { ExecCall } from "../domain/Exec.ts"
import type { InstanceId } from "../domain/Ids.ts"
import type { Verb } from "../domain/Instance.ts"
import { execLines } from "../http/exec.ts"
import { Drain } from "../http/Drain.ts"
import { Health } from "../http/Health.ts"
import { HostResources } from "../http/HostResources.ts"
import { ending } from "../http/sse.ts"
import { health } from "../http/system.ts"
import { volumeViews } from "../http/volumeViews.ts"
import { neverLaunches, waitFor } from "../http/verbs.ts"
import { Images } from "../image/Images.ts"
import { Instances, type LogSource, type VerbOptions } from "../instance/Instances.ts"
import { Volumes } from "../volume/Volumes.ts"
import { DataplaneRpcs } from "./Rpcs.ts"

type Serving = readonly [instances: Instances["Service"], drain: Drain["Service"]]

interface LogsAsked {
  readonly source?: LogSource
  readonly follow?: boolean
  readonly tail?: number
  readonly after?: number
}

const logLines = (
  [instances, drain]: Serving,
  id: InstanceId,
  { source = "app", follow = false, tail, after }: LogsAsked
) =>
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
  )

const output = ([instances, drain]: Serving, id: InstanceId, call: ExecCall) =>
  Stream.unwrap(
    Effect.map(execLines({ instances, drain }, id, call), (pieces) =>
      Stream.flatMap(pieces, (some) => Stream.fromIterable(some))
    )
  )

export const layerHandlers = DataplaneRpcs.toLayer(
  Effect.gen(function* () {
    const instances = yield* Instances
    const images = yield* Images
    const volumes = yield* Volumes
    const { all, shown } = volumeViews(volumes, instances)
    const drain = yield* Drain
    const service = yield* Health
    const resources = yield* HostResources
    const serving: Serving = [instances, drain]
    const command = (
      id: InstanceId,
      verb: Exclude<Verb, "delete">,
      headers: Headers.Headers,
      options: VerbOptions = {}
    ) =>
      Effect.flatMap(preconditionOf(headers["if-match"]), (condition) =>
        instances.command(id, verb, { ...options, ...condition })
      )
    const stays = (...args: Parameters<typeof command>) => neverLaunches(command(...args))
    return DataplaneRpcs.of({
      "system.health": () => health(service),
      "system.resources": () => resources.report,
      "images.list": () => images.list,
      "images.get": ({ id }) => images.get(id),
      "images.create": (request) => images.create(request),
      "images.remove": ({ id }) => instances.removeImage(id),
      "instances.list": (filter) => instances.list(filter),
      "instances.get": ({ id }) => instances.get(id),
      "instances.create": (request) => instances.create(request),
      "instances.patch": ({ id, ...changes }, { headers }) =>
        Effect.flatMap(preconditionOf(headers["if-match"]), (condition) =>
          instances.patch(id, changes, condition)
        ),
      "instances.remove": ({ id }, { headers }) =>
        Effect.flatMap(preconditionOf(headers["if-match"]), (condition) =>
          neverLaunches(instances.remove(id, condition))
        ),
      "instances.start": ({ id }, { headers }) => command(id, "start", headers),
      "instances.pause": ({ id }, { headers }) => stays(id, "pause", headers),
      "instances.resume": ({ id }, { headers }) => stays(id, "resume", headers),
      "instances.shutdown": ({ id }, { headers }) => stays(id, "shutdown", headers),
      "instances.stop": ({ id, discard_snapshot = false }, { headers }) =>
        stays(id, "stop", headers, { discardSnapshot: discard_snapshot }),
      "instances.standby": ({ id }, { headers }) => stays(id, "standby", headers),
      "instances.restore": ({ id, resume = true, restore_mode: mode }, { headers }) =>
        command(id, "restore", headers, { resume, ...(mode === undefined ? {} : { restoreMode: mode }) }),
      "instances.exec": ({ id, ...call }) => output(serving, id, call),
      "instances.attach": ({ id, volume, ...how }) => instances.attach(id, volume, how),
      "instances.detach": ({ id, volume, force = false }) => instances.detach(id, volume, force),
      "volumes.list": () => all,
      "volumes.get": ({ id }) => Effect.flatMap(volumes.get(id), shown),
      "volumes.create": (request) => Effect.flatMap(volumes.create(request), shown),
      "volumes.patch": ({ id, size_gb: sizeGb }) => Effect.flatMap(instances.growVolume(id, sizeGb), shown),
      "volumes.remove": ({ id }) => instances.removeVolume(id),
      "images.collect": () => instances.collectImages,
      "instances.wait": ({ id, ...request }) => waitFor(instances, id, request),
      "instances.logs": ({ id, ...asked }) => logLines(serving, id, asked),
      "events.read": ({ since }) => ending(instances.events(Option.fromUndefinedOr(since)), drain)
    })
  })
)
