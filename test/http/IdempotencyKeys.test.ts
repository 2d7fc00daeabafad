/** Keys are kept for a day, on disk, within bounds; a torn line or a full disk never makes an answer up. */
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import { layout, Paths } from "../../src/host/Paths.ts"
import { Busy, IdempotencyKeyInUse, IdempotencyKeyReused } from "../../src/domain/problems.ts"
import { type Answer, IdempotencyKeys, keyLifetimeMs } from "../../src/http/IdempotencyKeys.ts"
import { memoryFiles, type MemoryFiles } from "../support/simulatedFiles.ts"

const answer: Answer = { status: 201, headers: { etag: '"1"' }, body: "{}", streamed: null }
const directory = layout("/data").idempotency

const open = (files: MemoryFiles) =>
  Effect.scoped(
    Effect.flatMap(
      Layer.build(
        Layer.fresh(IdempotencyKeys.layer).pipe(
          Layer.provide([files.layer, Layer.succeed(Paths, layout("/data"))])
        )
      ),
      (context) => Effect.provideContext(IdempotencyKeys, context)
    )
  )

describe("idempotency keys", () => {
  it.effect("answer for 24 hours, over restarts, and are free afterwards with nothing left on disk", () =>
    Effect.gen(function* () {
      const files = memoryFiles()
      const first = yield* open(files)
      expect(yield* first.claim("k", "r")).toMatchObject({ _tag: "Mine", interrupted: false })
      expect(yield* Effect.flip(first.claim("k", "r"))).toBeInstanceOf(IdempotencyKeyInUse)
      yield* first.settle("k", answer)
      yield* TestClock.adjust(keyLifetimeMs - 1)
      const second = yield* open(files)
      expect(yield* second.claim("k", "r")).toEqual({ _tag: "Answered", answer })
      expect(yield* Effect.flip(second.claim("k", "other"))).toBeInstanceOf(IdempotencyKeyReused)
      yield* TestClock.adjust(1)
      expect(yield* second.claim("k", "other")).toMatchObject({ _tag: "Mine", interrupted: false })
      yield* second.release("k")
      yield* TestClock.adjust(2 * keyLifetimeMs)
      yield* second.claim("k2", "r")
      expect(files.names(directory).filter((name) => name.endsWith(".ndjson"))).toHaveLength(1)
    })
  )

  it.effect("of a request that was cut off say so, once at a time", () =>
    Effect.gen(function* () {
      const files = memoryFiles()
      yield* (yield* open(files)).claim("k", "r")
      const keys = yield* open(files)
      expect(yield* keys.claim("k", "r")).toMatchObject({ _tag: "Mine", interrupted: true })
      expect(yield* Effect.flip(keys.claim("k", "r"))).toBeInstanceOf(IdempotencyKeyInUse)
      yield* keys.abandon("k")
      expect(yield* keys.claim("k", "r")).toMatchObject({ _tag: "Mine", interrupted: true })
    })
  )

  it.effect("that cannot be recorded begin nothing; an answer that cannot be is not claimed to be kept", () =>
    Effect.gen(function* () {
      const files = memoryFiles()
      const keys = yield* open(files)
      yield* keys.claim("k", "r")
      files.failing = "EIO"
      expect(yield* Effect.flip(keys.claim("k2", "r"))).toBeInstanceOf(Busy)
      expect(yield* Effect.flip(keys.settle("k", answer))).toBeInstanceOf(Busy)
      files.failing = null
      yield* keys.abandon("k")
      expect(yield* keys.claim("k", "r")).toMatchObject({ interrupted: true })
      expect(yield* keys.claim("k2", "r")).toMatchObject({ interrupted: false })
    })
  )
})
