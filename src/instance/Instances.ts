/** The instances of this host: the one service that http, rpc and cli call. Reads come from published views only. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { InstanceEvent } from "../domain/Event.ts"
import type { ExecOutput, ExecRequest, SignalName, WindowSize } from "../domain/Exec.ts"
import type { GuestLost, GuestNotReady, GuestRefused } from "../domain/guestProblems.ts"
import type { ImageId, InstanceId, VolumeId } from "../domain/Ids.ts"
import type { ImageGcReport } from "../domain/Image.ts"
import type {
  CreateInstance,
  Instance,
  InstanceState,
  PatchInstance,
  RestoreMode,
  Verb
} from "../domain/Instance.ts"
import type {
  Busy,
  HostUnfit,
  ImageInUse,
  ImageNotFound,
  ImageNotReady,
  InstanceExists,
  InstanceNotFound,
  InsufficientMemory,
  InvalidRequest,
  InvalidState,
  NoAddressLeft,
  PayloadTooLarge,
  PreconditionFailed,
  RequestTimeout,
  Unprocessable,
  VerbCancelled,
  VerbFailed,
  VolumeBusy,
  VolumeInUse,
  VolumeNotFound,
  WaitTimeout
} from "../domain/problems.ts"
import type { AttachVolume, VolumeAttachment } from "../domain/Volume.ts"
import type { VolumeRecord } from "../volume/VolumeRecord.ts"

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
  /** restore: how the memory comes back; left to the driver where it is not given. */
  readonly restoreMode?: RestoreMode
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
  | VolumeInUse
  | HostUnfit
  | VerbCancelled
  | VerbFailed
  | Busy

export type PatchProblem =
  | InstanceNotFound
  | InvalidState
  | PreconditionFailed
  | InsufficientMemory
  | Unprocessable
  | VerbFailed
  | Busy

export type VerbProblem =
  | InstanceNotFound
  | InvalidState
  | PreconditionFailed
  | InsufficientMemory
  | Unprocessable
  | HostUnfit
  | VerbCancelled
  | VerbFailed
  | Busy

export type DetachProblem =
  | InstanceNotFound
  | VolumeNotFound
  | InvalidState
  | VolumeBusy
  | VerbCancelled
  | VerbFailed
  | Busy

export type AttachProblem = DetachProblem | VolumeInUse

export type GrowProblem = VolumeNotFound | VolumeInUse | Unprocessable | HostUnfit | VerbFailed | Busy

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

/** Of everything that is done inside of a guest. */
export type GuestProblem = InstanceNotFound | InvalidState | GuestNotReady | GuestRefused | GuestLost | Busy

/** A process that runs in a guest; its scope owns it, and once that closes it is killed. */
export interface RunningExec {
  /** To be run once; a reader that is slow slows the process. Ends after `Exit`. */
  readonly output: Stream.Stream<ExecOutput, GuestLost | GuestRefused>
  /** Ends when the guest has room for the bytes; a process that is over takes and forgets everything. */
  readonly write: (bytes: Uint8Array) => Effect.Effect<void, GuestLost>
  readonly endInput: Effect.Effect<void, GuestLost>
  readonly resize: (size: WindowSize) => Effect.Effect<void, GuestLost>
  readonly signal: (signal: SignalName) => Effect.Effect<void, GuestLost>
}

/** A client's archive as it arrives. */
export type UploadProblem = InvalidRequest | RequestTimeout | PayloadTooLarge
export type Upload = Stream.Stream<Uint8Array, UploadProblem>

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
    /** Starts a process in the guest of a Running instance. Changes no state. */
    readonly exec: (
      id: InstanceId,
      request: ExecRequest
    ) => Effect.Effect<RunningExec, GuestProblem, Scope.Scope>
    /** What is at a path of the guest, as a tar. */
    readonly readFiles: (
      id: InstanceId,
      path: string
    ) => Effect.Effect<Stream.Stream<Uint8Array, GuestLost | GuestRefused>, GuestProblem, Scope.Scope>
    /** Unpacks a tar into a directory of the guest; ends when it is written. */
    readonly writeFiles: (
      id: InstanceId,
      path: string,
      archive: Upload
    ) => Effect.Effect<void, GuestProblem | UploadProblem>
    /** Gives an instance a volume; answers when it is as far as the instance's state lets it be (`volumes[].status`). */
    readonly attach: (
      id: InstanceId,
      volume: VolumeId,
      how: AttachVolume
    ) => Effect.Effect<Instance, AttachProblem>
    /** Takes a volume from an instance; `force`: also where the guest's processes use it. */
    readonly detach: (
      id: InstanceId,
      volume: VolumeId,
      force: boolean
    ) => Effect.Effect<Instance, DetachProblem>
    /** Who holds which volume. */
    readonly attachments: Effect.Effect<ReadonlyMap<VolumeId, ReadonlyArray<VolumeAttachment>>>
    /** Removes a volume that nobody holds. */
    readonly removeVolume: (
      id: VolumeId
    ) => Effect.Effect<void, VolumeNotFound | VolumeInUse | Unprocessable | HostUnfit>
    /** Grows a volume, under the guest that has it mounted as well. */
    readonly growVolume: (id: VolumeId, sizeGb: number) => Effect.Effect<VolumeRecord, GrowProblem>
    /** Runs `Images.remove` under the lock that create takes, so that no instance appears in between. */
    readonly removeImage: (id: ImageId) => Effect.Effect<void, ImageNotFound | ImageInUse>
    /** Removes what neither an image nor an instance needs; happens by itself every minute. */
    readonly collectImages: Effect.Effect<ImageGcReport>
  }
>()("dataplane/instance/Instances") {}
