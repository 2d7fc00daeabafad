/**
 * OCI and docker manifests, indexes and configs (image-spec; docker's schema 2), parsed from bytes that may be hostile.
 * Only what is needed to unpack and to run an image is read; unknown members are passed over, as the specification asks.
 */
import { createHash } from "node:crypto"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { Digest } from "../domain/Ids.ts"
import { ImageConfig } from "../domain/Image.ts"
import { corrupt, type ImageFault, unknownImage, unsupported } from "./ImageFault.ts"

/** distribution-spec asks registries to take manifests of up to 4 MiB; a config is bounded likewise. */
export const documentMaxBytes = 4 * 1024 * 1024
/** Docker builds at most 127 layers; overlayfs stacks at most 500. */
const layersMax = 256
const indexMaxManifests = 1024
/** One layer, compressed: far above any real one, and a number of bytes that is safe to add up. */
const blobMaxBytes = 2 ** 40

/** What runs on this host. */
const platform = { os: "linux", architecture: "amd64" }
/** Micro-architecture levels of amd64, most compatible first. */
const variants = ["", "v1", "v2", "v3"]

const layerTypes = new Set([
  "application/vnd.oci.image.layer.v1.tar",
  "application/vnd.oci.image.layer.v1.tar+gzip",
  "application/vnd.oci.image.layer.v1.tar+zstd",
  "application/vnd.docker.image.rootfs.diff.tar",
  "application/vnd.docker.image.rootfs.diff.tar.gzip",
  "application/vnd.docker.image.rootfs.diff.tar.zstd"
])

const Text = Schema.String.check(Schema.isMaxLength(65_536))

export const Descriptor = Schema.Struct({
  mediaType: Schema.optionalKey(Text),
  digest: Digest,
  size: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: blobMaxBytes })),
  platform: Schema.optionalKey(
    Schema.NullOr(
      Schema.Struct({
        os: Schema.optionalKey(Text),
        architecture: Schema.optionalKey(Text),
        variant: Schema.optionalKey(Text)
      })
    )
  ),
  annotations: Schema.optionalKey(Schema.NullOr(Schema.Record(Schema.String, Text)))
})
export type Descriptor = typeof Descriptor.Type

const Index = Schema.Struct({
  manifests: Schema.Array(Descriptor).check(Schema.isMaxLength(indexMaxManifests))
})
const Manifest = Schema.Struct({
  config: Descriptor,
  layers: Schema.Array(Descriptor).check(Schema.isMaxLength(layersMax))
})

const Texts = Schema.optionalKey(Schema.NullOr(Schema.Array(Text).check(Schema.isMaxLength(4096))))
const Config = Schema.Struct({
  os: Schema.optionalKey(Text),
  architecture: Schema.optionalKey(Text),
  config: Schema.optionalKey(
    Schema.NullOr(
      Schema.Struct({
        Entrypoint: Texts,
        Cmd: Texts,
        Env: Texts,
        WorkingDir: Schema.optionalKey(Schema.NullOr(Text)),
        User: Schema.optionalKey(Schema.NullOr(Text))
      })
    )
  ),
  rootfs: Schema.Struct({ diff_ids: Schema.Array(Digest).check(Schema.isMaxLength(layersMax)) })
})

/** A layer as its image names it. */
export const LayerDescriptor = Schema.Struct({
  /** Of the blob; null in a docker save archive, which names only the content. */
  digest: Schema.NullOr(Digest),
  /** Bytes of the blob. */
  size: Schema.Int,
  diff_id: Digest
})
export type LayerDescriptor = typeof LayerDescriptor.Type

/** An image of this platform: what its manifest and its config say together. Bottom layer first. */
export const ImageManifest = Schema.Struct({
  /** Of the manifest; of the config where there is no manifest (docker save). */
  digest: Digest,
  config: ImageConfig,
  layers: Schema.Array(LayerDescriptor)
})
export type ImageManifest = typeof ImageManifest.Type

export const digestOf = (bytes: Uint8Array): Digest =>
  Digest.make(`sha256:${createHash("sha256").update(bytes).digest("hex")}`)

/** JSON of a bounded size by a schema, or a sentence about `what`. */
export const parseDocument = <S extends Schema.ConstraintDecoder<unknown>>(
  schema: S,
  what: string,
  bytes: Uint8Array
): Result.Result<S["Type"], ImageFault> => {
  if (bytes.length > documentMaxBytes)
    return Result.fail(corrupt(`${what} has more than ${documentMaxBytes} bytes.`))
  let json: unknown
  try {
    json = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes))
  } catch (cause) {
    return Result.fail(corrupt(`${what} is not JSON.`, cause))
  }
  return Schema.decodeUnknownResult(schema)(json).pipe(
    Result.mapError((issue) => corrupt(`${what} is not what the image specification says.`, issue))
  )
}

export type ParsedManifest =
  | { readonly _tag: "Index"; readonly manifests: ReadonlyArray<Descriptor> }
  | { readonly _tag: "Manifest"; readonly config: Descriptor; readonly layers: ReadonlyArray<Descriptor> }

