/**
 * A guest that means harm, on the streams of a session: whatever it sends, the host holds little, nothing hangs, the one
 * channel ends with a reason, and another guest's never notices.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type { ExecOutput } from "../../src/domain/Exec.ts"
import { connectAgent } from "../../src/guest/Agent.ts"
import { controlKind, encodeFrame, type Frame } from "../../src/guest/frame.ts"
import {
  guestSession as session,
  obliging,
  onStream,
  type Peer,
  peerServer,
  sayingOf
} from "../support/guestPeer.ts"

const windowBytes = 256 * 1024
const command = ["program"]
const broken = (why: string) => `agent: the guest broke the protocol: ${why}`

/** What the guest does on its first stream, an exec, and how the session ends by it. */
const lies: ReadonlyArray<readonly [string, (stream: number) => ReadonlyArray<Frame>, string]> = [
  [
    "more data than it has credit for",
    (stream) => [
      ...Array.from({ length: 8 }, () => onStream(stream).data(Buffer.alloc(32_768, 1))),
      onStream(stream).data("x")
    ],
    "it sends more than it has credit for"
  ],
  [
    "more stdout and stderr together than it has credit for",
    (stream) => [
      ...Array.from({ length: 4 }, () => onStream(stream).data(Buffer.alloc(32_768, 1))),
      ...Array.from({ length: 5 }, () => onStream(stream).stderr(Buffer.alloc(32_768, 1)))
    ],
    "it sends more than it has credit for"
  ],
  [
    "data on a stream that was never opened",
    () => [onStream(7).data("x")],
    "it speaks on a stream that is not open"
  ],
  [
    "data behind the end of the stream",
    (stream) => [onStream(stream).last({ type: "exit", code: 0 }), onStream(stream).data("x")],
    "it speaks on a stream that is not open"
  ],
  [
    "two ends",
    (stream) => [
      onStream(stream).last({ type: "exit", code: 0 }),
      onStream(stream).last({ type: "exit", code: 1 })
    ],
    "it speaks on a stream that is not open"
  ],
  [
    "data behind the end of its data",
    (stream) => [onStream(stream).end, onStream(stream).data("x")],
    "it sends behind its own end"
  ],
  [
    "two ends of its data",
    (stream) => [onStream(stream).end, onStream(stream).end],
    "it ends its data wrongly"
  ],
  ["empty data", (stream) => [onStream(stream).data("")], "it sends empty data"],
  [
    "credit for bytes that it never got",
    (stream) => [onStream(stream).credit(1)],
    "it gives credit for what it did not get"
  ],
  ["no credit", (stream) => [onStream(stream).credit(0)], "it gives credit for what it did not get"],
  [
    "credit that is no number",
    (stream) => [{ ...onStream(stream).credit(1), payload: Buffer.alloc(3, 1) }],
    "it gives credit that is no number"
  ],
  [
    "the end of a transfer for a process",
    (stream) => [onStream(stream).last({ type: "ended" })],
    "it ends a stream as what it is not"
  ],
  [
    "an end that is no JSON",
    (stream) => [{ kind: controlKind, stream, payload: Buffer.from("{") }],
    "it says to a stream what means nothing there"
  ],
  [
    "an end that is a megabyte of depth",
    (stream) => [{ kind: controlKind, stream, payload: Buffer.from("[".repeat(60_000)) }],
    "it says to a stream what means nothing there"
  ],
  [
    "a frame of no kind",
    (stream) => [{ kind: 9, stream, payload: Buffer.from("x") }],
    "it sends a frame of no kind"
  ],
  ["data on stream 0", () => [onStream(0).data("x")], "it sends what is no message"],
  ["credit on stream 0", () => [onStream(0).credit(1)], "it sends what is no message"]
]

it.live.each(lies)("hostile: %s ends the session, with everybody in it", ([, frames, why]) =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const first = yield* agent.exec({ command })
    const second = yield* agent.exec({ command })
    const waiting = yield* Effect.forkChild(Effect.flip(Stream.runDrain(second.output)))
    for (const frame of frames(1)) peer.send(frame)
    assert.strictEqual((yield* Fiber.join(waiting)).message, broken(why))
    yield* agent.closed
    yield* peer.closed
    // What came before the lie may have been heard; the stream ends all the same.
    yield* Effect.exit(Stream.runDrain(first.output))
    assert.strictEqual((yield* Effect.flip(agent.exec({ command }))).message, broken(why))
  })
)

