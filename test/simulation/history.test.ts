import { createHash } from "node:crypto"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { live } from "./history.ts"

const seeds = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
const options = { instances: 200, steps: Number(process.env["SIMULATION_STEPS"] ?? 10_000) }
const timeoutMs = 240_000
const silent = Logger.layer([])

describe("200 instances, 10,000 random commands and faults", () => {
  for (const seed of seeds) {
    it.effect(
      `keep every promise (seed ${seed}; npm run replay -- ${seed})`,
      () =>
        Effect.gen(function* () {
          const history = yield* live({ seed, ...options })
          assert.deepStrictEqual(history.problems, [])
          // A history in which nothing happened would prove nothing.
          for (const what of ["create ok", "standby ok", "restore ok", "stop ok", "delete ok", "pause ok"])
            assert.isAbove(history.outcomes.get(what) ?? 0, options.steps / 1000, what)
        }).pipe(Effect.provide(silent)),
      timeoutMs
    )
  }

  it.effect(
    "are the same history for the same seed",
    () =>
      Effect.gen(function* () {
        const shorter = { seed: 11, instances: 50, steps: 1_000 }
        const sum = (lines: ReadonlyArray<string>) =>
          createHash("sha256").update(lines.join("\n")).digest("hex")
        const first = yield* live(shorter)
        const second = yield* live(shorter)
        assert.strictEqual(sum(first.lines), sum(second.lines))
        const other = yield* live({ ...shorter, seed: 12 })
        assert.notStrictEqual(sum(first.lines), sum(other.lines))
      }).pipe(Effect.provide(silent)),
    timeoutMs
  )
})
