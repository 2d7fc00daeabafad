/** What is durable of a volume beside its disk: `volumes/<id>/volume.json`. Who holds it is in the instances' records. */
import * as Schema from "effect/Schema"
import { Timestamp, VolumeId } from "../domain/Ids.ts"
import { VolumeSizeGb } from "../domain/Volume.ts"

export const VolumeRecord = Schema.Struct({
  version: Schema.Literal(1),
  id: VolumeId,
  name: Schema.String,
  size_gb: VolumeSizeGb,
  created_at: Timestamp
})
export type VolumeRecord = typeof VolumeRecord.Type

const RecordJson = Schema.fromJsonString(VolumeRecord)
export const encodeRecord = Schema.encodeSync(RecordJson)
export const decodeRecord = Schema.decodeUnknownOption(RecordJson)
