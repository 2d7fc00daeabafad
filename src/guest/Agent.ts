/**
 * The host's end of the agent channel. The guest is hostile: every length is bounded, every wait ends, a lie closes the
 * channel and nothing else.
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"

export class AgentFault extends Schema.TaggedError<AgentFault>()("AgentFault", {
  operation: Schema.String,
  reason: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.operation}: ${this.reason}`
  }
}

/** The same as vmm/Vmm.ts says (AgentEndpoint); said again since neither folder imports the other. */
export type Endpoint =
  | { readonly _tag: "UnixSocket"; readonly path: string }
  | { readonly _tag: "HybridVsock"; readonly path: string; readonly port: number }

export interface AgentSession {
  /** Ends when the guest's init has answered and its image's process is started. Fails when the channel closes. */
  readonly ready: Effect.Effect<void, AgentFault>
  /** Asks init for an orderly end: SIGTERM to the image's process, sync, unmount, power off. Answers when accepted. */
  readonly shutdown: (graceMs: number) => Effect.Effect<void, AgentFault>
  /** After a restore: sets the guest's wall clock and reseeds its entropy pool; ends when the guest has done both. */
  readonly awaken: Effect.Effect<void, AgentFault>
  /** Flushes the guest's file systems. */
  readonly sync: Effect.Effect<void, AgentFault>
  /** Ends when the channel is closed, for whatever reason. */
  readonly closed: Effect.Effect<void>
}

export class Agent extends Context.Service<
  Agent,
  {
    /** Connects and shakes hands in the background; reconnects are the caller's. The scope owns the connection. */
    readonly connect: (endpoint: Endpoint) => Effect.Effect<AgentSession, AgentFault, Scope.Scope>
  }
>()("dataplane/guest/Agent") {}
