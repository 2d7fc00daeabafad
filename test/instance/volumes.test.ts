/** Volumes on a simulated host, through the real actors: one writer or many readers, live and not, whatever is killed. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId, VolumeId } from "../../src/domain/Ids.ts"
import type { CreateInstance, Instance } from "../../src/domain/Instance.ts"
import { volumeSerial } from "../../src/host/volumeSerial.ts"
import { noLatency } from "../../src/host/simulated/FaultPlan.ts"
import { Files } from "../../src/host/Files.ts"
import * as guests from "../../src/host/simulated/guest.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import {
  makePlace,
  request,
  servicePaths,
  type SimulatedPlace,
  type SimulatedService
} from "../support/simulatedService.ts"

const vm = InstanceId.make("vm")
const other = InstanceId.make("other")
const data = VolumeId.make("data")
const serial = volumeSerial(data)
const mount = (readonly = false, mount_path = "/data") => ({ mount_path, readonly })

/** Lets virtual time pass until the effect ends. */
const inTime = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    const clock = yield* Effect.forkChild(Effect.forever(TestClock.adjust("100 millis")))
    const exit = yield* Fiber.await(fiber)
    yield* Fiber.interrupt(clock)
    return yield* exit
  })

/** The disk of the volume that the instance's VMM has open, and where its guest has it. */
const seen = ({ world }: SimulatedPlace, id: InstanceId, of = serial) => {
  const process = world.byId.get(id)
  const disk = process?.record.disks.find((it) => it.serial === of)
  const at = guests.mountsOf(process?.record.guest ?? { _tag: "Prelaunch" }).find((it) => it.serial === of)
  return { disk: disk === undefined ? null : disk.readonly ? "reads" : "writes", at: at?.path ?? null }
}

const statusOf = (view: Instance, id: VolumeId = data) =>
  view.volumes.find((it) => it.volume_id === id)?.status ?? null

interface Ground {
  readonly place: SimulatedPlace
  readonly service: SimulatedService
  readonly command: (
    id: InstanceId,
    verb: Parameters<SimulatedService["instances"]["command"]>[1]
  ) => Effect.Effect<Instance, unknown>
  readonly attach: (
    id: InstanceId,
    readonly?: boolean,
    path?: string
  ) => Effect.Effect<Instance, { readonly _tag: string }>
  readonly detach: (id: InstanceId, force?: boolean) => Effect.Effect<Instance, { readonly _tag: string }>
  readonly create: (
    id: InstanceId,
    more?: Partial<CreateInstance>
  ) => Effect.Effect<Instance, { readonly _tag: string }>
}

const groundOf = (place: SimulatedPlace, service: SimulatedService): Ground => ({
  place,
  service,
  command: (id, verb) => inTime(service.instances.command(id, verb)),
  attach: (id, readonly, path) => inTime(service.instances.attach(id, data, mount(readonly, path))),
  detach: (id, force = false) => inTime(service.instances.detach(id, data, force)),
  create: (id, more) => inTime(service.instances.create(request(id, more)))
})

/** A service with one volume of 2 GiB. */
const ground = Effect.gen(function* () {
  const place = yield* makePlace({ latencies: noLatency })
  const service = yield* place.start
  yield* service.volumes.create({ id: data, name: "Data", size_gb: 2 })
  return groundOf(place, service)
})

const tagOf = <A, E extends { readonly _tag: string }>(effect: Effect.Effect<A, E>) =>
  Effect.map(Effect.flip(effect), (it) => it._tag)

