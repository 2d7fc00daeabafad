/** What the service says about itself and its host. */
import * as Schema from "effect/Schema"
import { Accelerator, VmmKind } from "./Instance.ts"

/** One thing that VMs need from the host; `detail` says how to mend it where it is not `ok`. */
export const HealthCheck = Schema.Struct({
  name: Schema.String,
  ok: Schema.Boolean,
  detail: Schema.String
}).annotate({ identifier: "HealthCheck" })
export type HealthCheck = typeof HealthCheck.Type

/** The VMM that new instances get. */
export const HealthVmm = Schema.Struct({
  kind: VmmKind,
  version: Schema.String,
  accelerator: Accelerator
}).annotate({ identifier: "HealthVmm" })
export type HealthVmm = typeof HealthVmm.Type

/** GET /health where the host can run VMs. */
export const Health = Schema.Struct({
  status: Schema.Literal("ok"),
  version: Schema.String,
  vmm: HealthVmm,
  uptime_s: Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0))
}).annotate({ identifier: "Health" })
export type Health = typeof Health.Type
