/** Blobs of layers as bytes: a range of a file, hashed while it is read, and decompressed by what it starts with. */
import { createReadStream } from "node:fs"
import { PassThrough, type Transform } from "node:stream"
import { pipeline } from "node:stream/promises"
import * as zlib from "node:zlib"

/** Large enough that the thread pool's round trips cost little, small enough that the service keeps answering. */
const chunkBytes = 256 * 1024

export interface BlobRange {
  /** Absolute path of a file on this host. */
  readonly path: string
  readonly offset: number
  readonly length: number
}

/** The bytes of a range. */
export async function* readRange(range: BlobRange): AsyncGenerator<Buffer> {
  if (range.length === 0) return
  const stream = createReadStream(range.path, {
    start: range.offset,
    end: range.offset + range.length - 1,
    highWaterMark: chunkBytes
  })
  for await (const chunk of stream) {
    const bytes: Buffer = chunk
    yield bytes
  }
}

export type Compression = "gzip" | "zstd" | "none"

/** By the magic number, as containerd does: media types are often wrong. */
export const compressionOf = (start: Buffer): Compression =>
  start.length >= 2 && start.readUInt16BE(0) === 0x1f8b
    ? "gzip"
    : start.length >= 4 && start.readUInt32LE(0) === 0xfd2fb528
      ? "zstd"
      : "none"

const write = (stream: Transform, chunk: Buffer): Promise<void> =>
  new Promise((resolve, reject) => {
    stream.write(chunk, (error) => {
      if (error === null || error === undefined) resolve()
      else reject(error)
    })
  })

/**
 * Decompresses into `out`. node:zlib ends a zstd stream behind its first frame, while layers may have many
 * (zstd:chunked, pzstd): the bytes that a frame left untaken start the next one.
 */
const feedZstd = async (source: AsyncIterable<Buffer>, out: PassThrough): Promise<void> => {
  const open = () => {
    const stream = zlib.createZstdDecompress({ chunkSize: chunkBytes })
    stream.on("error", (error) => out.destroy(error))
    stream.pipe(out, { end: false })
    return stream
  }
  let stream = open()
  let fed = 0
  for await (const chunk of source) {
    let rest = chunk
    while (rest.length > 0 && !out.destroyed) {
      await write(stream, rest)
      fed += rest.length
      const left = fed - stream.bytesWritten
      rest = rest.subarray(rest.length - left)
      if (left > 0) {
        stream = open()
        fed = 0
      }
    }
  }
  stream.once("end", () => out.end())
  stream.end()
}

async function* joined(first: Buffer, rest: AsyncIterator<Buffer>): AsyncGenerator<Buffer> {
  yield first
  for (let next = await rest.next(); next.done !== true; next = await rest.next()) yield next.value
}

/** The source's bytes without their compression. Fails where the stream is cut off or is not what its magic says. */
export async function* decompress(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const iterator = source[Symbol.asyncIterator]()
  const first = await iterator.next()
  if (first.done === true) return
  const whole = joined(first.value, iterator)
  const compression = compressionOf(first.value)
  if (compression === "none") {
    yield* whole
    return
  }
  const out = compression === "zstd" ? new PassThrough() : zlib.createGunzip({ chunkSize: chunkBytes })
  const feeding = out instanceof PassThrough ? feedZstd(whole, out) : pipeline(whole, out)
  // The reader below sees the error too; here it only has to be taken from the promise.
  feeding.catch((error: unknown) => out.destroy(error instanceof Error ? error : undefined))
  try {
    for await (const chunk of out) {
      const bytes: Buffer = chunk
      yield bytes
    }
    await feeding
  } finally {
    out.destroy()
    await whole.return(undefined)
  }
}
