/** The simulated driver under a virtual clock: what a VMM promises, and what it leaves half done. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Deferred from "effect/Deferred"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId } from "../../src/domain/Ids.ts"
import { realLatency } from "../../src/host/simulated/FaultPlan.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import { ledger, look } from "../../src/host/simulated/ledger.ts"
import type { VmmEvent, VmmRef } from "../../src/vmm/Vmm.ts"
import { makeHost, prepareVm, runVm, type Service } from "../support/simulatedWorld.ts"

const empty = { processes: [], taps: [], sockets: [], locks: [], wires: 0 }

const reasonOf = <A, E extends { readonly reason: string }>(effect: Effect.Effect<A, E, Scope.Scope>) =>
  Effect.scoped(effect).pipe(
    Effect.flip,
    Effect.map((fault) => fault.reason)
  )

const inSession = <A, E>(
  service: Service,
  ref: VmmRef,
  body: (session: Effect.Success<ReturnType<Service["vmm"]["attach"]>>) => Effect.Effect<A, E>
) => Effect.scoped(Effect.flatMap(service.vmm.attach(ref), body))

it.effect("a VMM spawns with its guest not started, boots, pauses, goes on, quits and leaves nothing", () =>
  Effect.gen(function* () {
    const host = yield* makeHost()
    const service = yield* host.startService
    const config = yield* prepareVm(host, "a")
    const process = yield* service.vmm.spawn(config)
    const ref = { id: config.id, process, runDirectory: config.runDirectory }
    yield* Effect.scoped(
      Effect.gen(function* () {
        const session = yield* service.vmm.attach(ref)
        assert.strictEqual((yield* session.status)._tag, "Prelaunch")
        yield* session.boot
        yield* TestClock.adjust(1_000)
        assert.strictEqual(look(host.world, config.id)?.counter, 10)
        yield* session.pause
        yield* TestClock.adjust(60_000)
        assert.strictEqual((yield* session.status)._tag, "Paused")
        assert.strictEqual(look(host.world, config.id)?.counter, 10)
        yield* session.resume
        yield* TestClock.adjust(100)
        assert.strictEqual(look(host.world, config.id)?.counter, 11)
        yield* session.quit
      })
    )
    assert.deepStrictEqual(yield* service.processes.exit(ref), { code: 0, signal: null })
    assert.isFalse(yield* service.processes.isAlive(process))
    assert.deepStrictEqual(ledger(host.world), empty)
    assert.include(host.files.text(config.consolePath), "init: ready")
  })
)

it.effect(
  "a VMM goes on where it was after a restore: the counter at N+1, clock and entropy only by the agent",
  () =>
    Effect.gen(function* () {
      const host = yield* makeHost()
      const service = yield* host.startService
      const config = yield* prepareVm(host, "a")
      const ref = yield* runVm(service, config)
      yield* TestClock.adjust(4_200)
      const entropy = look(host.world, config.id)?.entropy
      const files = yield* inSession(service, ref, (session) =>
        Effect.andThen(session.pause, session.snapshot("/data/a/snapshot"))
      )
      yield* service.processes.kill(ref)
      assert.deepStrictEqual(ledger(host.world), empty)
      yield* TestClock.adjust("1 hour")
      const process = yield* service.vmm.spawnRestoring(config, "/data/a/snapshot", files)
      const restored = { ...ref, process }
      assert.notDeepEqual(restored.process, ref.process)
      assert.strictEqual(look(host.world, config.id)?.counter, 42)
      yield* inSession(service, restored, (session) => session.resume)
      yield* TestClock.adjust(100)
      const before = look(host.world, config.id)
      assert.strictEqual(before?.counter, 43)
      assert.strictEqual(before?.clockBehindMs, 3_600_000)
      assert.strictEqual(before?.entropy, entropy)
      yield* Effect.scoped(
        Effect.gen(function* () {
          const agent = yield* service.agent.connect({ _tag: "UnixSocket", path: "/run/a/agent.sock" })
          yield* agent.ready
          yield* agent.awaken
        })
      )
      const after = look(host.world, config.id)
      assert.strictEqual(after?.clockBehindMs, 0)
      assert.notStrictEqual(after?.entropy, entropy)
    })
)

it.effect(
  "a VMM refuses a snapshot that is cut, missing, or of another machine, and leaves no process then",
  () =>
    Effect.gen(function* () {
      const host = yield* makeHost()
      const service = yield* host.startService
      const config = yield* prepareVm(host, "a")
      const ref = yield* runVm(service, config)
      const files = yield* inSession(service, ref, (session) =>
        Effect.andThen(session.pause, session.snapshot("/data/a/snapshot"))
      )
      yield* service.processes.kill(ref)
      const restoring = (given: typeof config) =>
        reasonOf(service.vmm.spawnRestoring(given, "/data/a/snapshot", files))
      assert.include(yield* restoring({ ...config, vcpus: 4 }), "another one")
      const whole = host.files.text("/data/a/snapshot/state")
      for (const length of [0, 1, whole.length / 2, whole.length - 2]) {
        host.files.disk.remove("/data/a/snapshot/state")
        host.files.disk.append("/data/a/snapshot/state", whole.slice(0, length))
        assert.include(yield* restoring(config), "damaged")
      }
      host.files.disk.remove("/data/a/snapshot/state")
      assert.include(yield* restoring(config), "no snapshot")
      assert.deepStrictEqual(ledger(host.world), empty)
    })
)

it.effect("a VMM fails a snapshot on a full disk and leaves the guest paused, resumable", () =>
  Effect.gen(function* () {
    const host = yield* makeHost()
    const service = yield* host.startService
    const config = yield* prepareVm(host, "a")
    const ref = yield* runVm(service, config)
    yield* inSession(service, ref, (session) =>
      Effect.gen(function* () {
        yield* session.pause
        host.files.failing = "ENOSPC"
        assert.include(yield* reasonOf(session.snapshot("/data/a/snapshot")), "ENOSPC")
        host.files.failing = null
        assert.strictEqual((yield* session.status)._tag, "Paused")
        yield* session.resume
        assert.strictEqual((yield* session.status)._tag, "Running")
      })
    )
  })
)

it.effect("a VMM lets one writer open a disk, or any number of readers", () =>
  Effect.gen(function* () {
    const host = yield* makeHost()
    const service = yield* host.startService
    const volume = { serial: "vol", path: "/data/a/overlay.raw", readonly: false }
    const a = yield* prepareVm(host, "a")
    const b = yield* prepareVm(host, "b")
    const ref = yield* runVm(service, a)
    const both = { ...b, disks: [...b.disks, volume] }
    assert.include(yield* reasonOf(service.vmm.spawn(both)), '"write" lock')
    const reader = { ...b, disks: [...b.disks, { ...volume, readonly: true }] }
    assert.include(yield* reasonOf(service.vmm.spawn(reader)), '"shared" lock')
    const other = yield* runVm(service, b)
    yield* inSession(service, other, (session) =>
      Effect.gen(function* () {
        assert.include(yield* reasonOf(session.addDisk(volume)), '"write" lock')
        yield* service.processes.kill(ref)
        yield* session.addDisk(volume)
        yield* session.pause
        assert.include(yield* reasonOf(session.removeDisk("vol")), "did not let go")
        yield* session.resume
        yield* session.removeDisk("vol")
      })
    )
    yield* runVm(service, a)
  })
)

it.effect("a VMM grows within its bounds, half of the way when it is interrupted", () =>
  Effect.gen(function* () {
    const host = yield* makeHost({ latencies: realLatency })
    const service = yield* host.startService
    const config = yield* prepareVm(host, "a")
    const ref = yield* Effect.forkChild(runVm(service, config)).pipe(
      Effect.tap(() => TestClock.adjust(5_000)),
      Effect.flatMap(Fiber.join)
    )
    const scope = yield* Effect.scope
    const attaching = yield* Effect.forkChild(Scope.provide(service.vmm.attach(ref), scope))
    yield* TestClock.adjust(100)
    const session = yield* Fiber.join(attaching)
    assert.include(yield* reasonOf(session.resizeMemory(2_048)), "not between")
    const growing = yield* Effect.forkChild(session.resizeMemory(1_024), { startImmediately: true })
    yield* Fiber.interrupt(growing)
    assert.strictEqual(yield* session.memoryMb, 768)
    const again = yield* Effect.forkChild(session.resizeMemory(1_024))
    yield* TestClock.adjust(1_000)
    assert.strictEqual(yield* Fiber.join(again), 1_024)
  })
)

it.effect("a VMM tells what happens unasked, in order, and ends the events with the connection", () =>
  Effect.gen(function* () {
    const host = yield* makeHost()
    const service = yield* host.startService
    const config = yield* prepareVm(host, "a")
    const ref = yield* runVm(service, config)
    const seen: Array<VmmEvent> = []
    const attached = yield* Deferred.make<void>()
    const watching = yield* Effect.forkChild(
      inSession(service, ref, (session) =>
        Effect.andThen(
          Deferred.succeed(attached, undefined),
          Stream.runForEach(session.events, (event) => Effect.sync(() => void seen.push(event)))
        )
      )
    )
    yield* Deferred.await(attached)
    assert.isTrue(incidents.guestResets(host.world, config.id))
    assert.isFalse(incidents.guestPanics(host.world, config.id))
    yield* TestClock.adjust(0)
    incidents.crashVmm(host.world, config.id)
    yield* Fiber.join(watching)
    assert.deepStrictEqual(seen, [{ _tag: "GuestOff", cause: "reset" }])
  })
)

it.effect("a process outlives its service; its exit code does not outlive its parent", () =>
  Effect.gen(function* () {
    const host = yield* makeHost()
    const first = yield* host.startService
    const config = yield* prepareVm(host, "a")
    const ref = yield* runVm(first, config)
    yield* TestClock.adjust(1_000)
    const other = yield* prepareVm(host, "b")
    const born = yield* runVm(first, other)
    yield* first.kill
    yield* TestClock.adjust(1_000)
    const second = yield* host.startService
    assert.deepStrictEqual(yield* second.processes.scan, [ref, born])
    assert.strictEqual(look(host.world, config.id)?.counter, 20)
    yield* inSession(second, ref, (session) =>
      Effect.map(session.status, (status) => assert.strictEqual(status._tag, "Running"))
    )
    const waiting = yield* Effect.forkChild(second.processes.exit(ref))
    yield* TestClock.adjust(0)
    incidents.crashVmm(host.world, config.id, "SIGSEGV")
    assert.deepStrictEqual(yield* Fiber.join(waiting), { code: null, signal: null })
    const own = yield* runVm(second, yield* prepareVm(host, "c"))
    incidents.crashVmm(host.world, own.id, "SIGSEGV")
    assert.deepStrictEqual(yield* second.processes.exit(own), { code: null, signal: "SIGSEGV" })
  })
)

it.effect("a process that is dead cannot be attached to, and killing it is done at once", () =>
  Effect.gen(function* () {
    const host = yield* makeHost()
    const service = yield* host.startService
    const config = yield* prepareVm(host, "a")
    const ref = yield* runVm(service, config)
    incidents.crashVmm(host.world, config.id)
    assert.strictEqual(yield* reasonOf(service.vmm.attach(ref)), "no such process")
    yield* service.processes.kill(ref)
    assert.deepStrictEqual(ledger(host.world).sockets, ["/run/a/monitor.sock", "/run/a/agent.sock"])
  })
)

it.effect("a process is the one that was meant, also where its pid is used again", () =>
  Effect.gen(function* () {
    const host = yield* makeHost({ pids: { first: 100, last: 101 } })
    const service = yield* host.startService
    const refs: Array<VmmRef> = []
    for (const name of ["a", "b", "c"]) {
      const ref = yield* runVm(service, yield* prepareVm(host, name))
      refs.push(ref)
      if (name !== "c") yield* service.processes.kill(ref)
    }
    const [a, , c] = refs
    assert.strictEqual(a?.process.pid, c?.process.pid)
    assert.isFalse(a === undefined || (yield* service.processes.isAlive(a.process)))
    if (a !== undefined) yield* service.processes.kill(a)
    assert.isTrue(c !== undefined && (yield* service.processes.isAlive(c.process)))
  })
)

it.effect("a process that answers nothing is still killed, with proof", () =>
  Effect.gen(function* () {
    const host = yield* makeHost()
    const service = yield* host.startService
    const config = yield* prepareVm(host, "a")
    const ref = yield* runVm(service, config)
    const scope = yield* Effect.scope
    const session = yield* Scope.provide(service.vmm.attach(ref), scope)
    incidents.freezeVmm(host.world, config.id)
    const calls = yield* Effect.forEach([session.status, session.pause, session.quit], (call) =>
      Effect.forkChild(Effect.exit(call))
    )
    yield* TestClock.adjust("1 hour")
    assert.isTrue(calls.every((call) => call.pollUnsafe() === undefined))
    yield* service.processes.kill(ref)
    assert.deepStrictEqual(yield* service.processes.exit(ref), { code: null, signal: "SIGKILL" })
    const [status, pause, quit] = yield* Effect.forEach(calls, Fiber.join)
    assert.isTrue(status !== undefined && Exit.isFailure(status))
    assert.isTrue(pause !== undefined && Exit.isFailure(pause))
    assert.isTrue(quit !== undefined && Exit.isSuccess(quit))
  })
)

/** Seconds on an idle machine. */
const roundsTimeoutMs = 120_000

