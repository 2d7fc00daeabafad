/**
 * The seal of a layer's file: a last block with the checksum of everything before it, so that a check can tell years later
 * whether the disk still gives back what was made. squashfs ends where its superblock says and knows nothing of the block.
 *
 *   superblock … tables | padding to 4 KiB ‖ "chd-seal" · SHA-256 · zeros (4 KiB)
 */
import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import * as fs from "node:fs/promises"
import { pipeline } from "node:stream/promises"

/** A sector of any disk; the file stays a whole number of them. */
const sealBytes = 4096
const magic = Buffer.from("chd-seal", "latin1")
const sumBytes = 32
const readBytes = 1024 * 1024

const sumOf = async (file: string, bytes: number): Promise<Buffer> => {
  const hash = createHash("sha256")
  if (bytes > 0) await pipeline(createReadStream(file, { end: bytes - 1, highWaterMark: readBytes }), hash)
  return hash.digest()
}

/** Seals a finished file, and syncs it. Summing takes no time of its own: the disk is still writing meanwhile. */
export const seal = async (file: string): Promise<void> => {
  const handle = await fs.open(file, "r+")
  try {
    const { size } = await handle.stat()
    const [sum] = await Promise.all([sumOf(file, size), handle.sync()])
    const block = Buffer.alloc(sealBytes)
    magic.copy(block)
    sum.copy(block, magic.length)
    const at = Math.ceil(size / sealBytes) * sealBytes
    if (at !== size) throw new Error(`a layer of ${size} bytes is no whole number of blocks`)
    await handle.write(block, 0, sealBytes, at)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

export type Soundness = "sound" | "damaged" | "unsealed"

/** Reads the whole file. `unsealed`: nobody ever said what it should be. */
export const checkSeal = async (file: string): Promise<Soundness> => {
  const handle = await fs.open(file, "r")
  try {
    const { size } = await handle.stat()
    const at = size - sealBytes
    if (at < 0) return "damaged"
    const block = Buffer.alloc(magic.length + sumBytes)
    await handle.read(block, 0, block.length, at)
    if (!block.subarray(0, magic.length).equals(magic)) return "unsealed"
    return block.subarray(magic.length).equals(await sumOf(file, at)) ? "sound" : "damaged"
  } finally {
    await handle.close()
  }
}
