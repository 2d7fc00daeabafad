/** Images for tests: one ready image, `img-demo`, with one layer. Nothing is pulled, nothing is converted. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { Digest, ImageId, timestamp } from "../../src/domain/Ids.ts"
import type { BootImage, Image } from "../../src/domain/Image.ts"
import { ImageInUse, ImageNotFound, Unprocessable } from "../../src/domain/problems.ts"
import { Images } from "../../src/image/Images.ts"

export const demoImage = ImageId.make("img-demo")
export const demoReference = "docker.io/library/demo:latest"
export const demoDigest = Digest.make(`sha256:${"d".repeat(64)}`)
export const demoDiffId = Digest.make(`sha256:${"1".repeat(64)}`)

const config = {
  entrypoint: ["/bin/demo"],
  cmd: ["serve"],
  env: { PATH: "/bin" },
  working_dir: "/",
  user: ""
}

const demo: Image = {
  id: demoImage,
  name: demoReference,
  digest: demoDigest,
  status: "ready",
  progress: { phase: "ready", bytes_done: 1, bytes_total: 1, layers_done: 1, layers_total: 1 },
  error: null,
  size_bytes: 1,
  ...config,
  created_at: timestamp(0)
}

const notFound = (image: string) =>
  new ImageNotFound({ detail: `There is no image ${image} on this host. Pull it first.`, image })
const refused = new Unprocessable({ detail: "This host has one image and takes no other." })

/** `layerPath`: the file that stands for the image's layer; whoever starts a VM makes sure that it exists. */
export const simulatedImages = (layerPath: string): Layer.Layer<Images> =>
  Layer.sync(Images, () => {
    let present = true
    const boot: BootImage = {
      id: demoImage,
      digest: demoDigest,
      layers: [{ diffId: demoDiffId, path: layerPath }],
      config
    }
    const when = <A>(known: boolean, value: A, name: string) =>
      Effect.suspend(() => (known && present ? Effect.succeed(value) : Effect.fail(notFound(name))))
    return Images.of({
      create: () => Effect.fail(refused),
      importArchive: (_id, archive) => Effect.andThen(Stream.runDrain(archive), Effect.fail(refused)),
      list: Effect.sync(() => (present ? [demo] : [])),
      get: (id) => when(id === demoImage, demo, id),
      resolve: (image) => when(image === demoImage || image === demoReference, boot, image),
      pinned: (id, digest) => when(id === demoImage && digest === demoDigest, boot, id),
      remove: (id, users) =>
        Effect.gen(function* () {
          if (id !== demoImage || !present) return yield* notFound(id)
          if (users.length > 0) {
            return yield* new ImageInUse({
              detail: "Delete its instances first.",
              image_id: id,
              instances: users
            })
          }
          return yield* Effect.sync(() => void (present = false))
        })
    })
  })
