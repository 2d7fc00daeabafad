/**
 * Tokens: how they are signed and what makes one good. HS256 alone, under JWT_SECRET, with an end (`exp`) and a `scope`
 * (RFC 8693, section 4.2: names with spaces between them). Runs wherever Web Crypto is, whose HMAC compares in constant
 * time.
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import { jwtVerify, SignJWT } from "jose"
import { Forbidden, Unauthorized } from "../domain/problems.ts"
import { grants, type Scope } from "../domain/Scope.ts"

/** The one algorithm: no token chooses its own. */
const algorithm = "HS256"

const keyOf = (secret: Redacted.Redacted) =>
  Effect.promise(() =>
    crypto.subtle.importKey(
      "raw",
      new TextEncoder().encode(Redacted.value(secret)),
      { name: "HMAC", hash: "SHA-256" },
      false,
      ["sign", "verify"]
    )
  )

export interface TokenRequest {
  readonly secret: Redacted.Redacted
  readonly scope: Scope
  /** From now on, in seconds; at least 1. */
  readonly expiresInS: number
}

/** Makes a token that the service which holds the same secret takes until it expires. */
export const signToken = Effect.fnUntraced(function* ({ secret, scope, expiresInS }: TokenRequest) {
  const key = yield* keyOf(secret)
  const nowS = Math.floor(Date.now() / 1000)
  return yield* Effect.promise(() =>
    new SignJWT({ scope })
      .setProtectedHeader({ alg: algorithm })
      .setIssuedAt(nowS)
      .setExpirationTime(nowS + expiresInS)
      .sign(key)
  )
})

const noToken = new Unauthorized({ detail: "Send a token: `authorization: Bearer <JWT>`." })
const badToken = new Unauthorized({
  detail:
    "The token is not valid here or no longer: it must be signed with HS256, have an `exp` ahead and a `scope`."
})

/** Passes where the token reaches as far as is needed; an empty one is none. */
export type Authorize = (token: string, needed: Scope) => Effect.Effect<void, Unauthorized | Forbidden>

/** The check of every call. Without a secret every call passes. */
export const authorizer = Effect.fnUntraced(function* (secret: Redacted.Redacted | null) {
  if (secret === null) return (() => Effect.void) satisfies Authorize
  const key = yield* keyOf(secret)
  const authorize: Authorize = Effect.fnUntraced(function* (token, needed) {
    if (token === "") return yield* noToken
    const { payload } = yield* Effect.tryPromise({
      try: () => jwtVerify(token, key, { algorithms: [algorithm], requiredClaims: ["exp", "scope"] }),
      catch: () => badToken
    })
    const scopes = Predicate.isString(payload["scope"]) ? payload["scope"].split(" ") : []
    if (!grants(scopes, needed))
      return yield* new Forbidden({
        detail: `The token's scope does not allow this; it takes \`${needed}\`.`,
        scope: needed
      })
  })
  return authorize
})

/** The token of an `authorization` header, or the empty one (RFC 6750, section 2.1). */
export const bearerOf = (header: string | undefined): string =>
  header === undefined ? "" : (/^Bearer +([\w\-.~+/]+=*)$/iu.exec(header)?.[1] ?? "")
