/** What a crash, a full disk or a lie of a VMM once broke, one by one: the smallest history that shows it. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import type { InstanceEvent } from "../../src/domain/Event.ts"
import { InstanceId } from "../../src/domain/Ids.ts"
import { noLatency } from "../../src/host/simulated/FaultPlan.ts"
import { ledger, look } from "../../src/host/simulated/ledger.ts"
import { Files } from "../../src/host/Files.ts"
import { Paths } from "../../src/host/Paths.ts"
import { reconcileOne } from "../../src/instance/recover.ts"
import { Network } from "../../src/network/Network.ts"
import { VmmProcesses } from "../../src/vmm/Vmm.ts"
import {
  makePlace,
  request,
  servicePaths,
  type SimulatedPlace,
  type SimulatedService
} from "../support/simulatedService.ts"
import { makeHost, prepareVm, runVm } from "../support/simulatedWorld.ts"
import { judge } from "../simulation/promises.ts"
import { recordOf } from "./records.ts"

const id = InstanceId.make("vm")
const paths = servicePaths.instance(id)

/** Lets virtual time pass until the effect ends. */
const inTime = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    const clock = yield* Effect.forkChild(Effect.forever(TestClock.adjust("100 millis")))
    const exit = yield* Fiber.await(fiber)
    yield* Fiber.interrupt(clock)
    return yield* exit
  })

/** A place whose boundaries a test can act on. */
const placeWith = (at: (name: string, place: SimulatedPlace) => void) =>
  Effect.gen(function* () {
    const place: SimulatedPlace = yield* makePlace({
      latencies: noLatency,
      boundary: (name) => Effect.sync(() => at(name, place))
    })
    return place
  })

const eventsOf = ({ events }: SimulatedService) =>
  Effect.gen(function* () {
    const found: Array<InstanceEvent> = []
    const reading = yield* Effect.forkChild(
      Stream.runForEach(events.read(Option.some(0)), (event) => Effect.sync(() => found.push(event)))
    )
    yield* TestClock.adjust(1)
    yield* Fiber.interrupt(reading)
    return found
  })

/** The service is killed in the middle of the verb, at the boundary; nobody waits for the verb. */
const killedAt = (boundary: string) =>
  Effect.gen(function* () {
    let armed = false
    const seen = new Set<string>()
    const place: SimulatedPlace = yield* makePlace({
      latencies: noLatency,
      boundary: (name) =>
        Effect.suspend(() => {
          if (!armed || name !== boundary) return Effect.void
          seen.add(name)
          return Effect.never
        })
    })
    const service = yield* place.start
    yield* inTime(service.instances.create(request("vm")))
    yield* inTime(service.instances.command(id, "standby"))
    return {
      place,
      /** Asks, waits for the boundary, kills, starts again. */
      through: <A, E>(
        verb: (service: SimulatedService) => Effect.Effect<A, E>,
        between: (place: SimulatedPlace) => void = () => undefined
      ) =>
        Effect.gen(function* () {
          armed = true
          yield* Effect.forkChild(Effect.ignore(verb(service)))
          for (let tick = 0; tick < 100 && !seen.has(boundary); tick++) yield* TestClock.adjust("100 millis")
          assert.isTrue(seen.has(boundary), `${boundary} was not reached`)
          yield* service.kill
          armed = false
          between(place)
          return yield* inTime(place.start)
        })
    }
  })

const atRest = (service: SimulatedService) =>
  inTime(
    service.instances.list({}).pipe(
      Effect.delay("100 millis"),
      Effect.repeat({ until: (views) => views.every((view) => view.transition === null), times: 600 }),
      Effect.map((views) => views.find((view) => view.id === id))
    )
  )

describe("a standby", () => {
  it.effect("whose snapshot was given up on a full disk does not come back without it", () =>
    Effect.gen(function* () {
      const { place, through } = yield* killedAt("snapshots-remove:after")
      place.files.failing = "ENOSPC"
      const next = yield* through(
        (it) => it.instances.command(id, "stop", { discardSnapshot: true }),
        ({ files }) => void (files.failing = null)
      )
      const view = yield* atRest(next)
      assert.isDefined(view)
      assert.strictEqual(view.state, "Stopped")
      assert.deepStrictEqual(judge(place, view), [])
    })
  )

  it.effect("whose restore was cut off, and is refused after that, has no TAP and no VMM", () =>
    Effect.gen(function* () {
      const { place, through } = yield* killedAt("spawn:after")
      const next = yield* through(
        (it) => it.instances.command(id, "restore"),
        ({ files }) => {
          const state = files.names(`${paths.snapshots}/1`).find((name) => !name.endsWith("manifest.json"))
          assert.isDefined(state)
          files.disk.append(state, "damage")
        }
      )
      const view = yield* atRest(next)
      assert.isDefined(view)
      assert.strictEqual(view.state, "Standby")
      assert.deepStrictEqual(judge(place, view), [])
    })
  )
})

