/**
 * Images built in memory for tests: layers by tar-stream (an implementation of tar that is not ours), configs, manifests,
 * and the archives and layouts that tools make of them.
 */
import { createHash } from "node:crypto"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { promisify } from "node:util"
import * as zlib from "node:zlib"
import { type Header, pack } from "tar-stream"
import { header, padding, trailer } from "../../src/image/tar/TarWriter.ts"
import type { TarEntry } from "../../src/image/tar/TarEntry.ts"

export const sha256 = (bytes: Uint8Array): string =>
  `sha256:${createHash("sha256").update(bytes).digest("hex")}`

export type TestEntry = Partial<Omit<Header, "pax">> & {
  readonly name: string
  /** Extended pax records; tar-stream writes UTF-8 only. */
  readonly pax?: Readonly<Record<string, string>>
  readonly body?: string | Buffer
}

/** A fixed time, so that digests are the same in every run. */
const mtime = new Date(1_600_000_000_000)

/** A plain tar of the entries in that order. */
export const tar = async (entries: ReadonlyArray<TestEntry>): Promise<Buffer> => {
  const archive = pack()
  const chunks: Array<Buffer> = []
  const read = (async () => {
    for await (const chunk of archive) {
      if (Buffer.isBuffer(chunk)) chunks.push(chunk)
    }
  })()
  for (const { body, ...entry } of entries) {
    if (entry.type === undefined || entry.type === "file")
      archive.entry({ mtime, ...entry }, Buffer.from(body ?? ""))
    else archive.entry({ mtime, ...entry })
  }
  archive.finalize()
  await read
  return Buffer.concat(chunks)
}

const blank: TarEntry = {
  name: "",
  type: "file",
  mode: 0o644,
  uid: 0,
  gid: 0,
  mtime: 1_600_000_000,
  size: 0,
  linkname: "",
  major: 0,
  minor: 0,
  xattrs: [],
  sparse: null
}

/** A tar of entries that tar-stream cannot write: bytes that are not UTF-8, huge numbers, sparse files. */
export const rawTar = (entries: ReadonlyArray<Partial<TarEntry> & { readonly body?: Buffer }>): Buffer =>
  Buffer.concat([
    ...entries.flatMap(({ body = Buffer.alloc(0), ...entry }) => [
      header({ ...blank, ...entry, size: body.length }),
      body,
      padding(body.length)
    ]),
    trailer
  ])

export type Compression = "gzip" | "zstd" | "none"

export interface TestLayer {
  readonly blob: Buffer
  readonly digest: string
  readonly diffId: string
  readonly mediaType: string
}

const compress = {
  gzip: promisify(zlib.gzip),
  zstd: promisify(zlib.zstdCompress),
  none: async (bytes: Buffer) => bytes
}
const suffix = { gzip: "+gzip", zstd: "+zstd", none: "" }

export const layerOf = async (bytes: Buffer, compression: Compression = "gzip"): Promise<TestLayer> => {
  const blob = await compress[compression](bytes)
  return {
    blob,
    digest: sha256(blob),
    diffId: sha256(bytes),
    mediaType: `application/vnd.oci.image.layer.v1.tar${suffix[compression]}`
  }
}

export const layer = async (entries: ReadonlyArray<TestEntry>, compression: Compression = "gzip") =>
  layerOf(await tar(entries), compression)

export interface TestImage {
  readonly layers: ReadonlyArray<TestLayer>
  readonly config: Buffer
  readonly manifest: Buffer
  readonly digest: string
}

const json = (value: unknown) => Buffer.from(JSON.stringify(value))

export interface TestConfig {
  readonly Entrypoint?: ReadonlyArray<string>
  readonly Cmd?: ReadonlyArray<string>
  readonly Env?: ReadonlyArray<string>
  readonly WorkingDir?: string
  readonly User?: string
}

export const image = (
  layers: ReadonlyArray<TestLayer>,
  options: {
    readonly config?: TestConfig
    readonly architecture?: string
    readonly diffIds?: ReadonlyArray<string>
  } = {}
): TestImage => {
  const config = json({
    os: "linux",
    architecture: options.architecture ?? "amd64",
    config: options.config ?? { Cmd: ["/bin/sh"] },
    rootfs: { type: "layers", diff_ids: options.diffIds ?? layers.map((it) => it.diffId) }
  })
  const manifest = json({
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: {
      mediaType: "application/vnd.oci.image.config.v1+json",
      digest: sha256(config),
      size: config.length
    },
    layers: layers.map((it) => ({ mediaType: it.mediaType, digest: it.digest, size: it.blob.length }))
  })
  return { layers, config, manifest, digest: sha256(manifest) }
}

/** An index with one entry per platform. */
export const indexOf = (
  images: ReadonlyArray<{ readonly image: TestImage; readonly os: string; readonly architecture: string }>
): Buffer =>
  json({
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: images.map(({ image, os, architecture }) => ({
      mediaType: "application/vnd.oci.image.manifest.v1+json",
      digest: image.digest,
      size: image.manifest.length,
      platform: { os, architecture }
    }))
  })

const hex = (digest: string) => digest.slice("sha256:".length)

/** The files of an OCI layout by name. */
export const layoutFiles = (it: TestImage, name?: string): ReadonlyMap<string, Buffer> => {
  const index = json({
    schemaVersion: 2,
    manifests: [
      {
        mediaType: "application/vnd.oci.image.manifest.v1+json",
        digest: it.digest,
        size: it.manifest.length,
        ...(name === undefined ? {} : { annotations: { "org.opencontainers.image.ref.name": name } })
      }
    ]
  })
  return new Map([
    ["oci-layout", json({ imageLayoutVersion: "1.0.0" })],
    ["index.json", index],
    [`blobs/sha256/${hex(it.digest)}`, it.manifest],
    [`blobs/sha256/${hex(sha256(it.config))}`, it.config],
    ...it.layers.map((one) => [`blobs/sha256/${hex(one.digest)}`, one.blob] as const)
  ])
}

const filesTar = (files: ReadonlyMap<string, Buffer>) =>
  tar([...files].map(([name, body]) => ({ name, body })))

/** An OCI layout in a tar. */
export const ociArchive = (it: TestImage, name?: string) => filesTar(layoutFiles(it, name))

/** What `docker save` wrote before docker 25; the layers are plain tars there. */
export const dockerArchive = (it: TestImage, tags: ReadonlyArray<string>) =>
  filesTar(
    new Map([
      ...it.layers.map((one) => [`${hex(one.diffId)}/layer.tar`, one.blob] as const),
      [`${hex(sha256(it.config))}.json`, it.config],
      [
        "manifest.json",
        json([
          {
            Config: `${hex(sha256(it.config))}.json`,
            RepoTags: tags,
            Layers: it.layers.map((one) => `${hex(one.diffId)}/layer.tar`)
          }
        ])
      ]
    ])
  )

/** Writes an OCI layout for tools that want a directory. */
export const writeLayout = async (directory: string, it: TestImage, name: string): Promise<void> => {
  for (const [file, bytes] of layoutFiles(it, name)) {
    const target = path.join(directory, file)
    await fs.mkdir(path.dirname(target), { recursive: true })
    await fs.writeFile(target, bytes)
  }
}