describe("a volume of a running instance", () => {
  it.effect("is attached with its mount before the answer, and detached with its device after it", () =>
    Effect.gen(function* () {
      const { place, service, create, attach, detach } = yield* ground
      yield* create(vm)
      const attached = yield* attach(vm)
      assert.deepStrictEqual(attached.volumes, [
        { volume_id: data, mount_path: "/data", readonly: false, status: "mounted" }
      ])
      assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: "/data" })
      assert.deepStrictEqual((yield* service.instances.attachments).get(data), [
        { instance_id: vm, mount_path: "/data", readonly: false }
      ])
      // The same again is so already; the same at another path is not.
      assert.strictEqual((yield* attach(vm)).generation, attached.generation)
      assert.strictEqual(yield* tagOf(attach(vm, false, "/elsewhere")), "InvalidState")
      assert.strictEqual(yield* tagOf(service.instances.removeVolume(data)), "VolumeInUse")
      const detached = yield* detach(vm)
      assert.deepStrictEqual(detached.volumes, [])
      assert.deepStrictEqual(seen(place, vm), { disk: null, at: null })
      assert.strictEqual((yield* detach(vm)).generation, detached.generation)
      yield* service.instances.removeVolume(data)
      assert.strictEqual(yield* tagOf(detach(vm)), "VolumeNotFound")
      assert.deepStrictEqual(place.world.violations, [])
    })
  )

  it.effect("that a process holds stays, with its name in the problem; force takes it", () =>
    Effect.gen(function* () {
      const { place, service, create, attach, detach } = yield* ground
      yield* create(vm, { env: { SIMULATED_HOLDS: "/data" } })
      yield* attach(vm)
      const problem = yield* Effect.flip(inTime(service.instances.detach(vm, data, false)))
      assert(problem._tag === "VolumeBusy")
      assert.deepStrictEqual(problem.holders, [{ pid: 7, command: "simulated" }])
      assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: "/data" })
      assert.strictEqual(statusOf(yield* service.instances.get(vm)), "mounted")
      yield* detach(vm, true)
      assert.deepStrictEqual(seen(place, vm), { disk: null, at: null })
      assert.deepStrictEqual(place.world.violations, [])
    })
  )

  it.effect(
    "that the guest does not mount, or the VMM does not take, is not attached, and leaves no device",
    () =>
      Effect.gen(function* () {
        const { place, service, create, attach } = yield* ground
        yield* create(vm)
        for (const operation of ["agentMount", "addDisk"] as const)
          for (const phase of ["start", "middle", "end"] as const) {
            place.world.plan.failNext(operation, { id: vm, phase })
            assert.strictEqual(yield* tagOf(attach(vm)), "VerbFailed", `${operation} ${phase}`)
            assert.deepStrictEqual((yield* service.instances.get(vm)).volumes, [], `${operation} ${phase}`)
            assert.deepStrictEqual(seen(place, vm).disk, null, `${operation} ${phase}`)
          }
        yield* attach(vm)
        assert.deepStrictEqual(place.world.violations, [])
      })
  )

  it.effect("whose device the guest keeps stays its own until it lets go, or is off", () =>
    Effect.gen(function* () {
      const { place, create, attach, detach, command } = yield* ground
      yield* create(vm)
      yield* attach(vm)
      place.world.plan.failNext("removeDisk", { id: vm, phase: "start" })
      assert.strictEqual(yield* tagOf(detach(vm)), "VerbFailed")
      yield* create(other)
      assert.strictEqual(yield* tagOf(attach(other)), "VolumeInUse")
      assert.deepStrictEqual(yield* detach(vm).pipe(Effect.map((it) => it.volumes)), [])
      yield* attach(vm)
      place.world.plan.failNext("removeDisk", { id: vm, phase: "start" })
      assert.strictEqual(yield* tagOf(detach(vm)), "VerbFailed")
      yield* command(vm, "stop")
      yield* attach(other)
      assert.deepStrictEqual(place.world.violations, [])
    })
  )

  it.effect("comes back with a restart by policy, and goes with a delete", () =>
    Effect.gen(function* () {
      const { place, service, create, attach } = yield* ground
      yield* create(vm, { restart_policy: "always" })
      yield* attach(vm)
      incidents.crashVmm(place.world, vm)
      // The death is heard of a moment later.
      const again = yield* inTime(
        Effect.sleep("2 seconds").pipe(
          Effect.andThen(service.instances.wait(vm, { state: "Running", ready: true, timeoutMs: 60_000 }))
        )
      )
      assert.strictEqual(again.restarts, 1)
      assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: "/data" })
      yield* inTime(service.instances.remove(vm))
      yield* service.instances.removeVolume(data)
      assert.deepStrictEqual(place.files.names(servicePaths.volumes), [])
    })
  )
})

