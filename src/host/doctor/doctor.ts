/**
 * `dataplane doctor`, and the checks behind GET /health: looks at the host, judges what it sees, says how to mend what
 * is wrong.
 *
 *   probe (looks) ──Survey──► evaluate (judges, pure) ──Check──► terminal, exit code, /health
 */
import * as Effect from "effect/Effect"
import { Settings } from "../Settings.ts"
import { type Check, exitCode, formatChecks } from "./Check.ts"
import { evaluate } from "./evaluate.ts"
import { survey } from "./probe.ts"

/** Everything that VMs need from this host. Starts a dozen short programs; /health should keep the answer for a while. */
export const checks: Effect.Effect<ReadonlyArray<Check>, never, Settings> = Effect.gen(function* () {
  return evaluate(yield* Settings, yield* survey)
})

/** The whole command: what to print, and the exit code. */
export const doctor: Effect.Effect<{ readonly text: string; readonly exitCode: 0 | 1 }, never, Settings> =
  Effect.map(checks, (found) => ({ text: formatChecks(found), exitCode: exitCode(found) }))
