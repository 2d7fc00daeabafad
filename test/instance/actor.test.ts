import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId } from "../../src/domain/Ids.ts"
import { between, noLatency } from "../../src/host/simulated/FaultPlan.ts"
import { crashVmm } from "../../src/host/simulated/incidents.ts"
import { look, ledger } from "../../src/host/simulated/ledger.ts"
import { stopGraceMs } from "../../src/instance/perform/teardown.ts"
import { makePlace, request } from "../support/simulatedService.ts"

const id = InstanceId.make("vm")

/** Lets virtual time pass until the effect ends. */
const whileTimePasses = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    const clock = yield* Effect.forkChild(Effect.forever(TestClock.adjust("100 millis")))
    const exit = yield* Fiber.await(fiber)
    yield* Fiber.interrupt(clock)
    return yield* exit
  })

describe("an instance on a simulated host", () => {
  it.effect("goes once round all of its states and leaves nothing", () =>
    Effect.gen(function* () {
      const place = yield* makePlace()
      const { instances } = yield* place.start
      const verb = (name: Parameters<typeof instances.command>[1]) =>
        whileTimePasses(instances.command(id, name))
      const created = yield* whileTimePasses(instances.create(request("vm")))
      assert.strictEqual(created.state, "Running")
      assert.isNull(created.transition)
      assert.strictEqual((yield* verb("pause")).state, "Paused")
      assert.strictEqual((yield* verb("resume")).state, "Running")
      assert.strictEqual((yield* verb("shutdown")).state, "Shutdown")
      assert.strictEqual((yield* verb("start")).state, "Running")
      const before = look(place.world, id)
      assert.strictEqual((yield* verb("standby")).state, "Standby")
      assert.strictEqual(ledger(place.world).processes.length, 0)
      assert.strictEqual(ledger(place.world).taps.length, 0)
      assert.strictEqual((yield* verb("restore")).state, "Running")
      assert.isAtLeast(look(place.world, id)?.counter ?? -1, before?.counter ?? Number.POSITIVE_INFINITY)
      const stopped = yield* verb("stop")
      assert.strictEqual(stopped.state, "Stopped")
      assert.strictEqual(stopped.exit?.reason, "stopped")
      yield* whileTimePasses(instances.remove(id))
      assert.deepStrictEqual(ledger(place.world), {
        processes: [],
        taps: [],
        sockets: [],
        locks: [],
        wires: 0
      })
      assert.deepStrictEqual(
        place.files.names().filter((name) => name.includes("/vm")),
        []
      )
    })
  )

  it.effect("asked to stop while it boots, ends by itself as soon as its agent hears of it", () =>
    Effect.gen(function* () {
      const bootMs = 2_000
      const place = yield* makePlace({ latencies: { ...noLatency, guestBoot: between(bootMs, bootMs) } })
      const { instances } = yield* place.start
      yield* whileTimePasses(instances.create(request("vm")))
      const askedAt = yield* Clock.currentTimeMillis
      const stopped = yield* whileTimePasses(instances.command(id, "stop"))
      assert.strictEqual(stopped.state, "Stopped")
      assert.isBelow((yield* Clock.currentTimeMillis) - askedAt, stopGraceMs)
    })
  )

  it.effect("is adopted by the next run of the service, undisturbed", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      const first = yield* place.start
      const before = yield* whileTimePasses(first.instances.create(request("vm")))
      yield* first.kill
      const second = yield* whileTimePasses(place.start)
      const after = yield* second.instances.get(id)
      assert.strictEqual(after.vmm.pid, before.vmm.pid)
      assert.strictEqual(after.state, "Running")
      assert.strictEqual(after.generation, before.generation)
      yield* second.stop
    })
  )

  it.effect(
    "is Stopped when the VMM of a guest that is off dies, whatever the guest's last report says",
    () =>
      Effect.gen(function* () {
        const place = yield* makePlace({ latencies: noLatency })
        const { instances } = yield* place.start
        yield* whileTimePasses(instances.create(request("vm")))
        assert.strictEqual((yield* whileTimePasses(instances.command(id, "shutdown"))).state, "Shutdown")
        assert.isTrue(crashVmm(place.world, id))
        const after = yield* whileTimePasses(instances.wait(id, { state: "Stopped", timeoutMs: 10_000 }))
        assert.strictEqual(after.exit?.reason, "vmm-died")
        assert.deepStrictEqual(ledger(place.world).taps, [])
      })
  )
})