const transferLies: ReadonlyArray<readonly [string, Frame, string]> = [
  ["stderr of a transfer", onStream(1).stderr("x"), "it sends stderr where no process is"],
  [
    "the exit of a transfer",
    onStream(1).last({ type: "exit", code: 0 }),
    "it ends a stream as what it is not"
  ]
]
it.live.each(transferLies)("hostile: %s ends the session", ([, frame, why]) =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const archive = yield* agent.readFiles("/")
    peer.send(frame)
    assert.strictEqual((yield* Effect.flip(Stream.runDrain(archive))).message, broken(why))
  })
)

it.live("hostile: bytes out of a guest that is written to end the session", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const writing = yield* Effect.forkChild(Effect.flip(agent.writeFiles("/", Stream.never)))
    yield* Queue.take(peer.heard)
    yield* Queue.take(peer.heard)
    peer.send(onStream(1).data("x"))
    assert.strictEqual((yield* Fiber.join(writing)).message, broken("it sends more than it has credit for"))
  })
)

it.live("hostile: an oversized frame on a stream ends the session", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const running = yield* agent.exec({ command })
    peer.socket.write(Buffer.concat([Buffer.alloc(100_000, 7), Buffer.alloc(1)]))
    assert.strictEqual(
      (yield* Effect.flip(Stream.runDrain(running.output))).message,
      broken("it sends what is no message")
    )
  })
)

it.live("hostile: a frame whose length lies ends the session", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const running = yield* agent.exec({ command })
    const honest = encodeFrame(onStream(1).data("twelve bytes"))
    peer.socket.write(Buffer.concat([honest.subarray(0, honest.length - 3), Buffer.alloc(1)]))
    assert.strictEqual(
      (yield* Effect.flip(Stream.runDrain(running.output))).message,
      broken("it sends what is no message")
    )
  })
)

it.live(
  "hostile: an endless output is held within the window, whoever reads it, and its neighbours answer",
  () =>
    Effect.gen(function* () {
      let sent = 0
      /** Sends as much as it is allowed to, for ever. */
      const flood = (peer: Peer, stream: number, bytes: number): void => {
        for (let left = bytes; left > 0; left -= 4_096)
          peer.send(onStream(stream).data(Buffer.alloc(4_096, 7)))
        sent += bytes
      }
      const server = yield* peerServer(
        (peer, message) => {
          obliging()(peer, message)
          if (message["type"] === "exec") flood(peer, 1, windowBytes)
        },
        undefined,
        (peer, frame) => {
          if (frame.kind === 5) flood(peer, frame.stream, frame.payload.readUInt32LE())
        }
      )
      const agent = yield* connectAgent({ _tag: "UnixSocket", path: server.path })
      const running = yield* agent.exec({ command })
      const lines = yield* Stream.toPull(running.output)
      let read = 0
      for (let times = 0; times < 500; times += 1) {
        const pieces: ReadonlyArray<ExecOutput> = yield* lines
        for (const piece of pieces) read += piece._tag === "Exit" ? 0 : piece.bytes.length
        yield* agent.ping
        assert.isAtMost(sent - read, windowBytes + 65_536)
      }
      assert.isAbove(read, 4 * windowBytes)
    })
)

it.live("hostile: one-byte frames, alternating, cost what they weigh", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const running = yield* agent.exec({ command })
    const [out, err] = [encodeFrame(onStream(1).data("o")), encodeFrame(onStream(1).stderr("e"))]
    const pairs = Buffer.concat(Array.from({ length: 4_096 }, () => [out, err]).flat())
    for (let times = 0; times < windowBytes / 8_192; times += 1) peer.socket.write(pairs)
    yield* agent.ping
    peer.send(onStream(1).last({ type: "exit", code: 0 }))
    const pieces = yield* Stream.runCollect(running.output)
    assert.isBelow(pieces.length, 100)
    const bytes = { Stdout: 0, Stderr: 0, Exit: 0 }
    for (const piece of pieces) bytes[piece._tag] += piece._tag === "Exit" ? 1 : piece.bytes.length
    assert.deepStrictEqual(bytes, { Stdout: windowBytes / 2, Stderr: windowBytes / 2, Exit: 1 })
  })
)

