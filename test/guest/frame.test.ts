import { assert, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Schema from "effect/Schema"
import {
  controlKind,
  encodeFrame,
  type Frame,
  type FrameDecoder,
  makeFrameDecoder,
  payloadMaxBytes,
  type Piece
} from "../../src/guest/frame.ts"

const int = (maximum: number) => Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum })))

/** Bytes of a few runs: zeros, ones without zeros, and lengths around the stuffing's 254. */
const run = Arbitrary.map(
  Arbitrary.all({ length: int(600), zeros: int(3), fill: int(255) }),
  ({ length, zeros, fill }) =>
    zeros === 0 ? Buffer.alloc(length) : zeros === 1 ? Buffer.alloc(length % 3) : Buffer.alloc(length, fill)
)
const bytes = Arbitrary.map(Arbitrary.array(run, { maxLength: 6 }), (runs) => Buffer.concat(runs))
const frame = Arbitrary.map(
  Arbitrary.all({ kind: int(255), stream: int(0xffff_ffff), payload: bytes }),
  (it): Frame => it
)
const frames = Arbitrary.array(frame, { maxLength: 5 })
const cuts = Arbitrary.array(int(2_000), { maxLength: 30 })

/** Pushes the bytes in pieces of the given lengths, the rest at once. */
const pushed = (decoder: FrameDecoder, all: Buffer, lengths: ReadonlyArray<number>): Array<Piece> => {
  const pieces: Array<Piece> = []
  let from = 0
  for (const length of [...lengths, all.length]) {
    pieces.push(...decoder.push(all.subarray(from, from + length)))
    from += length
  }
  return pieces
}

const framesOf = (pieces: ReadonlyArray<Piece>) =>
  pieces.flatMap((it) => (it._tag === "Frame" ? [it.frame] : []))

it.prop("frame: frames come back, whatever the split", { frames, cuts }, ({ frames, cuts }) => {
  const encoded = frames.map(encodeFrame)
  for (const one of encoded) assert.strictEqual(one.indexOf(0), one.length - 1)
  const pieces = pushed(makeFrameDecoder(), Buffer.concat(encoded), cuts)
  assert.deepStrictEqual(framesOf(pieces), frames)
  assert.strictEqual(pieces.length, frames.length)
})

it.prop(
  "frame: one that is cut short never hides the next",
  { first: frame, second: frame, at: int(4_000), cuts },
  ({ first, second, at, cuts }) => {
    const whole = encodeFrame(first)
    const cut = whole.subarray(0, at % whole.length)
    const pieces = pushed(
      makeFrameDecoder(),
      Buffer.concat([cut, Buffer.alloc(1), encodeFrame(second)]),
      cuts
    )
    const found = framesOf(pieces)
    assert.deepStrictEqual(found.at(-1), second)
    // Only the frame without its closing zero is still whole.
    assert.deepStrictEqual(found.slice(0, -1), cut.length === whole.length - 1 ? [first] : [])
  }
)

it.prop(
  "frame: garbage gives no frame that was not sent, and ends at a zero",
  { garbage: bytes, frame, cuts },
  ({ garbage, frame, cuts }) => {
    const decoder = makeFrameDecoder()
    pushed(decoder, garbage, cuts)
    assert.deepStrictEqual(
      framesOf(decoder.push(Buffer.concat([Buffer.alloc(1), encodeFrame(frame)]))).at(-1),
      frame
    )
  }
)

it("frame: the largest payload passes, a larger one is a defect", () => {
  for (const fill of [0, 1, 255]) {
    const largest = { kind: 7, stream: 9, payload: Buffer.alloc(payloadMaxBytes, fill) }
    assert.deepStrictEqual(framesOf(makeFrameDecoder().push(encodeFrame(largest))), [largest])
  }
  const payload = Buffer.alloc(payloadMaxBytes + 1)
  assert.throws(() => encodeFrame({ kind: 1, stream: 0, payload }), RangeError)
})

it("frame: an endless frame is dropped within the bound, and counted", () => {
  const decoder = makeFrameDecoder()
  const chunk = Buffer.alloc(4_096, 0xff)
  for (let i = 0; i < 1_000; i++) {
    assert.deepStrictEqual(decoder.push(chunk), [])
    assert.isAtMost(decoder.held(), 66_000)
  }
  assert.deepStrictEqual(decoder.push(Buffer.alloc(1)), [{ _tag: "Garbage", bytes: 4_096_000 }])
})

it("frame: empty frames say nothing", () => {
  assert.deepStrictEqual(makeFrameDecoder().push(Buffer.alloc(10_000)), [])
})

it("frame: the bytes are the guest's bytes", () => {
  // The same vector as in agent/src/frame.rs.
  const encoded = encodeFrame({ kind: controlKind, stream: 0, payload: Buffer.from("{}") })
  assert.deepStrictEqual([...encoded], [2, 1, 1, 1, 1, 2, 2, 3, 0x7b, 0x7d, 0])
})
