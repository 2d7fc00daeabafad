/** The rules of streams under any frames at all: what they promise, whatever a guest sends. */
import { assert, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { makeDialogue } from "../../src/guest/dialogue.ts"
import { controlKind, creditKind, encodeFrame, type Frame } from "../../src/guest/frame.ts"
import { makeInbox } from "../../src/guest/Inbox.ts"
import { encodeCredit, parseLast, streamsMax, windowBytes } from "../../src/guest/protocol.ts"
import { makeStreams } from "../../src/guest/streams.ts"

const int = (minimum: number, maximum: number) =>
  Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum, maximum })))

const lasts = [
  { type: "exit", code: 0 },
  { type: "exit", signal: "KILL", timeout: true },
  { type: "ended" },
  { type: "failed", reason: "x" },
  { type: "cancel" },
  { type: "exit" }
]

/** One thing that happens: the guest sends a frame, or the host opens, gives, spends or abandons. */
const happening = Arbitrary.all({
  what: int(0, 9),
  stream: int(0, 5),
  kind: int(0, 6),
  size: int(0, 40_000),
  last: int(0, lasts.length - 1)
})
type Happening = {
  readonly what: number
  readonly stream: number
  readonly kind: number
  readonly size: number
  readonly last: number
}

const payloadOf = ({ kind, size, last }: Happening): Buffer => {
  if (kind === controlKind) return Buffer.from(JSON.stringify(lasts[last]))
  if (kind === creditKind) {
    const payload = Buffer.alloc(size % 7 === 0 ? 3 : 4)
    payload.writeUIntLE(size, 0, 3)
    return payload
  }
  return Buffer.alloc(size, 1)
}

interface Tally {
  heard: number
  given: number
  spent: number
  credited: number
  over: boolean
}

/** Runs a history and checks, after each step, what is promised of every stream. */
const run = (history: ReadonlyArray<Happening>): void => {
  const streams = makeStreams()
  const tallies = new Map<number, Tally>()
  const types = ["exec", "read_files", "write_files"] as const
  for (const it of history) {
    const tally = tallies.get(it.stream)
    if (it.what === 0) {
      const id = streams.open(types[it.size % 3] ?? "exec")
      if (Option.isNone(id)) continue
      assert.isFalse(tallies.has(id.value), "an id is used again")
      tallies.set(id.value, { heard: 0, given: 0, spent: 0, credited: 0, over: false })
    } else if (it.what === 1) {
      if (streams.give(it.stream, it.size) && tally !== undefined) tally.given += it.size
    } else if (it.what === 2) {
      const spent = streams.spend(it.stream, it.size)
      assert.isAtMost(spent, it.size)
      if (tally !== undefined) tally.spent += spent
    } else if (it.what === 3) {
      streams.abandon(it.stream)
    } else {
      const heard = streams.hear({ kind: it.kind, stream: it.stream, payload: payloadOf(it) })
      if (heard._tag === "Violation") return
      assert.isDefined(tally, "a stream that is not open was heard")
      if (tally === undefined) return
      assert.isFalse(tally.over, "a stream that is over was heard")
      if (heard._tag === "Bytes") tally.heard += heard.bytes.length
      if (heard._tag === "Credit") tally.credited += it.size
      if (heard._tag === "Ended") tally.over = true
    }
    for (const [id, one] of tallies) {
      assert.isAtMost(one.heard, windowBytes + one.given)
      assert.isAtMost(one.credited, one.spent)
      assert.isAtMost(one.spent, windowBytes + one.credited)
      assert.strictEqual(streams.isOpen(id), !one.over)
    }
  }
}

/** Histories that random ones rarely reach: frames that crossed the end of a stream, an end behind an end. */
const kept: ReadonlyArray<ReadonlyArray<Happening>> = [
  [
    { what: 0, stream: 0, kind: 0, size: 0, last: 0 },
    { what: 4, stream: 1, kind: 1, size: 0, last: 0 },
    { what: 1, stream: 1, kind: 0, size: 10, last: 0 },
    { what: 2, stream: 1, kind: 0, size: 10, last: 0 },
    { what: 4, stream: 1, kind: 5, size: 10, last: 0 }
  ],
  [
    { what: 0, stream: 0, kind: 0, size: 0, last: 0 },
    { what: 4, stream: 1, kind: 4, size: 0, last: 0 },
    { what: 4, stream: 1, kind: 4, size: 0, last: 0 },
    { what: 4, stream: 1, kind: 2, size: 1, last: 0 }
  ]
]

