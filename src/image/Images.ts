/**
 * Images on this host: pulled from a registry or imported from an archive, each layer a squashfs, once, shared.
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { Digest, ImageId, InstanceId } from "../domain/Ids.ts"
import type { BootImage, CreateImage, Image } from "../domain/Image.ts"
import type {
  Busy,
  ImageExists,
  ImageInUse,
  ImageNotFound,
  ImageNotReady,
  InvalidRequest,
  PayloadTooLarge,
  Unprocessable
} from "../domain/problems.ts"

export class Images extends Context.Service<
  Images,
  {
    /** Starts a pull and answers at once; progress is on the image. The same reference while it works is one pull. */
    readonly create: (request: CreateImage) => Effect.Effect<Image, ImageExists | Unprocessable | Busy>
    /** Takes a docker save or OCI-layout tar; answers when it is received, conversion goes on. */
    readonly importArchive: <E>(
      id: ImageId | undefined,
      archive: Stream.Stream<Uint8Array, E>
    ) => Effect.Effect<Image, ImageExists | InvalidRequest | Unprocessable | PayloadTooLarge | Busy | E>
    readonly list: Effect.Effect<ReadonlyArray<Image>>
    readonly get: (id: ImageId) => Effect.Effect<Image, ImageNotFound>
    /** A ready image by id or reference. */
    readonly resolve: (image: string) => Effect.Effect<BootImage, ImageNotFound | ImageNotReady>
    /** The image that an instance was created from, also after its tag moved on. */
    readonly pinned: (id: ImageId, digest: Digest) => Effect.Effect<BootImage, ImageNotFound>
    /** Cancels a pull, or removes a ready image that `users` is empty for, with the layers that nothing else needs. */
    readonly remove: (
      id: ImageId,
      users: ReadonlyArray<InstanceId>
    ) => Effect.Effect<void, ImageNotFound | ImageInUse>
  }
>()("dataplane/image/Images") {}
