/** Checks the bearer token of every call, where the service has a JWT_SECRET (contract §3). */
import * as Effect from "effect/Effect"
import * as HttpEffect from "effect/http/HttpEffect"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Authorization, requiredScope } from "../api/Authorization.ts"
import { authorizer } from "../api/Token.ts"
import type { Forbidden, Unauthorized } from "../domain/problems.ts"
import { Settings } from "../host/Settings.ts"

/** What a refusal says in its `www-authenticate` (RFC 6750, section 3). */
const challenge = (problem: Unauthorized | Forbidden, token: string): string => {
  if (problem._tag === "Forbidden") return `Bearer error="insufficient_scope", scope="${problem.scope ?? ""}"`
  return token === "" ? "Bearer" : `Bearer error="invalid_token"`
}

const withHeader = (value: string) =>
  HttpEffect.appendPreResponseHandler((_request, response) =>
    Effect.succeed(HttpServerResponse.setHeader(response, "www-authenticate", value))
  )

export const layerAuthorization: Layer.Layer<Authorization, never, Settings> = Layer.effect(
  Authorization,
  Effect.gen(function* () {
    const { jwtSecret } = yield* Settings
    const authorize = yield* authorizer(jwtSecret)
    return {
      bearer: (app, { credential, endpoint }) => {
        const token = Redacted.value(credential)
        return authorize(token, requiredScope(endpoint)).pipe(
          Effect.tapError((problem) => withHeader(challenge(problem, token))),
          Effect.andThen(app)
        )
      }
    }
  })
)
