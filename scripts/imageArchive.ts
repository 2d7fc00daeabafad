/**
 * Image archives out of nothing but values: the same input gives the same bytes, and so the same digests, on every
 * machine. Two forms: an OCI image layout (image-spec 1.1, image-layout.md) and what `docker save` writes.
 */
import { createHash } from "node:crypto"
import { buffer } from "node:stream/consumers"
import { gzipSync } from "node:zlib"
import { type Header, type Pack, pack } from "tar-stream"

/** One entry of a layer. Paths are relative to the image's root; owner is root, time is the epoch. */
export type LayerEntry =
  | {
      readonly kind: "file"
      readonly path: string
      readonly content: string | Uint8Array
      readonly mode?: number
    }
  | { readonly kind: "directory"; readonly path: string; readonly mode?: number }
  | { readonly kind: "symlink"; readonly path: string; readonly target: string }
  | { readonly kind: "hardlink"; readonly path: string; readonly target: string }

export interface ArchiveSource {
  /** Bottom layer first. */
  readonly layers: ReadonlyArray<ReadonlyArray<LayerEntry>>
  readonly entrypoint?: ReadonlyArray<string>
  readonly cmd?: ReadonlyArray<string>
  readonly env?: Readonly<Record<string, string>>
  readonly workingDir?: string
  readonly user?: string
  /** The reference that the archive says it holds. */
  readonly name?: string
}

type HeaderFields = Parameters<Pack["entry"]>[0]

const epoch = new Date(0)
const root = { uid: 0, gid: 0, mtime: epoch } satisfies Partial<Header>

const headerOf = (entry: LayerEntry): HeaderFields => {
  const header = { ...root, name: entry.path }
  if (entry.kind === "file") return { ...header, type: "file", mode: entry.mode ?? 0o644 }
  if (entry.kind === "directory") return { ...header, type: "directory", mode: entry.mode ?? 0o755 }
  if (entry.kind === "symlink") return { ...header, type: "symlink", linkname: entry.target, mode: 0o777 }
  return { ...header, type: "link", linkname: entry.target, mode: 0o644 }
}

/** The tar of one layer, uncompressed. */
export const layerTar = async (entries: ReadonlyArray<LayerEntry>): Promise<Buffer> => {
  const tar = pack()
  for (const entry of entries) {
    if (entry.kind === "file") tar.entry(headerOf(entry), Buffer.from(entry.content))
    else tar.entry(headerOf(entry), "")
  }
  tar.finalize()
  return buffer(tar)
}

const sha256 = (content: Uint8Array): string => createHash("sha256").update(content).digest("hex")

const configOf = (source: ArchiveSource, diffIds: ReadonlyArray<string>): Buffer =>
  Buffer.from(
    JSON.stringify({
      architecture: "amd64",
      os: "linux",
      created: epoch.toISOString(),
      config: {
        Env: Object.entries(source.env ?? {}).map(([name, value]) => `${name}=${value}`),
        ...(source.entrypoint === undefined ? {} : { Entrypoint: source.entrypoint }),
        ...(source.cmd === undefined ? {} : { Cmd: source.cmd }),
        ...(source.workingDir === undefined ? {} : { WorkingDir: source.workingDir }),
        ...(source.user === undefined ? {} : { User: source.user })
      },
      rootfs: { type: "layers", diff_ids: diffIds.map((hex) => `sha256:${hex}`) }
    })
  )

const file = (path: string, content: string | Uint8Array): LayerEntry => ({ kind: "file", path, content })
const directory = (path: string): LayerEntry => ({ kind: "directory", path })

/** A tar that holds an OCI image layout, layers compressed with gzip. */
export const ociArchive = async (source: ArchiveSource): Promise<Buffer> => {
  const layers = await Promise.all(source.layers.map(layerTar))
  // zlib writes no time and names its host system in one fixed byte, so equal layers stay equal.
  const compressed = layers.map((layer) => gzipSync(layer, { level: 6 }))
  const config = configOf(source, layers.map(sha256))
  const descriptor = (mediaType: string, content: Uint8Array) => ({
    mediaType,
    digest: `sha256:${sha256(content)}`,
    size: content.length
  })
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: "application/vnd.oci.image.manifest.v1+json",
      config: descriptor("application/vnd.oci.image.config.v1+json", config),
      layers: compressed.map((it) => descriptor("application/vnd.oci.image.layer.v1.tar+gzip", it))
    })
  )
  const index = {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: [
      {
        ...descriptor("application/vnd.oci.image.manifest.v1+json", manifest),
        platform: { architecture: "amd64", os: "linux" },
        annotations: { "org.opencontainers.image.ref.name": source.name ?? "latest" }
      }
    ]
  }
  // Equal layers are one blob; a tar with one name twice would be a strange archive.
  const blobs = new Map([manifest, config, ...compressed].map((it) => [sha256(it), it]))
  return layerTar([
    file("oci-layout", JSON.stringify({ imageLayoutVersion: "1.0.0" })),
    file("index.json", JSON.stringify(index)),
    directory("blobs"),
    directory("blobs/sha256"),
    ...[...blobs].map(([hex, content]) => file(`blobs/sha256/${hex}`, content))
  ])
}

/** A tar as `docker save` wrote it before Docker 25: manifest.json, layers uncompressed. */
export const dockerArchive = async (source: ArchiveSource): Promise<Buffer> => {
  const layers = await Promise.all(source.layers.map(layerTar))
  const config = configOf(source, layers.map(sha256))
  const blobs = new Map(layers.map((it) => [sha256(it), it]))
  return layerTar([
    file(`${sha256(config)}.json`, config),
    ...[...blobs].flatMap(([hex, content]) => [directory(hex), file(`${hex}/layer.tar`, content)]),
    file(
      "manifest.json",
      JSON.stringify([
        {
          Config: `${sha256(config)}.json`,
          RepoTags: [source.name ?? "demo:latest"],
          Layers: layers.map((it) => `${sha256(it)}/layer.tar`)
        }
      ])
    )
  ])
}
