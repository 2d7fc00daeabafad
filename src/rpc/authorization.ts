/** Checks the token of every call, by the same rule as REST, and keeps the cause of a defect from its client. */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { authorizer, bearerOf } from "../api/Token.ts"
import { InternalError } from "../domain/problems.ts"
import { Settings } from "../host/Settings.ts"
import { reportDefects } from "../telemetry/defects.ts"
import { RpcAuthorization, RpcDefects, RpcScope } from "./RpcAuthorization.ts"

export const layerRpcAuthorization: Layer.Layer<RpcAuthorization, never, Settings> = Layer.effect(
  RpcAuthorization,
  Effect.gen(function* () {
    const { jwtSecret } = yield* Settings
    const authorize = yield* authorizer(jwtSecret)
    return (call, { rpc, headers }) =>
      Effect.andThen(
        authorize(bearerOf(headers["authorization"]), Context.get(rpc.annotations, RpcScope)),
        call
      )
  })
)

export const layerRpcDefects: Layer.Layer<RpcDefects> = Layer.succeed(RpcDefects, (call) =>
  Effect.catchCauseIf(call, Cause.hasDies, (cause) =>
    Effect.andThen(
      reportDefects(cause, "a call failed in a way that it should not"),
      Effect.fail(
        new InternalError({ detail: "The dataplane failed to answer; its log has the cause as a `defect`." })
      )
    )
  )
)
