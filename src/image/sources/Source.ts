/**
 * Where images come from. A source says what a reference means (manifest, config), and then brings the blobs that this
 * host lacks; everything behind that is the same for all sources.
 */
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Digest } from "../../domain/Ids.ts"
import type { LayerBlob } from "../convertLayer.ts"
import { readRange } from "../decompress.ts"
import type { ImageFault } from "../ImageFault.ts"
import type { ImageManifest } from "../manifest.ts"
import type { Reference } from "../Reference.ts"

export interface FetchRequest {
  /** Indexes of the layers to bring. */
  readonly wanted: ReadonlyArray<number>
  /** The pull's own directory; it is the caller's to remove. What an earlier, broken pull left there may be used. */
  readonly directory: string
  /** A blob may be given up while it is read; whoever reads it twice then fails with `spent`. */
  readonly spend: boolean
  /** The blob of a layer is complete. */
  readonly arrived: (index: number, blob: LayerBlob) => Effect.Effect<void>
  /** How many bytes of the wanted blobs are here, all together. */
  readonly progress: (bytes: number) => Effect.Effect<void>
}

/** What a reference means now, for this host's platform. */
export interface Found {
  readonly manifest: ImageManifest
  /**
   * Ends when every wanted blob has arrived. The blobs can be read until the scope closes. Interruption stops the transfer
   * before it returns.
   */
  readonly fetch: (request: FetchRequest) => Effect.Effect<void, ImageFault, Scope.Scope>
}

export interface Source {
  /** `refresh`: ask what the reference means by now; else what the source has at hand will do. */
  readonly resolve: (
    reference: Reference,
    options: { readonly refresh: boolean }
  ) => Effect.Effect<Found, ImageFault>
}

/** A blob that lies in a file of its own. */
export const blobFile = (path: string, size: number, digest: Digest | null, diffId: Digest): LayerBlob => ({
  read: () => readRange({ path, offset: 0, length: size }),
  digest,
  diffId
})
