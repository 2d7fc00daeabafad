/**
 * Faults, seeds and SIGKILL on the simulated host. The service is killed at every boundary of every operation of one
 * whole life of a VM; what it leaves is half done where a real host's would be, and a next service can clear it all.
 */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId } from "../../src/domain/Ids.ts"
import { Files } from "../../src/host/Files.ts"
import {
  makeFaultPlan,
  noLatency,
  type Operation,
  operations,
  realLatency,
  type Step
} from "../../src/host/simulated/FaultPlan.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import { ledger, look } from "../../src/host/simulated/ledger.ts"
import { makeHost, prepareVm, runVm, type Service, type TestHost } from "../support/simulatedWorld.ts"

const id = InstanceId.make("a")
const empty = { processes: [], taps: [], sockets: [], locks: [], wires: 0 }
const stepText = ({ operation, phase }: Step) => `${operation} ${phase}`

/** One whole life: TAP, spawn, boot, growth, disks, standby, restore, end. */
const life = (host: TestHost, service: Service) =>
  Effect.gen(function* () {
    const lease = yield* service.network.lease(id)
    yield* service.network.reconcile(new Map())
    yield* service.network.attach(id, lease)
    yield* service.network.pin(lease)
    const config = yield* prepareVm(host, "a", { lease })
    const extra = { serial: "layer-1", path: "/data/layers/base", readonly: true }
    const ref = { id, process: yield* service.vmm.spawn(config), runDirectory: config.runDirectory }
    const files = yield* Effect.scoped(
      Effect.gen(function* () {
        const session = yield* service.vmm.attach(ref)
        yield* session.boot
        const agent = yield* service.agent.connect({ _tag: "UnixSocket", path: "/run/a/agent.sock" })
        yield* agent.ready
        yield* agent.sync
        yield* session.resizeMemory(1_024)
        yield* session.addDisk(extra)
        yield* agent.mount({ serial: extra.serial, path: "/extra", readonly: true })
        yield* session.resizeDisk(extra.serial, 1)
        yield* agent.grow("/extra", 1)
        yield* agent.unmount("/extra", { lazy: false })
        yield* session.removeDisk(extra.serial)
        const echo = yield* agent.exec({ command: ["echo", "hello"] })
        assert.strictEqual((yield* Stream.runCollect(echo.output)).length, 2)
        yield* agent.writeFiles("/files", Stream.make(new Uint8Array(3)))
        yield* session.pause
        const written = yield* session.snapshot("/data/a/snapshot")
        yield* session.quit
        return written
      })
    )
    yield* service.processes.kill(ref)
    yield* service.network.detach(lease)
    yield* service.network.attach(id, lease)
    yield* service.network.pin(lease)
    const process = yield* service.vmm.spawnRestoring(config, "/data/a/snapshot", files)
    const restored = { ...ref, process }
    yield* Effect.scoped(
      Effect.gen(function* () {
        const session = yield* service.vmm.attach(restored)
        yield* session.resume
        const agent = yield* service.agent.connect({ _tag: "UnixSocket", path: "/run/a/agent.sock" })
        yield* agent.ready
        yield* agent.awaken
        yield* agent.shutdown(1_000)
        yield* session.powerButton
        yield* session.powerOff
      })
    )
    yield* service.processes.kill(restored)
    yield* service.network.detach(lease)
    yield* service.network.release(id)
  })

/** What a service does when it starts on a host that another one left, and wants nothing of it. */
const clear = (host: TestHost, service: Service) =>
  Effect.gen(function* () {
    const found = yield* service.processes.scan
    yield* Effect.forEach(found, service.processes.kill, { discard: true })
    yield* service.network.reconcile(new Map())
    yield* Effect.flatMap(Files, (files) => files.remove("/run/a")).pipe(Effect.provide(host.files.layer))
  })

/** Runs an effect under a clock that is moved on whenever nothing else happens, for at most ten virtual minutes. */
const inTime = <A, E>(effect: Effect.Effect<A, E>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    for (let at = 0; at < 6_000 && fiber.pollUnsafe() === undefined; at += 1) yield* TestClock.adjust(100)
    return yield* Fiber.join(fiber)
  })

const stepsOfALife = Effect.gen(function* () {
  const steps: Array<Step> = []
  const host = yield* makeHost({ onStep: (step) => Effect.sync(() => void steps.push(step)) })
  yield* life(host, yield* host.startService)
  assert.deepStrictEqual(ledger(host.world), empty)
  assert.deepStrictEqual(host.world.violations, [])
  return steps
})