describe("one writer, or any number of readers", () => {
  it.effect("holds over all instances, at create as well, in whatever state they are", () =>
    Effect.gen(function* () {
      const { place, create, attach, detach, command } = yield* ground
      const volumes = [{ volume_id: data, ...mount() }]
      yield* create(vm, { volumes })
      assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: "/data" })
      assert.strictEqual(yield* tagOf(create(other, { volumes })), "VolumeInUse")
      yield* create(other)
      for (const verb of ["pause", "standby", "restore", "shutdown", "stop"] as const) {
        yield* command(vm, verb)
        assert.strictEqual(yield* tagOf(attach(other)), "VolumeInUse", verb)
        assert.strictEqual(yield* tagOf(attach(other, true)), "VolumeInUse", verb)
      }
      yield* detach(vm)
      yield* attach(vm, true)
      yield* attach(other, true)
      assert.strictEqual(seen(place, other).disk, "reads")
      yield* command(vm, "start")
      assert.deepStrictEqual(seen(place, vm), { disk: "reads", at: "/data" })
      yield* detach(other)
      assert.strictEqual(yield* tagOf(attach(other)), "VolumeInUse")
      assert.deepStrictEqual(place.world.violations, [])
    })
  )

  it.effect("holds against requests that come at once", () =>
    Effect.gen(function* () {
      const { service, create, place } = yield* ground
      const ids = ["a", "b", "c", "d"].map((id) => InstanceId.make(id))
      yield* Effect.forEach(ids, (id) => create(id))
      const asked: ReadonlyArray<Effect.Effect<Instance, { readonly _tag: string }>> = [
        ...ids.map((id) => service.instances.attach(id, data, mount())),
        service.instances.create(request("e", { volumes: [{ volume_id: data, ...mount() }] }))
      ]
      const exits = yield* inTime(
        Effect.forEach(asked, (it) => Effect.exit(it), { concurrency: "unbounded" })
      )
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
      assert.strictEqual((yield* service.instances.attachments).get(data)?.length, 1)
      assert.deepStrictEqual(place.world.violations, [])
    })
  )

  it.effect("a client that goes away in the middle of its attach leaves no gap for another", () =>
    Effect.gen(function* () {
      const { service, create } = yield* ground
      yield* create(vm)
      yield* create(other)
      const first = yield* Effect.forkChild(service.instances.attach(vm, data, mount()))
      yield* Effect.yieldNow
      const second = yield* Effect.forkChild(Effect.exit(service.instances.attach(other, data, mount())))
      yield* Fiber.interrupt(first)
      yield* inTime(Fiber.await(second))
      yield* inTime(service.instances.wait(vm, { state: "Running", timeoutMs: 60_000 }))
      assert.strictEqual((yield* service.instances.attachments).get(data)?.length, 1)
    })
  )

  it.effect("a volume that nobody knows, or one twice, is refused before anything is touched", () =>
    Effect.gen(function* () {
      const { place, create } = yield* ground
      const none = { volume_id: VolumeId.make("none"), ...mount() }
      const it = { volume_id: data, ...mount() }
      assert.strictEqual(yield* tagOf(create(vm, { volumes: [none] })), "VolumeNotFound")
      assert.strictEqual(
        yield* tagOf(create(vm, { volumes: [it, { ...it, mount_path: "/b" }] })),
        "Unprocessable"
      )
      const second = { ...it, volume_id: VolumeId.make("second") }
      assert.strictEqual(yield* tagOf(create(vm, { volumes: [it, second] })), "Unprocessable")
      assert.deepStrictEqual(place.files.names(servicePaths.instances), [])
    })
  )
})

