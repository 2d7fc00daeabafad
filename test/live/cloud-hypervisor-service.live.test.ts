/**
 * The whole service over the real Cloud Hypervisor, in a network namespace, with the counting guest as its kernel: it has
 * no userspace and no agent, so nothing here waits for `ready`.
 */
import { writeFileSync } from "node:fs"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { InstanceId } from "../../src/domain/Ids.ts"
import { counterGuest } from "../../src/vmm/cloud-hypervisor/counterGuest.ts"
import { releaseOf } from "../../src/vmm/cloud-hypervisor/Release.ts"
import { binaries, cloudHypervisorObstacle } from "../support/cloudHypervisor.ts"
import { createInstance, importImage } from "../support/guests.ts"
import { expectNoLeaks, ledger } from "../support/leaks.ts"
import { allLines, guestImage, refused, untilLine } from "../support/liveGuest.ts"
import { liveObstacle, skipWhere } from "../support/liveHost.ts"
import { type Service, startService } from "../support/Service.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const testMaxMs = 180_000
const obstacle = cloudHypervisorObstacle() ?? liveObstacle()

const numberIn = (line: string): number => Number(/^tick (\d+)$/u.exec(line.trim())?.[1] ?? Number.NaN)

const counted = (service: Service, id: InstanceId) =>
  Effect.map(allLines(service, id), (lines) =>
    lines.map(({ line }) => numberIn(line)).filter((number) => !Number.isNaN(number))
  )

/** Waits until the guest has counted on from where it was, and gives all that it counted since its boot. */
const goesOn = (service: Service, id: InstanceId, more = 3) =>
  Effect.gen(function* () {
    const last = (yield* counted(service, id)).at(-1) ?? 0
    yield* untilLine(service, id, ({ line }) => numberIn(line) >= last + more)
    return yield* counted(service, id)
  })

/** From 1 on, without a gap and without a repetition, over all runs of the console. */
const expectUnbroken = (numbers: ReadonlyArray<number>) =>
  assert.deepStrictEqual(
    numbers,
    numbers.map((_, index) => index + 1)
  )

/** The log of events keeps what was, also of an instance that is gone. */
const isEventLog = (line: string): boolean => line.startsWith("files: events/")

const start = (programs: string) =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("guest")
    const kernel = path.join(directory, "counter")
    const initrd = path.join(directory, "initrd")
    writeFileSync(kernel, counterGuest())
    writeFileSync(initrd, "the counting guest looks at none")
    const service = yield* startService({
      env: {
        VMM: "cloud-hypervisor",
        CLOUD_HYPERVISOR_BIN: programs,
        KERNEL_PATH: kernel,
        INITRD_PATH: initrd
      }
    })
    const image = yield* importImage(service, "img-counter", guestImage)
    const before = yield* ledger(service)
    const create = (name: string) =>
      createInstance(service, {
        id: name,
        name,
        image: image.id,
        memory_mb: 128,
        memory_max_mb: 256,
        vcpus: 1
      })
    return { service, before, create }
  })

const wholeLife = (program: string, version: string) =>
  Effect.gen(function* () {
    const { service, before, create } = yield* start(program)
    const { instances } = service.client
    const made = yield* create("counter")
    const params = { id: made.id }
    assert.deepStrictEqual(
      [made.state, made.vmm.kind, made.vmm.version],
      ["Running", "cloud-hypervisor", version]
    )
    yield* goesOn(service, made.id)

    assert.strictEqual((yield* instances.pause({ params })).state, "Paused")
    assert.strictEqual((yield* instances.resume({ params })).state, "Running")
    expectUnbroken(yield* goesOn(service, made.id))

    const standby = yield* instances.standby({ params })
    assert.deepStrictEqual([standby.state, standby.vmm.pid, standby.has_snapshot], ["Standby", null, true])
    const last = (yield* counted(service, made.id)).at(-1) ?? 0
    const restored = yield* instances.restore({ params, query: { restore_mode: "copy" } })
    assert.strictEqual(restored.state, "Running")
    const numbers = yield* goesOn(service, made.id)
    assert.strictEqual(numbers[last], last + 1)
    expectUnbroken(numbers)

    yield* service.restart("SIGKILL")
    const adopted = yield* instances.get({ params })
    assert.deepStrictEqual([adopted.state, adopted.vmm.pid], ["Running", restored.vmm.pid])
    expectUnbroken(yield* goesOn(service, made.id))
    assert.strictEqual((yield* instances.pause({ params })).state, "Paused")
    yield* service.restart()
    assert.strictEqual((yield* instances.get({ params })).state, "Paused")
    assert.strictEqual((yield* instances.resume({ params })).state, "Running")
    expectUnbroken(yield* goesOn(service, made.id))

    yield* instances.remove({ params })
    yield* expectNoLeaks(service, before, isEventLog)
  }).pipe(Effect.scoped)

/** Standby under one release, and what other hosts make of it. */
const otherReleases = (older: string, version: string, newer: string) =>
  Effect.gen(function* () {
    const { service, before, create } = yield* start(older)
    const { instances } = service.client
    const made = yield* create("counter")
    const params = { id: made.id }
    yield* goesOn(service, made.id)
    yield* instances.standby({ params })

    yield* service.stop()
    yield* service.start({ CLOUD_HYPERVISOR_BIN: newer })
    const alone = yield* refused(service, "POST", `/instances/${made.id}/restore`)
    assert.include(JSON.stringify(alone.members), `needs cloud-hypervisor ${version}`)
    assert.deepStrictEqual((yield* instances.get({ params })).state, "Standby")
    assert.notInclude(
      service.log.map((line) => line["event"]),
      "vmm.spawned"
    )

    yield* service.stop()
    yield* service.start({ CLOUD_HYPERVISOR_BIN: `${newer}:${older}` })
    if (!releaseOf(version).loadsOnDemand) {
      const lazy = yield* refused(service, "POST", `/instances/${made.id}/restore?restore_mode=on_demand`)
      assert.include(JSON.stringify(lazy.members), "cannot load memory on demand")
      assert.deepStrictEqual((yield* instances.get({ params })).state, "Standby")
    }
    const restored = yield* instances.restore({ params, query: {} })
    assert.deepStrictEqual([restored.state, restored.vmm.version], ["Running", version])
    expectUnbroken(yield* goesOn(service, made.id))
    const another = yield* create("another")
    assert.notStrictEqual(another.vmm.version, version)
    yield* instances.remove({ params })
    yield* instances.remove({ params: { id: another.id } })
    yield* expectNoLeaks(service, before, isEventLog)
  }).pipe(Effect.scoped)

describe("the service over Cloud Hypervisor", { timeout: testMaxMs }, () => {
  skipWhere(obstacle)
  const all = obstacle === null ? binaries() : []
  const [newest] = all
  const oldest = all.at(-1)

  it.live(
    "create, pause, standby, restore at the next number, killed and adopted, delete leaves nothing",
    () => (newest === undefined ? Effect.void : wholeLife(newest.program, newest.version))
  )

  it.live(
    "a snapshot is restored by the release that wrote it, and refused where that is not there",
    (context) =>
      newest === undefined || oldest === undefined || newest === oldest
        ? Effect.sync(() => context.skip("needs two releases in CLOUD_HYPERVISOR_BIN, newest first"))
        : otherReleases(oldest.program, oldest.version, newest.program)
  )
})
