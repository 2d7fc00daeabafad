/** Every line once: any runs, any chunks, any cursor, followed or not, against a second telling of what a line is. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { isDeepStrictEqual } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { type ConsoleLine, type ConsoleRequest, nextRun, readLines } from "../../src/guest/Console.ts"
import { Files } from "../../src/host/Files.ts"
import { temporaryDirectory } from "../support/temporary.ts"
import { type ReferenceLine, referenceLines } from "./consoleReference.ts"

const seed = "console"
const whole: ConsoleRequest = { follow: false, tail: Option.none(), after: Option.none() }
const after = (cursor: number, follow = false): ConsoleRequest => ({
  ...whole,
  follow,
  after: Option.some(cursor)
})
const tail = (n: number, follow = false): ConsoleRequest => ({ ...whole, follow, tail: Option.some(n) })

const plain = ({ cursor, line }: ConsoleLine): ReferenceLine => ({ cursor, line })
const collect = (directory: string, request: ConsoleRequest) =>
  Stream.runCollect(readLines(directory, request)).pipe(Effect.map((lines) => lines.map(plain)))

const next = (directory: string) => nextRun(directory).pipe(Effect.provide(Files.layer))

/** A run as a VMM makes it: at the path that nextRun names. */
const writeRun = (directory: string, bytes: Buffer) =>
  Effect.tap(next(directory), (run) => Effect.promise(() => fs.writeFile(run.path, bytes)))

const append = (file: string, bytes: Buffer | string) => Effect.promise(() => fs.appendFile(file, bytes))

const pieces = [
  "a",
  "bc",
  "\n",
  "\r\n",
  "\r",
  "\r\r\n",
  "é",
  "\x1b[31m",
  "line\n",
  "line\r\n",
  "x".repeat(65_535),
  "x".repeat(65_536),
  "x".repeat(65_537),
  "y".repeat(150_000)
]
/** Also bytes that are no UTF-8, and what a cut character leaves. */
const token = Arbitrary.map(
  Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: pieces.length + 25 }))),
  (index) => Buffer.from(pieces[index] ?? (index % 2 === 0 ? "word " : Uint8Array.of(0xff, 0xc3)))
)
const run = Arbitrary.map(Arbitrary.array(token, { maxLength: 12 }), (tokens) => Buffer.concat(tokens))
const runs = Arbitrary.array(run, { maxLength: 4 })

const holds = <A>(
  arbitrary: Arbitrary.Arbitrary<A>,
  times: number,
  body: (value: A) => Effect.Effect<boolean, unknown>
) =>
  Arbitrary.checkEffect(arbitrary, body, { runs: times, seed }).pipe(
    Effect.map((result) => assert.isUndefined(Arbitrary.formatCheckFailure(result)))
  )

it.live(
  "any runs: every line once, from any cursor, and the newest n",
  () =>
    holds(runs, 60, (runs) =>
      Effect.gen(function* () {
        const directory = yield* temporaryDirectory("console")
        yield* Effect.forEach(runs, (bytes) => writeRun(directory, bytes))
        const expected = referenceLines(runs)
        if (!isDeepStrictEqual(yield* collect(directory, whole), expected)) return false
        for (const [index, { cursor }] of expected.entries()) {
          if (!isDeepStrictEqual(yield* collect(directory, after(cursor)), expected.slice(index + 1)))
            return false
        }
        for (const n of [0, 1, 2, 3, expected.length, expected.length + 1]) {
          const newest = n === 0 ? [] : expected.slice(-n)
          if (!isDeepStrictEqual(yield* collect(directory, tail(n)), newest)) return false
        }
        return true
      }).pipe(Effect.scoped)
    ),
  60_000
)

it.live(
  "any chunks of any runs, followed from before the first byte: no gap and no duplicate",
  () =>
    holds(
      Arbitrary.array(Arbitrary.array(token, { maxLength: 6 }), { minLength: 1, maxLength: 3 }),
      15,
      (runs) =>
        Effect.gen(function* () {
          const directory = yield* temporaryDirectory("console")
          // A last run of one line, so that all before it have ended.
          const written = [...runs.map((tokens) => Buffer.concat(tokens)), Buffer.from("end\n")]
          const expected = referenceLines(written)
          const reader = yield* readLines(directory, { ...whole, follow: true }).pipe(
            Stream.map(plain),
            Stream.take(expected.length),
            Stream.runCollect,
            Effect.forkChild
          )
          for (const chunks of [...runs, [Buffer.from("en"), Buffer.from("d\n")]]) {
            const file = yield* next(directory)
            yield* append(file.path, "")
            for (const chunk of chunks) yield* append(file.path, chunk)
          }
          return isDeepStrictEqual(yield* Fiber.join(reader), expected)
        }).pipe(Effect.scoped)
    ),
  60_000
)

it.live("console: a reader that stops and resumes by cursor, over and over, misses nothing", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("console")
    const written = ["one\r\ntwo\r\nthr", "ee\n\nfour", "\rfive\r\n", "six"].map((text) => Buffer.from(text))
    yield* Effect.forEach(written, (bytes) => writeRun(directory, bytes))
    const expected = referenceLines(written)
    const seen: Array<ReferenceLine> = []
    for (;;) {
      const next = yield* readLines(directory, after(seen.at(-1)?.cursor ?? 0)).pipe(
        Stream.take(1),
        Stream.runCollect
      )
      const [line] = next
      if (line === undefined) break
      seen.push(plain(line))
    }
    assert.deepStrictEqual(seen, expected)
    assert.deepStrictEqual(
      seen.map((it) => it.line),
      ["one", "two", "thr", "ee", "", "four", "", "five", "six"]
    )
  }).pipe(Effect.scoped)
)

