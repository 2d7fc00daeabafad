/**
 * The host's memory of what it and the guest said to each other since a connection began. Pure, and suspicious: what the
 * rules below do not allow is a violation, after which nothing is heard any more.
 *
 *   connecting ──hello of our nonce──► established ──► broken
 *       │   what comes before it is an earlier session's rest: ignored, `staleMaxBytes` of it
 *       └──a version unknown, too much before the hello────┘   also: no frame, no message, an answer to nothing, the
 *                                                              same news too often, more than was asked for, and what
 *                                                              streams.ts does not allow
 */
import * as Data from "effect/Data"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import type { MountHolder } from "../domain/Volume.ts"
import { type Frame, frameBytes, makeFrameDecoder, payloadMaxBytes, type Piece } from "./frame.ts"
import {
  encodeHello,
  encodeRequest,
  type GuestMessage,
  holdersOf,
  type Last,
  type Opening,
  oldestVersion,
  parseMessage,
  protocolVersion,
  type Request,
  requestBytes,
  sentence
} from "./protocol.ts"
import { makeStreams, type Streams } from "./streams.ts"

/** What an earlier session can have left: a virtio queue full of frames, and the VMM's and the socket's buffers. */
export const staleMaxBytes = 8 * 1024 * 1024
/** What a guest may say since it was asked last, besides what the streams allow: one frame answers a request. */
export const unaskedMaxBytes = 1024 * 1024
/** Repeated hellos (each of ours is answered) and other news that are none. */
export const straysMax = 128
/** Requests that the guest has not answered, also those whose asker has given up. */
export const owedMax = 64

export type Heard = Data.TaggedEnum<{
  Established: {}
  /** The guest speaks an older version: it is to be greeted again, and `hello` does so in that one. */
  Older: {}
  Ready: {}
  Done: { readonly id: number; readonly message: Extract<GuestMessage, { readonly type: "done" }> }
  Refused: {
    readonly id: number
    readonly reason: string
    readonly busy: boolean
    readonly holders: ReadonlyArray<MountHolder>
  }
  /** On an open stream: its bytes, more credit for ours, its end. */
  Bytes: { readonly stream: number; readonly stderr: boolean; readonly bytes: Buffer }
  Credit: { readonly stream: number }
  Ended: { readonly stream: number; readonly last: Last }
  Violation: { readonly reason: string }
}>
export const Heard = Data.taggedEnum<Heard>()

/** Why a request was not made. */
export type Unasked = "owes" | "too many streams" | "too large" | "too old"

export interface Asked {
  readonly id: number
  readonly bytes: Buffer
}

export interface Dialogue {
  readonly hello: () => Buffer
  /** A request with a fresh id, unless the guest owes too many answers. */
  readonly ask: (request: Request) => Result.Result<Asked, Unasked>
  /** The same, for a request that opens a stream. */
  readonly open: (opening: Opening) => Result.Result<Asked & { readonly stream: number }, Unasked>
  readonly hear: (chunk: Buffer) => ReadonlyArray<Heard>
  readonly streams: Pick<Streams, "give" | "spend" | "isOpen" | "abandon" | "isStuck">
}

type Owed = Map<number, { readonly stream: number | null }>
/** What the host greets in, and what is spoken once the guest has answered in it. */
interface Tongue {
  version: number
}

/** What a message means, given what was said before. */
const makeRules = (nonce: string, tongue: Tongue, owed: Owed, streams: Streams) => {
  let ready = false
  let strays = 0

  const violation = (reason: string): ReadonlyArray<Heard> => [Heard.Violation({ reason })]

  const news = (): ReadonlyArray<Heard> => {
    if (!ready) {
      ready = true
      return [Heard.Ready()]
    }
    strays += 1
    return strays > straysMax ? violation("it says the same again and again") : []
  }

  const answered = (id: number, heard: Heard): ReadonlyArray<Heard> => {
    const request = owed.get(id)
    if (request === undefined) return violation("it answers what was not asked")
    owed.delete(id)
    if (heard._tag === "Refused" && request.stream !== null) streams.forget(request.stream)
    return [heard]
  }

  /** A message before the session is established: nothing but our hello counts. */
  const greeted = (message: GuestMessage): ReadonlyArray<Heard> => {
    if (message.type !== "hello" || message.nonce !== nonce) return []
    if (message.version >= oldestVersion && message.version < tongue.version) {
      tongue.version = message.version
      return [Heard.Older()]
    }
    if (message.version !== tongue.version) {
      return violation(`it speaks version ${message.version}, not ${tongue.version}`)
    }
    return [Heard.Established(), ...(message.ready ? news() : [])]
  }

  const told = (message: GuestMessage): ReadonlyArray<Heard> => {
    switch (message.type) {
      case "hello":
        return message.nonce === nonce ? news() : violation("it greets somebody else")
      case "done":
        return answered(message.id, Heard.Done({ id: message.id, message }))
      case "refused": {
        const { id, reason, code, holders = [] } = message
        const busy = code === "EBUSY"
        return answered(
          id,
          Heard.Refused({ id, reason: sentence(reason), busy, holders: holdersOf(holders) })
        )
      }
      case "broken":
        return violation(`it says that we did: ${sentence(message.reason)}`)
      default:
        return news()
    }
  }

  return { greeted, told }
}

