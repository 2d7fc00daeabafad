/**
 * A guest's tar as files of this host. A guest is a stranger: whatever the archive says, nothing is written outside of
 * the place that the person named, and no device, owner or set-id bit comes with it.
 *
 *   archive ──► a new directory beside the place ──complete──► moved into place ──► (removed)
 *                    └── cut off, interrupted, hostile: removed, the place as it was
 *
 * Symbolic links are made last, each in the place of an empty file that held its name: no entry is ever written through
 * one.
 */
import { createWriteStream } from "node:fs"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { extract, type Extract } from "tar-stream"
import { failure } from "./Failure.ts"
import { roomIn } from "./roomIn.ts"
import { printable, reason } from "./text.ts"

/** No owner, no set-id, no sticky bit: what a person may do with their own files. */
const modeBits = 0o777

type Entry = Extract extends AsyncIterable<infer Source> ? Source : never

class Refused extends Error {}

/** The path of an entry below the top one's name; the empty one is the top itself. */
const segmentsOf = (name: string): ReadonlyArray<string> => {
  const segments = name.split("/").filter((segment) => segment !== "" && segment !== ".")
  if (name.startsWith("/") || segments.includes("..") || name.includes("\0"))
    throw new Refused(`the archive has a path that leads out of it: ${printable(name)}`)
  return segments
}

/** An archive on its way into a directory of its own. */
class Unpacking {
  readonly #directory: string
  readonly #links: Array<readonly [at: string, target: string]> = []
  readonly #modes: Array<readonly [at: string, mode: number]> = []
  readonly skipped: Array<string> = []
  /** The name of the top entry; undefined while there is none. */
  top: string | undefined

  constructor(directory: string) {
    this.#directory = directory
  }

  /** Where an entry goes; all entries are below the first one. */
  #place(name: string): string {
    const segments = segmentsOf(name)
    this.top ??= segments[0] ?? "."
    if (this.top !== "." && segments[0] !== this.top)
      throw new Refused(`the archive has a second top: ${printable(name)}`)
    return path.join(this.#directory, ...segments)
  }

