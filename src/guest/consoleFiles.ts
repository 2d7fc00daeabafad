/**
 * The files of a console log: one per run of the VMM, `<run>.<base>.log`, where `base` is the offset of the file's first
 * byte in the log as a whole. The directory's listing is all the state there is:
 *
 *   1.0.log        5000 bytes     offsets    0 ..  4999     a run that ended
 *   2.5000.log     3000 bytes     offsets 5000 ..  7999     the run that is being written
 *   6144.kept      empty          offsets below 6144 are given up: holes, or files that are gone
 *
 * The VMM writes and knows nothing of this; it needs no cooperation for growth to be bounded. `kept` is always the start
 * of a line, and it is renamed and durable before a hole is punched, so that a reader who finds his bytes behind it
 * after reading has read no hole.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { FileFault } from "../host/Fault.ts"

export interface RunFile {
  readonly run: number
  /** Offset of its first byte. */
  readonly base: number
  readonly path: string
}

export interface Listing {
  /** In order of their runs; their bases never fall. */
  readonly runs: ReadonlyArray<RunFile>
  /** The first offset that is kept. */
  readonly kept: number
}

const runName = /^(\d{1,15})\.(\d{1,15})\.log$/u
const keptName = /^(\d{1,15})\.kept$/u

export const keptPath = (directory: string, offset: number): string => path.join(directory, `${offset}.kept`)

const codeOf = (cause: unknown): string =>
  Predicate.hasProperty(cause, "code") && Predicate.isString(cause.code) ? cause.code : "UNKNOWN"

const attempt = <A>(operation: string, target: string, body: () => Promise<A>): Effect.Effect<A, FileFault> =>
  Effect.tryPromise({
    try: body,
    catch: (cause) => new FileFault({ operation, path: target, code: codeOf(cause), cause })
  })

const isAbsent = (fault: FileFault): boolean => fault.code === "ENOENT" || fault.code === "ENOTDIR"

/** What the names in a log's directory say. */
export const parse = (directory: string, names: ReadonlyArray<string>): Listing => {
  const runs = names.flatMap((name) => {
    const [, run, base] = runName.exec(name) ?? []
    return run === undefined || base === undefined
      ? []
      : [{ run: Number(run), base: Number(base), path: path.join(directory, name) }]
  })
  const kept = names.map((name) => Number(keptName.exec(name)?.[1] ?? 0))
  return { runs: runs.toSorted((a, b) => a.run - b.run), kept: Math.max(0, ...kept) }
}

/** The runs of a log and what is kept of it; undefined where there is no such directory. */
export const list = (directory: string): Effect.Effect<Listing | undefined, FileFault> =>
  attempt("list", directory, () => fs.readdir(directory)).pipe(
    Effect.map((names) => parse(directory, names)),
    Effect.catchIf(isAbsent, () => Effect.succeed<Listing | undefined>(undefined))
  )

/** Bytes of a file, 0 where there is none. */
export const size = (file: RunFile): Effect.Effect<number, FileFault> =>
  attempt("stat", file.path, () => fs.stat(file.path)).pipe(
    Effect.map((it) => it.size),
    Effect.catchIf(isAbsent, () => Effect.succeed(0))
  )

export interface Piece {
  readonly bytes: Buffer
  /** When the file was last written, in milliseconds since the epoch. */
  readonly writtenMs: number
}

const readPiece = async (file: RunFile, from: number, length: number): Promise<Piece> => {
  const handle = await fs.open(file.path, "r")
  try {
    const buffer = Buffer.allocUnsafe(length)
    const { bytesRead } = await handle.read(buffer, 0, length, from)
    return { bytes: buffer.subarray(0, bytesRead), writtenMs: (await handle.stat()).mtimeMs }
  } finally {
    await handle.close()
  }
}

/** At most `length` bytes at an offset of the file; fewer at its end, none where it is gone. */
export const read = (file: RunFile, from: number, length: number): Effect.Effect<Piece, FileFault> =>
  attempt("read", file.path, () => readPiece(file, from, length)).pipe(
    Effect.catchIf(isAbsent, () => Effect.succeed({ bytes: Buffer.alloc(0), writtenMs: 0 }))
  )

/** Where a run's bytes end in the log: at the next run's base, where there is one. Later bytes of it do not count. */
export const endOf = (listing: Listing, index: number): Effect.Effect<number, FileFault> => {
  const [file, next] = [listing.runs[index], listing.runs[index + 1]]
  if (file === undefined) return Effect.succeed(listing.kept)
  return Effect.map(size(file), (bytes) => {
    const end = file.base + bytes
    return next === undefined ? end : Math.min(end, next.base)
  })
}

/** The offset behind the newest byte of the log. */
export const end = (listing: Listing): Effect.Effect<number, FileFault> =>
  endOf(listing, listing.runs.length - 1).pipe(Effect.map((offset) => Math.max(offset, listing.kept)))

/** The index of the run that holds an offset; -1 where the log begins behind it. */
export const runAt = (listing: Listing, offset: number): number =>
  listing.runs.findLastIndex((file) => file.base <= offset)
