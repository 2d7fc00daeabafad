/** Keeps consoles and VMM logs within their bounds, however much guests write: one fiber for all instances. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { trim } from "../guest/consoleRetention.ts"
import { Files } from "../host/Files.ts"
import { Paths } from "../host/Paths.ts"
import { Supervisor } from "./Supervisor.ts"

/** What a console may grow beyond its bound before it is cut: a few seconds of a serial port at full speed. */
const trimEveryMs = 5_000
const trimConcurrency = 4

export const layerRetention = Layer.effectDiscard(
  Effect.gen(function* () {
    const { registry } = yield* Supervisor
    const paths = yield* Paths
    const files = yield* Files
    const directories = Effect.sync(() =>
      registry
        .list({})
        .filter((view) => view.vmm.pid !== null)
        .flatMap((view) => [paths.instance(view.id).console, paths.instance(view.id).vmm])
    )
    const sweep = Effect.flatMap(directories, (all) =>
      Effect.forEach(all, (directory) => Effect.ignore(trim(directory)), {
        concurrency: trimConcurrency,
        discard: true
      })
    )
    yield* Effect.forkScoped(
      sweep.pipe(Effect.repeat(Schedule.spaced(trimEveryMs)), Effect.provideService(Files, files))
    )
  })
)
