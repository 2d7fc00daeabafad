/**
 * Messages as lines of JSON, for Effect 4 and for Effect 3, whose wire differs in two ways: it leaves out a payload that
 * is void, and a failure's cause is a tree instead of a list. Both are bounded, and tell no cause of a broken answer.
 */
import * as Predicate from "effect/Predicate"
import * as RpcSerialization from "effect/rpc/RpcSerialization"
import { jsonBodyMaxBytes } from "../api/Validation.ts"

type Wire = RpcSerialization.RpcSerialization["Service"]
type Message = Readonly<Record<string, unknown>>

/** Calls of one connection, or of one POST, that are under way at once. */
export const callsMax = 256

const isRecord = (value: unknown): value is Message => Predicate.isObject(value) && !Array.isArray(value)

/** Says more of the answer than a client may see; the log has all of it. */
const isBrokenAnswer = (reason: unknown): boolean =>
  isRecord(reason) &&
  reason["_tag"] === "Die" &&
  JSON.stringify(reason["defect"]).includes("Failed to encode response")

const brokenAnswer = {
  _tag: "Die",
  defect: "The dataplane made an answer that it cannot send; its log has the cause."
}

type Rewrite = (message: Message) => Message

/** Rewrites the reasons of a failed exit. */
const exitCause =
  (rewrite: (reasons: ReadonlyArray<unknown>) => unknown): Rewrite =>
  (message) => {
    const { _tag: tag, exit } = message
    if (tag !== "Exit" || !isRecord(exit) || !Array.isArray(exit["cause"])) return message
    return { ...message, exit: { ...exit, cause: rewrite(exit["cause"]) } }
  }

const concealed = (reasons: ReadonlyArray<unknown>) =>
  reasons.map((reason) => (isBrokenAnswer(reason) ? brokenAnswer : reason))

/** Effect 3 names who interrupted by the parts of a fiber's id; there is no such fiber here. */
const reason3 = (reason: unknown): unknown =>
  isRecord(reason) && reason["_tag"] === "Interrupt"
    ? { _tag: "Interrupt", fiberId: { _tag: "None" } }
    : reason

const cause3 = (reasons: ReadonlyArray<unknown>): unknown => {
  const [first, ...rest] = reasons.map(reason3)
  if (first === undefined) return { _tag: "Empty" }
  return rest.reduce((left, right) => ({ _tag: "Parallel", left, right }), first)
}

const voidPayload: Rewrite = (message) =>
  message["_tag"] === "Request" && message["payload"] === undefined ? { ...message, payload: null } : message

/** Keeps count of the calls that have no exit yet. */
const counted = () => {
  const open = new Set<unknown>()
  return {
    begin: (messages: ReadonlyArray<Message>): void => {
      const ids = messages.filter(({ _tag: tag }) => tag === "Request").map(({ id }) => String(id))
      if (open.size + ids.length > callsMax)
        throw new Error(`At most ${callsMax} calls at once; wait for one to end.`)
      for (const id of ids) open.add(id)
    },
    end: (message: Message): void => {
      if (message["_tag"] === "Exit") open.delete(String(message["requestId"]))
    }
  }
}

/** Calls that want no answer would not be bounded, and their failures not be seen. */
const wantsAnswer = (message: Message): boolean => message["isNotification"] !== true

const asIs = (text: string): string => text

/** Effect 3 decodes each piece of a body by itself, so that no character may take more than a byte. */
const ascii = (text: string): string =>
  text.replace(/\P{ASCII}/gu, (char) =>
    Array.from(
      { length: char.length },
      (_, at) => `\\u${char.charCodeAt(at).toString(16).padStart(4, "0")}`
    ).join("")
  )

interface Dialect {
  readonly contentType: string
  readonly received: Rewrite
  readonly sent: Rewrite
  readonly text: (text: string) => string
}

const wire = ({ contentType, received, sent, text }: Dialect): Wire => {
  const lines = RpcSerialization.makeNdjson({ maxBufferSize: jsonBodyMaxBytes })
  return RpcSerialization.RpcSerialization.of({
    ...lines,
    contentType,
    makeUnsafe: () => {
      const parser = lines.makeUnsafe()
      const calls = counted()
      const send = (message: unknown): unknown => {
        if (!isRecord(message)) return message
        calls.end(message)
        return sent(message)
      }
      return {
        decode: (bytes) => {
          const messages = parser.decode(bytes).filter(isRecord).filter(wantsAnswer).map(received)
          calls.begin(messages)
          return messages
        },
        encode: (message) => {
          const encoded = parser.encode(Array.isArray(message) ? message.map(send) : send(message))
          return Predicate.isString(encoded) ? text(encoded) : encoded
        }
      }
    }
  })
}

export const effect4 = wire({
  contentType: "application/x-ndjson",
  received: (message) => message,
  sent: exitCause(concealed),
  text: asIs
})

export const effect3 = wire({
  contentType: "application/ndjson",
  received: voidPayload,
  sent: exitCause((reasons) => cause3(concealed(reasons))),
  text: ascii
})
