/** SHA-256 of files, streamed; remembered by size and times, since the kernel and initrd are asked for again and again. */
import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import * as fs from "node:fs/promises"
import { pipeline } from "node:stream/promises"
import * as Effect from "effect/Effect"
import { FileFault } from "./Fault.ts"

/** Reads of 1 MiB keep the hash busy and the memory flat. */
const readBytes = 1024 * 1024
/** Files remembered: the kernel and the initrd of a few versions. */
const rememberedMax = 16

const remembered = new Map<string, string>()

const sha256Of = async (path: string, signal: AbortSignal): Promise<string> => {
  const hash = createHash("sha256")
  await pipeline(createReadStream(path, { highWaterMark: readBytes }), hash, { signal })
  return hash.digest("hex")
}

/** The checksum of a file as 64 hexadecimal digits. Fails with FileFault where it cannot be read. */
export const sha256 = (path: string): Effect.Effect<string, FileFault> =>
  Effect.tryPromise({
    try: (signal) => sha256Of(path, signal),
    catch: (cause) => new FileFault({ operation: "read", path, code: "UNREADABLE", cause })
  })

/** The same, remembered while size, inode and times of the file stay the same. For files that are replaced, not edited. */
export const sha256Remembered = (path: string): Effect.Effect<string, FileFault> =>
  Effect.gen(function* () {
    const stat = yield* Effect.tryPromise({
      try: () => fs.stat(path, { bigint: true }),
      catch: (cause) => new FileFault({ operation: "stat", path, code: "UNREADABLE", cause })
    })
    const key = `${path}\0${stat.ino}\0${stat.size}\0${stat.mtimeNs}\0${stat.ctimeNs}`
    const known = remembered.get(key)
    if (known !== undefined) return known
    const sum = yield* sha256(path)
    const [oldest] = remembered.keys()
    if (remembered.size >= rememberedMax && oldest !== undefined) remembered.delete(oldest)
    remembered.set(key, sum)
    return sum
  })
