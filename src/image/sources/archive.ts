/**
 * Images from an archive: what `docker save` writes, or an OCI layout in a tar. The archive is decompressed where it is
 * compressed, written to disk once, and indexed while it is written; its layers are converted from where they lie in
 * that file.
 *
 *   upload ─► decompress ─► sizes bounded ─► spool file
 *                                └─► TarReader ─► name ► offset, length
 */
import * as fs from "node:fs/promises"
import { createWriteStream } from "node:fs"
import * as path from "node:path"
import { pipeline } from "node:stream/promises"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { digestHex } from "../../domain/Ids.ts"
import type { LayerBlob } from "../convertLayer.ts"
import { decompress, readRange } from "../decompress.ts"
import { corrupt, fromHost, ImageFault, noSpace, tooLarge, unsupported } from "../ImageFault.ts"
import {
  assemble,
  type Descriptor,
  digestOf,
  DockerSave,
  documentMaxBytes,
  type ImageManifest,
  parseDocument,
  parseManifest,
  selectPlatform
} from "../manifest.ts"
import { shown, TarError, type TarEntry } from "../tar/TarEntry.ts"
import { type TarHandler, TarReader } from "../tar/TarReader.ts"

/** An archive of one image has a few names per layer. */
const archiveMaxEntries = 10_000
const linksMax = 8
/** Space is asked for once in this many bytes. */
const spaceCheckBytes = 64 * 1024 * 1024
const freeReserveBytes = 256 * 1024 * 1024

export interface ArchiveBounds {
  /** Bytes of one archive, decompressed. */
  readonly archiveMaxBytes: number
}

interface Place {
  readonly offset: number
  readonly length: number
}

/** The names of an archive and where their bytes are. */
export class ArchiveIndex implements TarHandler {
  readonly #places = new Map<string, Place | { readonly link: string }>()
  readonly #reader: TarReader

  constructor() {
    this.#reader = new TarReader(this)
  }

  push(chunk: Buffer): void {
    this.#reader.push(chunk)
  }

  end(): void {
    this.#reader.end()
  }

  entry(entry: TarEntry): void {
    if (this.#places.size >= archiveMaxEntries)
      throw new TarError(`it has more than ${archiveMaxEntries} entries`)
    const name = path.posix.join("/", entry.name)
    if (entry.type === "file" && entry.sparse === null) {
      this.#places.set(name, { offset: this.#reader.dataOffset, length: entry.size })
    } else if (entry.type === "link") this.#places.set(name, { link: path.posix.join("/", entry.linkname) })
    else if (entry.type === "symlink") {
      this.#places.set(name, { link: path.posix.join(path.posix.dirname(name), entry.linkname) })
    }
  }

  data(): void {}
  dataEnd(): void {}

  /** Old docker save archives link layers that are the same to one another. */
  find(name: string): Place | undefined {
    let place = this.#places.get(path.posix.join("/", name))
    for (let links = 0; place !== undefined && "link" in place; links++) {
      if (links > linksMax) return undefined
      place = this.#places.get(place.link)
    }
    return place
  }
}

/** Why an upload could not be stored. */
const spoolFault = (cause: unknown): ImageFault => {
  if (cause instanceof ImageFault) return cause
  if (cause instanceof TarError) return corrupt(`The archive is not sound: ${cause.message}.`, cause)
  const code = cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : ""
  if (code.startsWith("Z_") || code.startsWith("ZSTD_")) {
    return corrupt("The archive cannot be decompressed: it is damaged or cut off.", cause)
  }
  return fromHost("Storing the archive", cause)
}

/**
 * Writes an upload to `target` as a plain tar, and indexes it. `upload` fails with what it fails with: the caller knows
 * that before it asks here.
 */
export const spool = (
  upload: AsyncIterable<Uint8Array>,
  target: string,
  bounds: ArchiveBounds
): Effect.Effect<ArchiveIndex, ImageFault> =>
  Effect.tryPromise({
    try: async (signal) => {
      const index = new ArchiveIndex()
      async function* buffers() {
        for await (const chunk of upload) yield Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
      }
      let bytes = 0
      let checked = -spaceCheckBytes
      await pipeline(
        async function* () {
          for await (const chunk of decompress(buffers())) {
            bytes += chunk.length
            if (bytes > bounds.archiveMaxBytes) {
              throw tooLarge(
                `The archive has more than ${bounds.archiveMaxBytes} bytes unpacked, which is this service's bound.`
              )
            }
            if (bytes - checked >= spaceCheckBytes) {
              checked = bytes
              const space = await fs.statfs(path.dirname(target))
              if (space.bavail * space.bsize < freeReserveBytes) {
                throw noSpace("The disk of the data directory is full; the archive was not stored.")
              }
            }
            index.push(chunk)
            yield chunk
          }
          index.end()
        },
        createWriteStream(target, { flags: "wx", mode: 0o600 }),
        { signal }
      )
      return index
    },
    catch: spoolFault
  })

/** An archive, understood. */
export interface Archive {
  readonly manifest: ImageManifest
  /** The name that it carries: a reference, a bare tag, or none. */
  readonly name: string | null
  readonly blobs: ReadonlyArray<LayerBlob>
}

const readPlace = (file: string, place: Place) =>
  Effect.tryPromise({
    try: async () => {
      const handle = await fs.open(file, "r")
      try {
        const bytes = Buffer.alloc(place.length)
        await handle.read(bytes, 0, place.length, place.offset)
        return bytes
      } finally {
        await handle.close()
      }
    },
    catch: (cause) => fromHost("Reading the archive", cause)
  })

const document = Effect.fnUntraced(function* (file: string, index: ArchiveIndex, name: string) {
  const place = index.find(name)
  if (place === undefined)
    return yield* corrupt(`The archive lacks ${shown(name)}, which its manifest names.`)
  if (place.length > documentMaxBytes)
    return yield* corrupt(`${shown(name)} in the archive is longer than it may be.`)
  return yield* readPlace(file, place)
})

const blobName = (descriptor: { readonly digest: Descriptor["digest"] }) =>
  `blobs/sha256/${digestHex(descriptor.digest)}`

/** A document of an OCI layout, with its digest checked. */
const blobDocument = Effect.fnUntraced(function* (file: string, index: ArchiveIndex, descriptor: Descriptor) {
  const bytes = yield* document(file, index, blobName(descriptor))
  if (digestOf(bytes) !== descriptor.digest) {
    return yield* corrupt(
      `${shown(blobName(descriptor))} in the archive does not have the digest that its name says.`
    )
  }
  return bytes
})

const layersOf = (
  file: string,
  manifest: ImageManifest,
  index: ArchiveIndex,
  names: ReadonlyArray<string>
): Result.Result<ReadonlyArray<LayerBlob>, ImageFault> =>
  Result.all(
    manifest.layers.map((layer, at) => {
      const place = index.find(names[at] ?? "")
      if (place === undefined)
        return Result.fail(corrupt(`The archive lacks the layer ${shown(names[at] ?? "")}.`))
      if (layer.digest !== null && place.length !== layer.size) {
        return Result.fail(
          corrupt(
            `The layer ${shown(names[at] ?? "")} in the archive does not have the size that its manifest says.`
          )
        )
      }
      return Result.succeed({
        read: () => readRange({ path: file, ...place }),
        digest: layer.digest,
        diffId: layer.diff_id
      })
    })
  )

const nameKeys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]

