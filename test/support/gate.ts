/**
 * A gate on a loopback or unix socket before a real server: it lets bytes through, holds what the server sends after so many
 * of them, and says so. So a test can be sure that the server is killed in the middle of sending.
 */
import * as net from "node:net"
import { once } from "node:events"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"

export type Address = { readonly path: string } | { readonly host: "127.0.0.1"; readonly port: number }

export interface Gate {
  readonly port: number
  /** From now on, lets this many bytes of the server's through and then no more, until `open`. */
  readonly holdAfter: (bytes: number) => Effect.Effect<void>
  /** Ends when the gate holds. */
  readonly held: Effect.Effect<void>
  readonly open: Effect.Effect<void>
}

/** Listens at `listen` (a unix path, or any port of loopback) until the scope closes. */
export const startGate = (target: Address, listen: string | null = null) =>
  Effect.gen(function* () {
    const held = yield* Deferred.make<void>()
    let left = Number.POSITIVE_INFINITY
    const sockets = new Set<net.Socket>()
    const isHolding = () => left <= 0
    const pass = (client: net.Socket) => {
      const server = net.connect(target)
      for (const it of [client, server]) {
        sockets.add(it)
        it.on("error", () => undefined)
        it.on("close", () => sockets.delete(it))
      }
      client.pipe(server)
      client.on("close", () => server.destroy())
      server.on("end", () => client.end())
      server.on("close", () => client.end())
      client.on("drain", () => isHolding() || server.resume())
      server.on("data", (bytes) => {
        left -= bytes.length
        if (!client.write(bytes) || isHolding()) server.pause()
        if (isHolding()) Deferred.doneUnsafe(held, Effect.void)
      })
    }
    const server = yield* Effect.acquireRelease(
      Effect.promise(async () => {
        const server = net.createServer(pass)
        if (listen === null) server.listen(0, "127.0.0.1")
        else server.listen(listen)
        await once(server, "listening")
        return server
      }),
      (server) =>
        Effect.promise(async () => {
          for (const it of sockets) it.destroy()
          server.close()
          await once(server, "close")
        })
    )
    const address = server.address()
    const gate: Gate = {
      port: typeof address === "object" && address !== null ? address.port : 0,
      holdAfter: (bytes) => Effect.sync(() => void (left = bytes)),
      held: Deferred.await(held),
      open: Effect.sync(() => {
        left = Number.POSITIVE_INFINITY
        for (const it of sockets) it.resume()
      })
    }
    return gate
  })
