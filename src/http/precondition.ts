/** Reads `If-Match`; whether the generation still holds is decided by the instance's actor, with the change itself. */
import * as Effect from "effect/Effect"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Layer from "effect/Layer"
import { IfMatch, Precondition, preconditionOf } from "../api/IfMatch.ts"

export const layerIfMatch: Layer.Layer<IfMatch> = Layer.succeed(IfMatch, (app) =>
  Effect.gen(function* () {
    const { headers } = yield* HttpServerRequest.HttpServerRequest
    return yield* Effect.provideService(app, Precondition, yield* preconditionOf(headers["if-match"]))
  })
)
