/**
 * One stream of a session as its user holds it: what came on it waits here, and the guest gets credit for more only as
 * it is read; what goes out waits for the guest's credit.
 *
 *   open ──last frame──► over ──read to the end──► drained
 *     └──channel closed──► failed
 *     └──abandoned by its user──► the guest is told to cancel; nothing is heard any more
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type { AgentFault } from "./AgentSession.ts"
import { dataKind, encodeFrame } from "./frame.ts"
import { makeInbox, type Segment } from "./Inbox.ts"
import type { Outlet } from "./Outlet.ts"
import { encodeEnd, encodeTold, type Last, type Told, windowBytes } from "./protocol.ts"

/** Credit is given back in steps: a small one costs a frame as well. */
const creditStepBytes = windowBytes / 4
/** The most bytes of one frame: what others wait for meanwhile is short. */
const turnBytes = 32 * 1024

/** What reading gives: the next bytes, or how the stream ended. */
export type Next =
  | { readonly _tag: "Bytes"; readonly segment: Segment }
  | { readonly _tag: "Last"; readonly last: Last }

/** What the channel does for its streams. */
export interface StreamHost {
  readonly outlet: Outlet
  /** Takes up to so many bytes of the guest's credit. */
  readonly spend: (most: number) => number
  /** Lets the guest send so many more bytes. */
  readonly give: (bytes: number) => void
  readonly isOpen: () => boolean
  /** Nobody listens any more. */
  readonly leave: () => void
}

export interface AgentStream {
  /** Waits for as long as the guest is silent. Only one reader at a time. */
  readonly next: Effect.Effect<Next, AgentFault>
  /** Ends when the guest has given credit for the bytes and they are on their way; at once where the stream is over. */
  readonly write: (bytes: Uint8Array) => Effect.Effect<void, AgentFault>
  readonly endInput: Effect.Effect<void, AgentFault>
  readonly tell: (told: Told) => Effect.Effect<void, AgentFault>
  /** Ends it here, whatever the guest does. */
  readonly conclude: (last: Last) => void
  readonly abandon: Effect.Effect<void>
}

/** The same stream from the channel's side. */
export interface StreamEnd {
  readonly heardBytes: (segment: { readonly stderr: boolean; readonly bytes: Buffer }) => void
  readonly heardCredit: () => void
  readonly heardLast: (last: Last) => void
  readonly fail: (fault: AgentFault) => void
}

/** Who waits for something to change is woken, and looks for himself. */
const makeBell = () => {
  let latch: Deferred.Deferred<void> | undefined
  return {
    ring: (): void => {
      const waiting = latch
      latch = undefined
      if (waiting !== undefined) Deferred.doneUnsafe(waiting, Effect.void)
    },
    /** Ends at the next ring after this call, not after the wait begins. */
    next: (): Effect.Effect<void> => Deferred.await((latch ??= Deferred.makeUnsafe<void>()))
  }
}

/** What is known of how the stream ended: the guest's last frame, or the end of the channel. */
interface Fate {
  last: Last | undefined
  over: AgentFault | undefined
}

const makeReader = (fate: Fate, host: StreamHost) => {
  const inbox = makeInbox()
  const arrival = makeBell()
  let unreturned = 0

  const taken = (segment: Segment): Next => {
    unreturned += segment.bytes.length
    if (unreturned >= creditStepBytes) {
      host.give(unreturned)
      unreturned = 0
    }
    return { _tag: "Bytes", segment }
  }

  const next: Effect.Effect<Next, AgentFault> = Effect.suspend(() => {
    const segment = inbox.take()
    if (segment !== undefined) return Effect.succeed(taken(segment))
    if (fate.last !== undefined) return Effect.succeed<Next>({ _tag: "Last", last: fate.last })
    if (fate.over !== undefined) return Effect.fail(fate.over)
    return Effect.andThen(arrival.next(), next)
  })
  return { inbox, arrival, next }
}

const makeWriter = (id: number, fate: Fate, host: StreamHost) => {
  const room = makeBell()

  /** Nothing goes out on a stream that is over: to a process that ended, input is as good as taken. */
  const sending = (frame: () => Buffer | undefined): Effect.Effect<void, AgentFault> =>
    Effect.suspend(() => {
      if (fate.over !== undefined) return Effect.fail(fate.over)
      if (fate.last !== undefined) return Effect.void
      return host.outlet.takeTurn(() => (host.isOpen() && fate.over === undefined ? frame() : undefined))
    })

  const write = (bytes: Uint8Array): Effect.Effect<void, AgentFault> => {
    let rest = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    let moreCredit: Effect.Effect<void> = Effect.void
    const frame = (): Buffer | undefined => {
      const length = host.spend(Math.min(rest.length, turnBytes))
      moreCredit = length === 0 ? room.next() : Effect.void
      if (length === 0) return undefined
      const payload = rest.subarray(0, length)
      rest = rest.subarray(length)
      return encodeFrame({ kind: dataKind, stream: id, payload })
    }
    const go: Effect.Effect<void, AgentFault> = Effect.suspend(() => {
      if (rest.length === 0) return Effect.void
      return Effect.andThen(
        sending(frame),
        Effect.suspend(() => (fate.last === undefined ? Effect.andThen(moreCredit, go) : Effect.void))
      )
    })
    return go
  }
  return { room, sending, write }
}

export const makeAgentStream = (id: number, host: StreamHost): AgentStream & { readonly end: StreamEnd } => {
  const fate: Fate = { last: undefined, over: undefined }
  const { inbox, arrival, next } = makeReader(fate, host)
  const { room, sending, write } = makeWriter(id, fate, host)

  const finish = (how: Partial<Fate>): void => {
    if (fate.last !== undefined || fate.over !== undefined) return
    Object.assign(fate, how)
    arrival.ring()
    room.ring()
  }

  return {
    next,
    write,
    endInput: sending(() => encodeEnd(id)),
    tell: (told) => sending(() => encodeTold(id, told)),
    conclude: (last) => {
      host.leave()
      finish({ last })
    },
    abandon: Effect.sync(host.leave),
    end: {
      heardBytes: ({ stderr, bytes }) => {
        inbox.push(stderr, bytes)
        arrival.ring()
      },
      heardCredit: room.ring,
      heardLast: (last) => finish({ last }),
      fail: (over) => finish({ over })
    }
  }
}
