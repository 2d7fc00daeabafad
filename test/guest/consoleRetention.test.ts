/** A console that floods holds bounded blocks of a real file system, and its readers never read a hole. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { nextRun, readLines } from "../../src/guest/Console.ts"
import { keepTrimmed, trim } from "../../src/guest/consoleRetention.ts"
import { Files } from "../../src/host/Files.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const kibibyte = 1024
const keepBytes = 256 * kibibyte
/** What `trim` may leave above what it keeps, and one block at each end. */
const slackBytes = 256 * kibibyte + 8192
const whole = { follow: false, tail: Option.none<number>(), after: Option.none<number>() }

const lines = (directory: string) =>
  Stream.runCollect(readLines(directory, whole)).pipe(Effect.map((all) => all.map(({ line }) => line)))

/** Numbered lines of 64 bytes. */
const numbered = (from: number, count: number): string =>
  Array.from({ length: count }, (_, index) => `${from + index}`.padStart(63, "0") + "\n").join("")
const numberedLines = (count: number): ReadonlyArray<string> => numbered(0, count).trimEnd().split("\n")

/** Bytes that the file system really holds for the log. */
const allocated = (directory: string) =>
  Effect.promise(async () => {
    const names = await fs.readdir(directory)
    const stats = await Promise.all(names.map((name) => fs.stat(path.join(directory, name))))
    return stats.reduce((sum, { blocks }) => sum + blocks * 512, 0)
  })

const append = (file: string, text: string) => Effect.promise(() => fs.appendFile(file, text))

it.live(
  "console retention: a flood over many runs holds bounded blocks, and what is kept reads as it was",
  () =>
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("retention")
      let written = 0
      for (let run = 0; run < 4; run++) {
        const file = yield* nextRun(directory)
        for (let part = 0; part < 16; part++) {
          yield* append(file.path, numbered(written, 1024))
          written += 1024
          yield* trim(directory, keepBytes)
          assert.isAtMost(yield* allocated(directory), keepBytes + slackBytes)
        }
        const { size } = yield* Effect.promise(() => fs.stat(file.path))
        assert.strictEqual(size, 16 * 1024 * 64, "sizes and offsets stay")
      }
      const all = numberedLines(written)
      const kept = yield* lines(directory)
      assert.isAtLeast(kept.length * 64, keepBytes - 64)
      assert.deepStrictEqual(kept, all.slice(-kept.length))
      assert.strictEqual((yield* nextRun(directory)).base, written * 64)
      const runs = (yield* Effect.promise(() => fs.readdir(directory))).filter((name) =>
        name.endsWith(".log")
      )
      assert.deepStrictEqual(runs, [`4.${3 * 16 * 1024 * 64}.log`])
    }).pipe(Effect.scoped, Effect.provide(Files.layer))
)

it.live("console retention: a cursor of what was given up resumes at the first whole line that is kept", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("retention")
    const file = yield* nextRun(directory)
    yield* append(file.path, numbered(0, 16 * 1024))
    yield* trim(directory, keepBytes)
    const kept = yield* lines(directory)
    for (const cursor of [0, 1, 64, 4096, 700_001]) {
      const resumed = yield* Stream.runCollect(readLines(directory, { ...whole, after: Option.some(cursor) }))
      assert.deepStrictEqual(
        resumed.map(({ line }) => line),
        kept
      )
      assert.strictEqual(resumed[0]?.cursor, 16 * 1024 * 64 - kept.length * 64 + 64)
    }
    const more = yield* Stream.runCollect(readLines(directory, { ...whole, tail: Option.some(99_999) }))
    assert.deepStrictEqual(
      more.map(({ line }) => line),
      kept
    )
  }).pipe(Effect.scoped, Effect.provide(Files.layer))
)

it.live("console retention: a reader that is slower than the flood skips, and never reads a hole", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("retention")
    const file = yield* nextRun(directory)
    yield* append(file.path, numbered(0, 4096))
    const paused = yield* Deferred.make<void>()
    const goOn = yield* Deferred.make<void>()
    const last = `${20 * 1024 - 1}`.padStart(63, "0")
    const reader = yield* readLines(directory, { ...whole, follow: true }).pipe(
      Stream.map(({ line }) => line),
      Stream.tap(() => Effect.andThen(Deferred.succeed(paused, undefined), Deferred.await(goOn))),
      Stream.takeUntil((line) => line === last),
      Stream.runCollect,
      Effect.forkChild
    )
    yield* Deferred.await(paused)
    for (let part = 4; part < 20; part++) {
      yield* append(file.path, numbered(part * 1024, 1024))
      yield* trim(directory, keepBytes)
    }
    yield* Deferred.succeed(goOn, undefined)
    const seen = yield* Fiber.join(reader)
    const numbers = seen.map(Number)
    assert.isTrue(seen.every((line) => /^\d{63}$/u.test(line)))
    assert.isTrue(numbers.every((number, index) => index === 0 || number > (numbers[index - 1] ?? 0)))
    assert.isBelow(seen.length, 20 * 1024)
    // One jump, from the piece that was read to what is kept.
    assert.strictEqual(
      numbers.filter((number, index) => index > 0 && number !== (numbers[index - 1] ?? 0) + 1).length,
      1
    )
  }).pipe(Effect.scoped, Effect.provide(Files.layer))
)

it.live(
  "console retention: little is left alone, and a crash between mark and hole is made good by the next pass",
  () =>
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("retention")
      assert.strictEqual(yield* trim(directory, keepBytes), 0)
      const file = yield* nextRun(directory)
      yield* append(file.path, numbered(0, 4 * 1024))
      yield* trim(directory, keepBytes)
      assert.deepStrictEqual(yield* Effect.promise(() => fs.readdir(directory)), ["1.0.log"])
      yield* append(file.path, numbered(4 * 1024, 12 * 1024))
      // As after a crash: marked, not punched.
      yield* Effect.promise(() => fs.writeFile(path.join(directory, "65536.kept"), ""))
      assert.strictEqual((yield* lines(directory)).length, 15 * 1024)
      yield* trim(directory, keepBytes)
      assert.isAtMost(yield* allocated(directory), keepBytes + slackBytes)
      assert.strictEqual((yield* Effect.promise(() => fs.readdir(directory))).length, 2)
    }).pipe(Effect.scoped, Effect.provide(Files.layer))
)

it.live("console retention: one line without an end is bounded as well", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("retention")
    const file = yield* nextRun(directory)
    yield* append(file.path, "x".repeat(4 * 1024 * kibibyte))
    yield* trim(directory, keepBytes)
    assert.isAtMost(yield* allocated(directory), keepBytes + slackBytes)
    assert.isTrue((yield* lines(directory)).every((line) => /^x+$/u.test(line)))
  }).pipe(Effect.scoped, Effect.provide(Files.layer))
)

it.live("console retention: keepTrimmed does it by itself", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("retention")
    const file = yield* nextRun(directory)
    const keeper = yield* Effect.forkChild(keepTrimmed(directory, keepBytes))
    yield* append(file.path, numbered(0, 32 * 1024))
    yield* Effect.repeat(allocated(directory), {
      until: (bytes) => bytes <= keepBytes + slackBytes,
      schedule: Schedule.spaced("50 millis"),
      times: 200
    })
    assert.isAtMost(yield* allocated(directory), keepBytes + slackBytes)
    yield* Fiber.interrupt(keeper)
  }).pipe(Effect.scoped, Effect.provide(Files.layer))
)
