/**
 * A fetched blob that is given up while it is read, so that a layer and what it is made of never take the disk together.
 *
 *   HEX (complete) ──first read──► HEX.spent (holes behind the reader) ──read to its end──► gone
 *
 * The new name says that the file is no blob any more, whoever comes across it after a crash. A layer that has to be read
 * twice (convertLayer) fails with `spent`; its pull brings the blob again and keeps it that time.
 */
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"
import type { Digest } from "../../domain/Ids.ts"
import type { Files } from "../../host/Files.ts"
import type { LayerBlob } from "../convertLayer.ts"
import { readRange } from "../decompress.ts"
import { ImageFault } from "../ImageFault.ts"
import { blobFile } from "./Source.ts"

/** Smaller ones are not worth a hole. */
const spendMinBytes = 1024 * 1024
/** Each hole costs a process: a large blob has few large ones, a small one eight. */
const holesPerBlob = 8
const holeMinBytes = 256 * 1024
const holeMaxBytes = 16 * 1024 * 1024
const suffix = ".spent"

export const isSpent = (name: string): boolean => name.endsWith(suffix)

async function* spend(files: Files["Service"], path: string, size: number) {
  const spent = `${path}${suffix}`
  await fs.rename(path, spent).catch((cause: unknown) => {
    throw new ImageFault({
      reason: "spent",
      detail: "A layer has to be fetched again to be read twice.",
      cause
    })
  })
  const holeBytes = Math.min(Math.max(size / holesPerBlob, holeMinBytes), holeMaxBytes)
  let [read, free] = [0, 0]
  for await (const chunk of readRange({ path: spent, offset: 0, length: size })) {
    read += chunk.length
    yield chunk
    if (read - free < holeBytes) continue
    await Effect.runPromise(Effect.ignore(files.punchHole(spent, free, read - free)))
    free = read
  }
  await fs.rm(spent, { force: true })
}

/** A blob that lies in a file of its own, and is no more once it was read. */
export const spentBlob = (
  files: Files["Service"],
  path: string,
  size: number,
  digest: Digest,
  diffId: Digest
): LayerBlob =>
  size < spendMinBytes
    ? blobFile(path, size, digest, diffId)
    : { read: () => spend(files, path, size), digest, diffId }
