/** GET /health from the doctor's checks, asked again at most every `surveyEveryMs`, and from what the driver found. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Semaphore from "effect/Semaphore"
import type { HealthCheck } from "./domain/Health.ts"
import { healthCheck } from "./host/doctor/Check.ts"
import { checks } from "./host/doctor/doctor.ts"
import { Settings } from "./host/Settings.ts"
import { Health } from "./http/Health.ts"
import { Fitness } from "./vmm/Fitness.ts"
import { Vmm } from "./vmm/Vmm.ts"

/** A survey starts a dozen tools: health is asked far more often than a host changes. */
const surveyEveryMs = 30_000

export const layerHealth = Layer.effect(
  Health,
  Effect.gen(function* () {
    const settings = yield* Settings
    const vmm = yield* Vmm
    const unfit = yield* Fitness
    const lock = yield* Semaphore.make(1)
    let known: ReadonlyArray<HealthCheck> = []
    let surveyed = Number.NEGATIVE_INFINITY

    /** A simulated host needs nothing of the real one. */
    const survey: Effect.Effect<ReadonlyArray<HealthCheck>> =
      vmm.kind === "simulated"
        ? Effect.succeed([])
        : checks.pipe(
            Effect.map((found) => found.map(healthCheck)),
            Effect.provideService(Settings, settings)
          )

    const current = lock.withPermit(
      Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        if (now - surveyed >= surveyEveryMs) {
          known = yield* survey
          surveyed = now
        }
        return known
      })
    )

    const report = Effect.map(current, (found) => {
      const all = unfit === null ? found : [{ name: "vmm", ok: false, detail: unfit }, ...found]
      return {
        ok: all.every((check) => check.ok),
        vmm: unfit === null ? { kind: vmm.kind, version: vmm.version, accelerator: vmm.accelerator } : null,
        checks: all
      }
    })
    return Health.of({ report })
  })
)
