/**
 * Keeps a console log from growing without bound. Its writer is a VMM that knows nothing of it, and its cursors are
 * offsets, so nothing is ever moved: the blocks behind the newest bytes are given back by punching holes, and files of
 * runs that are wholly behind them are removed.
 *
 *   mark (durable) ──► remove old files ──► punch
 *
 * A crash between two steps leaves bytes that the next pass gives back; it never leaves a hole that is not marked.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { CommandFault, FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import * as consoleFiles from "./consoleFiles.ts"
import { lineMaxBytes } from "./consoleLines.ts"

/** What a log keeps unless told otherwise. */
export const consoleKeepBytes = 16 * 1024 * 1024
/** A pass costs a process and an fsync; less than this is not worth one. */
const trimStepBytes = 256 * 1024
/** Punched in whole blocks; larger blocks of a file system only give back less. */
const blockBytes = 4096
/** Between two passes: short while a guest floods, long while it is quiet. */
const trimMinIntervalMs = 250
const trimMaxIntervalMs = 4_000
/** Growth in one interval, as a part of what is kept, that counts as a flood. */
const floodPart = 1 / 8

/** The first start of a line at or behind an offset; the offset itself where a line is longer than any may be. */
const lineStartFrom = (listing: consoleFiles.Listing, offset: number): Effect.Effect<number, FileFault> =>
  Effect.gen(function* () {
    const index = consoleFiles.runAt(listing, offset)
    const [file, next] = [listing.runs[index], listing.runs[index + 1]]
    if (file === undefined || offset === file.base) return offset
    const piece = yield* consoleFiles.read(file, offset - 1 - file.base, lineMaxBytes + 1)
    const feed = piece.bytes.indexOf(0x0a)
    const start = feed < 0 ? offset : offset + feed
    return next === undefined || (feed >= 0 && start < next.base) ? start : Math.max(offset, next.base)
  })

const mark = (directory: string, from: number, to: number) =>
  Effect.gen(function* () {
    const files = yield* Files
    const path = consoleFiles.keptPath(directory, to)
    yield* from === 0 ? files.write(path, "") : files.rename(consoleFiles.keptPath(directory, from), path)
  })

const giveBack = (listing: consoleFiles.Listing, kept: number) =>
  Effect.gen(function* () {
    const files = yield* Files
    const holder = consoleFiles.runAt(listing, kept)
    for (const file of listing.runs.slice(0, Math.max(0, holder))) yield* files.remove(file.path)
    const file = listing.runs[holder]
    if (file === undefined) return
    const bytes = Math.floor((kept - file.base) / blockBytes) * blockBytes
    if (bytes > 0) yield* files.punchHole(file.path, 0, bytes)
  })

/**
 * Gives back all but about the newest `keepBytes`: what is kept starts with a whole line and is at most 256 KiB longer.
 * Says how many bytes the log holds in all, given back or not.
 */
export const trim = (
  directory: string,
  keepBytes: number = consoleKeepBytes
): Effect.Effect<number, FileFault | CommandFault, Files> =>
  Effect.gen(function* () {
    const listing = yield* consoleFiles.list(directory)
    if (listing === undefined || listing.runs.length === 0) return 0
    const end = yield* consoleFiles.end(listing)
    if (end - listing.kept <= keepBytes + trimStepBytes) return end
    const kept = yield* lineStartFrom(listing, end - keepBytes)
    yield* mark(directory, listing.kept, kept)
    yield* giveBack(listing, kept)
    return end
  })

/**
 * Trims for ever. The VMM writes without a word, and a watch on a file that floods would wake the service for every
 * write, so this looks from time to time: every 4 s, and up to four times a second while the log grows fast. A pass that
 * fails is logged and tried again.
 */
export const keepTrimmed = (
  directory: string,
  keepBytes: number = consoleKeepBytes
): Effect.Effect<never, never, Files> => {
  const pass = (before: number, intervalMs: number): Effect.Effect<never, never, Files> =>
    trim(directory, keepBytes).pipe(
      Effect.catch((fault) =>
        Effect.logWarning("the console log cannot be trimmed", fault).pipe(Effect.as(before))
      ),
      Effect.flatMap((end) => {
        const flood = end - before > keepBytes * floodPart
        const next = flood ? trimMinIntervalMs : Math.min(intervalMs * 2, trimMaxIntervalMs)
        return Effect.andThen(
          Effect.sleep(Duration.millis(next)),
          Effect.suspend(() => pass(end, next))
        )
      })
    )
  return pass(0, trimMinIntervalMs)
}
