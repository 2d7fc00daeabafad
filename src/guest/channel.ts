/**
 * The conversation with one guest over one socket. It ends once, for one reason, and takes every waiting request and
 * every open stream with it.
 *
 *   greeting ──hello──► established ──► over   (a lie of the guest, a socket that closes, the end of the scope)
 *
 * Bytes are handled as they arrive: they answer a waiting request, belong to an open stream within the credit that its
 * reader gave, or end the channel. libuv reads once per turn of the event loop, so a guest that floods takes no turn from
 * the others.
 */
import { randomBytes } from "node:crypto"
import type * as net from "node:net"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type { MountHolder } from "../domain/Volume.ts"
import { AgentBusy, AgentFault, AgentRefusal } from "./AgentSession.ts"
import { type AgentStream, makeAgentStream, type StreamEnd } from "./AgentStream.ts"
import { type Asked, type Dialogue, type Heard, makeDialogue, type Unasked } from "./dialogue.ts"
import { makeOutlet, type Outlet } from "./Outlet.ts"
import { encodeCredit, encodeTold, type GuestMessage, type Opening, type Request } from "./protocol.ts"

export type Done = Extract<GuestMessage, { readonly type: "done" }>

/** What the guest answered: it did it, or it did not and says why. */
export type Answer =
  | { readonly _tag: "Done"; readonly message: Done }
  | {
      readonly _tag: "Refused"
      readonly reason: string
      /** Something is in use, whether or not anybody can be named for it. */
      readonly busy: boolean
      readonly holders: ReadonlyArray<MountHolder>
    }

type Waiting = Deferred.Deferred<Answer, AgentFault>

export const faultOf = (operation: string, reason: string, cause?: unknown): AgentFault =>
  new AgentFault({ operation, reason, cause })

const unasked = (verb: string, why: Unasked): AgentBusy | AgentFault | AgentRefusal => {
  switch (why) {
    case "owes":
      return faultOf(verb, "the guest owes too many answers")
    case "too many streams":
      return new AgentBusy({ operation: verb, reason: "as many sessions are open as one guest may have" })
    case "too large":
      return new AgentRefusal({ operation: verb, reason: "the request does not fit into 64 KiB" })
    case "too old":
      return new AgentRefusal({ operation: verb, reason: "it booted with an older agent; stop and start it" })
  }
}

export interface Channel {
  readonly established: Effect.Effect<void, AgentFault>
  readonly ready: Effect.Effect<void, AgentFault>
  readonly closed: Effect.Effect<void>
  readonly greet: Effect.Effect<void>
  /** A request and its answer. */
  readonly say: (verb: string, request: Request) => Effect.Effect<Answer, AgentFault>
  /** Asks for a stream. It is there at once; `opened` is the guest's answer. Whoever asks must abandon it. */
  readonly open: (
    opening: Opening
  ) => Effect.Effect<
    { readonly stream: AgentStream; readonly opened: Effect.Effect<Answer, AgentFault> },
    AgentFault | AgentBusy | AgentRefusal
  >
  readonly end: (fault: AgentFault) => void
}

/** The parts of a conversation. `over`: why it ended. */
interface Talk {
  readonly socket: net.Socket
  readonly dialogue: Dialogue
  readonly outlet: Outlet
  readonly established: Deferred.Deferred<void, AgentFault>
  readonly ready: Deferred.Deferred<void, AgentFault>
  readonly closed: Deferred.Deferred<void>
  readonly waiting: Map<number, Waiting>
  /** Streams that somebody listens to. */
  readonly streams: Map<number, StreamEnd>
  over: AgentFault | undefined
}

const end = (talk: Talk, fault: AgentFault): void => {
  if (talk.over !== undefined) return
  talk.over = fault
  Deferred.doneUnsafe(talk.established, Effect.fail(fault))
  Deferred.doneUnsafe(talk.ready, Effect.fail(fault))
  for (const answer of talk.waiting.values()) Deferred.doneUnsafe(answer, Effect.fail(fault))
  for (const stream of talk.streams.values()) stream.fail(fault)
  talk.streams.clear()
  Deferred.doneUnsafe(talk.closed, Effect.void)
  talk.socket.destroy()
}

const send = (talk: Talk, bytes: Buffer): void => {
  if (talk.over === undefined && !talk.outlet.send(bytes))
    end(talk, faultOf("agent", "the guest does not read"))
}

const greet = ({ socket, dialogue }: Talk): void => {
  if (socket.writableLength === 0) socket.write(dialogue.hello())
}

