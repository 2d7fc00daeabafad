/**
 * What a VMM tells of itself without being asked: `--event-monitor`, a file of JSON objects, each on several lines, with an
 * empty line behind each. A file and no pipe, so that nothing is lost while no service reads it.
 *
 *   file ──watch──► bytes ──► records ──► history (what the guest did since it was booted) ──► listeners
 *
 * A guest can make its VMM write: each reset of a virtio device is a record. So the reader takes a bounded piece at a time,
 * gives the file system back what it has read, and starts in the newest `keptBytes` of a file that it finds.
 */
import { watch } from "node:fs"
import * as fs from "node:fs/promises"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { Files } from "../../host/Files.ts"
import { parseExact } from "../exactJson.ts"
import { VmmFault } from "../Vmm.ts"
import { EventRecord } from "./protocol.ts"

/** Records have some 150 bytes; device-removed and a panic a little more. */
const recordMaxBytes = 64 * 1024
const pieceBytes = 256 * 1024
/** Between two pieces: a guest that floods its VMM's log takes a bounded share of the service. */
const pieceIntervalMs = 5
const keptBytes = 1024 * 1024
/** Given back in steps of this many, since each step is a program's start. */
const punchStepBytes = 4 * 1024 * 1024

const separator = Buffer.from("\n\n")
const decodeRecord = Schema.decodeUnknownOption(EventRecord)

const recordOf = (bytes: Buffer): Option.Option<EventRecord> => {
  const parsed = Result.try(() => parseExact(bytes.toString("utf8")))
  return Result.isSuccess(parsed) ? decodeRecord(parsed.success) : Option.none()
}

/**
 * Records out of bytes that come in pieces. What is no record (garbage, a hole, one longer than `recordMaxBytes`) is
 * skipped to the next empty line. `whole`: the first byte is the first of a record.
 */
export class RecordSplitter {
  private rest: Buffer = Buffer.alloc(0)
  private skipping: boolean

  constructor(whole = true) {
    this.skipping = !whole
  }

  push(piece: Buffer): ReadonlyArray<EventRecord> {
    const found: Array<EventRecord> = []
    let bytes = this.rest.length === 0 ? piece : Buffer.concat([this.rest, piece])
    for (let at = bytes.indexOf(separator); at !== -1; at = bytes.indexOf(separator)) {
      const record = this.skipping ? Option.none() : recordOf(bytes.subarray(0, at))
      if (Option.isSome(record)) found.push(record.value)
      this.skipping = false
      bytes = bytes.subarray(at + separator.length)
    }
    if (bytes.length > recordMaxBytes) {
      this.skipping = true
      // A separator may be cut in two.
      bytes = bytes.subarray(bytes.length - 1)
    }
    this.rest = Buffer.from(bytes)
    return found
  }
}

/** What the guest did since its last start, as far as events say. */
export interface History {
  /** It has run: a VM without a guest is then one whose guest went off. */
  readonly started: boolean
  readonly ended: "poweroff" | "reset" | null
  readonly panicked: boolean
}

export const untouched: History = { started: false, ended: null, panicked: false }
const running: History = { started: true, ended: null, panicked: false }

/** The history after one more record. `rebooted` changes nothing: what follows a reset is another run, which nobody asked for. */
export const after = (history: History, { source, event, properties }: EventRecord): History => {
  if (source === "guest" && event === "panic")
    return properties?.["event"] === "panic" ? { ...history, panicked: true } : history
  if (source !== "vm") return history
  switch (event) {
    // Not `booting`: a boot that is refused says that as well.
    case "booted":
    case "restored":
      return running
    case "shutdown":
      return { ...history, started: true, ended: history.ended ?? "poweroff" }
    case "rebooting":
      return { ...history, started: true, ended: history.ended ?? "reset" }
    default:
      return history
  }
}

