/** What a test with real guests does again and again, through the API as any client would. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import { demoImage } from "../../scripts/demoImage.ts"
import { type ArchiveSource, ociArchive } from "../../scripts/imageArchive.ts"
import { ImageId } from "../../src/domain/Ids.ts"
import { CreateInstance, type Instance } from "../../src/domain/Instance.ts"
import type { Service } from "./Service.ts"

/** The API has no event for an image's end, nor a guest's server one for its start. */
const lookAgainEveryMs = 100
const looksAtMost = 600
const lookAgain = { schedule: Schedule.spaced(lookAgainEveryMs), times: looksAtMost }

/** Imports an image made of the demo image and `changes`, and waits until it is ready. Dies where it fails. */
export const importImage = (service: Service, id: string, changes: Partial<ArchiveSource> = {}) =>
  Effect.gen(function* () {
    const image = ImageId.make(id)
    const archive = yield* Effect.promise(() => ociArchive(demoImage(changes)))
    yield* service.client.images.import({
      query: { id: image },
      payload: Stream.make(new Uint8Array(archive))
    })
    const settled = yield* service.client.images
      .get({ params: { id: image } })
      .pipe(Effect.repeat({ ...lookAgain, until: ({ status }) => status === "ready" || status === "failed" }))
    return settled.status === "ready"
      ? settled
      : yield* Effect.die(new Error(`image ${id} is ${settled.status}: ${settled.error}`))
  })

/** Small enough for many at once; the contract's own defaults are for real work. */
const small = { memory_mb: 256, vcpus: 1, overlay_mb: 128 }

/** POST /instances, small unless the request says otherwise. */
export const createInstance = (
  service: Service,
  request: Pick<typeof CreateInstance.Encoded, "name" | "image"> & Partial<typeof CreateInstance.Encoded>
) =>
  Effect.flatMap(Schema.decodeEffect(CreateInstance)({ ...small, ...request }), (payload) =>
    service.client.instances.create({ payload })
  )

/** A page that the guest serves on its TAP, as soon as it answers. Fails with what was in the way after a minute. */
export const fetchPage = (service: Service, instance: Instance, path = "/", port = 80) =>
  service.namespace.http.get(`http://${instance.network.ip}:${port}${path}`).pipe(
    Effect.flatMap((response) => response.text),
    Effect.retry(lookAgain)
  )

/** The guest's console until now. */
export const consoleText = (service: Service, instance: Instance) =>
  service.api
    .execute(
      HttpClientRequest.get(`/instances/${instance.id}/logs`).pipe(HttpClientRequest.accept("text/plain"))
    )
    .pipe(Effect.flatMap((response) => response.text))
