/**
 * `Idempotency-Key` on a POST (draft-ietf-httpapi-idempotency-key-header): a request that is sent again with its key is
 * answered as the first time, and nothing is done again.
 */
import * as Context from "effect/Context"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import {
  Busy,
  IdempotencyKeyInUse,
  IdempotencyKeyReused,
  IdempotencyOutcomeUnknown,
  InvalidRequest
} from "../domain/problems.ts"

/** Annotates an endpoint whose handler can tell what an attempt that was cut off came to. */
export const TellsOutcome = Context.Reference<boolean>("dataplane/api/TellsOutcome", {
  defaultValue: () => false
})

export const idempotencyKeyMaxChars = 255

export class Idempotency extends HttpApiMiddleware.Service<Idempotency>()("dataplane/api/Idempotency", {
  error: [InvalidRequest, IdempotencyKeyReused, IdempotencyKeyInUse, IdempotencyOutcomeUnknown, Busy]
}) {}

/** Bare, or as the draft has it: a string in quotes (RFC 9651, section 3.3.3), here without escapes. */
const form = String.raw`^("[!#-\[\]-~]{1,255}"|[!#-\[\]-~]{1,255})$`
const pattern = new RegExp(form, "u")

export const idempotencyKeyParameter = {
  name: "idempotency-key",
  in: "header",
  required: false,
  description:
    "A key of the client's own, such as a UUID, bare or in quotes. The same key with the same request answers as the first time, for 24 hours; another request with it is 422.",
  schema: { type: "string", pattern: form, examples: ["8e03978e-40d5-43dd-bc93-6894a57f9324"] }
} as const

/** The key without its quotes; null where it is none. */
export const idempotencyKeyOf = (header: string): string | null =>
  pattern.test(header) ? header.replace(/^"(.*)"$/u, "$1") : null
