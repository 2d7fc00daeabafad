/**
 * An image as users see it, and the plan for booting it: which layers, bottom first, and what to run.
 *
 *   pending ──► pulling ──► converting ──► ready
 *      └───────────┴────────────┴────────► failed ──(POST again)──► pending
 */
import * as Schema from "effect/Schema"
import { Digest, ImageId, Timestamp } from "./Ids.ts"

export const ImageStatus = Schema.Literals(["pending", "pulling", "converting", "ready", "failed"])
export type ImageStatus = typeof ImageStatus.Type

const Count = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))

export const ImageProgress = Schema.Struct({
  phase: ImageStatus,
  bytes_done: Count,
  bytes_total: Count,
  layers_done: Count,
  layers_total: Count
}).annotate({ identifier: "ImageProgress" })
export type ImageProgress = typeof ImageProgress.Type

/** What the OCI config says about running the image (image-spec, config.md). */
export const ImageConfig = Schema.Struct({
  entrypoint: Schema.Array(Schema.String),
  cmd: Schema.Array(Schema.String),
  env: Schema.Record(Schema.String, Schema.String),
  working_dir: Schema.String,
  user: Schema.String
})
export type ImageConfig = typeof ImageConfig.Type

/** What the layers of an image's current version take on this host's disk. */
export const ImageDisk = Schema.Struct({
  own_bytes: Count.annotate({
    description: "Of layers that no other image has: what its removal gives back."
  }),
  shared_bytes: Count.annotate({ description: "Of layers that other images have as well; kept once." })
}).annotate({ identifier: "ImageDisk" })
export type ImageDisk = typeof ImageDisk.Type

/** What a garbage collection removed. */
export const ImageGcReport = Schema.Struct({
  layers_removed: Count,
  bytes_freed: Count
}).annotate({ identifier: "ImageGcReport" })
export type ImageGcReport = typeof ImageGcReport.Type

export const Image = Schema.Struct({
  id: ImageId,
  name: Schema.String,
  digest: Schema.NullOr(Digest),
  status: ImageStatus,
  progress: ImageProgress,
  error: Schema.NullOr(Schema.String),
  size_bytes: Count,
  disk: Schema.optionalKey(ImageDisk),
  ...ImageConfig.fields,
  created_at: Timestamp
}).annotate({ identifier: "Image", description: "An OCI image on this host." })
export type Image = typeof Image.Type

/** POST /images. */
export const CreateImage = Schema.Struct({
  name: Schema.String.check(Schema.isMinCodePoints(1), Schema.isMaxCodePoints(512)).annotate({
    description: "An image reference, as `docker pull` takes it.",
    examples: ["docker.io/library/nginx:alpine"]
  }),
  id: Schema.optionalKey(ImageId)
}).annotate({ identifier: "CreateImage" })
export type CreateImage = typeof CreateImage.Type

/** One read-only disk of a ready image. */
export interface ImageLayer {
  /** The digest of the uncompressed layer tar (image-spec: DiffID): the layer's name on this host. */
  readonly diffId: Digest
  /** Absolute path of its squashfs on this host. */
  readonly path: string
}

/** A ready image, as a guest needs it. Bottom layer first. */
export interface BootImage {
  readonly id: ImageId
  readonly digest: Digest
  readonly layers: ReadonlyArray<ImageLayer>
  readonly config: ImageConfig
}
