/** What GET /health asks: can this host run VMs, and if not, what is missing. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { HealthCheck, HealthVmm } from "../domain/Health.ts"

export interface HealthReport {
  /** The host can run VMs. */
  readonly ok: boolean
  /** Null where no VMM can be used. */
  readonly vmm: HealthVmm | null
  readonly checks: ReadonlyArray<HealthCheck>
}

export class Health extends Context.Service<
  Health,
  {
    /** Cheap: answered from what is known, at most a few system calls. */
    readonly report: Effect.Effect<HealthReport>
  }
>()("dataplane/http/Health") {}
