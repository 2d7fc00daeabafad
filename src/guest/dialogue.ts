/**
 * The host's memory of what it and the guest said to each other since a connection began. Pure, and suspicious: what the
 * rules below do not allow is a violation, after which nothing is heard any more.
 *
 *   connecting ──hello of our nonce──► established ──► broken
 *       │   what comes before it is an earlier session's rest: ignored, `staleMaxBytes` of it
 *       └──another version, too much before the hello──────┘   also: no frame, no message, an answer to nothing, the
 *                                                              same news too often, more than was asked for
 */
import * as Data from "effect/Data"
import * as Option from "effect/Option"
import { makeFrameDecoder, type Piece } from "./frame.ts"
import {
  encodeHello,
  encodeRequest,
  type GuestMessage,
  parseMessage,
  protocolVersion,
  type Request
} from "./protocol.ts"

/** What an earlier session can have left: a virtio queue full of frames, and the VMM's and the socket's buffers. */
export const staleMaxBytes = 8 * 1024 * 1024
/** What a guest may say since it was asked last: one frame answers a request, and news are few. */
export const unaskedMaxBytes = 1024 * 1024
/** Repeated hellos (each of ours is answered) and other news that are none. */
export const straysMax = 128
/** Requests that the guest has not answered, also those whose asker has given up. */
export const owedMax = 64

export type Heard = Data.TaggedEnum<{
  Established: {}
  Ready: {}
  Done: { readonly id: number; readonly message: Extract<GuestMessage, { readonly type: "done" }> }
  Refused: { readonly id: number; readonly reason: string }
  Violation: { readonly reason: string }
}>
export const Heard = Data.taggedEnum<Heard>()

export interface Dialogue {
  readonly hello: Buffer
  /** A request with a fresh id; none where the guest owes too many answers. */
  readonly ask: (request: Request) => Option.Option<{ readonly id: number; readonly bytes: Buffer }>
  readonly hear: (chunk: Buffer) => ReadonlyArray<Heard>
}

/** What a message means, given what was said before. */
const makeRules = (nonce: string, owed: Set<number>) => {
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

  const answered = (id: number, heard: Heard): ReadonlyArray<Heard> =>
    owed.delete(id) ? [heard] : violation("it answers what was not asked")

  /** A message before the session is established: nothing but our hello counts. */
  const greeted = (message: GuestMessage): ReadonlyArray<Heard> => {
    if (message.type !== "hello" || message.nonce !== nonce) return []
    if (message.version !== protocolVersion) {
      return violation(`it speaks version ${message.version}, not ${protocolVersion}`)
    }
    return [Heard.Established(), ...(message.ready ? news() : [])]
  }

  const told = (message: GuestMessage): ReadonlyArray<Heard> => {
    switch (message.type) {
      case "hello":
        return message.nonce === nonce ? news() : violation("it greets somebody else")
      case "done":
        return answered(message.id, Heard.Done({ id: message.id, message }))
      case "refused":
        return answered(message.id, Heard.Refused({ id: message.id, reason: message.reason }))
      default:
        return news()
    }
  }

  return { greeted, told }
}

export const makeDialogue = (nonce: string): Dialogue => {
  const decoder = makeFrameDecoder()
  const owed = new Set<number>()
  const rules = makeRules(nonce, owed)
  let state: "connecting" | "established" | "broken" = "connecting"
  /** Heard since the connection began; once it is established, since the last request. */
  let unaskedBytes = 0
  let nextId = 1

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
    hello: encodeHello(nonce),
    ask: (request) => {
      if (owed.size >= owedMax) return Option.none()
      const id = nextId++
      owed.add(id)
      unaskedBytes = 0
      return Option.some({ id, bytes: encodeRequest(id, request) })
    },
    hear: (chunk) => {
      if (state === "broken") return []
      unaskedBytes += chunk.length
      const heard = decoder.push(chunk).flatMap((piece) => note(meaning(piece)))
      return [...heard, ...note(tooMuch())]
    }
  }
}