  async #file(at: string, entry: Entry, mode: number): Promise<void> {
    await fs.rm(at, { force: true })
    await pipeline(Readable.from(entry), createWriteStream(at, { flags: "wx", mode: 0o600 }))
    await fs.chmod(at, mode)
    if (entry.header.mtime !== undefined) await fs.utimes(at, entry.header.mtime, entry.header.mtime)
  }

  async take(entry: Entry): Promise<void> {
    const { name, type, linkname, mode } = entry.header
    const at = this.#place(name)
    await fs.mkdir(path.dirname(at), { recursive: true })
    switch (type) {
      case "directory":
        await fs.mkdir(at, { recursive: true })
        this.#modes.push([at, mode & modeBits])
        break
      case "file":
      case "contiguous-file":
        return this.#file(at, entry, mode & modeBits)
      case "symlink":
        await fs.writeFile(at, "", { flag: "wx" })
        this.#links.push([at, linkname ?? ""])
        break
      case "link":
        await fs.link(this.#place(linkname ?? ""), at)
        break
      default:
        this.skipped.push(printable(name))
    }
    entry.resume()
  }

  async finish(): Promise<void> {
    for (const [at, target] of this.#links) {
      await fs.rm(at)
      await fs.symlink(target, at)
    }
    // Inner ones first: a directory without write permission takes no change any more.
    for (const [at, mode] of this.#modes.toReversed()) await fs.chmod(at, mode)
  }
}

const isDirectory = async (at: string): Promise<boolean> =>
  fs.lstat(at).then(
    (about) => about.isDirectory(),
    () => false
  )

/** Moves a tree to its place; directories that are there already are merged with, files are replaced. */
const move = async (from: string, to: string): Promise<void> => {
  if (!(await isDirectory(from)) || !(await isDirectory(to))) {
    if (await isDirectory(to)) throw new Refused(`${to} is a directory, and what comes is none`)
    return fs.rename(from, to)
  }
  await fs.chmod(from, 0o700)
  for (const name of await fs.readdir(from)) await move(path.join(from, name), path.join(to, name))
}

interface Destination {
  /** Of the directory that exists already. */
  readonly directory: string
  /** The name in it; the archive's own where it is undefined. */
  readonly name: string | undefined
}

const destinationOf = async (place: string): Promise<Destination> => {
  const about = await fs.stat(place).catch(() => undefined)
  if (about?.isDirectory() === true) return { directory: place, name: undefined }
  if (about === undefined && place.endsWith("/")) throw new Refused(`there is no directory ${place}`)
  const directory = path.dirname(path.resolve(place))
  const parent = await fs.stat(directory).catch(() => undefined)
  if (parent?.isDirectory() !== true) throw new Refused(`there is no directory ${directory}`)
  return { directory, name: path.basename(place) }
}

const failed = (place: string) => (error: unknown) => failure(`Cannot write ${place}: ${reason(error)}`)

/** Feeds the archive to the reader of its entries, no faster than they are written. */
const feed = async (archive: AsyncIterable<Uint8Array>, entries: Extract): Promise<void> => {
  for await (const piece of archive) if (!entries.write(piece)) await roomIn(entries)
  entries.end(null)
}

const receive = async (archive: AsyncIterable<Uint8Array>, staging: string, signal: AbortSignal) => {
  const unpacking = new Unpacking(staging)
  const entries = extract()
  signal.addEventListener("abort", () => entries.destroy())
  const fed = feed(archive, entries).catch((error: unknown) => {
    entries.destroy(error instanceof Error ? error : new Error(String(error)))
  })
  for await (const entry of entries) await unpacking.take(entry)
  await fed
  await unpacking.finish()
  return unpacking
}

/** Whether the top of an archive is a directory; undefined for an empty one. Reads no further than to its header. */
export const isDirectoryArchive = <E, R>(archive: Stream.Stream<Uint8Array, E, R>) =>
  Effect.gen(function* () {
    const bytes = yield* Stream.toAsyncIterableEffect(archive)
    return yield* Effect.tryPromise({
      try: async () => {
        const entries = extract()
        const fed = feed(bytes, entries).catch(() => entries.destroy())
        for await (const { header } of entries) {
          entries.destroy()
          return header.type === "directory"
        }
        await fed
        return undefined
      },
      catch: (error) => failure(`The guest sent no archive: ${reason(error)}`)
    })
  })

/** A directory of one mode may hold others that cannot be entered: opened first, then removed. */
const discard = async (directory: string): Promise<void> => {
  await fs.rm(directory, { recursive: true, force: true })
}

/**
 * Unpacks into `place` as cp does: into it where it is a directory, under its name where there is none. Gives the names
 * of entries that were left out. Fails with one sentence, the place as it was but for files moved already.
 */
export const unpackFiles = <E, R>(archive: Stream.Stream<Uint8Array, E, R>, place: string) =>
  Effect.acquireUseRelease(
    Effect.tryPromise({
      try: async () => {
        const destination = await destinationOf(place)
        return { destination, staging: await fs.mkdtemp(path.join(destination.directory, ".dataplane-cp-")) }
      },
      catch: failed(place)
    }),
    ({ destination, staging }) =>
      Effect.gen(function* () {
        const bytes = yield* Stream.toAsyncIterableEffect(archive)
        const { top, skipped } = yield* Effect.tryPromise({
          try: (signal) => receive(bytes, staging, signal),
          catch: failed(place)
        })
        if (top === undefined) return yield* failure("The guest sent an empty archive.")
        const { directory, name = top } = destination
        // From here on it is a matter of renames: not interrupted halfway.
        yield* Effect.uninterruptible(
          Effect.tryPromise({
            try: () =>
              top === "."
                ? move(staging, path.join(directory, name))
                : move(path.join(staging, top), path.join(directory, name)),
            catch: failed(place)
          })
        )
        return skipped
      }),
    ({ staging }) => Effect.promise(() => discard(staging))
  )
