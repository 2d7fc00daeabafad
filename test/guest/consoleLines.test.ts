/** Where lines end does not depend on how their bytes arrive. */
import { assert, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Schema from "effect/Schema"
import { enoughBytes, lineAt, lineMaxBytes } from "../../src/guest/consoleLines.ts"

const token = Arbitrary.schema(
  Schema.Literals(["a", "\n", "\r", "\r\n", "\r".repeat(15), "é", "\u{1f600}", "\x1b[0m"])
)
const bytes = Arbitrary.map(Arbitrary.array(token, { maxLength: 24 }), (tokens) =>
  Buffer.from(tokens.join(""))
)

it.prop("console line: a line that is known from few bytes is the same with more", { bytes }, ({ bytes }) => {
  const whole = lineAt(bytes, 0, false)
  for (let length = 0; length < bytes.length; length++) {
    const early = lineAt(bytes.subarray(0, length), 0, false)
    if (early !== undefined) assert.deepStrictEqual(early, whole)
  }
})

it.prop("console line: lines cover every byte once", { bytes }, ({ bytes }) => {
  let at = 0
  for (let line = lineAt(bytes, at, true); line !== undefined; line = lineAt(bytes, at, true)) {
    assert.isAbove(line.next, at)
    assert.isAtLeast(line.next, line.textEnd)
    assert.match(bytes.toString("latin1", line.textEnd, line.next), /^\r{0,16}\n?$/u)
    at = line.next
  }
  assert.strictEqual(at, bytes.length)
})

it("console line: ends at a line feed, at returns, or at both", () => {
  assert.deepStrictEqual(lineAt(Buffer.from("ab\ncd"), 0, false), { textEnd: 2, next: 3 })
  assert.deepStrictEqual(lineAt(Buffer.from("ab\r\ncd"), 0, false), { textEnd: 2, next: 4 })
  assert.deepStrictEqual(lineAt(Buffer.from("ab\r\r\ncd"), 0, false), { textEnd: 2, next: 5 })
  assert.deepStrictEqual(lineAt(Buffer.from("10%\r20%"), 0, false), { textEnd: 3, next: 4 })
})

it("console line: waits for the byte that decides, unless there will be none", () => {
  for (const text of ["", "ab", "ab\r", "ab\r\r"]) assert.isUndefined(lineAt(Buffer.from(text), 0, false))
  assert.deepStrictEqual(lineAt(Buffer.from("ab\r"), 0, true), { textEnd: 2, next: 3 })
  assert.deepStrictEqual(lineAt(Buffer.from("ab"), 0, true), { textEnd: 2, next: 2 })
  assert.isUndefined(lineAt(Buffer.from("ab"), 2, true))
})

it("console line: cuts what is too long, and only that", () => {
  const longest = "x".repeat(lineMaxBytes)
  assert.isUndefined(lineAt(Buffer.from(longest), 0, false))
  assert.deepStrictEqual(lineAt(Buffer.from(`${longest}\n`), 0, false), {
    textEnd: lineMaxBytes,
    next: lineMaxBytes + 1
  })
  assert.deepStrictEqual(lineAt(Buffer.from(`${longest}x`), 0, false), {
    textEnd: lineMaxBytes,
    next: lineMaxBytes
  })
})

it("console line: never cuts inside of a character", () => {
  for (const [character, before] of [
    ["é", 1],
    ["€", 1],
    ["€", 2],
    ["\u{1f600}", 1],
    ["\u{1f600}", 3]
  ] as const) {
    const long = Buffer.from("x".repeat(before) + character.repeat(lineMaxBytes / 2))
    const line = lineAt(long, 0, false)
    assert.notInclude(long.toString("utf8", 0, line?.textEnd), "\ufffd")
    assert.notInclude(long.toString("utf8", line?.next), "\ufffd")
  }
  const invalid = Buffer.alloc(lineMaxBytes * 2, 0x80)
  assert.strictEqual(lineAt(invalid, 0, false)?.next, lineMaxBytes)
})

it("console line: always finds a line in enough bytes", () => {
  for (const byte of [0x0a, 0x0d, 0x78, 0x80, 0x00]) {
    assert.isDefined(lineAt(Buffer.alloc(enoughBytes, byte), 0, false))
  }
  assert.isDefined(lineAt(Buffer.from("x".repeat(lineMaxBytes) + "\r".repeat(18)), 0, false))
})
