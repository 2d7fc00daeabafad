/** `If-Match` on a change (RFC 9110, section 13.1.1): it happens only to an instance of a generation that the client knows. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import { InvalidRequest } from "../domain/problems.ts"

/** The generations that a change may find; empty where any will do, as with `*`. */
export class Precondition extends Context.Service<
  Precondition,
  { readonly ifMatch?: ReadonlyArray<number> }
>()("dataplane/api/Precondition") {}

export class IfMatch extends HttpApiMiddleware.Service<IfMatch, { provides: Precondition }>()(
  "dataplane/api/IfMatch",
  { error: InvalidRequest }
) {}

/** One ETag, or a bare generation. */
const tag = String.raw`(\d{1,16}|(W/)?"[!#-+\--~]*")`
const tagPattern = new RegExp(`^${tag}$`, "u")

export const ifMatchParameter = {
  name: "if-match",
  in: "header",
  required: false,
  description:
    'The generation that the instance must still have, as its ETag (`"3"`) or bare (`3`); several with commas between them; `*` for any. 412 where it moved on.',
  schema: { type: "string", pattern: `^(\\*|${tag}( *, *${tag})*)$`, examples: ["3", '"3"'] }
} as const

const malformed = new InvalidRequest({
  detail: 'Send `If-Match` with the generation that you saw, such as `If-Match: "3"`.',
  errors: [{ path: ["headers", "if-match"], message: "Expected a generation, bare or as an ETag" }]
})

/** An ETag that is no generation, or a weak one, is well formed and matches nothing. */
const generationOf = (text: string): number | null => {
  const [, bare, quoted] = /^(?:(\d{1,16})|"(\d{1,16})")$/u.exec(text) ?? []
  const digits = bare ?? quoted
  return digits === undefined ? null : Number(digits)
}

/** What an `If-Match` header asks for; where there is none, nothing. */
export const preconditionOf = (
  header: string | undefined
): Effect.Effect<Precondition["Service"], InvalidRequest> => {
  if (header === undefined || header.trim() === "*") return Effect.succeed({})
  const tags = header.split(",").map((it) => it.trim())
  return tags.every((it) => tagPattern.test(it))
    ? Effect.succeed({ ifMatch: tags.map(generationOf).filter((it) => it !== null) })
    : Effect.fail(malformed)
}
