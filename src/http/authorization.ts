/** Checks the bearer token, where the service has a JWT_SECRET (contract §3); without one every call passes. */
import { createSecretKey } from "node:crypto"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import { jwtVerify, type JWTPayload } from "jose"
import { Authorization, Writes } from "../api/Authorization.ts"
import { Forbidden, Unauthorized } from "../domain/problems.ts"
import { Settings } from "../host/Settings.ts"

type Scope = "read" | "write" | "admin"

/** What may be called with a scope: `read` is GET, but for what is annotated `Writes`; the others are everything. */
const grants = (scopes: ReadonlyArray<string>, needed: Scope): boolean =>
  scopes.includes("admin") || scopes.includes("write") || (needed === "read" && scopes.includes("read"))

/** RFC 8693, section 4.2: a list of names with spaces between them. */
const scopesOf = (payload: JWTPayload): ReadonlyArray<string> =>
  Predicate.isString(payload["scope"]) ? payload["scope"].split(" ") : []

/** The algorithm is pinned, so that no token chooses its own; a token without an end is none. */
const verify = (token: string, key: ReturnType<typeof createSecretKey>) =>
  Effect.tryPromise({
    try: () => jwtVerify(token, key, { algorithms: ["HS256"], requiredClaims: ["exp"] }),
    catch: () =>
      new Unauthorized({
        detail:
          "The token is not valid here or no longer: it must be signed with HS256 and have an `exp` ahead."
      })
  })

export const layerAuthorization: Layer.Layer<Authorization, never, Settings> = Layer.effect(
  Authorization,
  Effect.gen(function* () {
    const { jwtSecret } = yield* Settings
    if (jwtSecret === null) return { bearer: (app) => app }
    const key = createSecretKey(Buffer.from(Redacted.value(jwtSecret), "utf8"))
    return {
      bearer: Effect.fnUntraced(function* (app, { credential, endpoint }) {
        const token = Redacted.value(credential)
        if (token === "")
          return yield* new Unauthorized({ detail: "Send a token: `authorization: Bearer <JWT>`." })
        const { payload } = yield* verify(token, key)
        const reads = endpoint.method === "GET" && !Context.get(endpoint.annotations, Writes)
        const needed = reads ? "read" : "write"
        if (!grants(scopesOf(payload), needed))
          return yield* new Forbidden({
            detail: `The token's scope does not allow this; it takes \`${needed}\`.`
          })
        return yield* app
      })
    }
  })
)
