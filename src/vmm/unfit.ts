/** The driver of a host that has no usable VMM: it starts nothing and finds nothing. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { VmmKind } from "../domain/Instance.ts"
import { Vmm, VmmFault } from "./Vmm.ts"

const missing = (operation: string) =>
  Effect.fail(new VmmFault({ operation, reason: "this host has no usable VMM", cause: undefined }))

export const layerUnfit = (kind: VmmKind): Layer.Layer<Vmm> =>
  Layer.succeed(Vmm, {
    kind,
    version: "none",
    versions: [],
    accelerator: "none",
    capabilities: { snapshot: false, memoryGrowth: false, hotDisks: false },
    spawn: () => missing("spawn"),
    spawnRestoring: () => missing("spawn"),
    restoreObstacle: () => "This host has no usable VMM.",
    attach: () => missing("attach"),
    fingerprint: () => "none"
  })
