import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import {
  boundariesOf,
  courses,
  diskFull,
  fsyncFails,
  live,
  tapBusy,
  vmmDies,
  vmmHangs
} from "./faultMatrix.ts"
import { silent } from "./historyTest.ts"

const faults = [vmmDies, vmmHangs, diskFull, fsyncFails, tapBusy]
const timeoutMs = 120_000

for (const fault of faults)
  describe(`when ${fault.name} at any boundary`, () => {
    for (const course of courses)
      it.effect(
        `${course.name} answers, ends in a legal state and leaves nothing`,
        () =>
          Effect.gen(function* () {
            const boundaries = yield* boundariesOf(course)
            assert.isAbove(boundaries.length, 1, "a verb that passes no boundary is not tested")
            for (let at = 0; at < boundaries.length; at++) {
              const outcome = yield* Effect.scoped(live(course, fault, at))
              const { problems } = outcome
              assert.deepStrictEqual(problems, [], `at ${boundaries[at]}: ${JSON.stringify(outcome)}`)
            }
          }).pipe(Effect.provide(silent)),
        timeoutMs
      )
  })
