/** One test for each seed; the seeds are spread over two files, so that both cores have work. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { live } from "./history.ts"

const options = { instances: 200, steps: Number(process.env["SIMULATION_STEPS"] ?? 10_000) }
/** About 12 s alone. */
const timeoutMs = 240_000
export const silent = Logger.layer([])

/** What must have happened, and how often in a thousand steps: a history of nothing would prove nothing. */
const expected = [
  "create ok",
  "standby ok",
  "restore ok",
  "stop ok",
  "delete ok",
  "pause ok",
  "shutdown ok",
  "create VerbFailed",
  "restore VerbFailed",
  "create HostUnfit"
] as const

export const testHistory = (seed: number): void =>
  it.effect(
    `keep every promise (npm run replay -- ${seed} ${options.steps})`,
    () =>
      Effect.gen(function* () {
        const history = yield* live({ seed, ...options })
        assert.deepStrictEqual(history.problems, [])
        for (const what of expected)
          assert.isAbove(history.outcomes.get(what) ?? 0, options.steps / 2_000, what)
        assert.isAbove(history.services, options.steps / 1_000)
      }).pipe(Effect.provide(silent)),
    timeoutMs
  )