const nameOf = (descriptors: ReadonlyArray<Descriptor>): string | null => {
  for (const key of nameKeys) {
    for (const { annotations } of descriptors) {
      const name = annotations?.[key]
      if (name !== undefined && name !== "") return name
    }
  }
  return null
}

const onlyOne = (count: number) => unsupported(`The archive holds ${count} images; import one at a time.`)

const openLayout = Effect.fnUntraced(function* (file: string, index: ArchiveIndex) {
  const root = yield* Effect.fromResult(parseManifest(yield* document(file, index, "index.json")))
  if (root._tag !== "Index") return yield* corrupt("index.json in the archive is not an index.")
  const digests = new Set(root.manifests.map((it) => it.digest))
  const named = nameOf(root.manifests)
  let descriptor =
    digests.size === 1 ? root.manifests[0] : yield* Effect.fromResult(selectPlatform(root.manifests))
  const others = root.manifests.filter(
    (it) => it.digest !== descriptor?.digest && (it.platform ?? null) === null
  )
  if (others.length > 0 && (descriptor?.platform ?? null) === null) return yield* onlyOne(digests.size)
  for (let depth = 0; depth < 3 && descriptor !== undefined; depth++) {
    const parsed = yield* Effect.fromResult(parseManifest(yield* blobDocument(file, index, descriptor)))
    if (parsed._tag === "Manifest") {
      const config = yield* blobDocument(file, index, parsed.config)
      const manifest = yield* Effect.fromResult(assemble(descriptor.digest, parsed.layers, config))
      const blobs = yield* Effect.fromResult(layersOf(file, manifest, index, parsed.layers.map(blobName)))
      return { manifest, name: named, blobs } satisfies Archive
    }
    descriptor = yield* Effect.fromResult(selectPlatform(parsed.manifests))
  }
  return yield* corrupt("The archive's index leads to no manifest.")
})

const openDockerSave = Effect.fnUntraced(function* (file: string, index: ArchiveIndex) {
  const bytes = yield* document(file, index, "manifest.json")
  const images = yield* Effect.fromResult(parseDocument(DockerSave, "manifest.json in the archive", bytes))
  const [image] = images
  if (image === undefined || images.length > 1) return yield* onlyOne(images.length)
  const config = yield* document(file, index, image.Config)
  const sizes = image.Layers.map((name) => ({ digest: null, size: index.find(name)?.length ?? 0 }))
  const manifest = yield* Effect.fromResult(assemble(digestOf(config), sizes, config))
  const blobs = yield* Effect.fromResult(layersOf(file, manifest, index, image.Layers))
  return { manifest, name: image.RepoTags?.[0] ?? null, blobs } satisfies Archive
})

/** Reads what a spooled archive holds. An OCI layout is preferred where the archive is both (docker 25 and later). */
export const openArchive = (file: string, index: ArchiveIndex): Effect.Effect<Archive, ImageFault> => {
  const isLayout = index.find("index.json") !== undefined
  const isDockerSave = index.find("manifest.json") !== undefined
  if (!isLayout && !isDockerSave) {
    return Effect.fail(
      corrupt(
        "The archive is neither a docker save archive nor an OCI layout: it has no manifest.json and no index.json."
      )
    )
  }
  if (!isLayout) return openDockerSave(file, index)
  return isDockerSave
    ? openLayout(file, index).pipe(
        Effect.catch((fault) => Effect.mapError(openDockerSave(file, index), () => fault))
      )
    : openLayout(file, index)
}
