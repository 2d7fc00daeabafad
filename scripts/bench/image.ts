/**
 * How long an image takes from its blob to something that a guest can mount, beside what the field does: `umoci unpack`
 * and `mkfs.erofs -zlz4`. Both get the same blob in the same run, in turns. Prints one row per image:
 *
 *   image, ours (ms), theirs (ms), ratio, and what lies on the disk afterwards
 *
 * `node scripts/bench/image.ts [rounds]`
 */
import { createHash } from "node:crypto"
import { createReadStream, createWriteStream } from "node:fs"
import * as fs from "node:fs/promises"
import * as os from "node:os"
import * as path from "node:path"
import { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"
import * as zlib from "node:zlib"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { execa } from "execa"
import { Digest } from "../../src/domain/Ids.ts"
import { Files } from "../../src/host/Files.ts"
import { layout, Paths } from "../../src/host/Paths.ts"
import { defaultImageBounds } from "../../src/image/ImagesLayer.ts"
import { makeLayers } from "../../src/image/layers.ts"
import { blobFile } from "../../src/image/sources/Source.ts"
import * as TarWriter from "../../src/image/tar/TarWriter.ts"

/** Design §6 and the project's aim: at most half of what the peer takes. */
export const imageRatioAim = 0.5

export interface ImageRow {
  readonly image: string
  readonly blob_mb: number
  readonly ours_ms: number
  readonly theirs_ms: number
  readonly ratio: number
  readonly ours_mb: number
  readonly theirs_mb: number
}

export interface Blob {
  readonly name: string
  readonly file: string
  readonly bytes: number
  readonly digest: Digest
  readonly diffId: Digest
}

const mb = (bytes: number) => Math.round(bytes / 1e5) / 10
const median = (values: ReadonlyArray<number>) => values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0

const hash = async (source: AsyncIterable<unknown>): Promise<Digest> => {
  const sha = createHash("sha256")
  for await (const chunk of source) if (Buffer.isBuffer(chunk)) sha.update(chunk)
  return Digest.make(`sha256:${sha.digest("hex")}`)
}

/** Stores a tar stream as a gzip blob. */
const store = async (name: string, file: string, tar: Readable): Promise<Blob> => {
  await pipeline(tar, zlib.createGzip({ level: 6, chunkSize: 1 << 18 }), createWriteStream(file))
  const { size } = await fs.stat(file)
  const digest = await hash(createReadStream(file))
  const diffId = await hash(createReadStream(file).pipe(zlib.createGunzip()))
  return { name, file, bytes: size, digest, diffId }
}

/** This machine's own programs and libraries, as a layer of at least that many bytes where it has as many. */
export const programs = async (file: string, blobBytes: number): Promise<Blob> => {
  // A tar of programs packs to about a third.
  const wanted = blobBytes * 3
  const names: Array<string> = []
  let bytes = 0
  for (const root of ["usr/bin", "usr/lib", "usr/share", "usr/sbin", "opt"]) {
    const entries = await fs.readdir(`/${root}`, { recursive: true, withFileTypes: true }).catch(() => [])
    for (const entry of entries) {
      if (bytes >= wanted) break
      if (!entry.isFile()) continue
      const full = path.join(entry.parentPath, entry.name)
      bytes += (await fs.lstat(full)).size
      names.push(full.slice(1))
    }
  }
  const list = `${file}.list`
  await fs.writeFile(list, names.join("\n"))
  const tar = execa("tar", ["-C", "/", "--create", "--file=-", "--files-from", list], {
    buffer: false,
    stdout: "pipe"
  })
  const blob = await store("one layer of programs", file, tar.stdout)
  await tar
  return blob
}

const textOf = (at: number) => {
  const seed = createHash("sha512").update(`${at}`).digest("base64")
  return Buffer.from(`${seed}, and text that packs well.\n`.repeat(4 + (at % 30)))
}

/** Contents that do not pack, others for each `salt`. */
export const noiseOf = (salt: string) => (at: number) =>
  Buffer.concat(
    Array.from({ length: 20 + (at % 30) }, (_, part) =>
      createHash("sha512").update(`${salt} ${at} ${part}`).digest()
    )
  )

export const smallFiles = (file: string, count: number, bodyOf = textOf): Promise<Blob> => {
  const blank = {
    mode: 0o644,
    uid: 0,
    gid: 0,
    mtime: 1_600_000_000,
    linkname: "",
    major: 0,
    minor: 0,
    xattrs: [],
    sparse: null
  }
  function* entries() {
    for (let at = 0; at < count; at++) {
      if (at % 100 === 0)
        yield TarWriter.header({ ...blank, name: `d${at / 100}/`, type: "directory", mode: 0o755, size: 0 })
      const body = bodyOf(at)
      yield TarWriter.header({
        ...blank,
        name: `d${Math.floor(at / 100)}/f${at}`,
        type: "file",
        size: body.length
      })
      yield body
      yield TarWriter.padding(body.length)
    }
    yield TarWriter.trailer
  }
  return store(`${count} small files`, file, Readable.from(entries()))
}

/** Blob to squashfs, verified and synced, as the service does it. */
const ours = async (blob: Blob, directory: string) => {
  const dataDir = path.join(directory, "ours")
  await fs.mkdir(path.join(dataDir, "layers"), { recursive: true })
  const { digest, diffId, file, bytes } = blob
  const host = Layer.merge(Files.layer, Layer.succeed(Paths, layout(dataDir)))
  const needed = {
    diffIds: [diffId],
    blob: () => Effect.succeed(blobFile(file, bytes, digest, diffId)),
    onBytes: () => undefined,
    onLayer: Effect.void
  }
  const startedAt = performance.now()
  const size = await Effect.runPromise(
    Effect.gen(function* () {
      const layers = yield* makeLayers(defaultImageBounds)
      return (yield* layers.measure(yield* layers.ensure(needed))).bytes
    }).pipe(Effect.provide(host))
  )
  const ms = performance.now() - startedAt
  await fs.rm(dataDir, { recursive: true })
  return { ms, size }
}

/** An OCI layout of one image, `bench`, with these layers. */
export const writeLayout = async (layersOf: ReadonlyArray<Blob>, directory: string) => {
  const blobs = path.join(directory, "blobs/sha256")
  await fs.mkdir(blobs, { recursive: true })
  const put = async (bytes: Buffer) => {
    const digest = createHash("sha256").update(bytes).digest("hex")
    await fs.writeFile(path.join(blobs, digest), bytes)
    return { digest: `sha256:${digest}`, size: bytes.length }
  }
  const json = (value: unknown) => Buffer.from(JSON.stringify(value))
  const type = "application/vnd.oci.image"
  for (const it of layersOf) await fs.link(it.file, path.join(blobs, it.digest.slice("sha256:".length)))
  const config = await put(
    json({
      os: "linux",
      architecture: "amd64",
      config: {},
      rootfs: { type: "layers", diff_ids: layersOf.map((it) => it.diffId) }
    })
  )
  const layers = layersOf.map((it) => ({
    mediaType: `${type}.layer.v1.tar+gzip`,
    digest: it.digest,
    size: it.bytes
  }))
  const manifest = await put(
    json({ schemaVersion: 2, config: { mediaType: `${type}.config.v1+json`, ...config }, layers })
  )
  const named = {
    ...manifest,
    mediaType: `${type}.manifest.v1+json`,
    annotations: { "org.opencontainers.image.ref.name": "bench" }
  }
  await fs.writeFile(path.join(directory, "index.json"), json({ schemaVersion: 2, manifests: [named] }))
  await fs.writeFile(path.join(directory, "oci-layout"), json({ imageLayoutVersion: "1.0.0" }))
}

/** Unpacked on the host, then packed again. */
const theirs = async (layoutDirectory: string, directory: string) => {
  const bundle = path.join(directory, "bundle")
  const target = path.join(directory, "image.erofs")
  const startedAt = performance.now()
  await execa("umoci", ["unpack", "--image", `${layoutDirectory}:bench`, bundle])
  await execa("mkfs.erofs", ["-zlz4", target, path.join(bundle, "rootfs")])
  const ms = performance.now() - startedAt
  const { size } = await fs.stat(target)
  await fs.rm(bundle, { recursive: true })
  await fs.rm(target)
  return { ms, size }
}

const compare = async (blob: Blob, directory: string, rounds: number): Promise<ImageRow> => {
  const layoutDirectory = path.join(directory, `layout-${path.basename(blob.file)}`)
  await writeLayout([blob], layoutDirectory)
  const mine: Array<{ readonly ms: number; readonly size: number }> = []
  const other: Array<{ readonly ms: number; readonly size: number }> = []
  for (let round = 0; round < rounds; round++) {
    mine.push(await ours(blob, directory))
    other.push(await theirs(layoutDirectory, directory))
  }
  const [oursMs, theirsMs] = [median(mine.map((it) => it.ms)), median(other.map((it) => it.ms))]
  return {
    image: blob.name,
    blob_mb: mb(blob.bytes),
    ours_ms: Math.round(oursMs),
    theirs_ms: Math.round(theirsMs),
    ratio: Math.round((oursMs / theirsMs) * 100) / 100,
    ours_mb: mb(mine[0]?.size ?? 0),
    theirs_mb: mb(other[0]?.size ?? 0)
  }
}

export interface ImageBenchOptions {
  readonly rounds?: number
  /** Bytes of the large layer, compressed. */
  readonly blobBytes?: number
  readonly smallFiles?: number
}

/** Runs the comparison in a temporary directory of its own and gives its rows. */
export const benchImage = async (options: ImageBenchOptions = {}): Promise<ReadonlyArray<ImageRow>> => {
  const { rounds = 3, blobBytes = 230e6, smallFiles: count = 40_000 } = options
  const directory = await fs.mkdtemp(path.join(os.tmpdir(), "bench-image-"))
  try {
    const blobs = [
      await programs(path.join(directory, "programs"), blobBytes),
      await smallFiles(path.join(directory, "small"), count)
    ]
    const rows: Array<ImageRow> = []
    for (const blob of blobs) rows.push(await compare(blob, directory, rounds))
    return rows
  } finally {
    await fs.rm(directory, { recursive: true, force: true })
  }
}

if (import.meta.main) {
  const rows = await benchImage({ rounds: Number(process.argv[2] ?? 3) })
  console.table(rows)
}
