/** The host's end against guests of every character, over real sockets. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { connectAgent } from "../../src/guest/Agent.ts"
import { type Peer, control, obliging, peerServer, type Said } from "../support/guestPeer.ts"

const unix = (path: string) => ({ _tag: "UnixSocket", path }) as const
const vsock = (path: string) => ({ _tag: "HybridVsock", path, port: 1024 }) as const

const reason = <A, E extends { readonly message: string }, R>(effect: Effect.Effect<A, E, R>) =>
  effect.pipe(
    Effect.flip,
    Effect.map((fault) => fault.message)
  )

/** Says hello as a good guest does, and leaves the rest to the test. */
const greeting = (peer: Peer, message: Said): void => {
  if (message["type"] === "hello") obliging(false)(peer, message)
}

it.live("agent: a guest that does what it is asked", () =>
  Effect.gen(function* () {
    const server = yield* peerServer(obliging())
    const session = yield* connectAgent(unix(server.path))
    yield* session.ready
    yield* session.ping
    yield* session.sync
    yield* session.shutdown(5_000.7)
    const before = Date.now()
    yield* session.awaken
    assert.deepStrictEqual(yield* session.memory, { totalKib: 1_000, availableKib: 600 })
    const said = yield* Queue.takeAll((yield* Queue.take(server.peers)).heard)
    const [hello, ping, sync, shutdown, awaken] = said
    assert.deepStrictEqual([hello?.["type"], hello?.["version"]], ["hello", 2])
    assert.deepStrictEqual([ping?.["type"], sync?.["type"]], ["ping", "sync"])
    assert.deepStrictEqual(shutdown, { id: 3, type: "shutdown", grace_ms: 5_000 })
    assert.match(String(awaken?.["entropy"]), /^[0-9a-f]{128}$/)
    const clock = Number(String(awaken?.["epoch_ns"]).slice(0, -6))
    assert.isTrue(clock >= before && clock <= Date.now())
  })
)

it.live("agent: ready comes when the guest says so", () =>
  Effect.gen(function* () {
    const server = yield* peerServer(greeting)
    const session = yield* connectAgent(unix(server.path))
    const ready = yield* Effect.forkChild(session.ready)
    const peer = yield* Queue.take(server.peers)
    yield* Queue.take(peer.heard)
    assert.isUndefined(ready.pollUnsafe())
    peer.say({ type: "ready" })
    yield* Fiber.join(ready)
  })
)

it.live("agent: what the guest refuses says why, and the session goes on", () =>
  Effect.gen(function* () {
    const server = yield* peerServer((peer, message) =>
      message["type"] === "sync"
        ? peer.say({ type: "refused", id: message["id"], reason: "too many syncs" })
        : obliging()(peer, message)
    )
    const session = yield* connectAgent(unix(server.path))
    assert.strictEqual(yield* reason(session.sync), "sync: the guest refused: too many syncs")
    yield* session.ping
  })
)

it.live("agent: nobody there", () =>
  Effect.gen(function* () {
    assert.include(yield* reason(connectAgent(unix("/nonexistent/agent"))), "ENOENT")
  })
)

it.live("agent: what an earlier session left is ignored", () =>
  Effect.gen(function* () {
    const server = yield* peerServer((peer, message) => {
      if (message["type"] !== "hello") return obliging()(peer, message)
      peer.socket.write(control({ type: "done", id: 1 }).subarray(3))
      peer.socket.write(control({ type: "hello", version: 2, nonce: "other", ready: true }))
      peer.socket.write(Buffer.concat([control({ type: "ready" }).subarray(0, 8), Buffer.alloc(1)]))
      obliging(false)(peer, message)
    })
    const session = yield* connectAgent(unix(server.path))
    yield* session.ping
    const ready = yield* Effect.forkChild(session.ready)
    yield* session.ping
    assert.isUndefined(ready.pollUnsafe())
  })
)

it.live("agent: a guest that lies loses its channel, and everybody who waits for it hears why", () =>
  Effect.gen(function* () {
    const server = yield* peerServer(greeting)
    const session = yield* connectAgent(unix(server.path))
    const ping = yield* Effect.forkChild(reason(session.ping))
    const ready = yield* Effect.forkChild(reason(session.ready))
    const peer = yield* Queue.take(server.peers)
    yield* Queue.take(peer.heard)
    yield* Queue.take(peer.heard)
    peer.say({ type: "done", id: 99 })
    const said = "agent: the guest broke the protocol: it answers what was not asked"
    assert.deepStrictEqual([yield* Fiber.join(ping), yield* Fiber.join(ready)], [said, said])
    yield* session.closed
    yield* peer.closed
    assert.strictEqual(yield* reason(session.ping), said)
  })
)

it.live("agent: a guest that goes away fails what waits for it", () =>
  Effect.gen(function* () {
    const server = yield* peerServer(greeting)
    const session = yield* connectAgent(unix(server.path))
    const ping = yield* Effect.forkChild(reason(session.ping))
    const peer = yield* Queue.take(server.peers)
    yield* Queue.take(peer.heard)
    yield* Queue.take(peer.heard)
    peer.socket.destroy()
    assert.strictEqual(yield* Fiber.join(ping), "agent: the channel is closed")
    yield* session.closed
    assert.strictEqual(yield* reason(session.ready), "agent: the channel is closed")
  })
)

