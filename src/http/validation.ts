/** Decodes what a request holds, and says what is wrong with it in words that help. */
import { isUtf8 } from "node:buffer"
import * as ByteSize from "effect/ByteSize"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as ErrorReporter from "effect/ErrorReporter"
import * as Fiber from "effect/Fiber"
import * as HttpEffect from "effect/http/HttpEffect"
import * as HttpIncomingMessage from "effect/http/HttpIncomingMessage"
import type * as HttpServerError from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import type { HttpApiSchemaError } from "effect/http-api/HttpApiError"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as Layer from "effect/Layer"
import * as SchemaIssue from "effect/SchemaIssue"
import { JsonBody, jsonBodyMaxBytes, Validation } from "../api/Validation.ts"
import {
  InternalError,
  InvalidRequest,
  PayloadTooLarge,
  RequestTimeout,
  UnsupportedMediaType
} from "../domain/problems.ts"
import { HttpBounds } from "./Bounds.ts"

/** A hostile body can be wrong in a hundred thousand places; so many are told, and the longest name is cut. */
const errorsMax = 32
const segmentMaxChars = 128
/** So many are named in the sentence; the rest is in `errors`. */
const namedMax = 3

const formatIssues = SchemaIssue.makeFormatterStandardSchemaV1({
  leafHook: (issue) => {
    if (issue._tag === "UnexpectedKey") return "Not a known field"
    if (issue._tag === "MissingKey") return "Required"
    return SchemaIssue.defaultLeafHook(issue)
  }
})

const segment = (part: PropertyKey | { readonly key: PropertyKey }): string | number => {
  const key = typeof part === "object" ? part.key : part
  return typeof key === "number" ? key : String(key).slice(0, segmentMaxChars)
}

const slotNames: Readonly<Record<HttpApiSchemaError["kind"], string>> = {
  Params: "The path is",
  Headers: "The headers are",
  Query: "The query is",
  Payload: "The body is",
  Body: "The answer is",
  ResponseHeaders: "The answer's headers are"
}

const invalidRequest = (error: HttpApiSchemaError): InvalidRequest => {
  const slot = error.kind.toLowerCase()
  const issues = formatIssues(error.cause.issue).issues
  const errors = issues.slice(0, errorsMax).map((issue) => ({
    path: [slot, ...(issue.path ?? []).map(segment)],
    message: issue.message
  }))
  const named = errors
    .slice(0, namedMax)
    .map(({ path, message }) => [path.slice(1).join("."), message].filter((part) => part !== "").join(": "))
    .join("; ")
  const more = issues.length > namedMax ? `; and ${issues.length - namedMax} more` : ""
  return new InvalidRequest({ detail: `${slotNames[error.kind]} not valid: ${named}${more}.`, errors })
}

/** A response that does not fit its own schema is our defect, never the client's. */
const problemOf = (error: HttpApiSchemaError): Effect.Effect<never, InvalidRequest | InternalError> =>
  error.kind === "Body" || error.kind === "ResponseHeaders"
    ? Effect.andThen(
        ErrorReporter.report(Cause.die(error.cause)),
        Effect.fail(
          new InternalError({
            detail: "The dataplane made an answer that it cannot send; its log has the cause."
          })
        )
      )
    : Effect.fail(invalidRequest(error))

/** Routes without a query refuse one, so that no misspelt or misplaced parameter is passed over in silence. */
const refuseQuery = (names: ReadonlyArray<string>): InvalidRequest =>
  new InvalidRequest({
    detail: "This route takes no query parameters.",
    errors: names
      .slice(0, errorsMax)
      .map((name) => ({ path: ["query", segment(name)], message: "Not a known field" }))
  })

export const layerValidation: Layer.Layer<Validation> = Layer.effect(
  Validation,
  Effect.map(Validation, (decoded) =>
    Effect.fnUntraced(function* (app, options) {
      if (options.endpoint.query === undefined) {
        const names = Object.keys(yield* HttpServerRequest.ParsedSearchParams)
        if (names.length > 0) return yield* refuseQuery(names)
      }
      return yield* decoded(app, options)
    })
  )
).pipe(Layer.provide(HttpApiMiddleware.layerSchemaErrorTransform(Validation, problemOf)))

/** The media type without its parameters. */
export const mediaType = (contentType: string): string =>
  (contentType.split(";")[0] ?? "").trim().toLowerCase()

const tooLarge = () =>
  new PayloadTooLarge({ detail: `The body is larger than ${jsonBodyMaxBytes} bytes (1 MiB).` })

const unreadable = (error: HttpServerError.HttpServerError): PayloadTooLarge | InvalidRequest =>
  error.reason._tag === "RequestParseError" && error.reason.reason === "BodyTooLarge"
    ? tooLarge()
    : new InvalidRequest({ detail: "The body ended before all of it had arrived." })

/** The rest of a body that is not wanted any more could take for ever: the connection goes with the answer. */
export const closeAfterAnswer = HttpEffect.appendPreResponseHandler((_request, response) =>
  Effect.succeed(HttpServerResponse.setHeader(response, "connection", "close"))
)

/**
 * Reads a body of JSON, or of lines of it, into memory. Reading goes on in a fiber of its own: to interrupt it would cut the connection that the 408 is to be sent on. It ends
 * with the connection at the latest.
 */
export const readJson = Effect.fnUntraced(function* (
  request: HttpServerRequest.HttpServerRequest,
  bodyMs: number
) {
  const reading = yield* request.arrayBuffer.pipe(
    Effect.provideService(HttpIncomingMessage.MaxBodySize, ByteSize.bytes(jsonBodyMaxBytes)),
    Effect.mapError(unreadable),
    Effect.forkDetach({ startImmediately: true })
  )
  const body = yield* Effect.timeoutOrElse(Fiber.join(reading), {
    duration: bodyMs,
    orElse: () =>
      Effect.andThen(
        closeAfterAnswer,
        Effect.fail(new RequestTimeout({ detail: `The body did not arrive within ${bodyMs / 1000} s.` }))
      )
  })
  return yield* isUtf8(body)
    ? Effect.void
    : new InvalidRequest({ detail: "The body is not text in UTF-8, as JSON must be." })
})

/** Reads the whole body, once; decoding finds it in memory. */
export const layerJsonBody: Layer.Layer<JsonBody> = Layer.effect(
  JsonBody,
  Effect.gen(function* () {
    const bounds = yield* HttpBounds
    return Effect.fnUntraced(function* (app) {
      const request = yield* HttpServerRequest.HttpServerRequest
      const contentType = request.headers["content-type"]
      if (contentType !== undefined && mediaType(contentType) !== "application/json")
        return yield* new UnsupportedMediaType({
          detail: "Send the body as JSON, with the header `content-type: application/json`.",
          supported: ["application/json"]
        })
      if (Number(request.headers["content-length"] ?? 0) > jsonBodyMaxBytes) return yield* tooLarge()
      yield* readJson(request, bounds.bodyMs)
      return yield* app
    })
  })
)
