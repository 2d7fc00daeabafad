/**
 * One layer blob becomes one squashfs, streamed: read, hash, decompress, hash, rewrite (LayerStream), tar2sqfs. Nothing
 * is unpacked on this host and nothing but metadata is kept in memory.
 *
 *   blob ─► sha256 ─► gunzip ─► sha256 ─► TarReader ─► LayerStream ─► tar2sqfs ─► NAME.tmp ─► fsync ─► rename
 *             │                   │
 *             └── digest ─────────┴── diff id: both must be what the manifest and the config say
 *
 * A layer whose later entries displace earlier ones (LayerTree) is streamed a second time with the corrected plan.
 */
import { createHash, randomUUID } from "node:crypto"
import * as fs from "node:fs/promises"
import type { Writable } from "node:stream"
import { pipeline } from "node:stream/promises"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Digest } from "../domain/Ids.ts"
import { commandFault, spawnPiped } from "../host/Command.ts"
import { CommandFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import { closeLayer, type Closing, type Copy } from "./closeLayer.ts"
import { decompress } from "./decompress.ts"
import { corrupt, fromHost, hostFault, ImageFault, noSpace, tooLarge } from "./ImageFault.ts"
import { type LayerBounds, LayerStream, LayerTooLarge } from "./LayerStream.ts"
import * as LowerLayers from "./LowerLayers.ts"
import { seal } from "./seal.ts"
import { TarError } from "./tar/TarEntry.ts"
import { TarReader } from "./tar/TarReader.ts"
import * as TarWriter from "./tar/TarWriter.ts"

/** What the service leaves free for everything else on the disk. */
const freeReserveBytes = 256 * 1024 * 1024
const spaceCheckMs = 500
const temporarySuffix = ".tmp"
/**
 * lz4 rather than zstd: a tenth faster to make here, and several times faster to read in the guest, for a third more disk
 * (measured on 240 MB of programs; still smaller than erofs with lz4).
 */
const compressor = "lz4"
/** What a writer sees when the reader of its pipe has gone. */
const brokenPipe = new Set(["EPIPE", "ECONNRESET", "ERR_STREAM_PREMATURE_CLOSE", "ERR_STREAM_DESTROYED"])

export interface LayerBlob {
  /** Its bytes as they lie there, from the first on; a layer may be read twice. Throws an ImageFault where they cannot be had. */
  readonly read: () => AsyncIterable<Buffer>
  /** Of the bytes as they lie there; null where nobody said it (docker save). */
  readonly digest: Digest | null
  /** Of the bytes without compression (image-spec, config.md: DiffID). */
  readonly diffId: Digest
}

export interface Conversion {
  readonly blob: LayerBlob
  readonly bounds: LayerBounds
  /** Absolute directory of the layers. */
  readonly directory: string
  /** The squashfs files of the layers below, topmost first; awaited only where this layer says something about them. */
  readonly lower: Effect.Effect<ReadonlyArray<string>, ImageFault>
  /** Where the finished squashfs goes, in `directory`. */
  readonly target: (isContextual: boolean) => string
  /** Called with the count of the blob's bytes that were read since the last call. */
  readonly onBytes: (bytes: number) => void
}

/** True for names that a conversion which never ended left behind. */
export const isTemporary = (name: string): boolean => name.endsWith(temporarySuffix)

const short = (digest: Digest) => digest.slice(0, "sha256:".length + 12)

/** A sentence for whatever ended a pass. */
const passFault = (blob: LayerBlob, bounds: LayerBounds, cause: unknown): ImageFault => {
  if (cause instanceof ImageFault) return cause
  if (cause instanceof LayerTooLarge) {
    const what =
      cause.message === "bytes"
        ? `${bounds.layerMaxBytes} bytes unpacked`
        : `${bounds.layerMaxEntries} entries`
    return tooLarge(`The layer ${short(blob.diffId)} has more than ${what}, which is this service's bound.`)
  }
  if (cause instanceof TarError) {
    return corrupt(`The layer ${short(blob.diffId)} is not a sound archive: ${cause.message}.`, cause)
  }
  const code = cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : ""
  if (code.startsWith("Z_") || code.startsWith("ZSTD_")) {
    return corrupt(`The layer ${short(blob.diffId)} cannot be decompressed: it is damaged or cut off.`, cause)
  }
  return fromHost("Converting a layer", cause)
}

interface Pass {
  readonly stream: LayerStream
  readonly renames: ReadonlyMap<number, string | null>
}

/** Streams the blob into `sink`, and checks that it was the right one. */
const runPass = async (
  conversion: Conversion,
  pass: Pass,
  sink: Writable,
  signal: AbortSignal
): Promise<void> => {
  const { blob, onBytes } = conversion
  const blobHash = createHash("sha256")
  const diffHash = createHash("sha256")
  const reader = new TarReader(pass.stream)
  async function* raw() {
    for await (const chunk of blob.read()) {
      if (blob.digest !== null) blobHash.update(chunk)
      onBytes(chunk.length)
      yield chunk
    }
  }
  await pipeline(
    async function* () {
      for await (const chunk of decompress(raw())) {
        diffHash.update(chunk)
        reader.push(chunk)
        const out = pass.stream.take()
        if (out !== null) yield out
      }
      reader.end()
    },
    sink,
    { end: false, signal }
  )
  if (blob.digest !== null && `sha256:${blobHash.digest("hex")}` !== blob.digest) {
    throw corrupt(
      `The blob of the layer ${short(blob.diffId)} does not have the digest that the manifest says.`
    )
  }
  if (`sha256:${diffHash.digest("hex")}` !== blob.diffId) {
    throw corrupt(`The layer ${short(blob.diffId)} does not have the digest that the image's config says.`)
  }
}

/** tar2sqfs writing to a new file; with the scope it is ended, and the file removed where it still has that name. */
const packer = Effect.fnUntraced(function* (target: string) {
  const files = yield* Files
  yield* Effect.addFinalizer(() => Effect.ignore(files.remove(target)))
  const args = ["--quiet", "--no-skip", "--compressor", compressor, target]
  const child = yield* spawnPiped("tar2sqfs", args)
  child.stdout.resume()
  let said = ""
  child.stderr.setEncoding("utf8").on("data", (text: string) => (said = `${said}${text}`.slice(-2000)))
  // Its end is awaited by `exit`; until then a broken pipe is what the writer sees.
  const exit = child.then(
    () => undefined,
    (cause: unknown) => {
      const { command, outcome, exitCode } = commandFault("tar2sqfs", args, cause)
      return new CommandFault({ command, args, outcome, exitCode, stderr: said, cause })
    }
  )
  return { stdin: child.stdin, exit }
})

type Packer = Effect.Success<ReturnType<typeof packer>>

const packingFault = (fault: CommandFault | undefined): ImageFault =>
  fault !== undefined && /no space left/iu.test(fault.stderr)
    ? noSpace("The disk of the data directory is full.", fault)
    : fault?.outcome === "missing"
      ? hostFault("tar2sqfs is not installed on this host (package squashfs-tools-ng).", fault)
      : hostFault("A layer could not be packed: tar2sqfs refused what is in it, or broke off.", fault)

class Broken extends Data.TaggedError("Broken")<{ readonly cause: unknown }> {}

/** Writes to the packer. Where its pipe breaks, the packer knows why. */
const feed = (conversion: Conversion, packer: Packer, body: (signal: AbortSignal) => Promise<void>) =>
  Effect.tryPromise({ try: body, catch: (cause) => new Broken({ cause }) }).pipe(
    Effect.catch(({ cause }) => {
      const code =
        cause instanceof Error && "code" in cause && typeof cause.code === "string" ? cause.code : ""
      // A destroyed pipe ends the packer, so its end can be awaited.
      return brokenPipe.has(code) && packer.stdin.destroyed
        ? Effect.flatMap(
            Effect.promise(() => packer.exit),
            (fault) => Effect.fail(packingFault(fault))
          )
        : Effect.fail(passFault(conversion.blob, conversion.bounds, cause))
    })
  )

const writeCopy = (conversion: Conversion, packer: Packer, copy: Copy) =>
  Effect.gen(function* () {
    const content = yield* LowerLayers.content(copy.squashfs, copy.path)
    yield* feed(conversion, packer, (signal) =>
      pipeline(
        async function* () {
          yield TarWriter.header(copy.entry)
          yield* content
          yield TarWriter.padding(copy.entry.size)
        },
        packer.stdin,
        { end: false, signal }
      )
    )
  }).pipe(Effect.scoped)

const finish = Effect.fnUntraced(function* (conversion: Conversion, packer: Packer, closing: Closing) {
  yield* Effect.forEach(closing.copies, (copy) => writeCopy(conversion, packer, copy), { discard: true })
  yield* feed(conversion, packer, (signal) => pipeline(closing.rest, packer.stdin, { signal }))
  const fault = yield* Effect.promise(() => packer.exit)
  yield* fault === undefined ? Effect.void : Effect.fail(packingFault(fault))
})

/** squashfs superblock (kernel: squashfs_fs.h): magic at 0, bytes_used at 40. */
const verifyAndSeal = (target: string): Effect.Effect<void, ImageFault> =>
  Effect.tryPromise({
    try: async () => {
      const handle = await fs.open(target, "r")
      try {
        const block = Buffer.alloc(96)
        const { bytesRead } = await handle.read(block, 0, block.length, 0)
        const { size } = await handle.stat()
        const isWhole = bytesRead === block.length && block.toString("latin1", 0, 4) === "hsqs"
        if (!isWhole || block.readBigUInt64LE(40) > BigInt(size)) throw new Error("not a whole squashfs")
      } finally {
        await handle.close()
      }
      await seal(target)
    },
    catch: (cause) => fromHost("Packing a layer", cause)
  })

const watchSpace = Effect.fnUntraced(function* (directory: string) {
  const files = yield* Files
  while (true) {
    const free = yield* files
      .freeBytes(directory)
      .pipe(Effect.mapError((cause) => fromHost("Reading free space", cause)))
    if (free < freeReserveBytes) {
      return yield* noSpace(
        `The disk of the data directory has less than ${freeReserveBytes >> 20} MiB free.`
      )
    }
    yield* Effect.sleep(spaceCheckMs)
  }
})

/** One attempt with one plan: the finished file, or the plan that the layer needs instead. */
const attempt = Effect.fnUntraced(function* (
  conversion: Conversion,
  diffHex: string,
  renames: ReadonlyMap<number, string | null>
) {
  const files = yield* Files
  const temporary = `${conversion.directory}/${diffHex}.${randomUUID()}${temporarySuffix}`
  const packed = yield* packer(temporary)
  const stream = new LayerStream(conversion.bounds, renames)
  yield* feed(conversion, packed, (signal) => runPass(conversion, { stream, renames }, packed.stdin, signal))
  const needed = stream.tree.renames()
  if (needed.size > 0 && renames.size === 0) return { _tag: "Again", renames: needed } as const
  const closing = yield* closeLayer(stream, renames, conversion.lower)
  yield* finish(conversion, packed, closing)
  yield* verifyAndSeal(temporary)
  yield* Effect.uninterruptible(files.rename(temporary, conversion.target(closing.contextual))).pipe(
    Effect.mapError((cause) => fromHost("Storing a layer", cause))
  )
  return { _tag: "Done", isContextual: closing.contextual } as const
})

/**
 * Converts a layer into a verified, synced squashfs under its final name, and says whether it depends on the layers
 * below. Fails with a sentence, and leaves no file behind, where the blob is not what it should be, a bound is met, the disk gets full or
 * the fiber is interrupted.
 */
export const convertLayer = Effect.fnUntraced(function* (
  conversion: Conversion
): Effect.fn.Return<boolean, ImageFault, Files> {
  const hex = conversion.blob.diffId.slice("sha256:".length)
  const once = (renames: ReadonlyMap<number, string | null>) =>
    Effect.scoped(attempt(conversion, hex, renames))
  const work = Effect.gen(function* () {
    const first = yield* once(new Map())
    const last = first._tag === "Again" ? yield* once(first.renames) : first
    if (last._tag === "Done") return last.isContextual
    return yield* corrupt(`The layer ${short(conversion.blob.diffId)} changed while it was read.`)
  })
  return yield* Effect.raceFirst(work, watchSpace(conversion.directory))
})
