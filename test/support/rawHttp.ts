/** HTTP by the byte, for what no well-behaved client sends. Every exchange ends with its connection. */
import { once } from "node:events"
import { connect, type Socket } from "node:net"
import * as Effect from "effect/Effect"

/** Sends the bytes, and gives all that comes back until the server closes. */
export const exchange = (port: number, bytes: string | Uint8Array): Effect.Effect<string> =>
  Effect.callback<string>((resume) => {
    const socket = connect({ port, host: "127.0.0.1" })
    const received: Array<Buffer> = []
    socket.on("data", (chunk: Buffer) => received.push(chunk))
    socket.on("error", () => socket.destroy())
    socket.on("close", () => resume(Effect.succeed(Buffer.concat(received).toString("utf8"))))
    socket.on("connect", () => socket.write(bytes))
    return Effect.sync(() => socket.destroy())
  })

/** A connection that stays open until the scope closes. */
export const openSocket = (port: number) =>
  Effect.acquireRelease(
    Effect.promise(async (): Promise<Socket> => {
      const socket = connect({ port, host: "127.0.0.1" })
      socket.on("error", () => undefined)
      await once(socket, "connect")
      return socket
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )

export const bodyOf = (answer: string): string => answer.slice(answer.indexOf("\r\n\r\n") + 4)