it.live("console: a partial line is waited for, and is a line once its run has ended", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("console")
    const first = yield* writeRun(directory, Buffer.from("done\nhalf"))
    const early = yield* Deferred.make<void>()
    const lines: Array<string> = []
    const reader = yield* readLines(directory, { ...whole, follow: true }).pipe(
      Stream.tap(({ line }) => {
        lines.push(line)
        return line === "done" ? Deferred.succeed(early, undefined) : Effect.void
      }),
      Stream.takeUntil(({ line }) => line === "next"),
      Stream.runDrain,
      Effect.forkChild
    )
    yield* Deferred.await(early)
    yield* append(first.path, " and half")
    yield* writeRun(directory, Buffer.from("next\n"))
    yield* Fiber.join(reader)
    assert.deepStrictEqual(lines, ["done", "half and half", "next"])
  }).pipe(Effect.scoped)
)

it.live("console: tail with follow gives the newest lines and then what comes", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("console")
    const file = yield* writeRun(directory, Buffer.from("1\n2\n3\n"))
    const first = yield* Deferred.make<void>()
    const reader = yield* readLines(directory, tail(2, true)).pipe(
      Stream.map(({ line }) => line),
      Stream.tap(() => Deferred.succeed(first, undefined)),
      Stream.take(4),
      Stream.runCollect,
      Effect.forkChild
    )
    yield* Deferred.await(first)
    yield* append(file.path, "4\n5\n")
    assert.deepStrictEqual(yield* Fiber.join(reader), ["2", "3", "4", "5"])
  }).pipe(Effect.scoped)
)

it.live("console: a follower ends when the log's directory is removed, and one that waits for it lives", () =>
  Effect.gen(function* () {
    const parent = yield* temporaryDirectory("console")
    const directory = path.join(parent, "log")
    const waiting = yield* Effect.forkChild(
      Stream.runCollect(readLines(directory, { ...whole, follow: true }).pipe(Stream.map(({ line }) => line)))
    )
    assert.deepStrictEqual(yield* collect(directory, whole), [])
    yield* Effect.promise(() => fs.mkdir(directory))
    const seen = yield* Deferred.make<void>()
    const second = yield* readLines(directory, { ...whole, follow: true }).pipe(
      Stream.tap(() => Deferred.succeed(seen, undefined)),
      Stream.runDrain,
      Effect.forkChild
    )
    const file = yield* next(directory)
    yield* append(file.path, "hello\n")
    yield* Deferred.await(seen)
    yield* Effect.promise(() => fs.rm(directory, { recursive: true }))
    yield* Fiber.join(second)
    yield* Fiber.interrupt(waiting)
  }).pipe(Effect.scoped)
)

it.live("console: the time of an old line is its file's, that of a new one is now", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("console")
    const file = yield* writeRun(directory, Buffer.from("old\n"))
    const written = new Date("2026-01-31T12:00:00.000Z")
    yield* Effect.promise(() => fs.utimes(file.path, written, written))
    const lines = yield* Stream.runCollect(readLines(directory, whole))
    assert.deepStrictEqual(
      lines.map((it) => it.time),
      ["2026-01-31T12:00:00.000Z"]
    )
    const first = yield* Deferred.make<void>()
    const reader = yield* readLines(directory, { ...whole, follow: true }).pipe(
      Stream.tap(() => Deferred.succeed(first, undefined)),
      Stream.take(2),
      Stream.runCollect,
      Effect.forkChild
    )
    yield* Deferred.await(first)
    yield* append(file.path, "new\n")
    const times = (yield* Fiber.join(reader)).map((it) => it.time)
    assert.strictEqual(times[0], "2026-01-31T12:00:00.000Z")
    assert.isAbove(Date.parse(times[1] ?? ""), Date.parse("2026-02-01T00:00:00.000Z"))
  }).pipe(Effect.scoped)
)

it.live(
  "console: runs are numbered by what is there, and bytes that a dead run wrote late do not count",
  () =>
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("console")
      assert.deepInclude(yield* next(directory), { run: 1, base: 0 })
      const first = yield* writeRun(directory, Buffer.from("one\n"))
      const second = yield* writeRun(directory, Buffer.from(""))
      assert.deepInclude(second, { run: 2, base: 4 })
      yield* writeRun(directory, Buffer.from("two\n"))
      assert.deepInclude(yield* next(directory), { run: 4, base: 8 })
      yield* append(first.path, "late\n")
      assert.deepStrictEqual(
        (yield* collect(directory, whole)).map((it) => it.line),
        ["one", "two"]
      )
      yield* Effect.promise(() => fs.truncate(first.path, 2))
      assert.deepStrictEqual(
        (yield* collect(directory, whole)).map((it) => it.line),
        ["on", "two"]
      )
    }).pipe(Effect.scoped)
)

it.live("console: a cursor that is not there yet counts as the end", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("console")
    const file = yield* writeRun(directory, Buffer.from("one\n"))
    assert.deepStrictEqual(yield* collect(directory, after(999)), [])
    assert.deepStrictEqual(yield* collect(directory, after(4)), [])
    yield* append(file.path, "two\n")
    assert.deepStrictEqual(yield* collect(directory, after(4)), [{ cursor: 8, line: "two" }])
  }).pipe(Effect.scoped)
)
