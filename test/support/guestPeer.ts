/** The other end of an agent channel, for tests: a unix socket on which a guest of any character answers. */
import * as net from "node:net"
import * as path from "node:path"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import {
  controlKind,
  creditKind,
  dataKind,
  encodeFrame,
  endKind,
  type Frame,
  makeFrameDecoder,
  stderrKind
} from "../../src/guest/frame.ts"
import { connectAgent } from "../../src/guest/Agent.ts"
import { temporaryDirectory } from "./temporary.ts"

export type Said = { readonly [field: string]: unknown }

export interface Peer {
  readonly socket: net.Socket
  /** Messages of the host, in order. */
  readonly heard: Queue.Queue<Said>
  /** Frames of the host on streams, in order. */
  readonly frames: Queue.Queue<Frame>
  readonly say: (message: Said) => void
  readonly send: (frame: Frame) => void
  readonly closed: Effect.Effect<void>
}

export const control = (message: Said): Buffer =>
  encodeFrame({ kind: controlKind, stream: 0, payload: Buffer.from(JSON.stringify(message)) })

const empty = Buffer.alloc(0)

/** Frames as a guest sends them on a stream. */
export const onStream = (stream: number) => ({
  data: (payload: string | Buffer): Frame => ({ kind: dataKind, stream, payload: Buffer.from(payload) }),
  stderr: (payload: string | Buffer): Frame => ({ kind: stderrKind, stream, payload: Buffer.from(payload) }),
  end: { kind: endKind, stream, payload: empty } satisfies Frame,
  last: (message: Said): Frame => ({
    kind: controlKind,
    stream,
    payload: Buffer.from(JSON.stringify(message))
  }),
  credit: (bytes: number): Frame => {
    const payload = Buffer.alloc(4)
    payload.writeUInt32LE(bytes)
    return { kind: creditKind, stream, payload }
  }
})

/** What a frame of the host says, where it is a message; its kind and length where it is not. */
export const sayingOf = ({ kind, payload }: Frame): unknown =>
  kind === controlKind ? JSON.parse(payload.toString()) : { kind, bytes: payload.length }

const makePeer = (
  socket: net.Socket,
  onMessage: (peer: Peer, message: Said) => void,
  onFrame: (peer: Peer, frame: Frame) => void
): Peer => {
  const decoder = makeFrameDecoder()
  const heard = Queue.unbounded<Said>().pipe(Effect.runSync)
  const frames = Queue.unbounded<Frame>().pipe(Effect.runSync)
  const closed = Deferred.makeUnsafe<void>()
  const peer: Peer = {
    socket,
    heard,
    frames,
    send: (frame) => void socket.write(encodeFrame(frame)),
    say: (message) => void socket.write(control(message)),
    closed: Deferred.await(closed)
  }
  socket.on("error", () => undefined)
  socket.on("close", () => Deferred.doneUnsafe(closed, Effect.void))
  socket.on("data", (chunk: Buffer) => {
    for (const piece of decoder.push(chunk)) {
      if (piece._tag === "Garbage") continue
      if (piece.frame.stream !== 0) {
        Queue.offerUnsafe(frames, piece.frame)
        onFrame(peer, piece.frame)
        continue
      }
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
 * read (a vsock multiplexer does); `onMessage` and `onFrame` are what the guest does.
 */
export const peerServer = (
  onMessage: (peer: Peer, message: Said) => void = () => undefined,
  onConnect?: (socket: net.Socket, goOn: () => void) => void,
  onFrame: (peer: Peer, frame: Frame) => void = () => undefined
): Effect.Effect<PeerServer, never, Scope.Scope> =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("agent")
    const peers = yield* Queue.unbounded<Peer>()
    const sockets = new Set<net.Socket>()
    const file = path.join(directory, "agent")
    const server = net.createServer((socket) => {
      sockets.add(socket)
      const goOn = () => void Queue.offerUnsafe(peers, makePeer(socket, onMessage, onFrame))
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

/** A guest that opens every stream; what it does on one is the test's. */
export const opening =
  (begin: (peer: Peer, stream: number, request: Said) => void) =>
  (peer: Peer, message: Said): void => {
    obliging()(peer, message)
    if (typeof message["stream"] === "number") begin(peer, message["stream"], message)
  }

/** A session with such a guest, and its end of the socket. */
export const guestSession = (begin: (peer: Peer, stream: number, request: Said) => void = () => undefined) =>
  Effect.gen(function* () {
    const server = yield* peerServer(opening(begin))
    const agent = yield* connectAgent({ _tag: "UnixSocket", path: server.path })
    yield* agent.ready
    const peer = yield* Queue.take(server.peers)
    return { agent, peer }
  })
