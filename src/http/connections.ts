/**
 * Bounds how many connections there are. Beyond the bound, one that waits for nothing gives way to the newcomer, the
 * longest waiting first: sockets that only sit there, or that send a header for ever, take nobody's place. Where all are
 * at work, the newcomer is refused.
 *
 *   connection ──► waiting ──request, upgrade──► at work ──answered──► waiting ──► ...
 */
import type { IncomingMessage, Server, ServerResponse } from "node:http"
import type { Socket } from "node:net"
import type { Duplex } from "node:stream"

export const boundConnections = (server: Server, connectionsMax: number): void => {
  /** In the order in which they began to wait. */
  const waiting = new Set<Duplex>()
  let open = 0

  server.on("connection", (socket: Socket) => {
    open += 1
    waiting.add(socket)
    socket.once("close", () => {
      open -= 1
      waiting.delete(socket)
    })
    if (open <= connectionsMax) return
    const [longest] = waiting
    longest?.destroy()
  })
  server.on("request", ({ socket }: IncomingMessage, response: ServerResponse) => {
    waiting.delete(socket)
    response.once("close", () => {
      if (socket.destroyed) return
      waiting.add(socket)
      // The server is closing: nobody asks again, and a kept-alive connection would hold up the end.
      if (!server.listening) socket.end()
    })
  })
  server.on("upgrade", (_request: IncomingMessage, socket: Duplex) => void waiting.delete(socket))
}
