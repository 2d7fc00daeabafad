/** Volumes: disks that outlive instances; and their attachments, which are the instances'. */
import * as Schema from "effect/Schema"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import { InstanceId, VolumeId } from "../domain/Ids.ts"
import { Instance } from "../domain/Instance.ts"
import { AttachVolume, CreateVolume, maxVolumeGb, PatchVolume, Volume, VolumeName } from "../domain/Volume.ts"
import {
  Busy,
  HostUnfit,
  InstanceNotFound,
  InvalidState,
  PayloadTooLarge,
  RequestTimeout,
  Unprocessable,
  UnsupportedMediaType,
  VerbCancelled,
  VerbFailed,
  VolumeBusy,
  VolumeExists,
  VolumeInUse,
  VolumeNotFound
} from "../domain/problems.ts"
import { Authorization } from "./Authorization.ts"
import { Idempotency } from "./Idempotency.ts"
import { archiveContentType } from "./Images.ts"
import { FlagParameter, IntParameter } from "./parameters.ts"
import { JsonBody, Validation } from "./Validation.ts"

const id = { id: VolumeId }
const created = Volume.pipe(HttpApiSchema.status(201))
const removed = Schema.Void.annotate({ description: "Deleted." }).pipe(HttpApiSchema.status(204))

const importQuery = {
  name: VolumeName,
  size_gb: IntParameter({
    minimum: 1,
    maximum: maxVolumeGb,
    description: "The size of the volume, in GiB; what is in the archive has to fit."
  }),
  id: Schema.optionalKey(VolumeId)
}

export class VolumesGroup extends HttpApiGroup.make("volumes")
  .add(
    HttpApiEndpoint.get("list", "/", { success: Schema.Array(Volume) }).annotateMerge(
      OpenApi.annotations({ summary: "All volumes" })
    ),
    HttpApiEndpoint.post("create", "/", {
      payload: CreateVolume,
      success: created,
      error: [VolumeExists, Unprocessable, HostUnfit, Busy]
    })
      .middleware(JsonBody)
      .middleware(Idempotency)
      .annotateMerge(
        OpenApi.annotations({
          summary: "Create a volume",
          description: "Sparse, ext4 inside: it takes only what guests write."
        })
      ),
    HttpApiEndpoint.post("import", "/import", {
      query: importQuery,
      payload: HttpApiSchema.StreamUint8Array({ contentType: archiveContentType }),
      success: created,
      error: [
        VolumeExists,
        Unprocessable,
        PayloadTooLarge,
        UnsupportedMediaType,
        RequestTimeout,
        HostUnfit,
        Busy
      ]
    })
      .middleware(Idempotency)
      .annotateMerge(
        OpenApi.annotations({
          summary: "Create a volume from an archive",
          description:
            "The body is a tar, not compressed; owners, modes, links and times are kept, device nodes are refused. Answers when the volume is there."
        })
      ),
    HttpApiEndpoint.get("get", "/:id", { params: id, success: Volume, error: VolumeNotFound }).annotateMerge(
      OpenApi.annotations({ summary: "One volume" })
    ),
    HttpApiEndpoint.patch("patch", "/:id", {
      params: id,
      payload: PatchVolume,
      success: Volume,
      error: [VolumeNotFound, VolumeInUse, Unprocessable, VerbFailed, HostUnfit, Busy]
    })
      .middleware(JsonBody)
      .annotateMerge(
        OpenApi.annotations({
          summary: "Grow a volume",
          description:
            "Disk and file system, also under a Running guest that has it mounted; answers when the guest has grown it."
        })
      ),
    HttpApiEndpoint.delete("remove", "/:id", {
      params: id,
      success: removed,
      error: [VolumeNotFound, VolumeInUse, Unprocessable, HostUnfit]
    }).annotateMerge(OpenApi.annotations({ summary: "Delete a volume that no instance holds" }))
  )
  .middleware(Validation)
  .middleware(Authorization)
  .prefix("/volumes")
  .annotateMerge(OpenApi.annotations({ title: "volumes", description: "Disks that outlive instances." })) {}

const place = { id: InstanceId, volume: VolumeId }
export const attachmentProblems = [
  InstanceNotFound,
  VolumeNotFound,
  InvalidState,
  VolumeBusy,
  VerbCancelled,
  VerbFailed,
  Busy
] as const

const detachQuery = {
  force: Schema.optionalKey(
    FlagParameter({
      description:
        "Also where processes of the guest use it: it is flushed and taken, and what they write later is lost.",
      default: false
    })
  )
}

export class AttachmentsGroup extends HttpApiGroup.make("attachments")
  .add(
    HttpApiEndpoint.post("attach", "/:id/volumes/:volume", {
      params: place,
      payload: AttachVolume,
      success: Instance,
      error: [...attachmentProblems, VolumeInUse]
    })
      .middleware(JsonBody)
      .middleware(Idempotency)
      .annotateMerge(
        OpenApi.annotations({
          summary: "Attach a volume",
          description:
            "A Running guest has it mounted when this answers; one that is off has it at its next boot; a Paused one mounts it when it is resumed, and `volumes[].status` says `attaching` until then. One writer, or any number of readers. Refused in Standby."
        })
      ),
    HttpApiEndpoint.delete("detach", "/:id/volumes/:volume", {
      params: place,
      query: detachQuery,
      success: Instance,
      error: attachmentProblems
    }).annotateMerge(
      OpenApi.annotations({
        summary: "Detach a volume",
        description:
          "Flushed and unmounted in the guest, then taken from it. 409 with the processes that use it where some do. A Paused guest lets go of it when it is resumed, and `volumes[].status` says `detaching` until then."
      })
    )
  )
  .middleware(Validation)
  .middleware(Authorization)
  .prefix("/instances")
  .annotateMerge(
    OpenApi.annotations({ title: "attachments", description: "Volumes that instances hold." })
  ) {}
