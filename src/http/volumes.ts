/** Handlers of volumes and their attachments: thin, since `Volumes` and `Instances` hold the rules. */
import * as Effect from "effect/Effect"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import { Api } from "../api/Api.ts"
import { Instances } from "../instance/Instances.ts"
import { Volumes } from "../volume/Volumes.ts"
import { archiveBody, mustBeTar } from "./archive.ts"
import { HttpBounds } from "./Bounds.ts"
import { instanceResponse } from "./instances.ts"
import { volumeViews } from "./volumeViews.ts"

export const layerVolumes = HttpApiBuilder.group(
  Api,
  "volumes",
  Effect.fnUntraced(function* (handlers) {
    const volumes = yield* Volumes
    const instances = yield* Instances
    const bounds = yield* HttpBounds
    const { all, shown } = volumeViews(volumes, instances)
    return handlers
      .handleAll({
        list: () => all,
        create: ({ payload }) => Effect.flatMap(volumes.create(payload), shown),
        get: ({ params }) => Effect.flatMap(volumes.get(params.id), shown),
        patch: ({ params, payload }) =>
          Effect.flatMap(instances.growVolume(params.id, payload.size_gb), shown),
        remove: ({ params }) => instances.removeVolume(params.id)
      })
      .handleRaw("import", ({ query, request }) =>
        mustBeTar(request).pipe(
          Effect.andThen(volumes.importArchive(query, archiveBody(request, bounds.uploadIdleMs))),
          Effect.flatMap(shown)
        )
      )
  })
)

export const layerAttachments = HttpApiBuilder.group(
  Api,
  "attachments",
  Effect.fnUntraced(function* (handlers) {
    const instances = yield* Instances
    return handlers.handleAll({
      attach: ({ params, payload }) =>
        Effect.map(instances.attach(params.id, params.volume, payload), (it) => instanceResponse(it)),
      detach: ({ params, query }) =>
        Effect.map(instances.detach(params.id, params.volume, query.force ?? false), (it) =>
          instanceResponse(it)
        )
    })
  })
)
