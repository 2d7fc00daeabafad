/** Volumes over the deaths of the service and of VMMs on a simulated host: what is recorded is what is there. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId, VolumeId } from "../../src/domain/Ids.ts"
import { volumeSerial } from "../../src/host/volumeSerial.ts"
import { noLatency } from "../../src/host/simulated/FaultPlan.ts"
import * as guests from "../../src/host/simulated/guest.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import { addDisk } from "../../src/host/simulated/processes.ts"
import { generator } from "../simulation/random.ts"
import { leftovers } from "../simulation/promises.ts"
import {
  makePlace,
  request,
  servicePaths,
  type SimulatedPlace,
  type SimulatedService
} from "../support/simulatedService.ts"

const vm = InstanceId.make("vm")
const data = VolumeId.make("data")
const mount = { mount_path: "/data", readonly: false }

const inTime = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    const clock = yield* Effect.forkChild(Effect.forever(TestClock.adjust("100 millis")))
    const exit = yield* Fiber.await(fiber)
    yield* Fiber.interrupt(clock)
    return yield* exit
  })

/** Nothing is under way any more. */
const settled = (service: SimulatedService) =>
  inTime(
    service.instances
      .list({})
      .pipe(
        Effect.delay("200 millis"),
        Effect.repeat({ until: (views) => views.every((it) => it.transition === null), times: 3_000 })
      )
  )

/** What the records say and what the VMMs have open, for every instance that rests. */
const judge = Effect.fnUntraced(function* (place: SimulatedPlace, service: SimulatedService) {
  const problems: Array<string> = [...place.world.violations]
  const writers = new Map<VolumeId, Array<string>>()
  for (const view of yield* service.instances.list({})) {
    const process = place.world.byId.get(view.id)
    const held = view.volumes.map((it) => volumeSerial(it.volume_id)).toSorted()
    const open = (process?.record.disks ?? [])
      .filter((it) => it.removable === true)
      .map((it) => it.serial)
      .toSorted()
    if (process !== undefined && JSON.stringify(held) !== JSON.stringify(open))
      problems.push(`${view.id} holds ${held.join()} and its VMM has ${open.join()}`)
    const mounted = guests.mountsOf(process?.record.guest ?? { _tag: "Prelaunch" }).map((it) => it.serial)
    for (const it of view.volumes) {
      writers.set(it.volume_id, [...(writers.get(it.volume_id) ?? []), it.readonly ? "r" : "w"])
      if (it.status === "mounted" && !mounted.includes(volumeSerial(it.volume_id)))
        problems.push(`${view.id} says that ${it.volume_id} is mounted`)
    }
  }
  for (const [id, how] of writers)
    if (how.includes("w") && how.length > 1)
      problems.push(`${id} has ${how.length} holders, one of them writes`)
  return problems
})

const instanceIds = [InstanceId.make("a"), InstanceId.make("b"), InstanceId.make("c")] as const
const steps = [
  "attach",
  "detach",
  "force",
  "grow",
  "pause",
  "resume",
  "standby",
  "restore",
  "shutdown",
  "start",
  "stop",
  "crash",
  "kill",
  "delete",
  "create"
] as const