describe("an instance that does not run", () => {
  it.effect("Created and Shutdown: the device now, the mount at the boot; and out again", () =>
    Effect.gen(function* () {
      const { place, create, attach, detach, command } = yield* ground
      yield* create(vm, { start: false })
      for (const state of ["Created", "Shutdown"] as const) {
        const attached = yield* attach(vm)
        assert.deepStrictEqual([attached.state, statusOf(attached)], [state, "next-boot"])
        assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: null })
        assert.deepStrictEqual((yield* detach(vm)).volumes, [])
        assert.deepStrictEqual(seen(place, vm), { disk: null, at: null })
        yield* attach(vm)
        yield* command(vm, "start")
        assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: "/data" })
        yield* command(vm, "shutdown")
        yield* detach(vm)
        yield* command(vm, "start")
        assert.deepStrictEqual(seen(place, vm), { disk: null, at: null })
        yield* command(vm, "shutdown")
      }
    })
  )

  it.effect("Stopped: the record alone, and the guest has it at the next start", () =>
    Effect.gen(function* () {
      const { place, create, attach, detach, command } = yield* ground
      yield* create(vm)
      const stopped = yield* command(vm, "stop")
      const attached = yield* attach(vm)
      assert.deepStrictEqual([attached.state, statusOf(attached)], ["Stopped", "next-boot"])
      assert.strictEqual(attached.stopped_at, stopped.stopped_at)
      yield* command(vm, "start")
      assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: "/data" })
      yield* command(vm, "stop")
      assert.deepStrictEqual((yield* detach(vm)).volumes, [])
    })
  )

  it.effect("Paused: said so in the answer, and done at the resume, over standby and restore as well", () =>
    Effect.gen(function* () {
      const { place, service, create, attach, detach, command } = yield* ground
      yield* create(vm)
      yield* command(vm, "pause")
      assert.strictEqual(statusOf(yield* attach(vm)), "attaching")
      assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: null })
      yield* command(vm, "standby")
      const restored = yield* inTime(service.instances.command(vm, "restore", { resume: false }))
      assert.deepStrictEqual([restored.state, statusOf(restored)], ["Paused", "attaching"])
      yield* command(vm, "resume")
      yield* inTime(service.instances.wait(vm, { state: "Running", timeoutMs: 60_000 }))
      assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: "/data" })
      yield* command(vm, "pause")
      assert.strictEqual(statusOf(yield* detach(vm)), "detaching")
      assert.strictEqual(yield* tagOf(attach(vm)), "InvalidState")
      yield* command(vm, "resume")
      const view = yield* inTime(service.instances.wait(vm, { state: "Running", timeoutMs: 60_000 }))
      assert.deepStrictEqual(view.volumes, [])
      assert.deepStrictEqual(seen(place, vm), { disk: null, at: null })
      assert.deepStrictEqual(place.world.violations, [])
    })
  )

  it.effect("Standby: refused, and what it holds is as the snapshot has it", () =>
    Effect.gen(function* () {
      const { place, service, create, attach, detach, command } = yield* ground
      const second = VolumeId.make("second")
      yield* service.volumes.create({ id: second, name: "Second", size_gb: 1 })
      yield* create(vm)
      yield* attach(vm)
      assert.strictEqual(statusOf(yield* command(vm, "standby")), "frozen")
      assert.strictEqual(yield* tagOf(detach(vm)), "InvalidState")
      const refused = yield* Effect.flip(inTime(service.instances.attach(vm, second, mount(false, "/b"))))
      assert(refused._tag === "InvalidState")
      assert.include(refused.detail, "snapshot")
      assert.strictEqual(yield* tagOf(service.instances.growVolume(data, 3)), "VolumeInUse")
      yield* command(vm, "restore")
      assert.deepStrictEqual(seen(place, vm), { disk: "writes", at: "/data" })
    })
  )

  it.effect("a restore refuses a volume that was written to by somebody else, and says which", () =>
    Effect.gen(function* () {
      const { place, service, create, attach, command } = yield* ground
      yield* create(vm)
      yield* attach(vm)
      yield* command(vm, "standby")
      yield* TestClock.adjust("1 second")
      yield* Effect.flatMap(Files, (files) =>
        files.overwrite(servicePaths.volumeDisk(data), 0, new Uint8Array([1]))
      ).pipe(Effect.provide(place.files.layer))
      const problem = yield* Effect.flip(inTime(service.instances.command(vm, "restore")))
      assert(problem._tag === "Unprocessable")
      assert.include(problem.detail, "'data' was changed")
      assert.strictEqual((yield* service.instances.get(vm)).state, "Standby")
    })
  )
})
