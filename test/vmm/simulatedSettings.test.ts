/** SIMULATED_*: what is taken, and the one line that refuses the rest. */
import { assert, it } from "@effect/vitest"
import * as Result from "effect/Result"
import { noLatency, realLatency } from "../../src/host/simulated/FaultPlan.ts"
import { decodeSimulated } from "../../src/vmm/simulated/settings.ts"

it("the simulation's variables have defaults that need no thought", () => {
  const expected = { seed: 1, tickMs: 10_000, latencies: realLatency, faults: {} }
  assert.deepStrictEqual(Result.getOrThrow(decodeSimulated({})), expected)
  assert.deepStrictEqual(
    Result.getOrThrow(decodeSimulated({ SIMULATED_FAULTS: "", SIMULATED_SEED: "" })),
    expected
  )
})

it("the simulation's variables are taken as written", () => {
  const given = {
    SIMULATED_SEED: "42",
    SIMULATED_LATENCY: "none",
    SIMULATED_TICK_MS: "0",
    SIMULATED_FAULTS: "snapshot=0.1, boot=0.05,tapAttach=1"
  }
  assert.deepStrictEqual(Result.getOrThrow(decodeSimulated(given)), {
    seed: 42,
    tickMs: 0,
    latencies: noLatency,
    faults: { snapshot: 0.1, boot: 0.05, tapAttach: 1 }
  })
})

for (const [variable, value] of [
  ["SIMULATED_SEED", "-1"],
  ["SIMULATED_SEED", "4294967296"],
  ["SIMULATED_SEED", "1e3"],
  ["SIMULATED_LATENCY", "fast"],
  ["SIMULATED_TICK_MS", "10"],
  ["SIMULATED_FAULTS", "snapshot"],
  ["SIMULATED_FAULTS", "snapshot=1.5"],
  ["SIMULATED_FAULTS", "snapshot=0.1=2"],
  ["SIMULATED_FAULTS", "snapshot=NaN"],
  ["SIMULATED_FAULTS", "reboot=0.1"],
  ["SIMULATED_FAULTS", "snapshot=0.1,"],
  ["SIMULATED_FAULTS", "snapshot=0.1\nboot=2"]
] as const) {
  it(`the simulation's variables refuse ${variable}=${JSON.stringify(value)} with one line`, () => {
    const refused = Result.getOrThrow(Result.flip(decodeSimulated({ [variable]: value })))
    assert.match(refused.message, new RegExp(`^${variable}=[\\x20-\\x7e]+: .+$`, "u"))
  })
}
