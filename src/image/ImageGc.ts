/**
 * Lets go of versions of images that nobody uses any more. Who uses what is known to instances, which images know nothing
 * of; so whoever knows calls this (after a delete, at the start, `dataplane gc`).
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Digest, ImageId } from "../domain/Ids.ts"
import type { ImageGcReport } from "../domain/Image.ts"

export class ImageGc extends Context.Service<
  ImageGc,
  {
    /**
     * Forgets every older version (its tag moved on) that is not in `inUse`, and removes the layers that no image needs.
     * Current versions stay, used or not. Faults of the disk are logged and left for the next time. Gives what was removed.
     */
    readonly collect: (
      inUse: ReadonlyArray<{ readonly id: ImageId; readonly digest: Digest }>
    ) => Effect.Effect<ImageGcReport>
  }
>()("dataplane/image/ImageGc") {}
