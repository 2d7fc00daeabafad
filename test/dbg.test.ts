import { it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { live } from "./simulation/history.ts"
it.effect("x", () => Effect.gen(function* () {
  const t = Date.now()
  const h = yield* live({ seed: Number(process.env["SEED"] ?? 1), instances: Number(process.env["I"] ?? 20), steps: Number(process.env["N"]) })
  console.log(Date.now() - t, "ms", h.problems, h.services, JSON.stringify(Object.fromEntries(h.outcomes)))
}).pipe(Effect.provide(Logger.layer([]))), 60000)
