/** What GET /resources and the gauges of GET /metrics ask: how much of the host is given out. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Resources } from "../domain/Resources.ts"

export class HostResources extends Context.Service<
  HostResources,
  {
    /** Asks the file system about every writable disk; no VMM is touched. */
    readonly report: Effect.Effect<Resources>
    /** The same without what each single disk takes: cheap, for those who ask all the time. */
    readonly totals: Effect.Effect<Resources>
  }
>()("dataplane/http/HostResources") {}