export interface EventLog {
  /** As of the last record that was read. */
  readonly history: () => History
  /** Calls `take` with every record from now on, and the history before it, until the scope closes. It must not throw. */
  readonly listen: (
    take: (record: EventRecord, before: History) => void
  ) => Effect.Effect<void, never, Scope.Scope>
  /** Listens from now on; the effect inside waits for the first record that is selected. */
  readonly first: (
    select: (record: EventRecord) => boolean
  ) => Effect.Effect<Effect.Effect<void>, never, Scope.Scope>
}

interface Reader {
  readonly path: string
  readonly handle: fs.FileHandle
  readonly splitter: RecordSplitter
  readonly buffer: Buffer
  position: number
  punched: number
}

const openReader = async (path: string): Promise<Reader> => {
  const handle = await fs.open(path, "r")
  const { size } = await handle.stat()
  const position = Math.max(0, size - keptBytes)
  return {
    path,
    handle,
    splitter: new RecordSplitter(position === 0),
    buffer: Buffer.alloc(pieceBytes),
    position,
    punched: 0
  }
}

/** One piece; false at the end of the file. */
const readPiece = (reader: Reader, take: (record: EventRecord) => void) =>
  Effect.promise(async () => {
    const { bytesRead } = await reader.handle.read(reader.buffer, 0, pieceBytes, reader.position)
    reader.position += bytesRead
    for (const record of reader.splitter.push(reader.buffer.subarray(0, bytesRead))) take(record)
    return bytesRead === pieceBytes
  })

const giveBack = Effect.fnUntraced(function* (files: Files["Service"], reader: Reader) {
  const end = reader.position - keptBytes
  if (end - reader.punched < punchStepBytes) return
  yield* Effect.ignore(files.punchHole(reader.path, reader.punched, end - reader.punched))
  reader.punched = end
})

const drain = Effect.fnUntraced(function* (
  files: Files["Service"],
  reader: Reader,
  take: (record: EventRecord) => void
) {
  while (yield* readPiece(reader, take)) {
    yield* giveBack(files, reader)
    yield* Effect.sleep(pieceIntervalMs)
  }
  yield* giveBack(files, reader)
})

/** A queue of at most one notice that the file has grown. */
const growth = (path: string) =>
  Effect.gen(function* () {
    const noticed = yield* Queue.sliding<void>(1)
    yield* Effect.acquireRelease(
      Effect.sync(() =>
        watch(path, () => void Queue.offerUnsafe(noticed, undefined)).on(
          "error",
          () => void Queue.offerUnsafe(noticed, undefined)
        )
      ),
      (watcher) => Effect.sync(() => watcher.close())
    )
    return noticed
  })

/** Reads what is there, then follows the file until the scope closes. Fails where there is no such file. */
export const follow = Effect.fnUntraced(function* (files: Files["Service"], path: string) {
  const reader = yield* Effect.acquireRelease(
    Effect.tryPromise({
      try: () => openReader(path),
      catch: (cause) =>
        new VmmFault({ operation: "attach", reason: "the VMM's events cannot be read", cause })
    }),
    ({ handle }) => Effect.promise(() => handle.close())
  )
  const listeners = new Set<(record: EventRecord, before: History) => void>()
  // Records that were given back were of a guest that ran.
  let history: History = reader.position === 0 ? untouched : running
  const take = (record: EventRecord): void => {
    const before = history
    history = after(before, record)
    for (const listener of listeners) listener(record, before)
  }
  const noticed = yield* growth(path)
  yield* drain(files, reader, take)
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(Queue.take(noticed), drain(files, reader, take))))
  const listen: EventLog["listen"] = (listener) =>
    Effect.acquireRelease(
      Effect.sync(() => void listeners.add(listener)),
      () => Effect.sync(() => listeners.delete(listener))
    )
  const log: EventLog = {
    history: () => history,
    listen,
    first: Effect.fnUntraced(function* (select) {
      const found = Deferred.makeUnsafe<void>()
      yield* listen((record) => {
        if (select(record)) Deferred.doneUnsafe(found, Effect.void)
      })
      return Deferred.await(found)
    })
  }
  return log
})
