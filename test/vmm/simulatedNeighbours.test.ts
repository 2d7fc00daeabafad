/** What stands beside the driver on a simulated host: agents with their guests' programs, and the network. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId } from "../../src/domain/Ids.ts"
import {
  configDiskBytes,
  configMagic,
  GuestConfig,
  GuestReport,
  reportBytes,
  reportMagic
} from "../../src/guest/GuestConfig.ts"
import { Files } from "../../src/host/Files.ts"
import { noLatency, realLatency } from "../../src/host/simulated/FaultPlan.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import { ledger, look } from "../../src/host/simulated/ledger.ts"
import { Images } from "../../src/image/Images.ts"
import { demoDigest, demoImage, demoReference, simulatedImages } from "../support/simulatedImages.ts"
import { makeHost, prepareVm, runVm, type TestHost } from "../support/simulatedWorld.ts"

const id = InstanceId.make("a")
const endpoint = { _tag: "UnixSocket", path: "/run/a/agent.sock" } as const

/** A config disk as GuestConfig.ts lays it out. */
const writeConfigDisk = (host: TestHost, env: Record<string, string>) =>
  Effect.gen(function* () {
    const config = yield* Schema.encodeEffect(Schema.fromJsonString(GuestConfig))({
      version: 1,
      hostname: "demo",
      argv: ["/bin/demo"],
      env,
      working_dir: "/",
      user: "",
      layers: ["layer-0"],
      overlay: "overlay",
      network: null,
      volumes: []
    })
    const json = new TextEncoder().encode(config)
    const disk = new Uint8Array(configDiskBytes)
    disk.set(new TextEncoder().encode(configMagic))
    new DataView(disk.buffer).setUint32(8, json.length, true)
    disk.set(json, 12)
    const files = yield* Files
    yield* files.write("/data/a/config.raw", disk)
  }).pipe(Effect.orDie, Effect.provide(host.files.layer))

const readReport = (host: TestHost): Option.Option<GuestReport> => {
  const bytes = host.files.disk.readAt("/data/a/config.raw", configDiskBytes - reportBytes, reportBytes)
  const text = new TextDecoder()
  if (text.decode(bytes.subarray(0, 8)) !== reportMagic) return Option.none()
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(8, true)
  return Schema.decodeOption(Schema.fromJsonString(GuestReport))(text.decode(bytes.subarray(12, 12 + length)))
}

/** A running guest with this environment. */
const guestWith = (env: Record<string, string>) =>
  Effect.gen(function* () {
    const host = yield* makeHost({ latencies: { ...noLatency, guestBoot: { minMs: 300, maxMs: 300 } } })
    const service = yield* host.startService
    const config = yield* prepareVm(host, "a")
    yield* writeConfigDisk(host, env)
    const ref = yield* runVm(service, config)
    return { host, service, config, ref }
  })

it.effect("a guest answers when it has booted, and runs what its config disk says", () =>
  Effect.gen(function* () {
    const { host, service, config } = yield* guestWith({})
    const agent = yield* Scope.provide(service.agent.connect(endpoint), yield* Effect.scope)
    const ready = yield* Effect.forkChild(agent.ready, { startImmediately: true })
    yield* TestClock.adjust(299)
    assert.isUndefined(ready.pollUnsafe())
    yield* TestClock.adjust(1_300)
    yield* Fiber.join(ready)
    assert.include(host.files.text(config.consolePath), "started /bin/demo on demo")
  })
)