it.effect("agent: a silent guest is greeted again, and given up in time", () =>
  Effect.gen(function* () {
    const server = yield* peerServer()
    const session = yield* connectAgent(unix(server.path))
    const peer = yield* Queue.take(server.peers)
    const first = yield* Queue.take(peer.heard)
    yield* TestClock.adjust(1_000)
    assert.deepStrictEqual(yield* Queue.take(peer.heard), first)
    const ping = yield* Effect.forkChild(reason(session.ping))
    yield* TestClock.adjust(15_000)
    assert.strictEqual(yield* Fiber.join(ping), "ping: no answer of the guest in 15000 ms")
    yield* TestClock.adjust(105_000)
    assert.strictEqual(yield* reason(session.ready), "agent: no hello in 120000 ms")
    yield* session.closed
    yield* peer.closed
  })
)

it.effect("agent: a request that is never answered ends, and a late answer harms nothing", () =>
  Effect.gen(function* () {
    const server = yield* peerServer(greeting)
    const session = yield* connectAgent(unix(server.path))
    const peer = yield* Queue.take(server.peers)
    yield* Queue.take(peer.heard)
    const ping = yield* Effect.forkChild(reason(session.ping))
    const asked = yield* Queue.take(peer.heard)
    yield* TestClock.adjust(15_000)
    assert.strictEqual(yield* Fiber.join(ping), "ping: no answer of the guest in 15000 ms")
    peer.say({ type: "done", id: asked["id"] })
    const again = yield* Effect.forkChild(session.ping)
    peer.say({ type: "done", id: (yield* Queue.take(peer.heard))["id"] })
    yield* Fiber.join(again)
  })
)

it.live("agent: a guest that never answers is not asked for ever", () =>
  Effect.gen(function* () {
    const server = yield* peerServer(greeting)
    const session = yield* connectAgent(unix(server.path))
    const peer = yield* Queue.take(server.peers)
    const asked = yield* Effect.forEach(Array.from({ length: 64 }), () => Effect.forkChild(session.ping))
    yield* Effect.forEach(asked, () => Queue.take(peer.heard))
    assert.strictEqual(yield* reason(session.ping), "ping: the guest owes too many answers")
    yield* Effect.forEach(asked, Fiber.interrupt)
    assert.strictEqual(yield* reason(session.ping), "ping: the guest owes too many answers")
  })
)

const floods: ReadonlyArray<readonly [string, Buffer]> = [
  ["one endless frame", Buffer.alloc(64 * 1024, 0xff)],
  ["empty frames", Buffer.alloc(64 * 1024)],
  ["frames that are no messages", Buffer.concat(Array.from({ length: 500 }, () => control({ type: "x" })))]
]

it.live.each(floods)("agent: a flood of %s ends the channel", ([, bytes]) =>
  Effect.gen(function* () {
    const server = yield* peerServer()
    const session = yield* connectAgent(unix(server.path))
    const peer = yield* Queue.take(server.peers)
    const pour = (): void => {
      while (!peer.socket.destroyed && peer.socket.write(bytes));
    }
    peer.socket.on("drain", pour)
    pour()
    assert.match(yield* reason(session.ready), /bytes and no hello among them$/)
    yield* peer.closed
  })
)

it.live("agent: the scope closes the connection and fails what waits", () =>
  Effect.gen(function* () {
    const server = yield* peerServer(greeting)
    const scope = yield* Scope.make()
    const session = yield* connectAgent(unix(server.path)).pipe(Scope.provide(scope))
    const ping = yield* Effect.forkChild(reason(session.ping))
    const peer = yield* Queue.take(server.peers)
    yield* Queue.take(peer.heard)
    yield* Queue.take(peer.heard)
    yield* Scope.close(scope, Exit.void)
    assert.strictEqual(yield* Fiber.join(ping), "agent: the session is over")
    yield* peer.closed
  })
)

/** A vsock multiplexer that answers the first line with these bytes, or hangs up. */
const multiplexer = (answer: string | Buffer | null) =>
  peerServer(obliging(), (socket, goOn) =>
    socket.once("data", (line: Buffer) => {
      if (answer === null || line.toString() !== "CONNECT 1024\n") return socket.destroy()
      goOn()
      return socket.write(answer)
    })
  )

it.live("agent: vsock, through its multiplexer", () =>
  Effect.gen(function* () {
    const server = yield* multiplexer("OK 1073741824\n")
    const session = yield* connectAgent(vsock(server.path))
    yield* session.ready
    yield* session.ping
  })
)

it.live("agent: vsock, the guest's bytes right behind the multiplexer's answer", () =>
  Effect.gen(function* () {
    const stray = control({ type: "hello", version: 2, nonce: "other", ready: true })
    const server = yield* multiplexer(Buffer.concat([Buffer.from("OK 5\n"), stray]))
    const session = yield* connectAgent(vsock(server.path))
    yield* session.ping
  })
)

it.live("agent: vsock, turned away", () =>
  Effect.gen(function* () {
    const hangsUp = yield* multiplexer(null)
    assert.include(
      yield* reason(connectAgent(vsock(hangsUp.path))),
      "nobody listens on the guest's vsock port 1024"
    )
    const refuses = yield* multiplexer("NO\n")
    assert.include(yield* reason(connectAgent(vsock(refuses.path))), "vsock port 1024 was refused")
    const babbles = yield* multiplexer("O".repeat(10_000))
    assert.include(yield* reason(connectAgent(vsock(babbles.path))), "does not speak its protocol")
  })
)

it.effect("agent: vsock, silence is bounded", () =>
  Effect.gen(function* () {
    const server = yield* multiplexer("OK")
    const connecting = yield* Effect.forkChild(reason(Effect.scoped(connectAgent(vsock(server.path)))))
    yield* Queue.take(server.peers)
    yield* TestClock.adjust(5_000)
    assert.strictEqual(yield* Fiber.join(connecting), "connect: no answer in 5000 ms")
  })
)
