/**
 * Clients that do not read. A stream that may be silent for long, such as a process's output, cannot be cut off when
 * nothing moves; it is when something waits to be sent and nothing moves.
 */
import { ServerResponse } from "node:http"
import type { Socket } from "node:net"
import * as NodeHttpServerRequest from "@effect/platform-node/NodeHttpServerRequest"
import * as Effect from "effect/Effect"
import type * as HttpServerRequest from "effect/http/HttpServerRequest"

/** How soon the kernel asks a silent client whether it is still there. */
const keepAliveMs = 30_000

/** Cuts off a client that takes no byte for so long while some wait for it. One that is gone is noticed in silence too. */
export const cutUnread = (request: HttpServerRequest.HttpServerRequest, stalledMs: number): void => {
  const response = NodeHttpServerRequest.toServerResponse(request)
  if (!(response instanceof ServerResponse)) return
  const { socket } = response
  socket?.setKeepAlive(true, keepAliveMs)
  response.setTimeout(stalledMs, () => {
    if (socket !== null && socket.writableLength > 0) socket.destroy()
  })
}

/** Ends the connection in the middle of a response, so that what was sent does not look whole. */
export const cutOff = (request: HttpServerRequest.HttpServerRequest): Effect.Effect<void> =>
  Effect.sync(() => {
    const response = NodeHttpServerRequest.toServerResponse(request)
    if (response instanceof ServerResponse) response.destroy()
  })

/** Ends when the socket has room again, and cuts it off where that takes too long. */
export const untilRead = (socket: Socket, stalledMs: number): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    if (!socket.writableNeedDrain || socket.destroyed) return resume(Effect.void)
    const finish = (): void => {
      socket.off("drain", finish).off("close", finish)
      resume(Effect.void)
    }
    socket.on("drain", finish).on("close", finish)
    return Effect.sync(() => socket.off("drain", finish).off("close", finish))
  }).pipe(
    Effect.timeoutOrElse({
      duration: stalledMs,
      orElse: () => Effect.sync(() => void socket.destroy())
    })
  )