for (const [env, state, report] of [
  [{ SIMULATED_EXIT_CODE: "3", SIMULATED_EXIT_AFTER_MS: "100" }, "Off", { kind: "exited", code: 3 }],
  [{ SIMULATED_EXIT_AFTER_MS: "0" }, "Off", { kind: "exited", code: 0 }],
  [{ SIMULATED_EXIT_SIGNAL: "9" }, "Off", { kind: "signaled", signal: 9 }],
  [{ SIMULATED_BOOT_ERROR: "no such file" }, "Off", { kind: "failed", message: "no such file" }],
  [{ SIMULATED_PANIC_AFTER_MS: "50" }, "Panicked", null],
  [{ SIMULATED_EXIT_CODE: "three" }, "Running", null]
] as const) {
  it.effect(`a guest ends as ${JSON.stringify(env)} says`, () =>
    Effect.gen(function* () {
      const { host } = yield* guestWith(env)
      yield* TestClock.adjust(299)
      assert.strictEqual(look(host.world, id)?.state, "Running")
      yield* TestClock.adjust(5_000)
      assert.strictEqual(look(host.world, id)?.state, state)
      assert.deepStrictEqual(Option.getOrNull(readReport(host)), report)
    })
  )
}

it.effect("a guest goes off in order when it is asked, unless it is deaf, paused or not up yet", () =>
  Effect.gen(function* () {
    const { host, service, ref } = yield* guestWith({})
    const session = yield* Scope.provide(service.vmm.attach(ref), yield* Effect.scope)
    yield* session.powerButton
    assert.strictEqual(look(host.world, id)?.state, "Running")
    yield* TestClock.adjust(1_400)
    yield* session.pause
    yield* session.powerButton
    yield* session.resume
    assert.strictEqual(look(host.world, id)?.state, "Running")
    const agent = yield* Scope.provide(service.agent.connect(endpoint), yield* Effect.scope)
    yield* agent.shutdown(1_000)
    assert.strictEqual(look(host.world, id)?.state, "Off")
    assert.deepStrictEqual(Option.getOrNull(readReport(host)), { kind: "stopped" })
    const refused = yield* Effect.forkChild(Effect.flip(agent.sync), { startImmediately: true })
    yield* TestClock.adjust(5_000)
    assert.strictEqual((yield* Fiber.join(refused)).reason, "no answer from the guest")
    const deaf = yield* guestWith({ SIMULATED_DEAF: "1" })
    yield* TestClock.adjust(1_400)
    const other = yield* Scope.provide(deaf.service.vmm.attach(deaf.ref), yield* Effect.scope)
    yield* other.powerButton
    assert.strictEqual(look(deaf.host.world, id)?.state, "Running")
  })
)

it.effect("a guest takes its fate into a snapshot and out of it", () =>
  Effect.gen(function* () {
    const { host, service, ref, config } = yield* guestWith({
      SIMULATED_EXIT_CODE: "7",
      SIMULATED_EXIT_AFTER_MS: "60000"
    })
    yield* TestClock.adjust(1_500)
    const files = yield* Effect.scoped(
      Effect.flatMap(service.vmm.attach(ref), (session) =>
        Effect.andThen(session.pause, session.snapshot("/data/a/snapshot"))
      )
    )
    yield* service.processes.kill(ref)
    yield* TestClock.adjust("1 hour")
    const restored = { ...ref, process: yield* service.vmm.spawnRestoring(config, "/data/a/snapshot", files) }
    yield* TestClock.adjust("1 hour")
    assert.strictEqual(look(host.world, id)?.state, "Paused")
    const session = yield* Scope.provide(service.vmm.attach(restored), yield* Effect.scope)
    yield* session.resume
    assert.isTrue(look(host.world, id)?.answers)
    yield* TestClock.adjust(60_000)
    assert.strictEqual(look(host.world, id)?.state, "Off")
    assert.deepStrictEqual(Option.getOrNull(readReport(host)), { kind: "exited", code: 7 })
  })
)

it.effect("a guest has one channel, which closes with its VMM and with nothing else", () =>
  Effect.gen(function* () {
    const { host, service } = yield* guestWith({})
    const agent = yield* Scope.provide(service.agent.connect(endpoint), yield* Effect.scope)
    const second = yield* Effect.flip(Effect.scoped(service.agent.connect(endpoint)))
    assert.strictEqual(second.reason, "another client is connected")
    const closed = yield* Effect.forkChild(agent.closed, { startImmediately: true })
    const ready = yield* Effect.forkChild(Effect.flip(agent.ready), { startImmediately: true })
    incidents.guestPowersOff(host.world, id)
    yield* TestClock.adjust("1 hour")
    assert.isUndefined(closed.pollUnsafe())
    incidents.crashVmm(host.world, id)
    yield* Fiber.join(closed)
    assert.include(["the VMM ended", "the channel is closed"], (yield* Fiber.join(ready)).reason)
    const nobody = yield* Effect.flip(Effect.scoped(service.agent.connect(endpoint)))
    assert.strictEqual(nobody.reason, "nothing listens there")
  })
)

