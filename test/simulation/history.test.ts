import { createHash } from "node:crypto"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { live } from "./history.ts"
import { silent, testHistory } from "./historyTest.ts"

describe("200 instances, 10,000 random commands and faults", () => {
  for (const seed of [1, 2, 3, 4, 5]) testHistory(seed)
})

it.effect("the same seed lives the same history", () =>
  Effect.gen(function* () {
    const shorter = { seed: 11, instances: 50, steps: 1_000 }
    const sum = (lines: ReadonlyArray<string>) => createHash("sha256").update(lines.join("\n")).digest("hex")
    const first = yield* live(shorter)
    const second = yield* live(shorter)
    assert.strictEqual(sum(first.lines), sum(second.lines))
    const other = yield* live({ ...shorter, seed: 12 })
    assert.notStrictEqual(sum(first.lines), sum(other.lines))
  }).pipe(Effect.provide(silent))
)
