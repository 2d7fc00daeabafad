/** Bugs that others had with instances, each as a small history on a simulated host: what bit them must not bite here. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { Digest, InstanceId, timestamp } from "../../src/domain/Ids.ts"
import { InterfaceName, Ipv4, Mac } from "../../src/domain/Network.ts"
import type { SnapshotManifest } from "../../src/domain/Snapshot.ts"
import { noLatency } from "../../src/host/simulated/FaultPlan.ts"
import { reboot } from "../../src/host/simulated/incidents.ts"
import { ledger, look } from "../../src/host/simulated/ledger.ts"
import { layout, socketPathMaxBytes } from "../../src/host/Paths.ts"
import { mismatch } from "../../src/instance/perform/restore.ts"
import { judge, leftovers } from "../simulation/promises.ts"
import { makePlace, request } from "../support/simulatedService.ts"
import { makeHost, prepareVm, runVm } from "../support/simulatedWorld.ts"

const id = InstanceId.make("vm")

/** Lets virtual time pass until the effect ends. */
const inTime = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    const clock = yield* Effect.forkChild(Effect.forever(TestClock.adjust("100 millis")))
    const exit = yield* Fiber.await(fiber)
    yield* Fiber.interrupt(clock)
    return yield* exit
  })

describe("a start of the service", () => {
  it.effect("without a single record still removes every leftover: none is not unknown", () =>
    Effect.gen(function* () {
      const host = yield* makeHost({ latencies: noLatency })
      const before = yield* host.startService
      const lease = yield* before.network.lease(id)
      yield* before.network.attach(id, lease)
      yield* runVm(before, yield* prepareVm(host, "vm", { lease }))
      yield* before.kill
      const after = yield* host.startService
      for (const vmm of yield* after.processes.scan) yield* inTime(after.processes.kill(vmm))
      yield* inTime(after.network.reconcile(new Map()))
      assert.deepStrictEqual([ledger(host.world).processes, ledger(host.world).taps], [[], []])
    })
  )

  it.effect(
    "after a power cut finds frozen guests frozen and running ones off, and nothing of either left",
    () =>
      Effect.gen(function* () {
        const place = yield* makePlace({ latencies: noLatency })
        const first = yield* place.start
        yield* inTime(first.instances.create(request("vm")))
        yield* inTime(first.instances.create(request("frozen")))
        yield* inTime(first.instances.command(InstanceId.make("frozen"), "standby"))
        reboot(place.world, "00000000-0000-4000-8000-000000000002")
        yield* first.stop
        const { instances } = yield* inTime(place.start)
        const off = yield* inTime(instances.wait(id, { state: "Stopped", timeoutMs: 10_000 }))
        assert.deepStrictEqual(judge(place, off), [])
        const back = yield* inTime(instances.command(InstanceId.make("frozen"), "restore"))
        assert.deepStrictEqual([back.state, judge(place, back)], ["Running", []])
      })
  )
})

describe("a guest", () => {
  it.effect("has the right time and another entropy after a restore, before it counts as ready", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      const { instances } = yield* place.start
      yield* inTime(instances.create(request("vm")))
      yield* inTime(instances.wait(id, { ready: true, timeoutMs: 10_000 }))
      const before = look(place.world, id)
      yield* inTime(instances.command(id, "standby"))
      yield* TestClock.adjust("1 hour")
      yield* inTime(instances.command(id, "restore"))
      yield* inTime(instances.wait(id, { ready: true, timeoutMs: 10_000 }))
      const after = look(place.world, id)
      assert.strictEqual(after?.clockBehindMs, 0)
      assert.notStrictEqual(after?.entropy, before?.entropy)
      assert.isAtLeast(after?.counter ?? 0, before?.counter ?? Number.POSITIVE_INFINITY)
    })
  )

  it.effect("goes to sleep and comes back again and again, on the same address and TAP", () =>
    Effect.gen(function* () {
      const place = yield* makePlace({ latencies: noLatency })
      const { instances } = yield* place.start
      const { network } = yield* inTime(instances.create(request("vm")))
      for (let round = 0; round < 10; round++) {
        yield* inTime(instances.command(id, "standby"))
        const view = yield* inTime(instances.command(id, "restore"))
        assert.deepStrictEqual(view.network, network)
        assert.deepStrictEqual(judge(place, view), [])
      }
      yield* inTime(instances.remove(id))
      assert.deepStrictEqual(
        leftovers(place).filter((it) => !it.includes("wires")),
        []
      )
    })
  )
})

