import { assert, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import {
  type Dialogue,
  makeDialogue,
  owedMax,
  staleMaxBytes,
  straysMax,
  unaskedMaxBytes
} from "../../src/guest/dialogue.ts"
import { controlKind, encodeFrame, makeFrameDecoder } from "../../src/guest/frame.ts"

const say = (message: unknown, kind = controlKind, stream = 0): Buffer =>
  encodeFrame({ kind, stream, payload: Buffer.from(JSON.stringify(message)) })
const hello = (fields: object = {}) =>
  say({ type: "hello", version: 2, nonce: "mine", ready: false, ...fields })

const tags = (dialogue: Dialogue, bytes: Buffer) => dialogue.hear(bytes).map((it) => it._tag)
const established = (): Dialogue => {
  const dialogue = makeDialogue("mine")
  assert.deepStrictEqual(tags(dialogue, hello()), ["Established"])
  return dialogue
}
const idOf = (dialogue: Dialogue): number => Result.getOrThrow(dialogue.ask({ type: "ping" })).id

it("dialogue: a guest that is ready says so in its hello, or later, and once counts", () => {
  assert.deepStrictEqual(tags(makeDialogue("mine"), hello({ ready: true })), ["Established", "Ready"])
  const dialogue = established()
  assert.deepStrictEqual(tags(dialogue, say({ type: "ready" })), ["Ready"])
  assert.deepStrictEqual(tags(dialogue, hello({ ready: true })), [])
})

it("dialogue: what comes before the hello of this connection is another's, and ignored", () => {
  const dialogue = makeDialogue("mine")
  const before = [
    Buffer.from([9, 9, 9]),
    Buffer.alloc(1),
    say({ type: "done", id: 1 }),
    say({ type: "ready" }),
    hello({ nonce: "theirs", ready: true }),
    say("nonsense"),
    encodeFrame({ kind: 200, stream: 7, payload: Buffer.alloc(3_000, 1) }),
    say({ type: "done", id: 2 }).subarray(0, 9),
    Buffer.alloc(1)
  ]
  assert.deepStrictEqual(tags(dialogue, Buffer.concat(before)), [])
  assert.deepStrictEqual(tags(dialogue, hello()), ["Established"])
})

it("dialogue: answers belong to requests, once", () => {
  const dialogue = established()
  const [first, second] = [idOf(dialogue), idOf(dialogue)]
  assert.notStrictEqual(first, second)
  const heard = dialogue.hear(say({ type: "refused", id: second, reason: "no" }))
  assert.deepStrictEqual(heard, [{ _tag: "Refused", id: second, busy: false, reason: "no", holders: [] }])
  assert.deepStrictEqual(tags(dialogue, say({ type: "done", id: first })), ["Done"])
  assert.deepStrictEqual(tags(dialogue, say({ type: "done", id: first })), ["Violation"])
})

const lies: ReadonlyArray<readonly [string, Buffer]> = [
  ["an answer to nothing", say({ type: "done", id: 1 })],
  ["no JSON", encodeFrame({ kind: controlKind, stream: 0, payload: Buffer.from("{") })],
  ["no message", say({ type: "explode" })],
  ["wrong types", say({ type: "done", id: "1" })],
  ["a stream that was never opened", say({ type: "ready" }, controlKind, 3)],
  ["a kind that does not exist", say({ type: "ready" }, 9)],
  ["somebody else's hello", hello({ nonce: "theirs" })],
  ["an overlong frame", Buffer.concat([Buffer.alloc(80_000, 1), Buffer.alloc(1)])],
  ["a frame cut short", Buffer.concat([hello().subarray(0, 20), Buffer.alloc(1)])],
  ["a figure below zero", say({ type: "done", id: 1, total_kib: -1 })]
]

it.each(lies)("dialogue: %s ends it, and nothing is heard after it", (_, lie) => {
  const dialogue = established()
  assert.deepStrictEqual(tags(dialogue, Buffer.concat([lie, say({ type: "ready" })])), ["Violation"])
  assert.deepStrictEqual(tags(dialogue, hello({ ready: true })), [])
})

it.each([0, 3])("dialogue: version %i ends it with a sentence", (version) => {
  const heard = makeDialogue("mine").hear(hello({ version }))
  assert.deepStrictEqual(heard, [{ _tag: "Violation", reason: `it speaks version ${version}, not 2` }])
})

it("dialogue: a guest of an older version is greeted in it, and asked for nothing that it does not know", () => {
  const dialogue = makeDialogue("mine")
  assert.include(dialogue.hello().toString("latin1"), '"version":2')
  assert.deepStrictEqual(tags(dialogue, hello({ version: 1, ready: true })), ["Older"])
  assert.include(dialogue.hello().toString("latin1"), '"version":1')
  assert.deepStrictEqual(tags(dialogue, hello({ version: 1, ready: true })), ["Established", "Ready"])
  assert.deepStrictEqual(dialogue.open({ type: "exec", command: ["x"] }), Result.fail("too old"))
  assert.deepStrictEqual(tags(dialogue, say({ type: "done", id: idOf(dialogue) })), ["Done"])
})

it("dialogue: a guest that changes its version again and again is ended", () => {
  const dialogue = makeDialogue("mine")
  assert.deepStrictEqual(tags(dialogue, hello({ version: 1 })), ["Older"])
  assert.deepStrictEqual(tags(dialogue, hello({ version: 2 })), ["Violation"])
})

it("dialogue: a flood without a hello ends within the bound", () => {
  const dialogue = makeDialogue("mine")
  const chunk = Buffer.alloc(64 * 1024, 1)
  let heard = 0
  while (tags(dialogue, chunk).length === 0) heard += chunk.length
  assert.isAtMost(heard, staleMaxBytes)
})

it("dialogue: more than was asked for ends it, whatever it is", () => {
  const dialogue = established()
  for (let heard = 0; heard + 65_536 <= unaskedMaxBytes; heard += 65_536) {
    assert.deepStrictEqual(tags(dialogue, Buffer.alloc(65_536)), [])
  }
  idOf(dialogue)
  assert.deepStrictEqual(tags(dialogue, Buffer.alloc(unaskedMaxBytes)), [])
  assert.deepStrictEqual(tags(dialogue, Buffer.alloc(1)), ["Violation"])
})

it("dialogue: the same news again and again end it", () => {
  const dialogue = established()
  const news = Buffer.concat(Array.from({ length: straysMax + 1 }, () => say({ type: "ready" })))
  assert.deepStrictEqual(tags(dialogue, news), ["Ready"])
  assert.deepStrictEqual(tags(dialogue, say({ type: "ready" })), ["Violation"])
})

it("dialogue: a guest that never answers is not asked for ever", () => {
  const dialogue = established()
  const ids = Array.from({ length: owedMax }, () => idOf(dialogue))
  assert.isTrue(Result.isFailure(dialogue.ask({ type: "ping" })))
  assert.deepStrictEqual(tags(dialogue, say({ type: "done", id: ids[0] })), ["Done"])
  assert.isTrue(Result.isSuccess(dialogue.ask({ type: "ping" })))
})

it("dialogue: the hello ends what the guest may hold half of", () => {
  const guest = makeFrameDecoder()
  guest.push(say({ type: "ping", id: 1 }).subarray(0, 12))
  const pieces = guest.push(makeDialogue("mine").hello())
  assert.strictEqual(pieces.filter((it) => it._tag === "Frame").length, 1)
})

const anything = Arbitrary.map(
  Arbitrary.array(Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 }))), {
    maxLength: 200
  }),
  (bytes) => Buffer.from(bytes)
)

it.prop(
  "dialogue: no bytes make it throw, or hear what a guest of this connection did not say",
  { anything },
  ({ anything }) => {
    assert.deepStrictEqual(tags(makeDialogue("mine"), anything), [])
    const dialogue = established()
    idOf(dialogue)
    for (const tag of tags(dialogue, anything)) assert.strictEqual(tag, "Violation")
  }
)
