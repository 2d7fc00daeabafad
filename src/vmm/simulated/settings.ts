/**
 * The variables of `VMM=simulated`, decoded once at the start like all others (host/Settings.ts):
 *
 *   SIMULATED_SEED=42                        one seed, one history; 1 where it is not given
 *   SIMULATED_LATENCY=real|none              about what QEMU takes (the default), or no time at all
 *   SIMULATED_FAULTS=snapshot=0.1,boot=0.05  how often an operation fails, from 0 to 1; never where it is not named
 *   SIMULATED_TICK_MS=10000                  every so often a guest prints its counter; 0: never
 */
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import {
  noLatency,
  type Operation,
  operations,
  type Probabilities,
  realLatency
} from "../../host/simulated/FaultPlan.ts"
import type { HostOptions } from "../../host/simulated/SimulatedHost.ts"
import { type Environment, SettingsRefused } from "../../host/Settings.ts"

const defaultTickMs = 10_000
/** A thousand guests that print ten times a second would be the console's whole work. */
const tickMinMs = 1_000
const tickMaxMs = 86_400_000
const shownMaxChars = 120

const Whole = Schema.String.check(Schema.isPattern(/^\d{1,10}$/u)).pipe(
  Schema.decodeTo(Schema.Int, SchemaTransformation.numberFromString)
)
const Seed = Whole.check(Schema.isBetween({ minimum: 0, maximum: 2 ** 32 - 1 }))
const Tick = Whole.check(
  Schema.makeFilter((value: number) => value === 0 || (value >= tickMinMs && value <= tickMaxMs))
)
const Latency = Schema.Literals(["real", "none"])
const Fault = Schema.Struct({
  operation: Schema.Literals(operations),
  probability: Schema.String.check(Schema.isPattern(/^(0|1|0?\.\d{1,6}|1\.0{1,6})$/u)).pipe(
    Schema.decodeTo(Schema.Finite, SchemaTransformation.numberFromString)
  )
})
const decodeFault = Schema.decodeUnknownOption(Fault)

const refuse = (variable: string, value: string, right: string): SettingsRefused =>
  new SettingsRefused({
    variable,
    shown: value.replace(/[^\x20-\x7e]/gu, "?").slice(0, shownMaxChars),
    right
  })

const variable = <A, I>(
  env: Environment,
  name: string,
  schema: Schema.Codec<A, I>,
  fallback: A,
  right: string
): Result.Result<A, SettingsRefused> => {
  const value = env[name]
  if (value === undefined || value === "") return Result.succeed(fallback)
  return Result.mapError(Schema.decodeUnknownResult(schema)(value), () => refuse(name, value, right))
}

const faults = (env: Environment): Result.Result<Probabilities, SettingsRefused> => {
  const value = env["SIMULATED_FAULTS"]
  if (value === undefined || value === "") return Result.succeed({})
  const found: Partial<Record<Operation, number>> = {}
  for (const part of value.split(",")) {
    const [operation, probability, more] = part.trim().split("=")
    const fault = more === undefined ? decodeFault({ operation, probability }) : Option.none()
    if (Option.isNone(fault)) {
      const right = `operation=probability pairs, such as snapshot=0.1,boot=0.05, of ${operations.join(", ")}`
      return Result.fail(refuse("SIMULATED_FAULTS", value, right))
    }
    found[fault.value.operation] = fault.value.probability
  }
  return Result.succeed(found)
}

/** Decodes the variables; the first wrong value is refused with one line. */
export const decodeSimulated = (env: Environment): Result.Result<HostOptions, SettingsRefused> =>
  Result.gen(function* () {
    const seed = yield* variable(env, "SIMULATED_SEED", Seed, 1, "a whole number from 0 to 4294967295")
    const latency = yield* variable<"real" | "none", "real" | "none">(
      env,
      "SIMULATED_LATENCY",
      Latency,
      "real",
      "one of real, none"
    )
    const tickMs = yield* variable(
      env,
      "SIMULATED_TICK_MS",
      Tick,
      defaultTickMs,
      `0, or milliseconds from ${tickMinMs} to ${tickMaxMs}`
    )
    return {
      seed,
      tickMs,
      latencies: latency === "real" ? realLatency : noLatency,
      faults: yield* faults(env)
    }
  })
