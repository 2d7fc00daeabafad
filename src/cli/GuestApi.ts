/**
 * What the commands on volumes and on files in a guest call, as a client sees it: the paths, payloads and answers, with
 * problems left to their common form.
 */
import * as Schema from "effect/Schema"
import * as HttpApi from "effect/http-api/HttpApi"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import { archiveContentType } from "../api/Images.ts"
import { FlagParameter, IntParameter } from "../api/parameters.ts"
import { InstanceId, VolumeId } from "../domain/Ids.ts"
import { Instance } from "../domain/Instance.ts"
import { MountPath, Volume, VolumeSizeGb } from "../domain/Volume.ts"

const volume = { id: VolumeId }
const attachment = { id: InstanceId, volumeId: VolumeId }
const archive = HttpApiSchema.StreamUint8Array({ contentType: archiveContentType })
const done = Schema.Void.pipe(HttpApiSchema.status(204))

const volumes = HttpApiGroup.make("volumes")
  .add(
    HttpApiEndpoint.get("list", "/", { success: Schema.Array(Volume) }),
    HttpApiEndpoint.post("create", "/", {
      payload: Schema.Struct({
        name: Schema.String,
        size_gb: VolumeSizeGb,
        id: Schema.optionalKey(VolumeId)
      }),
      success: Volume.pipe(HttpApiSchema.status(201))
    }),
    HttpApiEndpoint.get("get", "/:id", { params: volume, success: Volume }),
    HttpApiEndpoint.delete("remove", "/:id", { params: volume, success: done }),
    HttpApiEndpoint.patch("grow", "/:id", {
      params: volume,
      payload: Schema.Struct({ size_gb: VolumeSizeGb }),
      success: Volume
    }),
    HttpApiEndpoint.post("import", "/import", {
      query: {
        name: Schema.String,
        size_gb: IntParameter({ minimum: 1, maximum: 16_384, description: "Size of the volume, in GiB." }),
        id: Schema.optionalKey(VolumeId)
      },
      payload: archive,
      success: Volume.pipe(HttpApiSchema.status(201))
    })
  )
  .prefix("/volumes")

const guests = HttpApiGroup.make("guests")
  .add(
    HttpApiEndpoint.post("attach", "/:id/volumes/:volumeId", {
      params: attachment,
      payload: Schema.Struct({ mount_path: MountPath, readonly: Schema.Boolean }),
      success: Instance
    }),
    HttpApiEndpoint.delete("detach", "/:id/volumes/:volumeId", {
      params: attachment,
      query: { force: FlagParameter({ description: "Detaches a volume that is in use.", default: false }) },
      success: Instance
    }),
    HttpApiEndpoint.get("readFiles", "/:id/files", {
      params: { id: InstanceId },
      query: { path: Schema.String },
      success: archive
    }),
    HttpApiEndpoint.put("writeFiles", "/:id/files", {
      params: { id: InstanceId },
      query: { path: Schema.String },
      payload: archive,
      success: done
    })
  )
  .prefix("/instances")

export class GuestApi extends HttpApi.make("guest").add(volumes).add(guests) {}
