/** Volumes: disks that outlive instances. Becomes part of the API once its handlers are there. */
import * as Schema from "effect/Schema"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import { VolumeId } from "../domain/Ids.ts"
import { Volume, VolumeSizeGb } from "../domain/Volume.ts"
import { Busy, HostUnfit, Unprocessable, VolumeInUse, VolumeNotFound } from "../domain/problems.ts"
import { Authorization } from "./Authorization.ts"
import { JsonBody, Validation } from "./Validation.ts"

/** POST /volumes. */
export const CreateVolume = Schema.Struct({
  name: Schema.String.check(Schema.isBetweenCodePoints(1, 100)),
  size_gb: VolumeSizeGb,
  id: Schema.optionalKey(VolumeId)
}).annotate({ identifier: "CreateVolume" })

const id = { id: VolumeId }
const removed = Schema.Void.annotate({ description: "Deleted." }).pipe(HttpApiSchema.status(204))

export class VolumesGroup extends HttpApiGroup.make("volumes")
  .add(
    HttpApiEndpoint.get("list", "/", { success: Schema.Array(Volume) }).annotateMerge(
      OpenApi.annotations({ summary: "All volumes" })
    ),
    HttpApiEndpoint.post("create", "/", {
      payload: CreateVolume,
      success: Volume.pipe(HttpApiSchema.status(201)),
      error: [Unprocessable, HostUnfit, Busy]
    })
      .middleware(JsonBody)
      .annotateMerge(
        OpenApi.annotations({ summary: "Create a volume", description: "Sparse, ext4 inside." })
      ),
    HttpApiEndpoint.get("get", "/:id", { params: id, success: Volume, error: VolumeNotFound }).annotateMerge(
      OpenApi.annotations({ summary: "One volume" })
    ),
    HttpApiEndpoint.delete("remove", "/:id", {
      params: id,
      success: removed,
      error: [VolumeNotFound, VolumeInUse]
    }).annotateMerge(OpenApi.annotations({ summary: "Delete a volume that no instance holds" }))
  )
  .middleware(Validation)
  .middleware(Authorization)
  .prefix("/volumes")
  .annotateMerge(OpenApi.annotations({ title: "volumes", description: "Disks that outlive instances." })) {}
