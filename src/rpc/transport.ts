/**
 * What stands between a connection and the calls on it: bounds on bodies, on answers that nobody takes and on clients that
 * are gone; and the end of every stream when the service stops.
 */
import { IncomingMessage } from "node:http"
import type { Socket as NetSocket } from "node:net"
import * as Effect from "effect/Effect"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import type * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Scope from "effect/Scope"
import * as Socket from "effect/socket/Socket"
import { type Authorize, authorizer, bearerOf } from "../api/Token.ts"
import { UnsupportedMediaType } from "../domain/problems.ts"
import { Settings } from "../host/Settings.ts"
import { HttpBounds } from "../http/Bounds.ts"
import { Drain } from "../http/Drain.ts"
import { mediaType, readJson } from "../http/validation.ts"

type Request = HttpServerRequest.HttpServerRequest
type App = Effect.Effect<HttpServerResponse.HttpServerResponse, never, Scope.Scope | Request>

/** Bytes of answers that may wait in the socket before nothing more is read from its client. */
const unreadMaxBytes = 1024 * 1024
/** A peer that is gone without a word is found out by the kernel after about so long (tcp(7)). */
const keepAliveMs = 30_000

const socketOf = ({ source }: Request): NetSocket | undefined =>
  source instanceof IncomingMessage ? source.socket : undefined

/** Ends once the socket has room again, or is gone. */
const room = (socket: NetSocket): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    if (socket.destroyed || socket.writableLength < unreadMaxBytes) return resume(Effect.void)
    const done = () => {
      socket.off("drain", done).off("close", done)
      resume(Effect.void)
    }
    socket.on("drain", done).on("close", done)
    return Effect.sync(() => socket.off("drain", done).off("close", done))
  })

/** A socket whose client takes no byte for so long is destroyed; one on which there is nothing to take may be silent. */
const cutStalled = (request: Request, stalledMs: number): void => {
  const { source } = request
  if (!(source instanceof IncomingMessage)) return
  const { socket } = source
  socket.setKeepAlive(true, keepAliveMs)
  socket.setTimeout(stalledMs)
  source.on("timeout", () => {
    if (socket.writableLength > 0) socket.destroy()
    else socket.setTimeout(stalledMs)
  })
}

const mediaTypes: ReadonlyArray<string> = ["application/x-ndjson", "application/ndjson", "application/json"]

const wrongMediaType = new UnsupportedMediaType({
  detail: "Send calls as lines of JSON, as an RPC client does.",
  supported: mediaTypes
})

/** Calls in one POST: the body is read first, whole and bounded; refusals before any call are problems of HTTP. */
export const post = (app: App) =>
  Effect.map(HttpBounds, (bounds) =>
    Effect.gen(function* () {
      const request = yield* HttpServerRequest.HttpServerRequest
      if (!mediaTypes.includes(mediaType(request.headers["content-type"] ?? ""))) return yield* wrongMediaType
      yield* readJson(request, bounds.bodyMs)
      cutStalled(request, bounds.stalledClientMs)
      return yield* app
    }).pipe(Effect.catchIf(HttpServerRespondable.isRespondable, HttpServerRespondable.toResponse))
  )

/** Waits for room, and cuts a client off that makes none. */
const roomOrCut = (socket: NetSocket, stalledMs: number): Effect.Effect<void> =>
  socket.writableLength < unreadMaxBytes
    ? Effect.void
    : Effect.timeoutOrElse(room(socket), {
        duration: stalledMs,
        orElse: () => Effect.sync(() => void socket.destroy())
      })

/** The same socket, from which nothing is read while its answers pile up. */
const bounded = (inner: Socket.Socket, socket: NetSocket, bounds: HttpBounds): Socket.Socket => {
  const makeRoom = roomOrCut(socket, bounds.stalledClientMs)
  return Socket.make({
    reader: Effect.map(inner.reader, (reader) => ({
      ...reader,
      pull: Effect.andThen(makeRoom, reader.pull)
    })),
    writer: Effect.map(inner.writer, (writer) => ({
      write: (chunk) => Effect.andThen(writer.write(chunk), makeRoom),
      writeAll: (chunks) => Effect.andThen(writer.writeAll(chunks), makeRoom)
    }))
  })
}

/** The code with which a server says that it goes away (RFC 6455, section 7.4.1). */
const goingAway = 1001

interface Place {
  readonly bounds: HttpBounds
  readonly drain: Drain["Service"]
  readonly authorize: Authorize
}

/** The request, whose upgrade gives a bounded socket that is closed when the service stops. */
const guard = (
  request: Request,
  socket: NetSocket,
  scope: Scope.Scope,
  { bounds, drain }: Place
): Request => {
  const accepted = Effect.gen(function* () {
    const inner = bounded(yield* request.upgrade, socket, bounds)
    const writer = yield* inner.writer
    yield* Effect.forkScoped(
      Effect.andThen(drain.begun, writer.write(new Socket.CloseEvent(goingAway, "stopping")))
    )
    return inner
  })
  return new Proxy(request, {
    get: (target, key) =>
      key === "upgrade" ? Scope.provide(accepted, scope) : Reflect.get(target, key, target)
  })
}

const upgraded = (app: App, place: Place) =>
  Effect.gen(function* () {
    const request = yield* HttpServerRequest.HttpServerRequest
    const { authorization } = request.headers
    if (authorization !== undefined) yield* place.authorize(bearerOf(authorization), "read")
    const socket = socketOf(request)
    if (socket === undefined) return yield* app
    socket.setKeepAlive(true, keepAliveMs)
    const guarded = guard(request, socket, yield* Effect.scope, place)
    return yield* Effect.provideService(app, HttpServerRequest.HttpServerRequest, guarded)
  }).pipe(Effect.catchIf(HttpServerRespondable.isRespondable, HttpServerRespondable.toResponse))

/**
 * Calls over a WebSocket. A token in the handshake is checked before the upgrade and holds for every call that brings none
 * of its own; without one, each call brings its own.
 */
export const upgrade = (app: App) =>
  Effect.gen(function* () {
    const bounds = yield* HttpBounds
    const drain = yield* Drain
    const { jwtSecret } = yield* Settings
    const authorize = yield* authorizer(jwtSecret)
    return () => upgraded(app, { bounds, drain, authorize })
  }).pipe(Effect.map((serve) => serve()))