/** What is on the host at this moment, as one line. */
const trace = (host: TestHost): string => {
  const taps = [...host.world.taps.values()].map((tap) => (tap.pinned ? "tap" : "half a tap"))
  const state = host.files.names().includes("/data/a/snapshot/state")
    ? host.files.text("/data/a/snapshot/state").endsWith("\n")
      ? ["snapshot"]
      : ["half a snapshot"]
    : []
  const sight = look(host.world, id)
  return [...taps, ...(sight === null ? [] : [`${sight.state} ${sight.memoryMb}`]), ...state].join(", ")
}

it.effect(
  "SIGKILL of the service at every boundary leaves what a next service can clear, and half-done things in between",
  () =>
    Effect.gen(function* () {
      const steps = yield* stepsOfALife
      const left = new Map<string, string>()
      for (let at = 0; at < steps.length; at += 1) {
        let passed = 0
        const host: TestHost = yield* makeHost({
          onStep: (step) =>
            Effect.suspend(() => {
              passed += 1
              if (passed !== at + 1) return Effect.void
              left.set(`${at} ${stepText(step)}`, trace(host))
              incidents.killService(host.world)
              return Effect.void
            })
        })
        const first = yield* host.startService
        assert.isTrue(Exit.isFailure(yield* Effect.exit(life(host, first))))
        const before = trace(host)
        yield* first.stop
        assert.strictEqual(trace(host), before, "a killed service changed its host")
        const second = yield* host.startService
        yield* clear(host, second)
        assert.deepStrictEqual(
          ledger(host.world),
          empty,
          stepText(steps[at] ?? { operation: "spawn", id, phase: "end" })
        )
      }
      const seen = new Set(left.values())
      for (const half of [
        "half a tap",
        "tap, Prelaunch 512",
        "tap, Running 768",
        "tap, Paused 1024, half a snapshot",
        "tap, Loading 512, snapshot",
        "tap, Paused 1024, snapshot"
      ]) {
        assert.isTrue(seen.has(half), `${half} was never left: ${[...seen].join(" | ")}`)
      }
      assert.isAtLeast(left.size, 60)
    })
)

it.effect("SIGKILL of the service is felt by what waits: nothing that it still does has an effect", () =>
  Effect.gen(function* () {
    const host = yield* makeHost({ latencies: realLatency })
    const service = yield* host.startService
    const config = yield* prepareVm(host, "a")
    const spawning = yield* Effect.forkChild(service.vmm.spawn(config), { startImmediately: true })
    assert.strictEqual(ledger(host.world).processes.length, 1)
    incidents.killService(host.world)
    yield* TestClock.adjust("1 minute")
    assert.isTrue(Exit.isFailure(yield* Fiber.await(spawning)))
    assert.strictEqual(look(host.world, id)?.state, "Prelaunch")
    assert.isTrue(
      Exit.isFailure(
        yield* Effect.exit(
          service.processes.kill({
            id,
            process: ledger(host.world).processes[0]?.process ?? { pid: 2, start_time: "", boot_id: "" },
            runDirectory: "/run/a"
          })
        )
      )
    )
    assert.strictEqual(ledger(host.world).processes.length, 1)
  })
)

for (const operation of operations.filter((it) => it !== "guestBoot" && it !== "guestEnd")) {
  it.effect(`a fault of ${operation} is the answer of exactly that operation, at each phase`, () =>
    Effect.gen(function* () {
      for (const phase of ["start", "middle", "end"] as const) {
        const host = yield* makeHost()
        const service = yield* host.startService
        host.world.plan.failNext(operation, { phase, reason: "scripted" })
        const fault = yield* Effect.flip(life(host, service))
        assert.include(JSON.stringify(fault), "scripted")
        yield* clear(host, service)
        assert.deepStrictEqual({ ...ledger(host.world), wires: 0 }, empty, `${operation} ${phase}`)
      }
    })
  )
}

it.effect("a fault of spawn and restore leaves no process, whatever the phase", () =>
  Effect.gen(function* () {
    for (const phase of ["start", "middle", "end"] as const) {
      const host = yield* makeHost()
      const service = yield* host.startService
      const config = yield* prepareVm(host, "a")
      host.world.plan.failNext("spawn", { phase })
      host.world.plan.failNext("restore", { phase })
      yield* Effect.flip(service.vmm.spawn(config))
      yield* Effect.flip(service.vmm.spawnRestoring(config, "/data/a/snapshot", []))
      assert.deepStrictEqual(ledger(host.world), empty)
    }
  })
)

