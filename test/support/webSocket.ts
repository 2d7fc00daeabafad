/** A WebSocket client for tests: messages as they come, and how the server closed. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"

export interface Client {
  readonly send: (message: string | Uint8Array<ArrayBuffer>) => void
  /** Text, or bytes. */
  readonly heard: Queue.Queue<string | Uint8Array>
  /** The close code. */
  readonly closed: Effect.Effect<number>
  readonly close: () => void
}

/** Connects; the client leaves with the scope. `closed` ends at once where the handshake is refused. */
export const webSocket = (url: string, headers: Record<string, string> = {}) =>
  Effect.gen(function* () {
    const heard = yield* Queue.unbounded<string | Uint8Array>()
    const opened = yield* Deferred.make<boolean>()
    const closed = yield* Deferred.make<number>()
    const socket = yield* Effect.acquireRelease(
      Effect.sync(() => new WebSocket(url.replace(/^http/u, "ws"), { headers })),
      (it) => Effect.sync(() => it.close())
    )
    socket.binaryType = "arraybuffer"
    socket.addEventListener("open", () => Deferred.doneUnsafe(opened, Effect.succeed(true)))
    socket.addEventListener("error", () => undefined)
    socket.addEventListener("message", ({ data }: { readonly data: unknown }) => {
      if (typeof data === "string") Queue.offerUnsafe(heard, data)
      else if (data instanceof ArrayBuffer) Queue.offerUnsafe(heard, new Uint8Array(data))
    })
    socket.addEventListener("close", ({ code }) => {
      Deferred.doneUnsafe(opened, Effect.succeed(false))
      Deferred.doneUnsafe(closed, Effect.succeed(code))
    })
    yield* Deferred.await(opened)
    const client: Client = {
      send: (message) => socket.send(message),
      heard,
      closed: Deferred.await(closed),
      close: () => socket.close()
    }
    return client
  })
