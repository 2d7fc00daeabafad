/**
 * The process `dataplane`: what its commands do on this host, and its end with an exit code. Only what is asked for is
 * loaded, so that commands start fast and the service carries none of them.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Runtime from "effect/Runtime"

const serve = Effect.flatMap(
  Effect.promise(() => import("./service.ts")),
  ({ layerService }) => Layer.launch(layerService)
)

const doctor = Effect.flatMap(
  Effect.promise(() => Promise.all([import("./host/doctor/doctor.ts"), import("./host/Settings.ts")])),
  ([{ doctor }, { Settings }]) => Effect.provide(doctor, Settings.layer)
)

/** Tries the VMM itself; loaded only when it is asked for. */
const conformance = Effect.flatMap(
  Effect.promise(() =>
    Promise.all([import("./vmm/cloud-hypervisor/conformance.ts"), import("./host/Settings.ts")])
  ),
  ([{ conformance }, { Settings }]) => Effect.provide(conformance, Settings.layer)
)

const checkImages = (repair: boolean) =>
  Effect.flatMap(
    Effect.promise(() => import("./fsck.ts")),
    (it) => it.checkImages(repair)
  )

const commandLine = (words: ReadonlyArray<string>) =>
  Effect.flatMap(
    Effect.promise(() => Promise.all([import("./cli/cli.ts"), import("./cli/LocalService.ts")])),
    ([{ runCommandLine }, { LocalService }]) =>
      Effect.provideService(runCommandLine(words), LocalService, { serve, doctor, conformance, checkImages })
  ).pipe(
    Effect.map((code) => {
      process.exitCode = code
    })
  )

/** The first sentence that an error, or what caused it, has: some say nothing of their own. */
const sentence = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error)
  return error.message === "" && error.cause !== undefined ? sentence(error.cause) : error.message
}

/** A refusal to start is one line for a person. */
const explained = Effect.tapCause(serve, (cause) =>
  Cause.hasInterruptsOnly(cause)
    ? Effect.void
    : Effect.sync(() => void process.stderr.write(`${sentence(Cause.squash(cause))}\n`))
)

/** 128 + SIGINT, as the runtime has it. */
const interrupted = 130

const words = process.argv.slice(2)
const isService = words.length === 1 && words[0] === "serve"

NodeRuntime.runMain(isService ? explained : commandLine(words), {
  disableErrorReporting: true,
  // A stop that was asked for is a success of the service, which systemd would count as a failure; for a command that was
  // interrupted it is none.
  teardown: (exit, done) => {
    if (Exit.isSuccess(exit)) return done(Number(process.exitCode ?? 0))
    Runtime.defaultTeardown(exit, (code) => done(code === interrupted && words[0] === "serve" ? 0 : code))
  }
})
