/** The other end of an agent channel, for tests: a unix socket on which a guest of any character answers. */
import * as net from "node:net"
import * as path from "node:path"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import { controlKind, encodeFrame, makeFrameDecoder } from "../../src/guest/frame.ts"
import { temporaryDirectory } from "./temporary.ts"

export type Said = { readonly [field: string]: unknown }

export interface Peer {
  readonly socket: net.Socket
  /** Messages of the host, in order. */
  readonly heard: Queue.Queue<Said>
  readonly say: (message: Said) => void
  readonly closed: Effect.Effect<void>
}

export const control = (message: Said): Buffer =>
  encodeFrame({ kind: controlKind, stream: 0, payload: Buffer.from(JSON.stringify(message)) })

const makePeer = (socket: net.Socket, onMessage: (peer: Peer, message: Said) => void): Peer => {
  const decoder = makeFrameDecoder()
  const heard = Queue.unbounded<Said>().pipe(Effect.runSync)
  const closed = Deferred.makeUnsafe<void>()
  const peer: Peer = {
    socket,
    heard,
    say: (message) => void socket.write(control(message)),
    closed: Deferred.await(closed)
  }
  socket.on("error", () => undefined)
  socket.on("close", () => Deferred.doneUnsafe(closed, Effect.void))
  socket.on("data", (chunk: Buffer) => {
    for (const piece of decoder.push(chunk)) {
      if (piece._tag === "Garbage") continue
      const message: Said = JSON.parse(piece.frame.payload.toString())
      Queue.offerUnsafe(heard, message)
      onMessage(peer, message)
    }
  })
  return peer
}

export interface PeerServer {
  readonly path: string
  /** Hosts as they connect. */
  readonly peers: Queue.Queue<Peer>
}

/**
 * Listens on a socket of its own until the scope closes. `onConnect` may write to the raw socket before any frame is
 * read (a vsock multiplexer does); `onMessage` is what the guest does.
 */
export const peerServer = (
  onMessage: (peer: Peer, message: Said) => void = () => undefined,
  onConnect?: (socket: net.Socket, goOn: () => void) => void
): Effect.Effect<PeerServer, never, Scope.Scope> =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("agent")
    const peers = yield* Queue.unbounded<Peer>()
    const sockets = new Set<net.Socket>()
    const file = path.join(directory, "agent")
    const server = net.createServer((socket) => {
      sockets.add(socket)
      const goOn = () => void Queue.offerUnsafe(peers, makePeer(socket, onMessage))
      if (onConnect === undefined) goOn()
      else
        onConnect(
          socket.on("error", () => undefined),
          goOn
        )
    })
    yield* Effect.acquireRelease(
      Effect.callback<void>((resume) => {
        server.listen(file, () => resume(Effect.void))
      }),
      () =>
        Effect.callback<void>((resume) => {
          for (const socket of sockets) socket.destroy()
          server.close(() => resume(Effect.void))
        })
    )
    return { path: file, peers }
  })

/** A guest that does everything that it is asked. */
export const obliging =
  (ready = true) =>
  (peer: Peer, message: Said): void => {
    if (message["type"] === "hello") peer.say({ type: "hello", version: 2, nonce: message["nonce"], ready })
    else if (message["type"] === "memory") {
      peer.say({ type: "done", id: message["id"], total_kib: 1_000, available_kib: 600 })
    } else peer.say({ type: "done", id: message["id"] })
  }