const Shape = Schema.Struct({
  manifests: Schema.optionalKey(Schema.Unknown),
  layers: Schema.optionalKey(Schema.Unknown),
  config: Schema.optionalKey(Schema.Unknown),
  fsLayers: Schema.optionalKey(Schema.Unknown)
})

/** An index or a manifest, told apart by what it holds: media types are optional, and a document with both is refused. */
export const parseManifest = (bytes: Uint8Array): Result.Result<ParsedManifest, ImageFault> =>
  Result.gen(function* () {
    const what = "The image's manifest"
    const shape = yield* parseDocument(Shape, what, bytes)
    if (shape.fsLayers !== undefined) {
      return yield* Result.fail(
        unsupported("The image has a manifest of docker's schema 1, which is obsolete: push it again.")
      )
    }
    if (shape.manifests !== undefined && (shape.layers !== undefined || shape.config !== undefined)) {
      return yield* Result.fail(corrupt(`${what} is an index and a manifest at once.`))
    }
    if (shape.manifests !== undefined) {
      return { _tag: "Index" as const, manifests: (yield* parseDocument(Index, what, bytes)).manifests }
    }
    const manifest = yield* parseDocument(Manifest, what, bytes)
    const foreign = manifest.layers.find((it) => it.mediaType !== undefined && !layerTypes.has(it.mediaType))
    if (foreign !== undefined) {
      return yield* Result.fail(
        unsupported(
          `The image has a layer of the type ${JSON.stringify(foreign.mediaType)}, which holds no files to run.`
        )
      )
    }
    return { _tag: "Manifest" as const, config: manifest.config, layers: manifest.layers }
  })

const platformName = (it: Descriptor): string =>
  [it.platform?.os, it.platform?.architecture, it.platform?.variant]
    .filter((part) => part !== undefined)
    .join("/")

/** The manifest of an index for this host's platform; one without a platform counts where none is better. */
export const selectPlatform = (
  manifests: ReadonlyArray<Descriptor>
): Result.Result<Descriptor, ImageFault> => {
  const fitting = manifests.filter(
    ({ platform: it }) => it?.os === platform.os && it.architecture === platform.architecture
  )
  for (const variant of variants) {
    const found = fitting.find((it) => (it.platform?.variant ?? "") === variant)
    if (found !== undefined) return Result.succeed(found)
  }
  const unnamed = manifests.filter((it) => it.platform === undefined || it.platform === null)
  const [only] = unnamed
  if (only !== undefined) return Result.succeed(only)
  const names = [...new Set(manifests.map(platformName))].filter(
    (it) => it !== "" && !it.startsWith("unknown")
  )
  return Result.fail(
    unknownImage(
      `The image is not made for ${platform.os}/${platform.architecture}` +
        (names.length === 0 ? "." : `, only for ${names.slice(0, 10).join(", ")}.`)
    )
  )
}

/** `NAME=VALUE` entries; the last of a name counts, and one without a name or a value sets nothing. */
const environment = (entries: ReadonlyArray<string>): Record<string, string> =>
  Object.fromEntries(
    entries.flatMap((entry): ReadonlyArray<readonly [string, string]> => {
      const equals = entry.indexOf("=")
      return equals < 1 || entry.includes("\0") ? [] : [[entry.slice(0, equals), entry.slice(equals + 1)]]
    })
  )

/** The image that a manifest's blobs and a config make together. */
export const assemble = (
  digest: Digest,
  blobs: ReadonlyArray<{ readonly digest: Digest | null; readonly size: number }>,
  configBytes: Uint8Array
): Result.Result<ImageManifest, ImageFault> =>
  Result.gen(function* () {
    const config = yield* parseDocument(Config, "The image's config", configBytes)
    const [os, architecture] = [config.os ?? platform.os, config.architecture ?? platform.architecture]
    if (os !== platform.os || architecture !== platform.architecture) {
      return yield* Result.fail(
        unknownImage(
          `The image is made for ${os}/${architecture}; this host runs ${platform.os}/${platform.architecture}.`
        )
      )
    }
    const diffIds = config.rootfs.diff_ids
    if (diffIds.length !== blobs.length) {
      return yield* Result.fail(
        corrupt("The image's manifest and its config do not have the same number of layers.")
      )
    }
    if (diffIds.length === 0)
      return yield* Result.fail(unsupported("The image has no layer, so there is nothing to run."))
    const run = config.config ?? {}
    return {
      digest,
      config: {
        entrypoint: run.Entrypoint ?? [],
        cmd: run.Cmd ?? [],
        env: environment(run.Env ?? []),
        working_dir: run.WorkingDir ?? "",
        user: run.User ?? ""
      },
      layers: diffIds.map((diff_id, index) => ({
        digest: blobs[index]?.digest ?? null,
        size: blobs[index]?.size ?? 0,
        diff_id
      }))
    }
  })

/** docker save: one image of an archive. */
export const DockerSave = Schema.Array(
  Schema.Struct({
    Config: Text,
    RepoTags: Schema.optionalKey(Schema.NullOr(Schema.Array(Text))),
    Layers: Schema.Array(Text).check(Schema.isMaxLength(layersMax))
  })
).check(Schema.isMaxLength(indexMaxManifests))
