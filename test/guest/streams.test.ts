/** Processes and files over real sockets: a guest that does what it should, and the flow of bytes both ways. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import type { ExecOutput } from "../../src/domain/Exec.ts"
import { connectAgent } from "../../src/guest/Agent.ts"
import { creditKind, dataKind, endKind } from "../../src/guest/frame.ts"
import {
  guestSession as session,
  obliging,
  onStream,
  peerServer,
  type Said,
  sayingOf
} from "../support/guestPeer.ts"

const unix = (path: string) => ({ _tag: "UnixSocket", path }) as const
const windowBytes = 256 * 1024

const text = (output: ExecOutput): string =>
  output._tag === "Exit"
    ? JSON.stringify(output.exit)
    : `${output._tag} ${Buffer.from(output.bytes).toString()}`

const command = ["program"]

it.live("streams: a process's output arrives in its order, and its end last", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session((guest, stream) => {
      const frames = onStream(stream)
      guest.send(frames.data("one\n"))
      guest.send(frames.stderr("two\n"))
      guest.send(frames.data("three\n"))
      guest.send(frames.end)
      guest.send(frames.last({ type: "exit", code: 3 }))
    })
    const running = yield* agent.exec({
      command: ["ls", "-l"],
      env: { A: "b" },
      cwd: "/srv",
      user: "web:logs",
      tty: { rows: 24, cols: 80 },
      timeout_ms: 60_000
    })
    const said = yield* Stream.runCollect(running.output)
    assert.deepStrictEqual(said.map(text), ["Stdout one\n", "Stderr two\n", "Stdout three\n", '{"code":3}'])
    const [, asked] = yield* Queue.takeAll(peer.heard)
    assert.deepStrictEqual(asked, {
      id: 1,
      type: "exec",
      stream: 1,
      command: ["ls", "-l"],
      env: { A: "b" },
      cwd: "/srv",
      user: "web:logs",
      tty: { rows: 24, cols: 80 },
      timeout_ms: 60_000
    })
  })
)

const ends: ReadonlyArray<readonly [Said, string]> = [
  [{ type: "exit", code: 255 }, '{"code":255}'],
  [{ type: "exit", signal: "KILL" }, '{"signal":"KILL"}'],
  [{ type: "exit", timeout: true }, '{"timeout":true}'],
  [{ type: "exit", signal: "KILL", timeout: true }, '{"timeout":true}']
]
it.live.each(ends)("streams: a process that ends with %j", ([last, expected]) =>
  Effect.gen(function* () {
    const { agent } = yield* session((guest, stream) => guest.send(onStream(stream).last(last)))
    const running = yield* agent.exec({ command })
    assert.deepStrictEqual((yield* Stream.runCollect(running.output)).map(text), [expected])
  })
)

const impossible: ReadonlyArray<Said> = [
  { type: "exit", code: 256 },
  { type: "exit", code: -1 },
  { type: "exit", signal: "no signal" },
  { type: "exit", signal: "A".repeat(100) }
]
it.live.each(impossible)("streams: an end that no process has, %j, is no end", (last) =>
  Effect.gen(function* () {
    const { agent } = yield* session((guest, stream) => guest.send(onStream(stream).last(last)))
    const running = yield* agent.exec({ command })
    const fault = yield* Effect.flip(Stream.runCollect(running.output))
    assert.strictEqual(fault.message, "exec: the guest names an end that no process has")
    yield* agent.ping
  })
)

it.live("streams: what cannot be started says why, in one bounded line", () =>
  Effect.gen(function* () {
    const { agent } = yield* session((guest, stream) =>
      guest.send(onStream(stream).last({ type: "failed", reason: `no\n\u0007room ${"x".repeat(9_000)}` }))
    )
    const running = yield* agent.exec({ command })
    const fault = yield* Effect.flip(Stream.runCollect(running.output))
    assert.match(fault.message, /^exec: the guest refused: no room x{100,300}$/)
    const server = yield* peerServer((guest, message) =>
      message["type"] === "exec"
        ? guest.say({ type: "refused", id: message["id"], reason: "nope: no such program" })
        : obliging()(guest, message)
    )
    const refusing = yield* connectAgent(unix(server.path))
    for (let times = 0; times < 100; times += 1) {
      const refused = yield* Effect.flip(refusing.exec({ command: ["nope"] }))
      assert.strictEqual(refused.message, "exec: the guest refused: nope: no such program")
    }
    yield* refusing.ping
  })
)

it.live("streams: credit is given as the output is read, and not before", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session((guest, stream) => {
      const frames = onStream(stream)
      for (let sent = 0; sent < windowBytes; sent += 32_768) guest.send(frames.data(Buffer.alloc(32_768, 1)))
    })
    const running = yield* agent.exec({ command })
    // A round trip behind the data: all of it is here, and nothing was given for it.
    yield* agent.ping
    assert.strictEqual(yield* Queue.size(peer.frames), 0)
    const got = yield* running.output.pipe(Stream.take(2), Stream.runCollect)
    assert.strictEqual(got.length, 2)
    const credit = yield* Queue.take(peer.frames)
    assert.deepStrictEqual([credit.kind, credit.payload.readUInt32LE()], [creditKind, 65_536])
    yield* agent.ping
    assert.strictEqual(yield* Queue.size(peer.frames), 0)
  })
)

it.live("streams: input waits for the guest's credit, and others go on meanwhile", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const running = yield* agent.exec({ command })
    const writing = yield* Effect.forkChild(running.write(new Uint8Array(windowBytes + 10)))
    let sent = 0
    while (sent < windowBytes) sent += (yield* Queue.take(peer.frames)).payload.length
    assert.strictEqual(sent, windowBytes)
    yield* agent.ping
    assert.isUndefined(writing.pollUnsafe())
    peer.send(onStream(1).credit(7))
    assert.strictEqual((yield* Queue.take(peer.frames)).payload.length, 7)
    peer.send(onStream(1).credit(windowBytes - 7))
    assert.strictEqual((yield* Queue.take(peer.frames)).payload.length, 3)
    yield* Fiber.join(writing)
    yield* running.endInput
    assert.deepStrictEqual(sayingOf(yield* Queue.take(peer.frames)), { kind: endKind, bytes: 0 })
  })
)

it.live("streams: streams take turns, frame by frame", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const [one, two] = [yield* agent.exec({ command }), yield* agent.exec({ command })]
    yield* Effect.all([one.write(new Uint8Array(windowBytes)), two.write(new Uint8Array(windowBytes))], {
      concurrency: "unbounded"
    })
    const order: Array<number> = []
    for (let sent = 0; sent < 2 * windowBytes;) {
      const frame = yield* Queue.take(peer.frames)
      assert.strictEqual(frame.kind, dataKind)
      sent += frame.payload.length
      order.push(frame.stream)
    }
    const repeated = order.filter((stream, at) => order[at + 1] === stream)
    assert.isAtMost(repeated.length, 2, order.join(" "))
  })
)

it.live("streams: signals and window sizes reach the process, and a scope that closes cancels it once", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const scope = yield* Scope.make()
    const running = yield* agent.exec({ command }).pipe(Scope.provide(scope))
    yield* running.signal("INT")
    yield* running.resize({ rows: 50, cols: 132 })
    yield* Scope.close(scope, Exit.void)
    yield* agent.ping
    assert.deepStrictEqual((yield* Queue.takeAll(peer.frames)).map(sayingOf), [
      { type: "signal", signal: "INT" },
      { type: "resize", rows: 50, cols: 132 },
      { type: "cancel" }
    ])
  })
)

it.live("streams: a process that ended is not cancelled, and takes input without a word", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session((guest, stream) =>
      guest.send(onStream(stream).last({ type: "exit", code: 0 }))
    )
    yield* Effect.scoped(
      Effect.gen(function* () {
        const running = yield* agent.exec({ command })
        yield* agent.ping
        yield* running.write(new Uint8Array(2 * windowBytes))
        yield* running.endInput
        yield* running.signal("TERM")
        assert.strictEqual((yield* Stream.runCollect(running.output)).length, 1)
      })
    )
    yield* agent.ping
    assert.strictEqual(yield* Queue.size(peer.frames), 0)
  })
)

it.effect("streams: a guest that does not end a process in time is not waited for", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session((guest, stream) => guest.send(onStream(stream).data("before")))
    const running = yield* agent.exec({ command, timeout_ms: 1_000 })
    yield* agent.ping
    const said = yield* Effect.forkChild(Stream.runCollect(running.output))
    yield* TestClock.adjust(5_999)
    assert.isUndefined(said.pollUnsafe())
    yield* TestClock.adjust(1)
    assert.deepStrictEqual((yield* Fiber.join(said)).map(text), ["Stdout before", '{"timeout":true}'])
    assert.deepStrictEqual(sayingOf(yield* Queue.take(peer.frames)), { type: "cancel" })
  })
)

it.effect(
  "streams: a process may be silent for as long as it likes, the guest's answer to its start may not",
  () =>
    Effect.gen(function* () {
      const { agent, peer } = yield* session()
      const running = yield* agent.exec({ command })
      const said = yield* Effect.forkChild(Stream.runCollect(running.output))
      yield* TestClock.adjust("30 days")
      assert.isUndefined(said.pollUnsafe())
      peer.send(onStream(1).last({ type: "exit", code: 0 }))
      assert.strictEqual((yield* Fiber.join(said)).length, 1)

      const server = yield* peerServer((guest, message) => {
        if (message["type"] !== "exec") obliging()(guest, message)
      })
      const silent = yield* connectAgent(unix(server.path))
      yield* silent.ready
      const other = yield* Queue.take(server.peers)
      const asked = yield* Effect.forkChild(Effect.flip(Effect.scoped(silent.exec({ command }))))
      yield* Queue.take(other.heard)
      yield* Queue.take(other.heard)
      yield* TestClock.adjust(15_000)
      assert.strictEqual((yield* Fiber.join(asked)).message, "exec: no answer of the guest in 15000 ms")
      // It is told that nobody waits, and its late answer is none of a lie.
      assert.deepStrictEqual(sayingOf(yield* Queue.take(other.frames)), { type: "cancel" })
      other.say({ type: "done", id: 1 })
      other.send(onStream(1).data("late"))
      other.send(onStream(1).last({ type: "exit", signal: "KILL" }))
      yield* silent.ping
    })
)

it.live("streams: a channel that closes ends every process and transfer with the reason", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const running = yield* agent.exec({ command })
    const archive = yield* agent.readFiles("/")
    const failing = <A, E extends { readonly message: string }>(effect: Effect.Effect<A, E>) =>
      Effect.forkChild(Effect.map(Effect.flip(Effect.asVoid(effect)), (fault) => fault.message))
    const waiting = [
      yield* failing(Stream.runCollect(running.output)),
      yield* failing(Stream.runCollect(archive)),
      yield* failing(running.write(new Uint8Array(2 * windowBytes))),
      yield* failing(agent.writeFiles("/", Stream.never))
    ]
    let sent = 0
    while (sent < windowBytes) sent += (yield* Queue.take(peer.frames)).payload.length
    peer.socket.destroy()
    for (const one of waiting) assert.strictEqual(yield* Fiber.join(one), "agent: the channel is closed")
    assert.strictEqual((yield* Effect.flip(running.endInput)).message, "agent: the channel is closed")
  })
)
