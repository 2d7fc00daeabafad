/**
 * The process `dataplane`: picks what to run and ends with its exit code. Only what is asked for is loaded, so that the
 * commands start fast and the service carries none of them.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Runtime from "effect/Runtime"

const serve = Effect.flatMap(
  Effect.promise(() => import("./service.ts")),
  ({ layerService }) => Layer.launch(layerService)
)

/** The doctor's checks, for a terminal; fails the process where one failed. */
const report = Effect.gen(function* () {
  const [{ doctor }, { Settings }] = yield* Effect.promise(() =>
    Promise.all([import("./host/doctor/doctor.ts"), import("./host/Settings.ts")])
  )
  const { text, exitCode } = yield* Effect.provide(doctor, Settings.layer)
  process.stdout.write(text)
  process.exitCode = exitCode
})

const program = (command: string | undefined) => {
  switch (command) {
    case undefined:
    case "serve":
      return serve
    case "doctor":
      return report
    default:
      return Effect.fail(new Error(`command=${command}: usage: dataplane [serve | doctor]`))
  }
}

/** The first sentence that an error, or what caused it, has: some say nothing of their own. */
const sentence = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error)
  return error.message === "" && error.cause !== undefined ? sentence(error.cause) : error.message
}

/** A refusal is one line for a person; everything else that ends the start is told with its cause. */
const explain = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.tapCause(effect, (cause) =>
    Cause.hasInterruptsOnly(cause)
      ? Effect.void
      : Effect.sync(() => void process.stderr.write(`${sentence(Cause.squash(cause))}\n`))
  )

NodeRuntime.runMain(explain(program(process.argv[2])), {
  disableErrorReporting: true,
  // A stop that was asked for is a success: systemd counts 130 as a failure.
  teardown: (exit, done) => Runtime.defaultTeardown(exit, (code) => done(code === 130 ? 0 : code))
})
