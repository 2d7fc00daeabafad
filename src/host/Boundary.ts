/**
 * The seams between the steps of an action: a name is passed before and after each change to the host. Nothing happens
 * there unless someone wants to know what the host looks like at that very moment, or to end the service right there.
 */
import * as fs from "node:fs"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { durations, timed } from "./Measure.ts"

export const Boundary = Context.Reference<(name: string) => Effect.Effect<void>>("dataplane/host/Boundary", {
  defaultValue: () => () => Effect.void
})

/** The verb that steps are done for, as a label of their durations. */
export const VerbInProgress = Context.Reference<string>("dataplane/host/VerbInProgress", {
  defaultValue: () => "none"
})

const phaseSeconds = durations("dataplane_phase_seconds", "How long each phase of a verb took.")

/** One step of an action, with its two seams: `<name>:before` and `<name>:after`. A phase of its verb, a span of its trace. */
export const step =
  (name: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.gen(function* () {
      const passed = yield* Boundary
      const verb = yield* VerbInProgress
      yield* passed(`${name}:before`)
      const value = yield* effect.pipe(
        timed(phaseSeconds({ verb, phase: name })),
        Effect.withSpan(name, { attributes: { verb } }, { captureStackTrace: false })
      )
      yield* passed(`${name}:after`)
      return value
    })

const standardError = 2

/** Kills this process with SIGKILL where it passes `name` for the nth time; no finalizer runs, and nothing is flushed. */
const killAt = (name: string, occurrence: number) => {
  let left = occurrence
  return (passed: string): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (passed !== name) return Effect.void
      left -= 1
      if (left !== 0) return Effect.void
      process.kill(process.pid, "SIGKILL")
      return Effect.never
    })
}

/**
 * For those who test what a crash leaves: `DATAPLANE_KILL_AT=snapshot:after#2` ends the service right there, the second
 * time that it comes by (the first, where no number is given); `DATAPLANE_TRACE_BOUNDARIES=1` writes the name of each
 * boundary to stderr as `boundary <name>`. Nothing without them.
 */
export const layerBoundary = (env: Readonly<Record<string, string | undefined>>): Layer.Layer<never> => {
  const target = /^(?<name>[A-Za-z-]+:(before|after))(#(?<occurrence>\d{1,6}))?$/u.exec(
    env["DATAPLANE_KILL_AT"] ?? ""
  )
  const { name, occurrence = "1" } = target?.groups ?? {}
  const kill = name === undefined ? () => Effect.void : killAt(name, Number(occurrence))
  const trace = (passed: string) => Effect.sync(() => fs.writeSync(standardError, `boundary ${passed}\n`))
  if (env["DATAPLANE_TRACE_BOUNDARIES"] === "1")
    return Layer.succeed(Boundary, (passed) => Effect.andThen(trace(passed), kill(passed)))
  return name === undefined ? Layer.empty : Layer.succeed(Boundary, kill)
}
