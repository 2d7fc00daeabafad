/**
 * Lives one seeded history of the simulation through and prints it: what was asked and answered, what befell the host,
 * how every instance ended, and the promises that were broken.
 *
 *   npm run replay -- SEED [STEPS] [INSTANCES]
 */
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as TestClock from "effect/testing/TestClock"
import { live } from "../test/simulation/history.ts"

const [seed, steps = "10000", instances = "200"] = process.argv.slice(2)

if (seed === undefined || [seed, steps, instances].some((it) => !/^\d{1,9}$/u.test(it))) {
  process.stderr.write("usage: npm run replay -- SEED [STEPS] [INSTANCES]\n")
  process.exitCode = 2
} else {
  const options = { seed: Number(seed), steps: Number(steps), instances: Number(instances) }
  const history = await Effect.runPromise(
    live(options).pipe(Effect.scoped, Effect.provide([TestClock.layer(), Logger.layer([])]))
  )
  process.stdout.write(`${history.lines.join("\n")}\n`)
  for (const [what, times] of [...history.outcomes].toSorted(([left], [right]) => left.localeCompare(right)))
    process.stdout.write(`${String(times).padStart(6)} ${what}\n`)
  process.stdout.write(`${history.services} runs of the service\n`)
  for (const problem of history.problems) process.stdout.write(`PROBLEM ${problem}\n`)
  process.exitCode = history.problems.length === 0 ? 0 : 1
}
