/** What happens to a request before its handler sees it. Definitions only; `http` has the implementations. */
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import {
  InternalError,
  InvalidRequest,
  PayloadTooLarge,
  RequestTimeout,
  UnsupportedMediaType
} from "../domain/problems.ts"

/** Bodies over this are 413; archives are streams and have no such bound. */
export const jsonBodyMaxBytes = 1024 * 1024

/** Path, query, headers and body are decoded by their schemas; what does not fit is a problem that says where. */
export class Validation extends HttpApiMiddleware.Service<Validation>()("dataplane/api/Validation", {
  error: [InvalidRequest, InternalError]
}) {}

/** The body is JSON in UTF-8, at most 1 MiB, and arrives in time. */
export class JsonBody extends HttpApiMiddleware.Service<JsonBody>()("dataplane/api/JsonBody", {
  error: [InvalidRequest, PayloadTooLarge, UnsupportedMediaType, RequestTimeout]
}) {}
