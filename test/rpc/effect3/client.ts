/**
 * A client that still uses Effect 3 and @effect/rpc, with definitions of its own, as such a client has them: of what it
 * needs, in its own schemas. Everything here resolves to Effect 3, which this folder has installed for itself.
 */
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import * as Socket from "@effect/platform/Socket"
import * as Rpc from "@effect/rpc/Rpc"
import * as RpcClient from "@effect/rpc/RpcClient"
import * as RpcGroup from "@effect/rpc/RpcGroup"
import * as RpcSerialization from "@effect/rpc/RpcSerialization"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"

const Problem = Schema.Struct({
  type: Schema.String,
  title: Schema.String,
  status: Schema.Number,
  detail: Schema.String
})
const Instance = Schema.Struct({
  id: Schema.String,
  name: Schema.String,
  state: Schema.String,
  generation: Schema.Number,
  memory_mb: Schema.Number
})
const LogLine = Schema.Struct({ cursor: Schema.Number, time: Schema.String, line: Schema.String })
const one = { id: Schema.String }

const Rpcs = RpcGroup.make(
  Rpc.make("images.list", { success: Schema.Array(Schema.Struct({ id: Schema.String })), error: Problem }),
  Rpc.make("instances.get", { payload: one, success: Instance, error: Problem }),
  Rpc.make("instances.create", {
    payload: { id: Schema.String, name: Schema.String, image: Schema.String },
    success: Instance,
    error: Problem
  }),
  Rpc.make("instances.remove", { payload: one, error: Problem }),
  Rpc.make("instances.logs", {
    payload: { ...one, follow: Schema.optional(Schema.Boolean) },
    success: LogLine,
    error: Problem,
    stream: true
  }),
  Rpc.make("nowhere.known", { success: Schema.Void })
)

const overHttp = (url: string) =>
  RpcClient.layerProtocolHttp({ url: `${url}/rpc/v3` }).pipe(
    Layer.provide([FetchHttpClient.layer, RpcSerialization.layerNdjson])
  )
const overWebSocket = (url: string) =>
  RpcClient.layerProtocolSocket().pipe(
    Layer.provide([
      Layer.provide(
        Socket.layerWebSocket(`${url.replace(/^http/u, "ws")}/rpc/v3`),
        Socket.layerWebSocketConstructorGlobal
      ),
      RpcSerialization.layerNdjson
    ])
  )
export const transports = [
  ["HTTP", overHttp],
  ["WebSocket", overWebSocket]
] as const

type Transport = (typeof transports)[number][1]

/** What a call came to, in words that belong to no version of Effect. */
export type Outcome =
  | { readonly value: unknown }
  | { readonly problem: unknown }
  | { readonly defect: string }

const outcomeOf = (exit: Exit.Exit<unknown, unknown>): Outcome =>
  Exit.match(exit, {
    onSuccess: (value): Outcome => ({ value }),
    onFailure: (cause): Outcome => {
      const [problem] = Chunk.toReadonlyArray(Cause.failures(cause))
      return problem === undefined ? { defect: Cause.pretty(cause) } : { problem }
    }
  })

const clientOf = RpcClient.make(Rpcs)
type Client = Effect.Effect.Success<typeof clientOf>

/** The calls of the test, each on a client of its own. */
const calls = {
  unary: (client: Client) => client.instances.get({ id: "a1" }),
  create: (client: Client) => client.instances.create({ id: "b1", name: "one", image: "img-nginx" }),
  noPayload: (client: Client) => client.images.list(),
  noAnswer: (client: Client) => client.instances.remove({ id: "a1" }),
  stream: (client: Client) =>
    Stream.runCollect(client.instances.logs({ id: "a1" })).pipe(Effect.map(Chunk.toReadonlyArray)),
  firstTwo: (client: Client) =>
    client.instances
      .logs({ id: "a1", follow: true })
      .pipe(Stream.take(2), Stream.runCollect, Effect.map(Chunk.toReadonlyArray)),
  typedError: (client: Client) => client.instances.get({ id: "nope" }),
  streamError: (client: Client) => Stream.runDrain(client.instances.logs({ id: "nope" })),
  malformed: (client: Client) => client.instances.get({ id: "NOT AN ID" }),
  unknown: (client: Client) => client.nowhere.known()
}
export type Call = keyof typeof calls

export const run = (
  transport: Transport,
  url: string,
  call: Call,
  headers: Record<string, string> = {}
): Promise<Outcome> =>
  Effect.runPromise(
    Effect.flatMap(clientOf, (client) =>
      Effect.exit(Effect.suspend((): Effect.Effect<unknown, unknown> => calls[call](client)))
    ).pipe(
      RpcClient.withHeaders(headers),
      Effect.map(outcomeOf),
      Effect.scoped,
      Effect.provide(transport(url))
    )
  )
