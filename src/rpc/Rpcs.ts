/**
 * Every operation of the API as a typed call: the same schemas and problems, for clients that would rather call than send.
 * Definitions only; whoever imports this imports no server. Archives travel over REST, where bodies are streams both ways.
 *
 * A call carries the headers of REST: `authorization`, and where it changes an instance `if-match`.
 */
import * as Schema from "effect/Schema"
import * as Rpc from "effect/rpc/Rpc"
import * as RpcGroup from "effect/rpc/RpcGroup"
import {
  createProblems,
  launchProblems,
  patchProblems,
  tailMaxLines,
  verbProblems,
  waitMaxMs
} from "../api/Instances.ts"
import { ExecLine, guestProblems } from "../api/Exec.ts"
import { attachmentProblems } from "../api/Volumes.ts"
import { InstanceEvent } from "../domain/Event.ts"
import { Health } from "../domain/Health.ts"
import { ExecCall } from "../domain/Exec.ts"
import { ImageId, InstanceId, VolumeId } from "../domain/Ids.ts"
import { CreateImage, Image, ImageGcReport } from "../domain/Image.ts"
import { CreateInstance, Instance, InstanceState, PatchInstance, RestoreMode } from "../domain/Instance.ts"
import {
  Busy,
  HostUnfit,
  ImageExists,
  ImageInUse,
  ImageNotFound,
  InstanceNotFound,
  InvalidRequest,
  Unhealthy,
  Unprocessable,
  VerbFailed,
  VolumeExists,
  VolumeInUse,
  VolumeNotFound,
  WaitTimeout
} from "../domain/problems.ts"
import { Resources } from "../domain/Resources.ts"
import { AttachVolume, CreateVolume, PatchVolume, Volume } from "../domain/Volume.ts"
import { RpcAuthorization, RpcDefects, RpcScope } from "./RpcAuthorization.ts"

const instance = { id: InstanceId }
const image = { id: ImageId }
const volume = { id: VolumeId }
const Count = (maximum: number) => Schema.Int.check(Schema.isBetween({ minimum: 0, maximum }))
const Cursor = Count(Number.MAX_SAFE_INTEGER)

/** One line of a log; `cursor` is the byte offset behind it, `time` (RFC 3339) is when the dataplane saw it. */
const LogLine = Schema.Struct({ cursor: Schema.Int, time: Schema.String, line: Schema.String })

/** What asks nobody for a token. */
const open = RpcGroup.make(Rpc.make("system.health", { success: Health, error: Unhealthy }))

/** What only looks. */
const reads = RpcGroup.make(
  Rpc.make("system.resources", { success: Resources }),
  Rpc.make("images.list", { success: Schema.Array(Image) }),
  Rpc.make("volumes.list", { success: Schema.Array(Volume) }),
  Rpc.make("volumes.get", { payload: volume, success: Volume, error: VolumeNotFound }),
  Rpc.make("images.get", { payload: image, success: Image, error: ImageNotFound }),
  Rpc.make("instances.list", {
    payload: {
      state: Schema.optionalKey(InstanceState),
      labels: Schema.optionalKey(CreateInstance.fields.labels)
    },
    success: Schema.Array(Instance)
  }),
  Rpc.make("instances.get", { payload: instance, success: Instance, error: InstanceNotFound }),
  /** Answers as soon as the state, the guest's readiness, or both are there. */
  Rpc.make("instances.wait", {
    payload: {
      ...instance,
      state: Schema.optionalKey(InstanceState),
      ready: Schema.optionalKey(Schema.Boolean),
      timeout_ms: Schema.optionalKey(Count(waitMaxMs))
    },
    success: Instance,
    error: Schema.Union([InvalidRequest, InstanceNotFound, WaitTimeout])
  }),
  /** `cursor` of the last line resumes behind it as `after`, without loss and without repetition. */
  Rpc.make("instances.logs", {
    payload: {
      ...instance,
      source: Schema.optionalKey(Schema.Literals(["app", "vmm", "dataplane"])),
      follow: Schema.optionalKey(Schema.Boolean),
      tail: Schema.optionalKey(Count(tailMaxLines)),
      after: Schema.optionalKey(Cursor)
    },
    success: LogLine,
    error: InstanceNotFound,
    stream: true
  }),
  /** `id` of the last event resumes behind it as `since`; without it, new events only. */
  Rpc.make("events.read", {
    payload: { since: Schema.optionalKey(Cursor) },
    success: InstanceEvent,
    stream: true
  })
).annotateRpcs(RpcScope, "read")