describe("volumes over every death", () => {
  it.effect("random histories: one writer, no disk without a record, nothing left at the end", () =>
    Effect.gen(function* () {
      const done = new Map<string, number>()
      for (let seed = 1; seed <= 6; seed++) {
        const random = generator(seed)
        const place = yield* makePlace({
          latencies: noLatency,
          seed,
          faults: { addDisk: 0.05, agentMount: 0.05, agentUnmount: 0.05, removeDisk: 0.05 }
        })
        let service = yield* inTime(place.start)
        const volumes = ["u", "v"].map((id) => VolumeId.make(id))
        for (const id of volumes) yield* service.volumes.create({ id, name: id, size_gb: 1 })
        for (let at = 0; at < 120; at++) {
          const id = random.pick(instanceIds)
          const volume = random.next() < 0.5 ? VolumeId.make("u") : VolumeId.make("v")
          const what = random.pick(steps)
          const { instances } = service
          const body: Effect.Effect<unknown, unknown> =
            what === "attach"
              ? instances.attach(id, volume, { mount_path: `/${volume}`, readonly: random.next() < 0.4 })
              : what === "detach" || what === "force"
                ? instances.detach(id, volume, what === "force")
                : what === "grow"
                  ? instances.growVolume(volume, 1 + random.below(3))
                  : what === "create"
                    ? instances.create(
                        request(id, {
                          volumes:
                            random.next() < 0.5
                              ? [{ volume_id: volume, mount_path: "/at", readonly: random.next() < 0.5 }]
                              : []
                        })
                      )
                    : what === "delete"
                      ? random.next() < 0.3
                        ? instances.remove(id)
                        : Effect.void
                      : what === "crash"
                        ? Effect.sync(() => incidents.crashVmm(place.world, id))
                        : what === "kill"
                          ? Effect.void
                          : instances.command(id, what, { discardSnapshot: true })
          if (what === "kill") {
            // In the middle of whatever comes next.
            const fiber = yield* Effect.forkChild(
              Effect.exit(instances.attach(id, volume, { mount_path: "/k", readonly: false }))
            )
            for (let turns = random.below(30); turns > 0; turns--) yield* Effect.yieldNow
            yield* service.kill
            yield* Fiber.interrupt(fiber)
            service = yield* inTime(place.start)
          } else
            yield* Effect.forkChild(
              Effect.tap(body, () => Effect.sync(() => done.set(what, (done.get(what) ?? 0) + 1))).pipe(
                Effect.exit
              )
            )
          if (random.next() < 0.5) yield* TestClock.adjust("300 millis")
          if (at % 10 === 9) {
            yield* settled(service)
            assert.deepStrictEqual(yield* judge(place, service), [], `seed ${seed}, step ${at}`)
          }
        }
        place.world.plan.calm()
        yield* settled(service)
        for (const id of instanceIds) yield* Effect.exit(inTime(service.instances.remove(id)))
        for (const id of volumes) yield* service.instances.removeVolume(id)
        assert.deepStrictEqual(place.files.names(servicePaths.volumes), [])
        assert.deepStrictEqual(leftovers(place), [])
        yield* service.stop
      }
      // A history in which nothing succeeds proves nothing.
      for (const what of steps.filter((it) => it !== "kill")) assert.isAtLeast(done.get(what) ?? 0, 5, what)
    })
  )

  it.effect("a disk that no record knows of is taken out at the next start, and its own stay", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      const first = yield* place.start
      yield* first.volumes.create({ id: data, name: "data", size_gb: 1 })
      yield* first.volumes.create({ id: VolumeId.make("stray"), name: "stray", size_gb: 1 })
      yield* inTime(first.instances.create(request("vm", { volumes: [{ volume_id: data, ...mount }] })))
      const stray = volumeSerial(VolumeId.make("stray"))
      const process = place.world.byId.get(vm)
      assert.isDefined(process)
      addDisk(place.world, process, {
        serial: stray,
        path: servicePaths.volumeDisk(VolumeId.make("stray")),
        readonly: false,
        removable: true
      })
      yield* first.kill
      const second = yield* inTime(place.start)
      yield* settled(second)
      assert.deepStrictEqual(yield* judge(place, second), [])
      assert.deepStrictEqual(
        (yield* second.instances.get(vm)).volumes.map((it) => it.status),
        ["mounted"]
      )
    })
  )
})

describe("a volume that grows", () => {
  it.effect("does so under the guest that writes it, or while nobody has it up; it never shrinks", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      const service = yield* place.start
      const { instances, volumes } = service
      yield* volumes.create({ id: data, name: "data", size_gb: 1 })
      const size = () => place.world.disk.size(servicePaths.volumeDisk(data)) / 1024 ** 3
      assert.strictEqual((yield* inTime(instances.growVolume(data, 2))).size_gb, 2)
      yield* inTime(instances.create(request("vm", { volumes: [{ volume_id: data, ...mount }] })))
      assert.strictEqual((yield* inTime(instances.growVolume(data, 3))).size_gb, 3)
      assert.strictEqual(size(), 3)
      for (const operation of ["resizeDisk", "agentGrow"] as const) {
        place.world.plan.failNext(operation, { id: vm, phase: "start" })
        assert.strictEqual((yield* Effect.flip(inTime(instances.growVolume(data, 4))))._tag, "VerbFailed")
        assert.strictEqual((yield* volumes.get(data)).size_gb, 3)
      }
      assert.strictEqual((yield* inTime(instances.growVolume(data, 4))).size_gb, 4)
      assert.strictEqual((yield* Effect.flip(instances.growVolume(data, 3)))._tag, "Unprocessable")
      yield* inTime(instances.command(vm, "pause"))
      assert.strictEqual((yield* Effect.flip(inTime(instances.growVolume(data, 5))))._tag, "VolumeInUse")
      yield* inTime(instances.command(vm, "stop"))
      assert.strictEqual((yield* inTime(instances.growVolume(data, 5))).size_gb, 5)
    })
  )

  it.effect("is nobody's to take meanwhile", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      const { instances, volumes } = yield* place.start
      yield* volumes.create({ id: data, name: "data", size_gb: 1 })
      yield* inTime(instances.create(request("vm", { volumes: [{ volume_id: data, ...mount }] })))
      yield* inTime(instances.create(request("other")))
      place.world.plan.hangNext("agentGrow", { id: vm, phase: "middle" })
      const growing = yield* Effect.forkChild(instances.growVolume(data, 2))
      yield* inTime(Effect.exit(Effect.yieldNow.pipe(Effect.repeat({ times: 50 }))))
      const taken: ReadonlyArray<Effect.Effect<Exit.Exit<unknown, unknown>>> = [
        Effect.exit(instances.removeVolume(data)),
        Effect.exit(instances.growVolume(data, 3)),
        Effect.exit(instances.attach(InstanceId.make("other"), data, { ...mount, readonly: true }))
      ]
      for (const exit of taken) assert.isTrue(Exit.isFailure(yield* inTime(exit)))
      yield* inTime(Effect.exit(Fiber.interrupt(growing)))
      yield* inTime(instances.command(vm, "stop"))
      yield* inTime(instances.growVolume(data, 3))
    })
  )
})
