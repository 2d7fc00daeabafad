/** Files of a guest, as tar archives out of it and into it. */
import * as Schema from "effect/Schema"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import { GuestPath } from "../domain/Exec.ts"
import { InstanceId } from "../domain/Ids.ts"
import { PayloadTooLarge, RequestTimeout, UnsupportedMediaType } from "../domain/problems.ts"
import { guestProblems } from "./Exec.ts"
import { archiveContentType } from "./Images.ts"

const id = { id: InstanceId }
const path = { path: GuestPath }
const written = Schema.Void.annotate({ description: "Written." }).pipe(HttpApiSchema.status(204))

export const filesEndpoints = [
  HttpApiEndpoint.get("readFiles", "/:id/files", {
    params: id,
    query: path,
    success: HttpApiSchema.StreamUint8Array({ contentType: archiveContentType }),
    error: guestProblems
  }).annotateMerge(
    OpenApi.annotations({
      summary: "Copy files out of the guest",
      description:
        "A tar of what is at `path`: a file as one entry, a directory with all below it, with owners, modes and links. A guest that fails in the middle ends the connection, so that no archive looks whole that is not."
    })
  ),
  HttpApiEndpoint.put("writeFiles", "/:id/files", {
    params: id,
    query: path,
    payload: HttpApiSchema.StreamUint8Array({ contentType: archiveContentType }),
    success: written,
    error: [...guestProblems, PayloadTooLarge, UnsupportedMediaType, RequestTimeout]
  }).annotateMerge(
    OpenApi.annotations({
      summary: "Copy files into the guest",
      description:
        "Unpacks the tar into the directory `path`, which is made where it is missing; nothing is written outside of it. Answers when all is written; a failure in the middle leaves what was written before."
    })
  )
] as const