it.effect(
  "of twenty creates of one name at once, one makes an instance and the others say that it is there",
  () =>
    Effect.gen(function* () {
      const place = yield* makePlace()
      const { instances } = yield* place.start
      const creates = Array.from({ length: 20 }, () => Effect.exit(instances.create(request("vm"))))
      const exits = yield* inTime(Effect.all(creates, { concurrency: "unbounded" }))
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
      assert.strictEqual(ledger(place.world).processes.length, 1)
      assert.deepStrictEqual(place.world.violations, [])
    })
)

describe("a snapshot", () => {
  const digest = (digit: string) => Digest.make(`sha256:${digit.repeat(64)}`)
  const lease = {
    ip: Ipv4.make("10.0.0.2"),
    mac: Mac.make("52:54:00:00:00:02"),
    tap: InterfaceName.make("vm1")
  }
  type Needs = Parameters<typeof mismatch>[1]
  const needs: Needs = {
    versions: ["7.2.0", "9.1.0"],
    vmm: { kind: "qemu", version: "7.2.0", fingerprint: "pc-q35-7.2" },
    image_digest: digest("1"),
    layers: [digest("2")],
    kernel_sha256: "3".repeat(64),
    initrd_sha256: "4".repeat(64),
    lease,
    disks: [{ serial: "overlay", bytes: 1, modified_ns: "5" }],
    volumes: []
  }
  const manifest: SnapshotManifest = {
    version: 1,
    number: 1,
    created_at: timestamp(0),
    paused: false,
    memory_mb: 128,
    files: [],
    ...needs
  }

  it("that has all that it needs is not refused", () => assert.isNull(mismatch(manifest, needs)))

  const changes: ReadonlyArray<readonly [string, Partial<Needs>]> = [
    ["another kind of VMM", { vmm: { ...needs.vmm, kind: "cloud-hypervisor" } }],
    ["a version of the VMM that is not installed", { versions: ["8.0.0", "9.1.0"] }],
    ["another machine", { vmm: { ...needs.vmm, fingerprint: "pc-q35-8.0" } }],
    ["another image", { image_digest: digest("9") }],
    ["other layers", { layers: [digest("9")] }],
    ["another kernel", { kernel_sha256: "9".repeat(64) }],
    ["another initrd", { initrd_sha256: "9".repeat(64) }],
    ["another address", { lease: { ...lease, ip: Ipv4.make("10.0.0.9") } }],
    ["no network", { lease: null }],
    ["a disk that was written to since", { disks: [{ serial: "overlay", bytes: 1, modified_ns: "9" }] }],
    ["a disk that is gone", { disks: [] }]
  ]
  for (const [what, changed] of changes)
    it(`is refused with a sentence where there is ${what}`, () =>
      assert.match(mismatch(manifest, { ...needs, ...changed }) ?? "", /^[A-Z].*\.$/u))
})

it("a socket's path is short enough however long DATA_DIR and the instance's id are", () => {
  const longest = InstanceId.make("i".repeat(63))
  const { run } = layout(`/${"d".repeat(1_000)}`).instance(longest)
  for (const name of ["monitor.sock", "agent.sock", "qmp.sock", "vsock.sock_1234"])
    assert.isAtMost(Buffer.byteLength(`${run}/${name}`), socketPathMaxBytes)
})
