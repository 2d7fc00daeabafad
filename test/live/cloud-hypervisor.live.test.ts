/**
 * The Cloud Hypervisor driver against the real binaries that CLOUD_HYPERVISOR_BIN names, one after the other. Its guest
 * counts on the serial port and needs nothing of KVM that a host may lack; what takes a guest's kernel (a disk that is let
 * go, memory that is taken, the agent) is shown with Linux guests elsewhere.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"

import type { VmConfig, VmmSession, VmmStatus } from "../../src/vmm/Vmm.ts"
import { releaseOf } from "../../src/vmm/cloud-hypervisor/Release.ts"
import {
  binaries,
  type CloudHypervisorHost,
  cloudHypervisorHost,
  cloudHypervisorObstacle,
  snapshotDirectory
} from "../support/cloudHypervisor.ts"
import { skipWhere } from "../support/liveHost.ts"
import { consoleText, ticks, untilConsole } from "../support/vmmGuest.ts"
import { startVm } from "../support/vmmHost.ts"

const testMaxMs = 120_000

const counted = (config: VmConfig): ReadonlyArray<number> => ticks(consoleText(config.consolePath))

const moreTicks = (config: VmConfig, count = 3) => {
  const before = counted(config).length
  return Effect.map(
    untilConsole(config.consolePath, "more ticks", (text) => ticks(text).length >= before + count),
    ticks
  )
}

const expectStatus = (session: VmmSession, tag: VmmStatus["_tag"]) =>
  Effect.map(session.status, (status) => assert.strictEqual(status._tag, tag))

/** Each number is one more than the one before. */
const assertCounts = (numbers: ReadonlyArray<number>, first = 1) => {
  assert.strictEqual(numbers[0], first)
  const gap = numbers.findIndex((it, index) => it !== first + index)
  assert.strictEqual(gap, -1, `after ${numbers[gap - 1]} comes ${numbers[gap]}`)
}

const pauseAndResume = (config: VmConfig, session: VmmSession) =>
  Effect.gen(function* () {
    yield* session.pause
    yield* expectStatus(session, "Paused")
    yield* session.pause
    const still = consoleText(config.consolePath)
    assert.include((yield* Effect.flip(session.powerButton)).reason, "not running")
    yield* session.status
    assert.strictEqual(consoleText(config.consolePath), still, "a paused guest counts on")
    yield* session.resume
    yield* session.resume
    yield* expectStatus(session, "Running")
    assertCounts(yield* moreTicks(config))
  })

const lifecycle = (host: CloudHypervisorHost) =>
  Effect.gen(function* () {
    const config = host.configure("cycle")
    const { ref, session } = yield* startVm(host, config)
    yield* expectStatus(session, "Prelaunch")
    assert.include((yield* Effect.flip(session.resume)).reason, "prelaunch")
    assert.include((yield* Effect.flip(session.pause)).reason, "prelaunch")
    yield* session.boot
    yield* session.boot
    yield* moreTicks(config)
    yield* pauseAndResume(config, session)
    yield* session.powerButton
    yield* session.powerOff
    yield* expectStatus(session, "Off")
    yield* session.powerOff
    const first = counted(config).length
    yield* session.boot
    yield* expectStatus(session, "Running")
    yield* moreTicks(config)
    // The second boot wrote behind the first one's text.
    assertCounts(counted(config).slice(0, first))
    assertCounts(counted(config).slice(first))
    yield* session.pause
    yield* session.powerOff
    yield* expectStatus(session, "Off")
    yield* session.quit
    assert.deepStrictEqual(yield* host.processes.exit(ref), { code: 0, signal: null })
    assert.deepStrictEqual(yield* host.processes.scan, [])
  })

const snapshotAndRestore = (host: CloudHypervisorHost, version: string) =>
  Effect.gen(function* () {
    const disk = { serial: "data", path: host.disk("data.raw"), readonly: false }
    const config = host.configure("frozen", { disks: [disk] })
    const { ref, session } = yield* startVm(host, config)
    yield* session.boot
    yield* moreTicks(config)
    const directory = snapshotDirectory(host, config, "1")
    assert.include((yield* Effect.flip(session.snapshot(directory))).reason, "not paused")
    yield* session.pause
    const files = yield* session.snapshot(directory)
    assert.deepStrictEqual(
      files.map((file) => [file.name, fs.statSync(path.join(directory, file.name)).size]),
      files.map((file) => [file.name, file.bytes])
    )
    yield* expectStatus(session, "Paused")
    const last = counted(config).at(-1) ?? 0
    yield* session.quit
    yield* host.processes.exit(ref)

    const again = host.configure("frozen", { disks: [disk] })
    const wish = { version, mode: "auto" } as const
    const restored = host.ref(again, yield* host.vmm.spawnRestoring(again, directory, files, wish))
    const next = yield* host.vmm.attach(restored)
    yield* expectStatus(next, "Paused")
    yield* next.resume
    assertCounts(yield* moreTicks(again), last + 1)
    yield* next.pause
    const second = snapshotDirectory(host, config, "2")
    assert.deepStrictEqual(
      (yield* next.snapshot(second)).map((file) => file.name),
      files.map((file) => file.name)
    )
    yield* host.processes.kill(restored)
    return { config: again, directory, files }
  })

const describeBinary = (program: string, version: string) =>
  describe(`Cloud Hypervisor ${version}`, () => {
    const release = releaseOf(version)
    const live = (name: string, body: (host: CloudHypervisorHost) => Effect.Effect<unknown, unknown>) =>
      it.live(name, () => Effect.scoped(Effect.flatMap(cloudHypervisorHost(program), body)), testMaxMs)

    live("boots, pauses, goes on, is switched off, boots again and quits", (host) =>
      Effect.scoped(lifecycle(host))
    )
    live("a snapshot restores at exactly the next number, and can be taken again", (host) =>
      Effect.scoped(snapshotAndRestore(host, version))
    )
    if (release.staysWithoutGuest) return
  })

describe("Cloud Hypervisor", () => {
  const obstacle = cloudHypervisorObstacle()
  if (obstacle === null) for (const { program, version } of binaries()) describeBinary(program, version)
  else {
    skipWhere(obstacle)
    it("runs its live scenarios", () => assert.fail("skipped"))
  }
})
