/**
 * The wiring, and nothing else: which layer stands on which, and the subcommands of the process.
 *
 *   http ──► Instances ──► Supervisor ──► Actors ──► Vmm, Network, Images, Agent ──► host
 *
 * serve (the default) runs until SIGTERM or SIGINT; it drains and leaves every VM running. doctor checks the host.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Runtime from "effect/Runtime"
import { layerBoundary } from "./host/Boundary.ts"
import { Files } from "./host/Files.ts"
import { layout, Paths } from "./host/Paths.ts"
import { ServiceLock } from "./host/ServiceLock.ts"
import { Settings, SettingsRefused } from "./host/Settings.ts"
import { doctor } from "./host/doctor/doctor.ts"
import { fsckCommand } from "./fsck.ts"
import { layerHealth } from "./health.ts"
import { layerServer } from "./http/server.ts"
import { imagesLayer } from "./image/ImagesLayer.ts"
import { layerEventLog } from "./instance/EventLog.ts"
import { instancesLayer } from "./instance/InstancesLayer.ts"
import { Journal } from "./instance/Journal.ts"
import { layerRetention } from "./instance/Retention.ts"
import { Store } from "./instance/Store.ts"
import { Supervisor } from "./instance/Supervisor.ts"
import { layerPlatform } from "./platform.ts"
import { layerDefects } from "./telemetry/defects.ts"
import { layerLogger } from "./telemetry/Logger.ts"

const layerPaths = Layer.effect(
  Paths,
  Effect.map(Settings, (settings) => layout(settings.dataDir))
)

const layerTelemetry = Layer.unwrap(
  Effect.map(Settings, (settings) => Layer.merge(layerLogger(settings), layerDefects))
)

const layerHost = Layer.mergeAll(Files.layer, ServiceLock.layer, layerBoundary(process.env)).pipe(
  Layer.provideMerge(layerPaths),
  Layer.provideMerge(layerTelemetry),
  Layer.provideMerge(Settings.layer)
)

const layerInstances = Layer.merge(instancesLayer, layerRetention).pipe(
  Layer.provide(Supervisor.layer),
  Layer.provide([Store.layer, Journal.layer, layerEventLog])
)

const layerService = layerServer.pipe(
  Layer.provide([layerInstances, layerHealth]),
  Layer.provide(imagesLayer),
  Layer.provide(layerPlatform),
  Layer.provide(layerHost)
)

/** The doctor's checks, for a terminal; fails the process where one failed. */
const report = Effect.gen(function* () {
  const { text, exitCode } = yield* doctor
  process.stdout.write(text)
  process.exitCode = exitCode
}).pipe(Effect.provide(Settings.layer))

const usage = "usage: dataplane [serve | doctor | fsck [--repair]]"

const program = (command: string | undefined): Effect.Effect<void, unknown> => {
  switch (command) {
    case undefined:
    case "serve":
      return Layer.launch(layerService)
    case "doctor":
      return report
    case "fsck":
      return fsckCommand(process.argv.slice(3))
    default:
      return Effect.fail(new SettingsRefused({ variable: "command", shown: command, right: usage }))
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
