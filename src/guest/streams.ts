/**
 * The streams of one session as the rules see them: which are open, what the guest may still send on each, and what the
 * host may. Pure. What the rules do not allow is a violation, which ends the session.
 *
 *   open ──► (data within credit, credit within what was sent) ... ──last frame──► forgotten
 *     └─cancel──► abandoned: the same rules, nobody listens ──last frame──► forgotten
 *
 * Ids are never used again, so a frame for a stream that is over is told from one that crossed.
 */
import * as Data from "effect/Data"
import * as Option from "effect/Option"
import { controlKind, creditKind, dataKind, endKind, type Frame, stderrKind } from "./frame.ts"
import { type Last, type Opening, parseLast, streamsMax, windowBytes } from "./protocol.ts"

export type StreamHeard = Data.TaggedEnum<{
  /** Bytes for who reads the stream. */
  Bytes: { readonly stream: number; readonly stderr: boolean; readonly bytes: Buffer }
  /** The guest takes more. */
  Credit: { readonly stream: number }
  /** The stream is over. */
  Ended: { readonly stream: number; readonly last: Last }
  /** A frame that changes nothing, such as the end of the guest's bytes. */
  Nothing: {}
  Violation: { readonly reason: string }
}>
export const StreamHeard = Data.taggedEnum<StreamHeard>()

interface Open {
  readonly type: Opening["type"]
  /** Bytes that the guest may send before it gets more credit; a stream into the guest brings none. */
  allowance: number
  /** Bytes that the host may send, and those that it sent without having had credit back for them. */
  credit: number
  unreturned: number
  /** The guest said that it has no more bytes. */
  silent: boolean
  abandoned: boolean
}

export interface Streams {
  /** A fresh id; none where as many are open as may be. */
  readonly open: (type: Opening["type"]) => Option.Option<number>
  /** The guest refused to open it: it never was. */
  readonly forget: (stream: number) => void
  readonly hear: (frame: Frame) => StreamHeard
  /** The receiver takes so many more bytes; false where the stream is over. */
  readonly give: (stream: number, bytes: number) => boolean
  /** Takes up to `most` bytes of the credit that the guest gave. */
  readonly spend: (stream: number, most: number) => number
  readonly isOpen: (stream: number) => boolean
  /** Nobody listens any more; true where the guest has to be told. */
  readonly abandon: (stream: number) => boolean
  /** All that may be open are, and none is listened to: the guest does not end what it was told to. */
  readonly isStuck: () => boolean
}

const violation = (reason: string): StreamHeard => StreamHeard.Violation({ reason })

const bytesHeard = (open: Open, frame: Frame): StreamHeard => {
  const { stream, payload } = frame
  const stderr = frame.kind === stderrKind
  if (open.silent) return violation("it sends behind its own end")
  if (stderr && open.type !== "exec") return violation("it sends stderr where no process is")
  if (payload.length === 0) return violation("it sends empty data")
  if (payload.length > open.allowance) return violation("it sends more than it has credit for")
  open.allowance -= payload.length
  return StreamHeard.Bytes({ stream, stderr, bytes: payload })
}

const creditHeard = (open: Open, { stream, payload }: Frame): StreamHeard => {
  if (payload.length !== 4) return violation("it gives credit that is no number")
  const bytes = payload.readUInt32LE()
  if (bytes === 0 || bytes > open.unreturned) return violation("it gives credit for what it did not get")
  open.unreturned -= bytes
  open.credit += bytes
  return StreamHeard.Credit({ stream })
}

const lastHeard = (open: Open, { stream, payload }: Frame): StreamHeard =>
  Option.match(parseLast(payload), {
    onNone: () => violation("it says to a stream what means nothing there"),
    onSome: (last) =>
      (last.type === "exit") === (open.type === "exec") || last.type === "failed"
        ? StreamHeard.Ended({ stream, last })
        : violation("it ends a stream as what it is not")
  })

export const makeStreams = (): Streams => {
  const streams = new Map<number, Open>()
  let nextId = 1

  const hear = (frame: Frame): StreamHeard => {
    const open = streams.get(frame.stream)
    if (open === undefined) return violation("it speaks on a stream that is not open")
    switch (frame.kind) {
      case dataKind:
      case stderrKind:
        return bytesHeard(open, frame)
      case creditKind:
        return creditHeard(open, frame)
      case endKind:
        if (open.silent || frame.payload.length > 0) return violation("it ends its data wrongly")
        open.silent = true
        return StreamHeard.Nothing()
      case controlKind: {
        const heard = lastHeard(open, frame)
        if (heard._tag === "Ended") streams.delete(frame.stream)
        return heard
      }
      default:
        return violation("it sends a frame of no kind")
    }
  }

  return {
    open: (type) => {
      if (streams.size >= streamsMax) return Option.none()
      const id = nextId++
      const allowance = type === "write_files" ? 0 : windowBytes
      streams.set(id, {
        type,
        allowance,
        credit: windowBytes,
        unreturned: 0,
        silent: false,
        abandoned: false
      })
      return Option.some(id)
    },
    forget: (stream) => void streams.delete(stream),
    hear,
    give: (stream, bytes) => {
      const open = streams.get(stream)
      if (open === undefined) return false
      open.allowance += bytes
      return true
    },
    spend: (stream, most) => {
      const open = streams.get(stream)
      if (open === undefined) return 0
      const bytes = Math.min(most, open.credit)
      open.credit -= bytes
      open.unreturned += bytes
      return bytes
    },
    isOpen: (stream) => streams.has(stream),
    abandon: (stream) => {
      const open = streams.get(stream)
      if (open === undefined || open.abandoned) return false
      open.abandoned = true
      return true
    },
    isStuck: () => streams.size >= streamsMax && [...streams.values()].every((it) => it.abandoned)
  }
}