const verb = <const Name extends string>(name: Name) =>
  Rpc.make(`instances.${name}`, {
    payload: instance,
    success: Instance,
    error: Schema.Union([InvalidRequest, ...verbProblems])
  })

/** What changes something. */
const changes = RpcGroup.make(
  Rpc.make("images.create", {
    payload: CreateImage,
    success: Image,
    error: Schema.Union([ImageExists, Unprocessable, Busy])
  }),
  Rpc.make("images.remove", { payload: image, error: Schema.Union([ImageNotFound, ImageInUse]) }),
  Rpc.make("instances.create", {
    payload: CreateInstance,
    success: Instance,
    error: Schema.Union(createProblems)
  }),
  Rpc.make("instances.patch", {
    payload: { ...instance, ...PatchInstance.fields },
    success: Instance,
    error: Schema.Union([InvalidRequest, ...patchProblems])
  }),
  Rpc.make("instances.remove", { payload: instance, error: Schema.Union([InvalidRequest, ...verbProblems]) }),
  Rpc.make("instances.start", {
    payload: instance,
    success: Instance,
    error: Schema.Union([InvalidRequest, ...launchProblems])
  }),
  verb("pause"),
  verb("resume"),
  verb("shutdown"),
  Rpc.make("instances.stop", {
    payload: { ...instance, discard_snapshot: Schema.optionalKey(Schema.Boolean) },
    success: Instance,
    error: Schema.Union([InvalidRequest, ...verbProblems])
  }),
  verb("standby"),
  Rpc.make("instances.restore", {
    payload: {
      ...instance,
      resume: Schema.optionalKey(Schema.Boolean),
      restore_mode: Schema.optionalKey(RestoreMode)
    },
    success: Instance,
    error: Schema.Union([InvalidRequest, ...launchProblems])
  }),
  /** A process in the guest: its output, and at last how it ended. It is killed where the reader goes away. */
  Rpc.make("instances.exec", {
    payload: { ...instance, ...ExecCall.fields },
    success: ExecLine,
    error: Schema.Union([InvalidRequest, ...guestProblems]),
    stream: true
  }),
  Rpc.make("instances.attach", {
    payload: { ...instance, volume: VolumeId, ...AttachVolume.fields },
    success: Instance,
    error: Schema.Union([...attachmentProblems, VolumeInUse])
  }),
  Rpc.make("instances.detach", {
    payload: { ...instance, volume: VolumeId, force: Schema.optionalKey(Schema.Boolean) },
    success: Instance,
    error: Schema.Union(attachmentProblems)
  }),
  Rpc.make("volumes.create", {
    payload: CreateVolume,
    success: Volume,
    error: Schema.Union([VolumeExists, Unprocessable, HostUnfit, Busy])
  }),
  Rpc.make("volumes.patch", {
    payload: { ...volume, ...PatchVolume.fields },
    success: Volume,
    error: Schema.Union([VolumeNotFound, VolumeInUse, Unprocessable, VerbFailed, HostUnfit, Busy])
  }),
  Rpc.make("volumes.remove", {
    payload: volume,
    error: Schema.Union([VolumeNotFound, VolumeInUse, Unprocessable, HostUnfit])
  }),
  Rpc.make("images.collect", { success: ImageGcReport })
).annotateRpcs(RpcScope, "write")

/** Fields that no schema knows are refused, as over REST. */
const strict = { onExcessProperty: "error" } as const

export const DataplaneRpcs = reads
  .merge(changes)
  .middleware(RpcDefects)
  .middleware(RpcAuthorization)
  .merge(open.middleware(RpcDefects))
  .annotateRpcs(Rpc.ParseOptions, strict)
