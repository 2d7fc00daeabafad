/**
 * The HTTP server: the API's handlers behind one port.
 *
 *   listening ──► server.started ──► ... ──► server.draining ──► streams end ──► requests end ──► closed
 *
 * The drain is bounded: what is still open after `drainMs` is cut off.
 */
import { createServer, type Server, STATUS_CODES } from "node:http"
import type { Socket } from "node:net"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Effect from "effect/Effect"
import * as HttpMiddleware from "effect/http/HttpMiddleware"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import * as ProblemDetails from "effect/http/ProblemDetails"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as Layer from "effect/Layer"
import * as Predicate from "effect/Predicate"
import { Api } from "../api/Api.ts"
import { jsonBodyMaxBytes } from "../api/Validation.ts"
import { problemBase } from "../domain/problems.ts"
import { version } from "../domain/Version.ts"
import { isOpen, Settings } from "../host/Settings.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { layerAuthorization } from "./authorization.ts"
import { HttpBounds } from "./Bounds.ts"
import { boundConnections } from "./connections.ts"
import { Drain } from "./Drain.ts"
import { layerEvents } from "./events.ts"
import { layerIdempotency } from "./idempotency.ts"
import { IdempotencyKeys } from "./IdempotencyKeys.ts"
import { layerImages } from "./images.ts"
import { layerInstances } from "./instances.ts"
import { layerIfMatch } from "./precondition.ts"
import { layerResponses } from "./responses.ts"
import { maxParamLength, servedRoute } from "./routes.ts"
import { layerSystem } from "./system.ts"
import { layerJsonBody, layerValidation } from "./validation.ts"
import { layerAttachments, layerVolumes } from "./volumes.ts"

/** How often node looks for requests that are over their time. */
const connectionsCheckMs = 1_000

const statusOfParseError = (error: unknown): number => {
  const code = Predicate.hasProperty(error, "code") ? error.code : undefined
  if (code === "HPE_HEADER_OVERFLOW") return 431
  return code === "ERR_HTTP_REQUEST_TIMEOUT" ? 408 : 400
}

/** What is not HTTP never becomes a request; the answer is a problem all the same. */
const refuseMalformed = (error: unknown, socket: Socket): void => {
  if (!socket.writable) {
    socket.destroy()
    return
  }
  const status = statusOfParseError(error)
  const title = STATUS_CODES[status] ?? "Bad Request"
  const body = JSON.stringify({
    type: `${problemBase}malformed-http`,
    status,
    title,
    detail: "This is not a request that HTTP/1.1 allows, or it took too long to arrive."
  })
  socket.end(
    `HTTP/1.1 ${status} ${title}\r\ncontent-type: ${ProblemDetails.contentType}\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`
  )
}

/** requestTimeout is off: archives take as long as they take, and bodies have bounds of their own. */
const nodeServer = (bounds: HttpBounds): Server => {
  const server = createServer({
    headersTimeout: bounds.headersMs,
    requestTimeout: 0,
    keepAliveTimeout: bounds.keepAliveMs,
    connectionsCheckingInterval: connectionsCheckMs
  })
  server.timeout = bounds.idleMs
  boundConnections(server, bounds.connectionsMax)
  server.on("clientError", refuseMalformed)
  return server
}

const layerListener = Layer.unwrap(
  Effect.gen(function* () {
    const { host, port } = yield* Settings
    const bounds = yield* HttpBounds
    return NodeHttpServer.layer(() => nodeServer(bounds), {
      host,
      port,
      gracefulShutdownTimeout: bounds.drainMs,
      websocket: { maxPayload: jsonBodyMaxBytes }
    })
  })
)

const layerApi = HttpApiBuilder.layer(Api).pipe(
  Layer.provide([layerSystem, layerImages, layerInstances, layerVolumes, layerAttachments, layerEvents]),
  Layer.provide([layerAuthorization, layerValidation, layerJsonBody, layerIfMatch, layerIdempotency]),
  Layer.provide(IdempotencyKeys.layer)
)

/** Built after the server listens and closed before it stops: it announces both. */
const layerAnnouncements = Layer.effectDiscard(
  Effect.gen(function* () {
    const drain = yield* Drain
    const settings = yield* Settings
    const server = yield* HttpServer.HttpServer
    yield* logEvent("server.started", `listening on ${HttpServer.formatAddress(server.address)}`, {
      address: HttpServer.formatAddress(server.address),
      version
    })
    if (isOpen(settings))
      yield* Effect.logWarning("the port is open to other hosts and asks for no token: HOST says so")
    yield* Effect.addFinalizer(() =>
      Effect.andThen(logEvent("server.draining", "no new requests; open ones may end"), drain.begin)
    )
  })
)

/** A span is named by its route, as a series of the metrics is: never by what a client made up. */
const layerSpanNames = Layer.succeed(
  HttpMiddleware.SpanNameGenerator,
  ({ method, url }) => `${method} ${servedRoute(url)?.template ?? "none"}`
)

/**
 * Serves until its scope closes, with `more` routes beside the API's. Gives the listening server, whose address tells the
 * port where `PORT` was 0.
 */
export const layerServing = <R>(more: Layer.Layer<never, never, R>) =>
  layerAnnouncements.pipe(
    Layer.provideMerge(
      HttpRouter.serve(Layer.mergeAll(layerApi, layerResponses, more), {
        disableLogger: true,
        disableListenLog: true,
        routerConfig: { maxParamLength }
      })
    ),
    Layer.provideMerge(layerListener),
    Layer.provide(layerSpanNames),
    Layer.provide(Drain.layer)
  )

/** The API alone. */
export const layerServer = layerServing(Layer.empty)
