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

/** 16 TiB is what ext4 with 4 KiB blocks is commonly tested to. */
const maxVolumeGb = 16_384
export const VolumeSizeGb = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: maxVolumeGb }))

export const Volume = Schema.Struct({
  id: VolumeId,
  name: Schema.String,
  size_gb: VolumeSizeGb,
  attachments: Schema.Array(VolumeAttachment),
  created_at: Timestamp
}).annotate({ identifier: "Volume" })
export type Volume = typeof Volume.Type

/** A volume as an instance's spec asks for it. */
export const VolumeMount = Schema.Struct({
  volume_id: VolumeId,
  mount_path: MountPath,
  readonly: Schema.Boolean.pipe(Schema.withDecodingDefaultKey(Effect.succeed(false)))
}).annotate({ identifier: "VolumeMount" })
export type VolumeMount = typeof VolumeMount.Type