it.effect(
  "a process of which 10,000 came and went leaves an empty host",
  () =>
    Effect.gen(function* () {
      const host = yield* makeHost()
      const service = yield* host.startService
      const configs = yield* Effect.forEach(Array.from({ length: 100 }), (_, at) =>
        prepareVm(host, `vm-${at}`)
      )
      const round = Effect.forEach(
        configs,
        (config) => Effect.flatMap(runVm(service, config), service.processes.kill),
        { concurrency: 50, discard: true }
      )
      yield* Effect.repeat(round, { times: 99 })
      assert.deepStrictEqual(ledger(host.world), empty)
      assert.deepStrictEqual(host.world.violations, [])
      assert.strictEqual(host.world.lastStart, 10_000)
    }),
  roundsTimeoutMs
)

it.effect(
  "a machine that loses power has no VMM, TAP and socket when it is back, and no service either",
  () =>
    Effect.gen(function* () {
      const host = yield* makeHost()
      const first = yield* host.startService
      const lease = yield* first.network.lease(InstanceId.make("a"))
      yield* first.network.attach(InstanceId.make("a"), lease)
      const ref = yield* runVm(first, yield* prepareVm(host, "a", { lease }))
      yield* runVm(first, yield* prepareVm(host, "b"))
      incidents.crashVmm(host.world, InstanceId.make("b"))
      incidents.reboot(host.world, "00000000-0000-4000-8000-000000000002")
      assert.deepStrictEqual(ledger(host.world), empty)
      yield* first.stop
      const second = yield* host.startService
      assert.isFalse(yield* second.processes.isAlive(ref.process))
      const again = yield* runVm(second, yield* prepareVm(host, "b"))
      assert.isTrue(yield* second.processes.isAlive(again.process))
      assert.isFalse(incidents.tapVanishes(host.world, lease.tap))
      assert.deepStrictEqual(host.world.violations, [])
    })
)