/** Requests and what opens streams, each with a fresh id; `counted` is told of each. */
const makeAsker = (
  tongue: Tongue,
  owed: Owed,
  streams: Streams,
  counted: () => void
): Pick<Dialogue, "ask" | "open"> => {
  let nextId = 1
  const request = (asked: Request, stream: number | null): Result.Result<Asked, Unasked> => {
    if (owed.size >= owedMax) return Result.fail("owes")
    if (requestBytes(asked) > payloadMaxBytes) return Result.fail("too large")
    const id = nextId++
    owed.set(id, { stream })
    counted()
    return Result.succeed({ id, bytes: encodeRequest(id, asked) })
  }
  return {
    ask: (asked) => request(asked, null),
    open: (opening) => {
      if (tongue.version < protocolVersion) return Result.fail("too old")
      const stream = streams.open(opening.type)
      if (Option.isNone(stream)) return Result.fail("too many streams")
      const asked = request({ ...opening, stream: stream.value }, stream.value)
      if (Result.isFailure(asked)) streams.forget(stream.value)
      return Result.map(asked, (it) => ({ ...it, stream: stream.value }))
    }
  }
}

export const makeDialogue = (nonce: string): Dialogue => {
  const decoder = makeFrameDecoder()
  const owed: Owed = new Map()
  const streams = makeStreams()
  const tongue: Tongue = { version: protocolVersion }
  const rules = makeRules(nonce, tongue, owed, streams)
  let state: "connecting" | "established" | "broken" = "connecting"
  /** Heard since the connection began; once it is established, since the last request, without what streams allow. */
  let unaskedBytes = 0

  /** What the rules of streams allow was asked for. */
  const onStream = (frame: Frame): ReadonlyArray<Heard> => {
    const heard = streams.hear(frame)
    if (heard._tag !== "Violation" && heard._tag !== "Nothing")
      unaskedBytes = Math.max(0, unaskedBytes - frameBytes(frame.payload.length))
    return heard._tag === "Nothing" ? [] : [heard]
  }

  const meaning = (piece: Piece): ReadonlyArray<Heard> => {
    if (state === "broken") return []
    const frame = piece._tag === "Frame" ? Option.some(piece.frame) : Option.none()
    if (state === "connecting") {
      // Only our hello has our nonce in it; nothing else is worth the parsing.
      return frame.pipe(
        Option.filter((it) => it.payload.includes(nonce)),
        Option.flatMap(parseMessage),
        Option.match({ onNone: () => [], onSome: rules.greeted })
      )
    }
    if (Option.isSome(frame) && frame.value.stream !== 0) return onStream(frame.value)
    return Option.match(Option.flatMap(frame, parseMessage), {
      onNone: () => [Heard.Violation({ reason: "it sends what is no message" })],
      onSome: rules.told
    })
  }

  const tooMuch = (): ReadonlyArray<Heard> => {
    const allowed = state === "connecting" ? staleMaxBytes : unaskedMaxBytes
    if (state === "broken" || unaskedBytes <= allowed) return []
    const what = state === "connecting" ? "and no hello among them" : "that nobody asked for"
    return [Heard.Violation({ reason: `${unaskedBytes} bytes ${what}` })]
  }

  const note = (heard: ReadonlyArray<Heard>): ReadonlyArray<Heard> => {
    for (const { _tag } of heard) {
      if (_tag === "Violation") state = "broken"
      if (_tag === "Established") {
        state = "established"
        unaskedBytes = 0
      }
    }
    return heard
  }

  return {
    hello: () => encodeHello(nonce, tongue.version),
    streams,
    ...makeAsker(tongue, owed, streams, () => void (unaskedBytes = 0)),
    hear: (chunk) => {
      if (state === "broken") return []
      unaskedBytes += chunk.length
      const heard = decoder.push(chunk).flatMap((piece) => note(meaning(piece)))
      return [...heard, ...note(tooMuch())]
    }
  }
}
