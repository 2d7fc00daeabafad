/** Images: OCI images on this host, pulled from a registry or imported from an archive. */
import * as Schema from "effect/Schema"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import { ImageId } from "../domain/Ids.ts"
import { CreateImage, Image, ImageGcReport } from "../domain/Image.ts"
import {
  Busy,
  ImageExists,
  ImageInUse,
  ImageNotFound,
  PayloadTooLarge,
  RequestTimeout,
  Unprocessable,
  UnsupportedMediaType
} from "../domain/problems.ts"
import { Authorization } from "./Authorization.ts"
import { Idempotency } from "./Idempotency.ts"
import { JsonBody, Validation } from "./Validation.ts"

/** What an archive's content type must be. */
export const archiveContentType = "application/x-tar"

const accepted = Image.pipe(HttpApiSchema.status(202))
const removed = Schema.Void.annotate({ description: "Removed." }).pipe(HttpApiSchema.status(204))
const id = { id: ImageId }

export class ImagesGroup extends HttpApiGroup.make("images")
  .add(
    HttpApiEndpoint.get("list", "/", { success: Schema.Array(Image) }).annotateMerge(
      OpenApi.annotations({ summary: "All images" })
    ),
    HttpApiEndpoint.post("create", "/", {
      payload: CreateImage,
      success: accepted,
      error: [ImageExists, Unprocessable, Busy]
    })
      .middleware(Idempotency)
      .middleware(JsonBody)
      .annotateMerge(
        OpenApi.annotations({
          summary: "Pull an image",
          description:
            "Answers at once; `status` and `progress` of the image say how far it is. Asking again for the same reference joins the pull, or repeats a failed one."
        })
      ),
    HttpApiEndpoint.post("import", "/import", {
      query: { id: Schema.optionalKey(ImageId) },
      payload: HttpApiSchema.StreamUint8Array({ contentType: archiveContentType }),
      success: accepted,
      error: [ImageExists, Unprocessable, PayloadTooLarge, UnsupportedMediaType, RequestTimeout, Busy]
    })
      .middleware(Idempotency)
      .annotateMerge(
        OpenApi.annotations({
          summary: "Import an archive",
          description:
            "The body is a tar as `docker save` or an OCI layout makes it. Answers when it is received; conversion goes on."
        })
      ),
    HttpApiEndpoint.post("collect", "/gc", { success: ImageGcReport })
      .middleware(Idempotency)
      .annotateMerge(
        OpenApi.annotations({
          summary: "Collect garbage",
          description:
            "Forgets older versions of images (their tag moved on) that no instance was created from, and removes the layers that no image needs. Happens by itself every minute; this one answers when it is done."
        })
      ),
    HttpApiEndpoint.get("get", "/:id", { params: id, success: Image, error: ImageNotFound }).annotateMerge(
      OpenApi.annotations({ summary: "One image" })
    ),
    HttpApiEndpoint.delete("remove", "/:id", {
      params: id,
      success: removed,
      error: [ImageNotFound, ImageInUse]
    }).annotateMerge(
      OpenApi.annotations({
        summary: "Remove an image",
        description: "Cancels a pull; layers that no other image needs go with it."
      })
    )
  )
  .middleware(Validation)
  .middleware(Authorization)
  .prefix("/images")
  .annotateMerge(OpenApi.annotations({ title: "images", description: "OCI images on this host." })) {}
