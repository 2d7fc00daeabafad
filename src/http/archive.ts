/** Archives as request bodies: streams that are bounded in length and in silence, and never held. */
import * as Effect from "effect/Effect"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Stream from "effect/Stream"
import { archiveContentType } from "../api/Images.ts"
import { InvalidRequest, RequestTimeout, UnsupportedMediaType } from "../domain/problems.ts"
import { closeAfterAnswer, mediaType } from "./validation.ts"

/** The body as it arrives: a reader that is slow slows the sender, and a sender that is silent is given up. */
export const archiveBody = (
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

/** Fails where the request says that its body is something else than a tar. */
export const mustBeTar = (
  request: HttpServerRequest.HttpServerRequest
): Effect.Effect<void, UnsupportedMediaType> =>
  mediaType(request.headers["content-type"] ?? archiveContentType) === archiveContentType
    ? Effect.void
    : Effect.fail(
        new UnsupportedMediaType({
          detail: `Send the archive with the header \`content-type: ${archiveContentType}\`.`,
          supported: [archiveContentType]
        })
      )
