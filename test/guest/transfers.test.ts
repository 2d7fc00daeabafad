/** Files out of a guest and into it, and mounts, over real sockets. */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { connectAgent } from "../../src/guest/Agent.ts"
import { dataKind, endKind } from "../../src/guest/frame.ts"
import { guestSession as session, obliging, onStream, peerServer, sayingOf } from "../support/guestPeer.ts"

const unix = (path: string) => ({ _tag: "UnixSocket", path }) as const
const windowBytes = 256 * 1024

it.live("files: out of the guest, straight through", () =>
  Effect.gen(function* () {
    const archive = Buffer.alloc(100_000, "tar")
    const { agent } = yield* session((guest, stream, request) => {
      assert.deepStrictEqual([request["type"], request["path"]], ["read_files", "/etc"])
      guest.send(onStream(stream).data(archive.subarray(0, 60_000)))
      guest.send(onStream(stream).data(archive.subarray(60_000)))
      guest.send(onStream(stream).end)
      guest.send(onStream(stream).last({ type: "ended" }))
    })
    const pieces = yield* Effect.flatMap(agent.readFiles("/etc"), (it) => Stream.runCollect(it))
    assert.isTrue(Buffer.concat(pieces).equals(archive))
  })
)

it.live("files: a failure in the middle is one", () =>
  Effect.gen(function* () {
    const { agent } = yield* session((guest, stream) => {
      guest.send(onStream(stream).data("some"))
      guest.send(onStream(stream).last({ type: "failed", reason: "input/output error" }))
    })
    const archive = yield* agent.readFiles("/etc")
    const fault = yield* Effect.flip(Stream.runCollect(archive))
    assert.strictEqual(fault.message, "read_files: the guest refused: input/output error")
  })
)

it.live("files: into the guest, and its word is the answer", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const writing = yield* Effect.forkChild(
      agent.writeFiles("/srv", Stream.make(new Uint8Array(10), new Uint8Array(20)))
    )
    const frames = [
      yield* Queue.take(peer.frames),
      yield* Queue.take(peer.frames),
      yield* Queue.take(peer.frames)
    ]
    assert.deepStrictEqual(frames.map(sayingOf), [
      { kind: dataKind, bytes: 10 },
      { kind: dataKind, bytes: 20 },
      { kind: endKind, bytes: 0 }
    ])
    yield* agent.ping
    assert.isUndefined(writing.pollUnsafe())
    peer.send(onStream(1).last({ type: "ended" }))
    yield* Fiber.join(writing)
  })
)

it.live("files: a guest that fails while it is written to ends it, whatever is still to come", () =>
  Effect.gen(function* () {
    const { agent } = yield* session((guest, stream) =>
      guest.send(onStream(stream).last({ type: "failed", reason: "no space left on device" }))
    )
    const stopped = yield* Deferred.make<void>()
    const endless = Stream.concat(Stream.make(new Uint8Array(windowBytes)), Stream.never).pipe(
      Stream.ensuring(Deferred.succeed(stopped, undefined))
    )
    const fault = yield* Effect.flip(agent.writeFiles("/srv", endless))
    assert.strictEqual(fault.message, "write_files: the guest refused: no space left on device")
    yield* Deferred.await(stopped)
  })
)

it.live("files: an archive that fails is cancelled in the guest", () =>
  Effect.gen(function* () {
    const { agent, peer } = yield* session()
    const broken = Stream.concat(Stream.make(new Uint8Array(5)), Stream.fail("the client went away"))
    assert.strictEqual(yield* Effect.flip(agent.writeFiles("/srv", broken)), "the client went away")
    yield* agent.ping
    assert.deepStrictEqual((yield* Queue.takeAll(peer.frames)).map(sayingOf), [
      { kind: dataKind, bytes: 5 },
      { type: "cancel" }
    ])
  })
)

it.effect("files: a guest that is silent in the middle of a transfer is given up", () =>
  Effect.gen(function* () {
    const { agent } = yield* session()
    const archive = yield* agent.readFiles("/etc")
    const reading = yield* Effect.forkChild(Effect.flip(Stream.runCollect(archive)))
    const writing = yield* Effect.forkChild(Effect.flip(agent.writeFiles("/srv", Stream.empty)))
    const stuck = yield* Effect.forkChild(
      Effect.flip(agent.writeFiles("/srv", Stream.make(new Uint8Array(windowBytes + 1))))
    )
    yield* agent.ping
    yield* agent.ping
    yield* TestClock.adjust(120_000)
    const faults = [yield* Fiber.join(reading), yield* Fiber.join(writing), yield* Fiber.join(stuck)]
    for (const fault of faults) assert.match(fault.message, /the guest was silent for 120000 ms$/)
  })
)

it.live("mounts: requests as the guest gets them, and who holds a busy one", () =>
  Effect.gen(function* () {
    const server = yield* peerServer((guest, message) =>
      message["type"] === "unmount" && message["lazy"] === false
        ? guest.say({
            type: "refused",
            id: message["id"],
            reason: "it is in use",
            holders: [{ pid: 7, command: "postgres\n\u001b[31m" }]
          })
        : message["type"] === "load"
          ? guest.say({
              type: "done",
              id: message["id"],
              load_milli: [1_500, 20, 0],
              total_kib: 100,
              available_kib: 50
            })
          : obliging()(guest, message)
    )
    const agent = yield* connectAgent(unix(server.path))
    yield* agent.mount({ serial: "vol-a", path: "/data", readonly: true })
    yield* agent.grow("/data", 1)
    const busy = yield* Effect.flip(agent.unmount("/data", { lazy: false }))
    assert.strictEqual(busy._tag, "VolumeBusy")
    if (busy._tag === "VolumeBusy")
      assert.deepStrictEqual(busy.holders, [{ pid: 7, command: "postgres [31m" }])
    yield* agent.unmount("/data", { lazy: true })
    assert.deepStrictEqual(yield* agent.load, { totalKib: 100, availableKib: 50, averages: [1.5, 0.02, 0] })
    const peer = yield* Queue.take(server.peers)
    const [, mount, grow, , lazy] = yield* Queue.takeAll(peer.heard)
    assert.deepStrictEqual(mount, { id: 1, type: "mount", serial: "vol-a", path: "/data", readonly: true })
    assert.deepStrictEqual(grow, { id: 2, type: "grow", path: "/data", size_bytes: 1 })
    assert.deepStrictEqual(lazy, { id: 4, type: "unmount", path: "/data", lazy: true })
  })
)
