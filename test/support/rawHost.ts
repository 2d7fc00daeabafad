/**
 * A host that says to a guest's agent whatever a test wants, byte by byte if need be: no session, no rules, no manners.
 * The rules are Agent.ts's; what an agent makes of a host without them is the guest's side to show.
 */
import { randomBytes } from "node:crypto"
import * as net from "node:net"
import * as Effect from "effect/Effect"
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

export type Said = { readonly [field: string]: unknown }

export interface RawHost {
  readonly socket: net.Socket
  readonly send: (kind: number, stream: number, payload: Buffer) => void
  readonly tell: (stream: number, message: Said) => void
  /** The first frame that matches, of those that nobody has taken yet, or the next one that does. */
  readonly take: (matches: (frame: Frame) => boolean) => Promise<Frame>
  /** A request's answer. */
  readonly ask: (type: string, fields?: Said) => Promise<Said>
  readonly hello: (nonce?: string) => Promise<Said>
  /** Frames that nobody has taken. */
  readonly left: () => ReadonlyArray<Frame>
}

export const saidOf = (frame: Frame): Said => JSON.parse(frame.payload.toString("utf8"))

const open = async (path: string): Promise<net.Socket> => {
  const socket = net.connect(path)
  await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject))
  socket.removeAllListeners("error")
  return socket.on("error", () => undefined)
}

const converse = (socket: net.Socket): RawHost => {
  const decoder = makeFrameDecoder()
  const left: Array<Frame> = []
  const waiting: Array<{ matches: (frame: Frame) => boolean; resolve: (frame: Frame) => void }> = []
  let nextId = 1
  socket.on("data", (chunk: Buffer) => {
    for (const piece of decoder.push(chunk)) {
      if (piece._tag === "Garbage") continue
      const at = waiting.findIndex((it) => it.matches(piece.frame))
      if (at < 0) left.push(piece.frame)
      else for (const waiter of waiting.splice(at, 1)) waiter.resolve(piece.frame)
    }
  })
  const send = (kind: number, stream: number, payload: Buffer) =>
    void socket.write(encodeFrame({ kind, stream, payload }))
  const tell = (stream: number, message: Said) =>
    send(controlKind, stream, Buffer.from(JSON.stringify(message)))
  const take = (matches: (frame: Frame) => boolean): Promise<Frame> => {
    const at = left.findIndex(matches)
    for (const frame of at < 0 ? [] : left.splice(at, 1)) return Promise.resolve(frame)
    return new Promise((resolve) => waiting.push({ matches, resolve }))
  }
  const control = async (matches: (said: Said) => boolean) =>
    saidOf(await take((it) => it.kind === controlKind && it.stream === 0 && matches(saidOf(it))))
  return {
    socket,
    send,
    tell,
    take,
    ask: (type, fields = {}) => {
      const id = nextId++
      tell(0, { type, id, ...fields })
      return control((it) => it["id"] === id)
    },
    hello: (nonce = randomBytes(8).toString("hex")) => {
      socket.write(Buffer.alloc(1))
      tell(0, { type: "hello", version: 2, nonce })
      return control((it) => it["nonce"] === nonce)
    },
    left: () => left
  }
}

/** A new host at the agent's channel, which has said nothing yet. It leaves with the scope. */
export const rawHost = (path: string) =>
  Effect.acquireRelease(Effect.tryPromise(() => open(path)).pipe(Effect.map(converse)), ({ socket }) =>
    Effect.promise(
      () =>
        new Promise<void>((resolve) =>
          socket.destroyed ? resolve() : socket.once("close", () => resolve()).destroy()
        )
    )
  )

export const credit = (host: RawHost, stream: number, bytes: number) => {
  const payload = Buffer.alloc(4)
  payload.writeUInt32LE(bytes)
  host.send(creditKind, stream, payload)
}

export interface Outcome {
  readonly bytes: number
  readonly text: string
  readonly last: Said
}

const textMax = 64 * 1024

/** All that a stream says, its credit given back as it comes, until its last frame. */
export const untilLast = async (host: RawHost, stream: number): Promise<Outcome> => {
  let bytes = 0
  let text = ""
  for (;;) {
    const frame = await host.take((it) => it.stream === stream)
    if (frame.kind === controlKind) return { bytes, text, last: saidOf(frame) }
    if (frame.kind !== dataKind && frame.kind !== stderrKind) continue
    bytes += frame.payload.length
    text = (text + frame.payload.toString("latin1")).slice(-textMax)
    credit(host, stream, frame.payload.length)
  }
}

/** Runs a shell's script on a stream, without input. */
export const shell = async (host: RawHost, stream: number, script: string): Promise<Outcome> => {
  const answer = await host.ask("exec", { stream, command: ["sh", "-c", script] })
  if (answer["type"] !== "done") throw new Error(JSON.stringify(answer))
  host.send(endKind, stream, Buffer.alloc(0))
  return untilLast(host, stream)
}
