/** Handlers of images: thin, since `Images` and `Instances` hold the rules. */
import * as Effect from "effect/Effect"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as Stream from "effect/Stream"
import { Api } from "../api/Api.ts"
import { archiveContentType } from "../api/Images.ts"
import { InvalidRequest, RequestTimeout, UnsupportedMediaType } from "../domain/problems.ts"
import { Images } from "../image/Images.ts"
import { Instances } from "../instance/Instances.ts"
import { HttpBounds } from "./Bounds.ts"
import { closeAfterAnswer, mediaType } from "./validation.ts"

/** The body as it arrives, never held: a reader that is slow slows the sender. */
const archive = (
  request: HttpServerRequest.HttpServerRequest,
  idleMs: number
): Stream.Stream<Uint8Array, InvalidRequest | RequestTimeout> =>
  request.stream.pipe(
    Stream.mapError(
      () => new InvalidRequest({ detail: "The archive ended before all of it had arrived; send it again." })
    ),
    Stream.timeoutOrElse({
      duration: idleMs,
      orElse: () =>
        Stream.fromEffectDrain(
          Effect.andThen(
            Effect.provideService(closeAfterAnswer, HttpServerRequest.HttpServerRequest, request),
            Effect.fail(
              new RequestTimeout({
                detail: `No byte of the archive arrived for ${idleMs / 1000} s; send it again.`
              })
            )
          )
        )
    })
  )

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
        mediaType(request.headers["content-type"] ?? archiveContentType) === archiveContentType
          ? images.importArchive(query.id, archive(request, bounds.uploadIdleMs))
          : Effect.fail(
              new UnsupportedMediaType({
                detail: `Send the archive with the header \`content-type: ${archiveContentType}\`.`,
                supported: [archiveContentType]
              })
            )
      )
  })
)