it.live("hostile: a session has so many streams and no more; those that are over make room", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const all = yield* Effect.forEach(Array.from({ length: 64 }), () => agent.exec({ command }))
    const busy = yield* Effect.flip(agent.exec({ command }))
    assert.deepStrictEqual(
      [busy._tag, busy.message],
      ["AgentBusy", "exec: as many sessions are open as one guest may have"]
    )
    peer.send(onStream(64).last({ type: "exit", code: 0 }))
    const [last] = all.slice(-1)
    if (last !== undefined) yield* Stream.runDrain(last.output)
    yield* agent.exec({ command })
  })
)

it.live("hostile: a guest that never ends what was cancelled is given up once it has all streams", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    yield* Effect.forEach(Array.from({ length: 64 }), () => Effect.scoped(agent.exec({ command })))
    const fault = yield* Effect.flip(agent.exec({ command }))
    assert.strictEqual(fault._tag, "AgentBusy")
    yield* peer.closed
    assert.strictEqual(
      (yield* Effect.flip(agent.ping)).message,
      "agent: the guest does not end what was cancelled"
    )
  })
)

it.live("hostile: what comes on a cancelled stream is dropped, within its credit and no further", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    yield* Effect.scoped(agent.exec({ command }))
    assert.deepStrictEqual(sayingOf(yield* Queue.take(peer.frames)), { type: "cancel" })
    for (let sent = 0; sent < windowBytes; sent += 32_768)
      peer.send(onStream(1).data(Buffer.alloc(32_768, 1)))
    yield* agent.ping
    assert.strictEqual(yield* Queue.size(peer.frames), 0)
    peer.send(onStream(1).data("x"))
    yield* agent.closed
  })
)

it.live("hostile: for a guest that never reads little is held: requests are refused, input waits", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const running = yield* agent.exec({ command })
    peer.socket.pause()
    const input = yield* Effect.forkChild(running.write(new Uint8Array(windowBytes)))
    const signals = yield* Effect.forkChild(Effect.forever(running.signal("WINCH")))
    const large = { command: ["x".repeat(30_000), "y".repeat(30_000)] }
    const asked = yield* Effect.forEach(Array.from({ length: 63 }), () =>
      Effect.forkChild(Effect.flip(Effect.scoped(agent.exec(large))), { startImmediately: true })
    )
    const refused = asked.filter((it) => it.pollUnsafe() !== undefined)
    // All of them are 4 MB; what is not refused is in the kernel's buffer and in the bound.
    assert.isAbove(refused.length, 40)
    for (const one of refused)
      assert.strictEqual((yield* Fiber.join(one)).message, "exec: the guest does not read")
    assert.isUndefined(signals.pollUnsafe())
    yield* Fiber.interrupt(signals)
    peer.socket.resume()
    yield* Fiber.join(input)
    yield* agent.ping
  })
)

it.live("hostile: one guest's harm is not another's", () =>
  Effect.gen(function* () {
    const good = yield* session((guest, stream) => {
      guest.send(onStream(stream).data("fine"))
      guest.send(onStream(stream).last({ type: "exit", code: 0 }))
    })
    const bad = yield* session()
    yield* bad.agent.exec({ command })
    const noise = Buffer.alloc(65_536, 0xff)
    const pour = (): void => {
      while (!bad.peer.socket.destroyed && bad.peer.socket.write(noise));
    }
    bad.peer.socket.on("drain", pour)
    pour()
    for (let times = 0; times < 50; times += 1) {
      const running = yield* good.agent.exec({ command })
      assert.strictEqual((yield* Stream.runCollect(running.output)).length, 2)
    }
    yield* bad.agent.closed
    yield* good.agent.ping
  })
)

it.live("hostile: what the host itself is told to have broken ends the session", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const running = yield* agent.exec({ command })
    peer.say({ type: "broken", reason: "data beyond\nthe credit" })
    assert.strictEqual(
      (yield* Effect.flip(Stream.runDrain(running.output))).message,
      broken("it says that we did: data beyond the credit")
    )
  })
)

it.live("hostile: a request that does not fit is refused before it is sent", () =>
  Effect.gen(function* () {
    const { agent } = yield* session()
    const fault = yield* Effect.flip(agent.exec({ command: ["x".repeat(70_000)] }))
    assert.strictEqual(fault.message, "exec: the guest refused: the request does not fit into 64 KiB")
    yield* agent.ping
  })
)
