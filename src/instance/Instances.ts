/** The instances of this host: the one service that http, rpc and cli call. Reads come from published views only. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type * as Stream from "effect/Stream"
import type { InstanceEvent } from "../domain/Event.ts"
import type { ImageId, InstanceId } from "../domain/Ids.ts"
import type { CreateInstance, Instance, InstanceState, PatchInstance, Verb } from "../domain/Instance.ts"
import type {
  Busy,
  HostUnfit,
  ImageInUse,
  ImageNotFound,
  ImageNotReady,
  InstanceExists,
  InstanceNotFound,
  InsufficientMemory,
  InvalidState,
  NoAddressLeft,
  PreconditionFailed,
  Unprocessable,
  VerbCancelled,
  VerbFailed,
  VolumeNotFound,
  WaitTimeout
} from "../domain/problems.ts"

export interface ListFilter {
  readonly state?: InstanceState
  readonly labels?: Readonly<Record<string, string>>
}

export interface ChangeOptions {
  /** The generations in which the change may find the instance; any where it is not given. */
  readonly ifMatch?: ReadonlyArray<number>
}

export interface VerbOptions extends ChangeOptions {
  /** stop: gives up the snapshot of a Standby instance. */
  readonly discardSnapshot?: boolean
  /** restore: false leaves an instance paused that was paused before standby. */
  readonly resume?: boolean
}

export interface WaitFor {
  readonly state?: InstanceState
  readonly ready?: boolean
  readonly timeoutMs: number
}

export type CreateProblem =
  | InstanceExists
  | ImageNotFound
  | ImageNotReady
  | InsufficientMemory
  | NoAddressLeft
  | Unprocessable
  | VolumeNotFound
  | HostUnfit
  | VerbCancelled
  | VerbFailed
  | Busy

export type PatchProblem =
  | InstanceNotFound
  | InvalidState
  | PreconditionFailed
  | InsufficientMemory
  | VerbFailed
  | Busy

export type VerbProblem =
  | InstanceNotFound
  | InvalidState
  | PreconditionFailed
  | InsufficientMemory
  | HostUnfit
  | VerbCancelled
  | VerbFailed
  | Busy

export type LogSource = "app" | "vmm" | "dataplane"

export interface LogRequest {
  readonly source: LogSource
  readonly follow: boolean
  /** The newest n lines only; ignored where `after` is given. */
  readonly tail: Option.Option<number>
  /** Resume behind this cursor: the byte offset that the last line's `id` was. */
  readonly after: Option.Option<number>
}

export interface LogLine {
  /** Offset of the byte behind the line: the cursor that resumes after it. */
  readonly cursor: number
  /** When the dataplane saw the line (RFC 3339); for lines older than the follower, the time of the run's file. */
  readonly time: string
  readonly line: string
}

export class Instances extends Context.Service<
  Instances,
  {
    readonly create: (request: CreateInstance) => Effect.Effect<Instance, CreateProblem>
    readonly get: (id: InstanceId) => Effect.Effect<Instance, InstanceNotFound>
    /** GET /instances/{id} as JSON text, encoded once per generation. */
    readonly getJson: (id: InstanceId) => Effect.Effect<string, InstanceNotFound>
    readonly list: (filter: ListFilter) => Effect.Effect<ReadonlyArray<Instance>>
    /** GET /instances as JSON text, put together from the encoded views. */
    readonly listJson: (filter: ListFilter) => Effect.Effect<string>
    /** Answers when the verb's end state is reached and durable. Interrupting the caller does not cancel the verb. */
    readonly command: (
      id: InstanceId,
      verb: Exclude<Verb, "delete">,
      options?: VerbOptions
    ) => Effect.Effect<Instance, VerbProblem>
    /** Changes what can be changed of an instance that is there; answers when it is durable and, for memory, done. */
    readonly patch: (
      id: InstanceId,
      changes: PatchInstance,
      options?: ChangeOptions
    ) => Effect.Effect<Instance, PatchProblem>
    readonly remove: (id: InstanceId, options?: ChangeOptions) => Effect.Effect<void, VerbProblem>
    readonly wait: (
      id: InstanceId,
      condition: WaitFor
    ) => Effect.Effect<Instance, InstanceNotFound | WaitTimeout>
    /** Log lines; a client that goes away ends the stream. */
    readonly logs: (
      id: InstanceId,
      request: LogRequest
    ) => Effect.Effect<Stream.Stream<LogLine>, InstanceNotFound>
    /** State changes behind the cursor, then live ones; without a cursor live ones only. */
    readonly events: (after: Option.Option<number>) => Stream.Stream<InstanceEvent>
    /** Runs `Images.remove` under the lock that create takes, so that no instance appears in between. */
    readonly removeImage: (id: ImageId) => Effect.Effect<void, ImageNotFound | ImageInUse>
  }
>()("dataplane/instance/Instances") {}
