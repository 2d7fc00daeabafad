/** Archives out of a guest and into it, straight through: nothing is held but what sockets hold. */
import * as Effect from "effect/Effect"
import type * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Stream from "effect/Stream"
import { archiveContentType } from "../api/Images.ts"
import type { InstanceId } from "../domain/Ids.ts"
import { PayloadTooLarge } from "../domain/problems.ts"
import { archiveBody, mustBeTar } from "./archive.ts"
import { type GuestServices, whileServing } from "./exec.ts"
import { cutOff, cutUnread } from "./slowClient.ts"
import { closeAfterAnswer } from "./validation.ts"

const tooLarge = (bytes: number): PayloadTooLarge =>
  new PayloadTooLarge({ detail: `An archive is at most ${bytes} bytes here; copy it in parts.` })

/** Fails as soon as it is longer than `most` bytes. */
const bounded =
  (most: number) =>
  <E>(archive: Stream.Stream<Uint8Array, E>): Stream.Stream<Uint8Array, E | PayloadTooLarge> => {
    let bytes = 0
    return Stream.mapEffect(archive, (piece) => {
      bytes += piece.length
      return bytes > most ? Effect.fail(tooLarge(most)) : Effect.succeed(piece)
    })
  }

/** A failure in the middle cuts the connection: an archive that just ends would look whole to many readers. */
export const readFilesResponse = Effect.fnUntraced(function* (
  { instances, bounds, drain }: GuestServices,
  id: InstanceId,
  path: string,
  request: HttpServerRequest.HttpServerRequest
) {
  const archive = yield* instances.readFiles(id, path)
  cutUnread(request, bounds.stalledClientMs)
  const pieces = archive.pipe(
    bounded(bounds.archiveMaxBytes),
    whileServing(drain),
    Stream.catch(() => Stream.fromEffectDrain(cutOff(request)))
  )
  return HttpServerResponse.stream(pieces, {
    contentType: archiveContentType,
    headers: { "cache-control": "no-store" }
  })
})

export const writeFiles = Effect.fnUntraced(function* (
  { instances, bounds }: GuestServices,
  id: InstanceId,
  path: string,
  request: HttpServerRequest.HttpServerRequest
) {
  yield* mustBeTar(request)
  const archive = archiveBody(request, bounds.uploadIdleMs).pipe(bounded(bounds.archiveMaxBytes))
  return yield* instances.writeFiles(id, path, archive).pipe(Effect.tapError(() => closeAfterAnswer))
})