/** One who has given up is not there any more. */
const answered = (talk: Talk, id: number, answer: Answer): void => {
  const asker = talk.waiting.get(id)
  talk.waiting.delete(id)
  if (asker !== undefined) Deferred.doneUnsafe(asker, Effect.succeed(answer))
}

const take = (talk: Talk, heard: Heard): void => {
  switch (heard._tag) {
    case "Established":
      return void Deferred.doneUnsafe(talk.established, Effect.void)
    case "Older":
      return greet(talk)
    case "Ready":
      return void Deferred.doneUnsafe(talk.ready, Effect.void)
    case "Done":
    case "Refused":
      return answered(talk, heard.id, heard)
    case "Bytes":
      return talk.streams.get(heard.stream)?.heardBytes(heard)
    case "Credit":
      return talk.streams.get(heard.stream)?.heardCredit()
    case "Ended": {
      const stream = talk.streams.get(heard.stream)
      talk.streams.delete(heard.stream)
      return stream?.heardLast(heard.last)
    }
    case "Violation":
      return end(talk, faultOf("agent", `the guest broke the protocol: ${heard.reason}`))
  }
}

const awaitAnswer = (talk: Talk, { id, bytes }: Asked): Effect.Effect<Answer, AgentFault> => {
  const answer = Deferred.makeUnsafe<Answer, AgentFault>()
  talk.waiting.set(id, answer)
  send(talk, bytes)
  return Deferred.await(answer).pipe(Effect.ensuring(Effect.sync(() => talk.waiting.delete(id))))
}

/** Why nothing can be asked now. */
const obstacle = (talk: Talk, verb: string): AgentFault | undefined =>
  talk.over ?? (talk.outlet.isFull() ? faultOf(verb, "the guest does not read") : undefined)

const streamOf = (talk: Talk, id: number): AgentStream => {
  const rules = talk.dialogue.streams
  const { end: streamEnd, ...stream } = makeAgentStream(id, {
    outlet: talk.outlet,
    spend: (most) => rules.spend(id, most),
    give: (bytes) => {
      if (rules.give(id, bytes)) send(talk, encodeCredit(id, bytes))
    },
    isOpen: () => rules.isOpen(id),
    leave: () => {
      talk.streams.delete(id)
      if (rules.abandon(id)) send(talk, encodeTold(id, { type: "cancel" }))
    }
  })
  talk.streams.set(id, streamEnd)
  return stream
}

const openStream = (talk: Talk, opening: Opening): ReturnType<Channel["open"]> =>
  Effect.suspend(() => {
    const fault = obstacle(talk, opening.type)
    if (fault !== undefined) return Effect.fail(fault)
    const asked = talk.dialogue.open(opening)
    if (Result.isSuccess(asked)) {
      const stream = streamOf(talk, asked.success.stream)
      return Effect.succeed({ stream, opened: awaitAnswer(talk, asked.success) })
    }
    // Nobody would ever get a stream again.
    if (talk.dialogue.streams.isStuck())
      end(talk, faultOf("agent", "the guest does not end what was cancelled"))
    return Effect.fail(unasked(opening.type, asked.failure))
  })

const ask = (talk: Talk, verb: string, request: Request): Effect.Effect<Answer, AgentFault> =>
  Effect.suspend(() => {
    const fault = obstacle(talk, verb)
    if (fault !== undefined) return Effect.fail(fault)
    return Result.match(talk.dialogue.ask(request), {
      onFailure: (why) => Effect.fail(faultOf(verb, unasked(verb, why).reason)),
      onSuccess: (asked) => awaitAnswer(talk, asked)
    })
  })

export const makeChannel = (socket: net.Socket): Channel => {
  const talk: Talk = {
    socket,
    dialogue: makeDialogue(randomBytes(16).toString("hex")),
    outlet: makeOutlet(socket),
    established: Deferred.makeUnsafe(),
    ready: Deferred.makeUnsafe(),
    closed: Deferred.makeUnsafe(),
    waiting: new Map(),
    streams: new Map(),
    over: undefined
  }
  socket.on("data", (chunk: Buffer) => {
    for (const heard of talk.dialogue.hear(chunk)) take(talk, heard)
  })
  socket.on("error", (cause) => end(talk, faultOf("agent", cause.message, cause)))
  socket.on("close", () => end(talk, faultOf("agent", "the channel is closed")))
  return {
    established: Deferred.await(talk.established),
    ready: Deferred.await(talk.ready),
    closed: Deferred.await(talk.closed),
    greet: Effect.sync(() => greet(talk)),
    say: (verb, request) => ask(talk, verb, request),
    open: (opening) => openStream(talk, opening),
    end: (fault) => end(talk, fault)
  }
}