it.effect("a fault that hangs says when it is reached, and ends with its release or with the VMM", () =>
  Effect.gen(function* () {
    const host = yield* makeHost()
    const service = yield* host.startService
    const ref = yield* runVm(service, yield* prepareVm(host, "a"))
    const session = yield* Scope.provide(service.vmm.attach(ref), yield* Effect.scope)
    const hang = host.world.plan.hangNext("pause", { id })
    const pausing = yield* Effect.forkChild(session.pause)
    yield* Deferred.await(hang.reached)
    assert.strictEqual(look(host.world, id)?.state, "Paused")
    yield* Deferred.succeed(hang.release, undefined)
    yield* Fiber.join(pausing)
    const other = host.world.plan.hangNext("resume", { id, phase: "start" })
    const resuming = yield* Effect.forkChild(Effect.flip(session.resume))
    yield* Deferred.await(other.reached)
    incidents.crashVmm(host.world, id)
    assert.strictEqual((yield* Fiber.join(resuming)).reason, "the VMM ended")
  })
)

it.effect("a fault of the guest's boot is a panic on the way, and one of its end is deafness", () =>
  Effect.gen(function* () {
    const host = yield* makeHost({ latencies: { ...noLatency, guestBoot: { minMs: 400, maxMs: 400 } } })
    const service = yield* host.startService
    host.world.plan.failNext("guestBoot")
    const ref = yield* runVm(service, yield* prepareVm(host, "a"))
    yield* TestClock.adjust(3_000)
    assert.strictEqual(look(host.world, id)?.state, "Panicked")
    yield* service.processes.kill(ref)
    const again = yield* runVm(service, yield* prepareVm(host, "a"))
    yield* TestClock.adjust(3_000)
    assert.isTrue(look(host.world, id)?.answers)
    const session = yield* Scope.provide(service.vmm.attach(again), yield* Effect.scope)
    host.world.plan.failNext("guestEnd")
    yield* session.powerButton
    assert.strictEqual(look(host.world, id)?.state, "Running")
    yield* session.powerButton
    assert.strictEqual(look(host.world, id)?.state, "Off")
  })
)

it("a fault comes as often as it was asked for, and to each instance in its own order", () => {
  const faults = { snapshot: 0.25 }
  const failures = (names: ReadonlyArray<string>) => {
    const plan = makeFaultPlan({ seed: 7, faults })
    return names.map((name) => plan.course("snapshot", name).fault?.phase ?? "none")
  }
  const many = failures(Array.from({ length: 4_000 }, (_, at) => `vm-${at % 40}`))
  const failed = many.filter((it) => it !== "none").length
  assert.isTrue(failed > 900 && failed < 1_100, `${failed} of 4000`)
  const alone = failures(Array.from({ length: 100 }, () => "vm-3"))
  assert.deepStrictEqual(
    alone,
    many.filter((_, at) => at % 40 === 3)
  )
})

it("a fault does not come any more once it is calm", () => {
  const plan = makeFaultPlan({ faults: { boot: 1 } })
  plan.failNext("quit")
  assert.strictEqual(plan.course("boot", "a").fault?.outcome._tag, "Fail")
  plan.calm()
  assert.isNull(plan.course("boot", "a").fault)
  assert.isNull(plan.course("quit", "a").fault)
})

it("a latency stays within its bounds, and is seldom five times as long", () => {
  const plan = makeFaultPlan({ seed: 3, latencies: realLatency })
  const drawn = Array.from({ length: 5_000 }, (_, at) => plan.course("spawn", `vm-${at}`).latencyMs)
  const { minMs, maxMs } = realLatency.spawn
  const tail = drawn.filter((it) => it > maxMs)
  assert.isTrue(drawn.every((it) => it >= minMs && it <= 5 * maxMs))
  assert.isTrue(tail.length > 20 && tail.length < 100, `${tail.length} of 5000`)
})

const history = (seed: number) =>
  Effect.scoped(
    Effect.gen(function* () {
      const faults: Partial<Record<Operation, number>> = {
        spawn: 0.1,
        snapshot: 0.2,
        boot: 0.1,
        tapAttach: 0.1
      }
      const host = yield* makeHost({ seed, faults, latencies: realLatency, tickMs: 1_000 })
      const service = yield* host.startService
      yield* inTime(
        Effect.forEach(
          Array.from({ length: 12 }),
          () => Effect.andThen(Effect.exit(life(host, service)), clear(host, service).pipe(Effect.ignore)),
          { discard: true }
        )
      )
      return { digest: host.world.digest, lines: [...host.world.history] }
    })
  ).pipe(Effect.provide(TestClock.layer(), { local: true }))

it.effect("a seed has one history, and another seed another", () =>
  Effect.gen(function* () {
    const one = yield* history(1)
    const same = yield* history(1)
    const other = yield* history(2)
    assert.deepStrictEqual(same, one)
    assert.notStrictEqual(other.digest, one.digest)
    assert.isAtLeast(one.lines.length, 100)
  })
)