it.effect(
  "the network gives a TAP to one VMM, refuses it while it is held, and says who took it from under a guest",
  () =>
    Effect.gen(function* () {
      const host = yield* makeHost()
      const { network, vmm, processes } = yield* host.startService
      const lease = yield* network.lease(id)
      const config = yield* prepareVm(host, "a", { lease })
      assert.include((yield* Effect.flip(vmm.spawn(config))).reason, "there is no TAP")
      yield* network.attach(id, lease)
      const ref = { id, process: yield* vmm.spawn(config), runDirectory: config.runDirectory }
      assert.include((yield* Effect.flip(network.attach(id, lease))).reason, "busy")
      const other = yield* prepareVm(host, "b", { lease })
      assert.include((yield* Effect.flip(vmm.spawn(other))).reason, "busy")
      assert.deepStrictEqual(host.world.violations, [])
      yield* network.detach(lease)
      assert.deepStrictEqual(host.world.violations, ["TAP of a removed from under its VMM"])
      yield* processes.kill(ref)
      yield* network.detach(lease)
      assert.deepStrictEqual(ledger(host.world).taps, [])
    })
)

it.effect("the network finds every leftover by the world's word, and finishes what is half made", () =>
  Effect.gen(function* () {
    const host = yield* makeHost({ latencies: realLatency })
    const first = yield* host.startService
    const names = ["a", "b", "c", "d"].map((name) => InstanceId.make(name))
    const leases = yield* Effect.forEach(names, first.network.lease)
    const making = yield* Effect.forEach(names, (name, at) => {
      const lease = leases[at]
      return Effect.forkChild(lease === undefined ? Effect.void : first.network.attach(name, lease), {
        startImmediately: true
      })
    })
    yield* first.kill
    yield* TestClock.adjust("1 minute")
    yield* Fiber.awaitAll(making)
    assert.isTrue([...host.world.taps.values()].every((it) => !it.pinned))
    const second = yield* host.startService
    const kept = yield* first.network.lease(id)
    yield* second.network.adopt(id, kept)
    const clash = yield* Effect.flip(second.network.adopt(InstanceId.make("x"), kept))
    assert.strictEqual(clash.holder, "a")
    const reconciling = yield* Effect.forkChild(second.network.reconcile(new Map([[id, kept]])))
    yield* TestClock.adjust(1_000)
    assert.sameMembers(
      [...(yield* Fiber.join(reconciling))],
      leases.slice(1).map((lease) => lease.tap)
    )
    assert.deepStrictEqual(
      [...host.world.taps.values()].map((it) => [it.name, it.pinned]),
      [[kept.tap, true]]
    )
    assert.deepStrictEqual(yield* second.network.usage, { total: 253, leased: 1 })
  })
)

it.effect("the images of a test are one, ready until it is removed, and never removed while it is used", () =>
  Effect.gen(function* () {
    const images = yield* Images
    const found = yield* images.resolve(demoReference)
    assert.deepStrictEqual(found, yield* images.pinned(demoImage, demoDigest))
    assert.deepStrictEqual(
      found.layers.map((layer) => layer.path),
      ["/layer"]
    )
    assert.strictEqual((yield* images.get(demoImage)).status, "ready")
    assert.strictEqual((yield* Effect.flip(images.remove(demoImage, [id])))._tag, "ImageInUse")
    yield* images.remove(demoImage, [])
    assert.deepStrictEqual(yield* images.list, [])
    assert.strictEqual((yield* Effect.flip(images.resolve(demoImage)))._tag, "ImageNotFound")
  }).pipe(Effect.provide(simulatedImages("/layer")))
)
