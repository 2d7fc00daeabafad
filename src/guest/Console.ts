/**
 * The console of a guest as lines: the newest, from a cursor on, and as they come. Also for the other logs of an
 * instance, which are directories of the same form (consoleFiles.ts).
 *
 * A cursor is the offset of the byte behind a line, over all runs; it stays valid for ever, and what was given up in
 * the meantime is skipped to the first line that is kept. A reader holds no file open and nothing in memory but the
 * piece that it reads (96 KiB): its only state is an offset, and a slow consumer slows nobody but itself.
 *
 *   read ──lines──► read ──nothing new──► watch ──change, or 1 s──► read
 *     └──the end, without follow──► done           └──directory gone──► done
 */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { timestamp } from "../domain/Ids.ts"
import type { FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import * as files from "./consoleFiles.ts"
import { enoughBytes, lineAt } from "./consoleLines.ts"

/** One read; every line fits. */
const readBytes = Math.max(96 * 1024, enoughBytes)
/** Writes of one moment become one read. */
const coalesceMs = 10
/** Where a change of the directory cannot be watched, or was missed. */
const followFallbackMs = 1_000
/** The most lines that `tail` counts, and the most bytes that it looks back for them. */
const tailMaxLines = 100_000
const tailScanMaxBytes = 64 * 1024 * 1024
const tailChunkBytes = 64 * 1024

export interface ConsoleRequest {
  /** Goes on with what comes, and ends when the directory is removed. Without it, the end of now is the end. */
  readonly follow: boolean
  /** The newest n lines only (at most 100000); ignored where `after` is given. */
  readonly tail: Option.Option<number>
  /** Resume behind this cursor. One that is not there yet counts as the end. */
  readonly after: Option.Option<number>
}

export interface ConsoleLine {
  /** Offset of the byte behind the line: the cursor that resumes after it. */
  readonly cursor: number
  /** When the line was seen (RFC 3339); for lines older than the reader, when their file was last written. */
  readonly time: string
  /** Without its end. Bytes that are no UTF-8 are replaced by U+FFFD. */
  readonly line: string
}

/**
 * The next file of a log: its run number, the offset of its first byte, and its path. Nothing is made; whoever writes
 * the file makes it. The runs before have ended: later bytes of theirs would not count.
 */
export const nextRun = (directory: string): Effect.Effect<files.RunFile, FileFault, Files> =>
  Effect.gen(function* () {
    const host = yield* Files
    const listing = files.parse(directory, yield* host.list(directory))
    const newest = listing.runs.at(-1)
    const stat = newest === undefined ? Option.none() : yield* host.stat(newest.path)
    const bytes = Option.match(stat, { onNone: () => 0, onSome: (it) => it.size })
    const run = (newest?.run ?? 0) + 1
    const base = Math.max(listing.kept, (newest?.base ?? 0) + bytes)
    return { run, base, path: path.join(directory, `${run}.${base}.log`) }
  })

interface Reader {
  readonly directory: string
  /** What is behind it was there before the reader. */
  readonly before: number
  /** Where to stop; undefined: never. */
  readonly until: number | undefined
}

/** What one look at the log gave: lines and the offset behind them, or nothing yet, or nothing ever. */
type Look =
  | { readonly _tag: "Lines"; readonly lines: ReadonlyArray<ConsoleLine>; readonly offset: number }
  | { readonly _tag: "Nothing"; readonly offset: number }
  | { readonly _tag: "Gone" }

interface Source {
  readonly file: files.RunFile
  readonly next: files.RunFile | undefined
  readonly offset: number
  /** Bytes that may be read from there: to the next run, to the reader's end, at most one piece. */
  readonly length: number
}

/** Where to read next: behind what was given up, in the run that holds the offset. */
const sourceAt = (reader: Reader, listing: files.Listing, offset: number): Source | undefined => {
  const from = Math.max(offset, listing.kept)
  const index = Math.max(0, files.runAt(listing, from))
  const file = listing.runs[index]
  if (file === undefined) return undefined
  const next = listing.runs[index + 1]
  const at = Math.max(from, file.base)
  const stop = Math.min(next?.base ?? Infinity, reader.until ?? Infinity, at + readBytes)
  return { file, next, offset: at, length: Math.max(0, stop - at) }
}

const linesOf = (reader: Reader, source: Source, piece: files.Piece, nowMs: number): Look => {
  const { bytes, writtenMs } = piece
  const [written, now] = [timestamp(writtenMs), timestamp(nowMs)]
  const last = source.next !== undefined || reader.until !== undefined
  const reached = source.offset + bytes.length
  const full = bytes.length === source.length
  // No byte will follow these: the run's or the reader's end is reached, or the file holds less than its successor says.
  const ended =
    last && (!full || reached === Math.min(source.next?.base ?? Infinity, reader.until ?? Infinity))
  const lines: Array<ConsoleLine> = []
  let at = 0
  for (let line = lineAt(bytes, at, ended); line !== undefined; line = lineAt(bytes, at, ended)) {
    const cursor = source.offset + line.next
    lines.push({
      cursor,
      time: cursor <= reader.before ? written : now,
      line: bytes.toString("utf8", at, line.textEnd)
    })
    at = line.next
  }
  const offset = ended && source.next !== undefined ? source.next.base : source.offset + at
  return lines.length > 0 || offset > source.offset + at
    ? { _tag: "Lines", lines, offset }
    : { _tag: "Nothing", offset }
}

const look = (reader: Reader, offset: number): Effect.Effect<Look, FileFault> =>
  Effect.gen(function* () {
    const listing = yield* files.list(reader.directory)
    if (listing === undefined) return { _tag: "Gone" }
    const source = sourceAt(reader, listing, offset)
    if (source === undefined) return { _tag: "Nothing", offset }
    const piece = yield* files.read(source.file, source.offset - source.file.base, source.length)
    const kept = (yield* files.list(reader.directory))?.kept ?? 0
    // Given up while it was read: it may be a hole.
    if (kept > source.offset) return { _tag: "Lines", lines: [], offset: kept }
    return linesOf(reader, source, piece, yield* Clock.currentTimeMillis)
  })

/** Done at the first change of the directory behind this moment. Without a directory to watch, never. */
const watched = (directory: string): Effect.Effect<Deferred.Deferred<void>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const seen = yield* Deferred.make<void>()
    const see = () => Deferred.doneUnsafe(seen, Effect.void)
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        try {
          return fs.watch(directory).on("change", see).on("error", see)
        } catch {
          return undefined
        }
      }),
      (watcher) => Effect.sync(() => watcher?.close())
    )
    return seen
  })

