/**
 * The calls behind the HTTP server's port:
 *
 *   POST /rpc       ndjson      GET /rpc/ws   WebSocket     clients with Effect 4
 *   POST /rpc/v3    ndjson      GET /rpc/v3   WebSocket     clients with Effect 3 and @effect/rpc
 *
 * Each way in has its own server over the same handlers. Nothing is held for a client that does not read: a stream over
 * HTTP is pulled as the socket takes it, one over a WebSocket chunk by chunk as the client acknowledges it, and a WebSocket
 * whose answers pile up is not read from until they are taken.
 */
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as RpcSerialization from "effect/rpc/RpcSerialization"
import * as RpcServer from "effect/rpc/RpcServer"
import { layerRpcAuthorization, layerRpcDefects } from "./authorization.ts"
import { layerHandlers } from "./handlers.ts"
import { DataplaneRpcs } from "./Rpcs.ts"
import { post, upgrade } from "./transport.ts"
import { effect3, effect4 } from "./wire.ts"

/** Messages of one stream or batch that wait for an HTTP client to read them. */
const streamBufferMax = 16

/** A defect ends its own call only, not all that its client has under way. */
const options = { disableFatalDefects: true, streamBufferSize: streamBufferMax } as const

const routes = (paths: { readonly http: `/${string}`; readonly webSocket: `/${string}` }) =>
  Layer.effectDiscard(
    Effect.gen(function* () {
      const router = yield* HttpRouter.HttpRouter
      const overHttp = yield* RpcServer.toHttpEffect(DataplaneRpcs, options)
      const overWebSocket = yield* RpcServer.toHttpEffectWebsocket(DataplaneRpcs, options)
      yield* router.add("POST", paths.http, yield* post(overHttp))
      yield* router.add("GET", paths.webSocket, yield* upgrade(overWebSocket))
    })
  )

const served = (wire: RpcSerialization.RpcSerialization["Service"], paths: Parameters<typeof routes>[0]) =>
  Layer.provide(routes(paths), Layer.succeed(RpcSerialization.RpcSerialization, wire))

/** To be merged with the routes of REST; wants the same services. */
export const layerRpc = Layer.mergeAll(
  served(effect4, { http: "/rpc", webSocket: "/rpc/ws" }),
  served(effect3, { http: "/rpc/v3", webSocket: "/rpc/v3" })
).pipe(Layer.provide([layerHandlers, layerRpcAuthorization, layerRpcDefects]))
