/** What a guest's agent does for the host, and how it fails. The real one is Agent.ts, the simulated one simulatedAgent.ts. */
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { ExecOutput, ExecRequest, SignalName, WindowSize } from "../domain/Exec.ts"
import { MountHolder } from "../domain/Volume.ts"

/** The channel is closed, the guest is silent, or it broke the protocol. */
export class AgentFault extends Schema.TaggedError<AgentFault>()("AgentFault", {
  operation: Schema.String,
  reason: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.operation}: ${this.reason}`
  }
}

/** The guest understood, and says why it does not do it. `reason` is the guest's: bounded, one line, never trusted. */
export class AgentRefusal extends Schema.TaggedError<AgentRefusal>()("AgentRefusal", {
  operation: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return `${this.operation}: the guest refused: ${this.reason}`
  }
}

/** As many streams are open as a session may have; or the guest owes too many answers. */
export class AgentBusy extends Schema.TaggedError<AgentBusy>()("AgentBusy", {
  operation: Schema.String,
  reason: Schema.String
}) {
  override get message(): string {
    return `${this.operation}: ${this.reason}`
  }
}

/** A mount that is in use. */
export class VolumeBusy extends Schema.TaggedError<VolumeBusy>()("VolumeBusy", {
  path: Schema.String,
  reason: Schema.String,
  holders: Schema.Array(MountHolder)
}) {
  override get message(): string {
    return `unmount: ${this.path} is in use: ${this.reason}`
  }
}

/** The same as vmm/Vmm.ts says (AgentEndpoint); said again since neither folder imports the other. */
export type Endpoint =
  | { readonly _tag: "UnixSocket"; readonly path: string }
  | { readonly _tag: "HybridVsock"; readonly path: string; readonly port: number }

/** A file system to be mounted in the guest: the disk by its serial, the directory is made where it is missing. */
export interface MountRequest {
  readonly serial: string
  readonly path: string
  readonly readonly: boolean
}

/** What the guest's kernel says of its memory. */
export interface GuestMemory {
  readonly totalKib: number
  readonly availableKib: number
}

/** Averages over one, five and fifteen minutes, and the memory at that moment. */
export interface GuestLoad extends GuestMemory {
  readonly averages: readonly [number, number, number]
}

/** A process that runs in the guest. Its scope owns it: once that closes, the guest is told to kill it. */
export interface ExecSession {
  /**
   * To be run once. A reader that is slow slows the process: 256 KiB are held at most. Ends after `Exit`; fails when the
   * channel closes, or when the guest gives the process up.
   */
  readonly output: Stream.Stream<ExecOutput, AgentFault | AgentRefusal>
  /** Ends when the guest has taken them over into its window; a process that is over takes and forgets everything. */
  readonly write: (bytes: Uint8Array) => Effect.Effect<void, AgentFault>
  readonly endInput: Effect.Effect<void, AgentFault>
  readonly resize: (size: WindowSize) => Effect.Effect<void, AgentFault>
  readonly signal: (signal: SignalName) => Effect.Effect<void, AgentFault>
}

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
  /** Mounts a disk that the guest sees, or is about to see: the guest waits for it, bounded. */
  readonly mount: (request: MountRequest) => Effect.Effect<void, AgentFault | AgentRefusal>
  /**
   * Flushes and unmounts what is mounted at the path. `lazy`: takes it out of the tree at once, whoever still holds it.
   * VolumeBusy where somebody does and `lazy` is false.
   */
  readonly unmount: (
    path: string,
    options: { readonly lazy: boolean }
  ) => Effect.Effect<void, AgentFault | AgentRefusal | VolumeBusy>
  /** Grows the file system at the path to the size of its disk, in bytes, while it is mounted. */
  readonly grow: (path: string, bytes: number) => Effect.Effect<void, AgentFault | AgentRefusal>
  readonly load: Effect.Effect<GuestLoad, AgentFault | AgentRefusal>
  /** Starts a process. The scope owns it. */
  readonly exec: (
    request: ExecRequest
  ) => Effect.Effect<ExecSession, AgentFault | AgentRefusal | AgentBusy, Scope.Scope>
  /** What is at the path, as a tar: a file as one entry, a directory with all below it. The scope owns the transfer. */
  readonly readFiles: (
    path: string
  ) => Effect.Effect<
    Stream.Stream<Uint8Array, AgentFault | AgentRefusal>,
    AgentFault | AgentRefusal | AgentBusy,
    Scope.Scope
  >
  /** Unpacks a tar into the directory at the path; ends when the guest has written all of it. */
  readonly writeFiles: <E, R>(
    path: string,
    archive: Stream.Stream<Uint8Array, E, R>
  ) => Effect.Effect<void, AgentFault | AgentRefusal | AgentBusy | E, R>
}