/** Where the newest n lines start, or earlier: behind the line feed before them, found from the end. */
const scanBack = (listing: files.Listing, end: number, n: number): Effect.Effect<number, FileFault> =>
  Effect.gen(function* () {
    const floor = Math.max(listing.kept, end - tailScanMaxBytes)
    let missing = n + 1
    let at = end
    while (at > floor) {
      const index = files.runAt(listing, at - 1)
      const file = listing.runs[index]
      if (file === undefined) return at
      const from = Math.max(floor, file.base, at - tailChunkBytes)
      const { bytes } = yield* files.read(file, from - file.base, at - from)
      let feed = bytes.lastIndexOf(0x0a)
      while (feed >= 0) {
        missing--
        if (missing === 0) return from + feed + 1
        feed = feed === 0 ? -1 : bytes.lastIndexOf(0x0a, feed - 1)
      }
      at = from
    }
    return floor
  })

/** Where the newest n lines start exactly: counted forwards, with their starts in a ring. */
const tailStart = (reader: Reader, listing: files.Listing, end: number, n: number) =>
  Effect.gen(function* () {
    if (n === 0) return end
    const bounded: Reader = { ...reader, until: end }
    const starts: Array<number> = []
    let count = 0
    let offset = yield* scanBack(listing, end, n)
    while (offset < end) {
      const found = yield* look(bounded, offset)
      if (found._tag !== "Lines") break
      let start = offset
      for (const { cursor } of found.lines) {
        starts[count % n] = start
        start = cursor
        count++
      }
      offset = found.offset
    }
    return starts[count < n ? 0 : count % n] ?? end
  })

const startOf = (
  reader: Reader,
  listing: files.Listing,
  end: number,
  request: ConsoleRequest
): Effect.Effect<number, FileFault> => {
  if (Option.isSome(request.after)) return Effect.succeed(Math.min(request.after.value, end))
  if (Option.isNone(request.tail)) return Effect.succeed(listing.kept)
  const n = Math.min(Math.max(0, Math.trunc(request.tail.value)), tailMaxLines)
  return tailStart(reader, listing, end, n)
}

interface Position {
  readonly offset: number
  /** The directory was there: its absence now is the end. */
  readonly seen: boolean
}

/** Nothing to wait for: there are lines, or what was there is gone. */
const isNews = (found: Look, position: Position): boolean =>
  found._tag === "Lines" || (found._tag === "Gone" && position.seen)

/** Looks again once something may be new. The watch stands before the look, so that no write falls between them. */
const lookLater = (reader: Reader, position: Position): Effect.Effect<Look, FileFault> =>
  Effect.scoped(
    Effect.gen(function* () {
      const changed = yield* watched(reader.directory)
      const now = yield* look(reader, position.offset)
      if (isNews(now, position)) return now
      yield* Effect.timeoutOption(Deferred.await(changed), followFallbackMs)
      yield* Effect.sleep(coalesceMs)
      return yield* look(reader, position.offset)
    })
  )

type Page = readonly [ReadonlyArray<ConsoleLine>, Option.Option<Position>]

const page = (reader: Reader, position: Position): Effect.Effect<Page, FileFault> =>
  Effect.gen(function* () {
    const first = yield* look(reader, position.offset)
    const found =
      reader.until !== undefined || isNews(first, position) ? first : yield* lookLater(reader, position)
    if (found._tag === "Gone") {
      const over = position.seen || reader.until !== undefined
      return [[], over ? Option.none() : Option.some(position)]
    }
    const over = found._tag === "Nothing" && reader.until !== undefined
    const lines = found._tag === "Lines" ? found.lines : []
    return [lines, over ? Option.none() : Option.some({ offset: found.offset, seen: true })]
  })

/**
 * The lines that the request asks for. Reads on demand only. Fails where the file system does; a log that is not there
 * yet is empty, and is waited for with `follow`.
 */
export const readLines = (
  directory: string,
  request: ConsoleRequest
): Stream.Stream<ConsoleLine, FileFault> =>
  Stream.unwrap(
    Effect.gen(function* () {
      const listing = yield* files.list(directory)
      const known = listing ?? { runs: [], kept: 0 }
      const end = yield* files.end(known)
      const reader: Reader = { directory, before: end, until: request.follow ? undefined : end }
      const offset = yield* startOf(reader, known, end, request)
      const start: Position = { offset, seen: listing !== undefined }
      return Stream.paginate(start, (position) => page(reader, position))
    })
  )
