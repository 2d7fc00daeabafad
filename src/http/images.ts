/** Handlers of images: thin, since `Images` and `Instances` hold the rules. */
import * as Effect from "effect/Effect"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import { Api } from "../api/Api.ts"
import { Images } from "../image/Images.ts"
import { Instances } from "../instance/Instances.ts"
import { archiveBody, mustBeTar } from "./archive.ts"
import { HttpBounds } from "./Bounds.ts"

export const layerImages = HttpApiBuilder.group(
  Api,
  "images",
  Effect.fnUntraced(function* (handlers) {
    const images = yield* Images
    const instances = yield* Instances
    const bounds = yield* HttpBounds
    return handlers
      .handleAll({
        list: () => images.list,
        create: ({ payload }) => images.create(payload),
        get: ({ params }) => images.get(params.id),
        collect: () => instances.collectImages,
        remove: ({ params }) => instances.removeImage(params.id)
      })
      .handleRaw("import", ({ query, request }) =>
        Effect.andThen(
          mustBeTar(request),
          images.importArchive(query.id, archiveBody(request, bounds.uploadIdleMs))
        )
      )
  })
)
