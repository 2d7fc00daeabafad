/** What commands do on this host without the service: run it, check the host, sign tokens. The process's wiring gives it. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"

export interface Report {
  readonly text: string
  readonly exitCode: number
}

export class LocalService extends Context.Service<
  LocalService,
  {
    /** Serves until it is interrupted. */
    readonly serve: Effect.Effect<never, unknown>
    /** What to print, and the exit code. */
    readonly doctor: Effect.Effect<Report, unknown>
    /** The same of the VMM's programs, each taken through a guest's life. */
    readonly conformance: Effect.Effect<Report, unknown>
    /** Holds what is stored of images against its checksums; `repair`: only where no service runs on the directory. */
    readonly checkImages: (repair: boolean) => Effect.Effect<Report, unknown>
  }
>()("dataplane/cli/LocalService") {}