it.each(kept.map((history, at) => [at, history] as const))("stream rules: kept history %i", (_, history) =>
  run(history)
)

it("stream rules: a process whose time was over is told so, though a signal ended it", () => {
  const said = (message: object) => parseLast(Buffer.from(JSON.stringify(message)))
  assert.deepStrictEqual(
    said({ type: "exit", signal: "KILL", timeout: true }),
    Option.some({ type: "exit", timeout: true })
  )
})

it.prop(
  "stream rules: no history breaks a promise",
  { history: Arbitrary.array(happening, { maxLength: 80 }) },
  ({ history }) => run([{ what: 0, stream: 0, kind: 0, size: 0, last: 0 }, ...history])
)

it("stream rules: so many streams and no more, and room again when one ends", () => {
  const streams = makeStreams()
  for (let at = 0; at < streamsMax; at += 1) assert.isTrue(Option.isSome(streams.open("exec")))
  assert.isTrue(Option.isNone(streams.open("exec")))
  assert.isFalse(streams.isStuck())
  for (let id = 1; id <= streamsMax; id += 1) assert.isTrue(streams.abandon(id))
  assert.isFalse(streams.abandon(1))
  assert.isTrue(streams.isStuck())
  streams.forget(5)
  assert.deepStrictEqual(streams.open("exec"), Option.some(streamsMax + 1))
})

const hello = encodeFrame({
  kind: controlKind,
  stream: 0,
  payload: Buffer.from(JSON.stringify({ type: "hello", version: 2, nonce: "mine", ready: true }))
})

it.prop(
  "stream rules: a dialogue hears any frames on any streams without throwing, and nothing behind a violation",
  {
    frames: Arbitrary.array(happening, { maxLength: 40 }),
    cut: int(1, 3_000)
  },
  ({ frames, cut }) => {
    const dialogue = makeDialogue("mine")
    dialogue.hear(hello)
    for (let times = 0; times < 3; times += 1) {
      assert.isTrue(Result.isSuccess(dialogue.open({ type: "exec", command: ["x"] })))
    }
    const bytes = Buffer.concat(
      frames.map((it): Buffer => {
        const frame: Frame = { kind: it.kind, stream: it.stream, payload: payloadOf(it) }
        return encodeFrame(frame)
      })
    )
    let broken = false
    for (let from = 0; from < bytes.length; from += cut) {
      for (const heard of dialogue.hear(bytes.subarray(from, from + cut))) {
        assert.isFalse(broken, "something was heard behind a violation")
        broken = heard._tag === "Violation"
      }
    }
  }
)

it("stream rules: what streams allow is no flood, however much it is", () => {
  const dialogue = makeDialogue("mine")
  dialogue.hear(hello)
  Result.getOrThrow(dialogue.open({ type: "exec", command: ["x"] }))
  const byte = encodeFrame({ kind: 2, stream: 1, payload: Buffer.from("x") })
  const many = Buffer.concat(Array.from({ length: 10_000 }, () => byte))
  for (let times = 0; times < 20; times += 1) {
    const heard = dialogue.hear(many)
    assert.strictEqual(heard.length, 10_000)
    assert.isFalse(heard.some(({ _tag }) => _tag === "Violation"))
    dialogue.streams.give(1, 10_000)
  }
  // Ends of data and credit are frames as well, and cannot be repeated at will.
  const credit = encodeCredit(1, 1)
  assert.strictEqual(dialogue.hear(credit)[0]?._tag, "Violation")
})

const segments = Arbitrary.array(
  Arbitrary.all({ stderr: int(0, 1), bytes: int(1, 20_000), take: int(0, 3) }),
  {
    maxLength: 300
  }
)
it.prop(
  "inbox: every byte comes out once, in the order of its kind, in few pieces",
  { segments },
  ({ segments }) => {
    const inbox = makeInbox()
    const put = { out: "", err: "" }
    const got = { out: "", err: "" }
    const take = (): boolean => {
      const segment = inbox.take()
      if (segment === undefined) return false
      got[segment.stderr ? "err" : "out"] += Buffer.from(segment.bytes).toString("latin1")
      return true
    }
    let next = 0
    for (const { stderr, bytes, take: when } of segments) {
      next = (next + 1) % 256
      const piece = Buffer.alloc(bytes, next)
      put[stderr === 1 ? "err" : "out"] += piece.toString("latin1")
      inbox.push(stderr === 1, piece)
      assert.isAtMost(inbox.pieces(), 65)
      if (when === 0) take()
    }
    while (take());
    assert.isTrue(got.out === put.out && got.err === put.err)
  }
)