describe("a guest whose VMM says that a call failed that did its work", () => {
  for (const [verb, operation, before, after] of [
    ["resume", "resume", "pause", "Running"],
    ["pause", "pause", null, "Paused"],
    ["restore", "resume", "standby", "Running"]
  ] as const)
    it.effect(`${verb}: is what it is`, () =>
      Effect.gen(function* () {
        const place = yield* makePlace({ latencies: noLatency })
        const { instances } = yield* place.start
        yield* inTime(instances.create(request("vm")))
        if (before !== null) yield* inTime(instances.command(id, before))
        place.world.plan.failNext(operation, { id, phase: "end" })
        const view = yield* inTime(instances.command(id, verb))
        assert.strictEqual(view.state, after)
        assert.strictEqual(look(place.world, id)?.state, after)
        assert.deepStrictEqual(judge(place, view), [])
      })
    )

  it.effect("restore that fails leaves it Paused, without a snapshot of the past", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      const { instances } = yield* place.start
      yield* inTime(instances.create(request("vm")))
      yield* inTime(instances.command(id, "standby"))
      place.world.plan.failNext("resume", { id, phase: "start", times: 10 })
      yield* inTime(Effect.flip(instances.command(id, "restore")))
      const view = yield* instances.get(id)
      assert.strictEqual(view.state, "Paused")
      assert.deepStrictEqual(place.files.names(paths.snapshots), [])
    })
  )
})

describe("a full disk", () => {
  it.effect("does not keep an instance from being deleted, and the answer says that it was", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      const { instances } = yield* place.start
      yield* inTime(instances.create(request("vm")))
      place.files.failing = "ENOSPC"
      yield* inTime(instances.remove(id))
      assert.deepStrictEqual(yield* instances.list({}), [])
      assert.deepStrictEqual(place.files.names(servicePaths.instances), [])
    })
  )

  it.effect(
    "that no record can be written to for long answers a standby, and ends it once there is room",
    () =>
      Effect.gen(function* () {
        let struck = false
        const place = yield* placeWith((name, it) => {
          if (name === "kill:before" && !struck) it.files.failing = "ENOSPC"
          struck ||= name === "kill:before"
        })
        const { instances } = yield* place.start
        yield* inTime(instances.create(request("vm")))
        const problem = yield* inTime(Effect.flip(instances.command(id, "standby")))
        assert.strictEqual(problem._tag, "VerbFailed")
        assert.strictEqual((yield* instances.get(id)).transition, "standby")
        place.files.failing = null
        const view = yield* inTime(instances.wait(id, { state: "Standby", timeoutMs: 120_000 }))
        assert.deepStrictEqual(judge(place, view), [])
      })
  )
})

it.effect("an actor that failed in the middle of a launch leaves no VMM and no TAP to the next one", () =>
  Effect.gen(function* () {
    const host = yield* makeHost({ latencies: noLatency })
    const service = yield* host.startService
    const { network, processes } = service
    for (const name of [id, InstanceId.make("other")]) {
      const lease = yield* network.lease(name)
      yield* network.attach(name, lease)
      yield* runVm(service, yield* prepareVm(host, name, { lease }))
    }
    const lease = yield* network.lease(id)
    yield* reconcileOne(recordOf(id, lease)).pipe(
      Effect.provideService(VmmProcesses, processes),
      Effect.provideService(Network, network),
      Effect.provideService(Paths, servicePaths),
      Effect.provide(host.files.layer)
    )
    assert.deepStrictEqual(
      ledger(host.world).processes.map((it): string => it.id),
      ["other"]
    )
    assert.strictEqual(ledger(host.world).taps.length, 1)
  })
)

describe("the events", () => {
  it.effect("of a deletion are its transition and the deletion, and no Stopped in between", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      const service = yield* place.start
      yield* inTime(service.instances.create(request("vm")))
      yield* inTime(service.instances.remove(id))
      const events = yield* eventsOf(service)
      assert.strictEqual(events.at(-1)?.type, "instance.deleted")
      assert.isTrue(events.every((event) => event.to !== "Stopped" || event.transition !== null))
    })
  )

  it.effect("of before many restarts are still there, each once", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      let service = yield* place.start
      yield* inTime(service.instances.create(request("vm")))
      const first = (yield* eventsOf(service))[0]
      for (let restarts = 0; restarts < 12; restarts++) {
        yield* inTime(service.instances.command(id, restarts % 2 === 0 ? "pause" : "resume"))
        yield* service.kill
        service = yield* inTime(place.start)
      }
      const ids = (yield* eventsOf(service)).map((event) => event.id)
      assert.strictEqual(ids[0], first?.id)
      assert.deepStrictEqual(
        ids,
        ids.map((_, at) => (ids[0] ?? 0) + at)
      )
    })
  )
})

it.effect("what a write that was cut off left is gone after the next start", () =>
  Effect.gen(function* () {
    const place = yield* makePlace({ latencies: noLatency })
    const service = yield* place.start
    yield* inTime(service.instances.create(request("vm")))
    yield* service.kill
    const cut = [`${paths.directory}/overlay.raw.tmp-77`, `${paths.record}.tmp-77`, `${paths.config}.tmp`]
    yield* Effect.gen(function* () {
      const files = yield* Files
      yield* Effect.forEach(cut, (name) => files.write(name, "half"))
    }).pipe(Effect.orDie, Effect.provide(place.files.layer))
    yield* inTime(place.start)
    const left = place.files.names(paths.directory)
    assert.deepStrictEqual(
      cut.filter((name) => left.includes(name)),
      []
    )
  })
)
