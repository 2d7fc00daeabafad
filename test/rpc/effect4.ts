/** Clients with Effect 4, over HTTP and over a WebSocket, as a user of the package writes them. */
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as RpcClient from "effect/rpc/RpcClient"
import * as RpcSerialization from "effect/rpc/RpcSerialization"
import { DataplaneRpcs } from "../../src/rpc/Rpcs.ts"

const overHttp = (url: string) =>
  RpcClient.layerProtocolHttp({ url }).pipe(
    Layer.provide([FetchHttpClient.layer, RpcSerialization.layerNdjson])
  )

const overWebSocket = (url: string) =>
  RpcClient.layerProtocolSocket().pipe(
    Layer.provide([NodeSocket.layerWebSocket(url.replace(/^http/u, "ws")), RpcSerialization.layerNdjson])
  )

export const transports = [
  ["HTTP", (url: string) => overHttp(`${url}/rpc`)],
  ["WebSocket", (url: string) => overWebSocket(`${url}/rpc/ws`)]
] as const

/** A client for as long as the scope is open. */
export const connect = (protocol: Layer.Layer<RpcClient.Protocol>) =>
  Effect.flatMap(Layer.build(protocol), (context) =>
    Effect.provideContext(RpcClient.make(DataplaneRpcs), context)
  )
