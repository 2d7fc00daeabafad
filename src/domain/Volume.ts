/** A volume: a disk that outlives instances. One writer, or any number of readers. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { InstanceId, Timestamp, VolumeId } from "./Ids.ts"

/** An absolute guest path without `.` or `..` segments; never the root itself. */
export const MountPath = Schema.String.check(
  Schema.isPattern(/^(\/(?!\.{1,2}(\/|$))[^/\0]{1,255}){1,32}$/u, {
    expected: "an absolute path without . and .. segments"
  })
).annotate({ identifier: "MountPath", examples: ["/data"] })

export const VolumeAttachment = Schema.Struct({
  instance_id: InstanceId,
  mount_path: MountPath,
  readonly: Schema.Boolean
}).annotate({ identifier: "VolumeAttachment" })
export type VolumeAttachment = typeof VolumeAttachment.Type

/** 16 TiB is what ext4 with 4 KiB blocks is commonly tested to. */
export const maxVolumeGb = 16_384
export const VolumeSizeGb = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: maxVolumeGb }))
export const volumeBytes = (sizeGb: number): number => sizeGb * 1024 ** 3

export const VolumeName = Schema.String.check(Schema.isBetweenCodePoints(1, 100)).annotate({
  description: "Free text for people."
})

export const Volume = Schema.Struct({
  id: VolumeId,
  name: Schema.String,
  size_gb: VolumeSizeGb,
  attachments: Schema.Array(VolumeAttachment),
  created_at: Timestamp
}).annotate({ identifier: "Volume" })
export type Volume = typeof Volume.Type

/** POST /volumes. */
export const CreateVolume = Schema.Struct({
  name: VolumeName,
  size_gb: VolumeSizeGb,
  id: Schema.optionalKey(VolumeId)
}).annotate({ identifier: "CreateVolume" })
export type CreateVolume = typeof CreateVolume.Type

/** PATCH /volumes/{id}. */
export const PatchVolume = Schema.Struct({
  size_gb: VolumeSizeGb.annotate({ description: "At least what it is now: a volume only grows." })
}).annotate({ identifier: "PatchVolume" })
export type PatchVolume = typeof PatchVolume.Type

const readonly = Schema.Boolean.pipe(Schema.withDecodingDefaultKey(Effect.succeed(false)))

/** A volume as an instance's spec asks for it. */
export const VolumeMount = Schema.Struct({
  volume_id: VolumeId,
  mount_path: MountPath,
  readonly
}).annotate({ identifier: "VolumeMount" })
export type VolumeMount = typeof VolumeMount.Type

/** POST /instances/{id}/volumes/{volumeId}. */
export const AttachVolume = Schema.Struct({ mount_path: MountPath, readonly }).annotate({
  identifier: "AttachVolume"
})
export type AttachVolume = typeof AttachVolume.Type

/**
 * How far an attachment is.
 * - `mounted`: the guest has it at its path; while it boots, once it is `ready`.
 * - `next-boot`: the guest is off, and has it there when it is up again.
 * - `frozen`: as the snapshot has it.
 * - `attaching`: on its way; on a Paused instance the guest mounts it when it is resumed.
 * - `detaching`: on its way out; on a Paused instance the guest lets go of it when it is resumed.
 */
export const AttachmentStatus = Schema.Literals([
  "mounted",
  "next-boot",
  "frozen",
  "attaching",
  "detaching"
]).annotate({ identifier: "AttachmentStatus" })
export type AttachmentStatus = typeof AttachmentStatus.Type

/** A volume as an instance holds it. */
export const InstanceVolume = Schema.Struct({
  ...VolumeMount.fields,
  status: AttachmentStatus
}).annotate({ identifier: "InstanceVolume" })
export type InstanceVolume = typeof InstanceVolume.Type

/**
 * A volume that the instance holds, from before its device is there until after it is gone. Nobody else may have it
 * meanwhile, other readers of a reader excepted.
 *
 *   attaching ──► held ──► detaching ──► (not held any more)
 *       │          ▲ ▲        └─ refused by the guest ──► held       └─ the guest keeps the device ──► stuck
 *       └► queued ─┘ └─ refused at the resume ─ leaving
 *
 * - `held`: a device of the VMM, if there is one; mounted wherever the guest is up.
 * - `attaching`, `detaching`: the work of the present state, or of one that was cut off.
 * - `queued`, `leaving`: attached to, detached from a guest that was paused; the guest's part follows its resume.
 * - `stuck`: out of the guest's tree, while the device is still there.
 */
export const HeldVolume = Schema.Struct({
  ...VolumeMount.fields,
  phase: Schema.Literals(["held", "attaching", "detaching", "queued", "leaving", "stuck"])
})
export type HeldVolume = typeof HeldVolume.Type

/** A record of before there were volumes has none. */
export const HeldVolumes = Schema.Array(HeldVolume).pipe(Schema.withDecodingDefaultKey(Effect.succeed([])))

/** A process of the guest that keeps a mount in use. */
export const MountHolder = Schema.Struct({ pid: Schema.Int, command: Schema.String }).annotate({
  identifier: "MountHolder"
})
export type MountHolder = typeof MountHolder.Type

/** The most volumes of one instance: as many ports as a machine has for disks that come and go. */
export const volumesMax = 16
