/**
 * The Cloud Hypervisor driver against the real binaries that CLOUD_HYPERVISOR_BIN names, one after the other. Its guest
 * counts on the serial port and needs nothing of KVM that a host may lack; what takes a guest's kernel (a disk that is let
 * go, memory that is taken, the agent) is shown with Linux guests elsewhere.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"

import type { VmConfig, VmmSession, VmmStatus } from "../../src/vmm/Vmm.ts"
import { conformance } from "../../src/vmm/cloud-hypervisor/conformance.ts"
import type { CounterEnd } from "../../src/vmm/cloud-hypervisor/counterGuest.ts"
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
import { settingsLayer, startVm } from "../support/vmmHost.ts"

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

/** The next event of a session, asked for before what causes it. */
const nextEvent = (session: VmmSession) => Effect.map(Stream.runHead(session.events), Option.getOrThrow)

/** How a guest ends by itself, and what its VMM is told and found to be. */
const guestEnds = (host: CloudHypervisorHost, end: CounterEnd) =>
  Effect.gen(function* () {
    const kernel = host.guest(end, { until: { tick: 20, end } })
    const config = host.configure(`ends-${end}`, { kernel })
    const { session } = yield* startVm(host, config)
    const told = yield* Effect.forkChild(nextEvent(session))
    yield* Effect.yieldNow
    yield* session.boot
    assert.deepStrictEqual(
      yield* Fiber.join(told),
      end === "panic" ? { _tag: "GuestPanicked" } : { _tag: "GuestOff", cause: end }
    )
    yield* expectStatus(session, end === "panic" ? "Panicked" : "Off")
    const run = counted(config)
    // What a reset began anew before it was switched off counts from 1 as well, behind what the first run wrote.
    assertCounts(run.slice(0, 20))
    const again = yield* Effect.forkChild(nextEvent(session))
    yield* Effect.yieldNow
    yield* session.boot
    assert.strictEqual((yield* Fiber.join(again))._tag, end === "panic" ? "GuestPanicked" : "GuestOff")
  })

/** The same while no service watches: the next one finds it so. */
const guestEndsUnseen = (host: CloudHypervisorHost, end: CounterEnd) =>
  Effect.gen(function* () {
    const kernel = host.guest(`unseen-${end}`, { until: { tick: 20, end } })
    const config = host.configure(`unseen-${end}`, { kernel })
    const ref = host.ref(config, yield* host.vmm.spawn(config))
    yield* Effect.scoped(Effect.flatMap(host.vmm.attach(ref), (session) => session.boot))
    yield* untilConsole(config.consolePath, "the last tick", (text) => ticks(text).includes(20))
    // Its end is an event behind the last number; a new session sees it, or is told of it.
    const session = yield* host.vmm.attach(ref)
    const wanted = end === "panic" ? "Panicked" : "Off"
    yield* session.status.pipe(
      Effect.repeat({ until: (status) => status._tag === wanted, times: 1_000 }),
      Effect.tap((status) => Effect.sync(() => assert.strictEqual(status._tag, wanted)))
    )
    yield* session.boot
    yield* expectStatus(session, "Running")
  })

/** A release that ends with its guest: the end is told before the process is gone. */
const guestEndsWithVmm = (host: CloudHypervisorHost) =>
  Effect.gen(function* () {
    const config = host.configure("ends", {
      kernel: host.guest("off", { until: { tick: 20, end: "poweroff" } })
    })
    const { ref, session } = yield* startVm(host, config)
    const told = yield* Effect.forkChild(Stream.runCollect(session.events))
    yield* Effect.yieldNow
    yield* session.boot
    assert.deepStrictEqual(yield* host.processes.exit(ref), { code: 0, signal: null })
    yield* Fiber.join(told)
    assertCounts(counted(config))
  })

const disks = (host: CloudHypervisorHost) =>
  Effect.gen(function* () {
    const config = host.configure("disks")
    const { session } = yield* startVm(host, config)
    const disk = { serial: "vol", path: host.disk("vol.raw"), readonly: false, removable: true }
    // Without a guest, a disk comes and goes at once.
    yield* session.addDisk(disk)
    yield* session.removeDisk("vol")
    yield* session.removeDisk("vol")
    yield* session.boot
    yield* moreTicks(config)
    yield* session.addDisk(disk)
    assert.include((yield* Effect.flip(session.addDisk(disk))).reason, "not unique")
    const outside = { ...disk, serial: "outside", path: "/etc/hostname" }
    assert.include((yield* Effect.flip(session.addDisk(outside))).operation, "add-disk")
    // A second VMM on the same disk is refused by its lock, and leaves nothing.
    const other = host.configure("other", { disks: [disk] })
    const second = yield* startVm(host, other)
    assert.include((yield* Effect.flip(second.session.boot)).reason.toLowerCase(), "lock")
    // The counting guest lets go of nothing.
    assert.include((yield* Effect.flip(session.removeDisk("vol"))).reason, "has not let go")
    yield* expectStatus(session, "Running")
  })

const onDemand = (host: CloudHypervisorHost, version: string) =>
  Effect.gen(function* () {
    const { config, directory, files } = yield* snapshotAndRestore(host, version)
    const wish = { version, mode: "on_demand" } as const
    const again = host.configure("frozen", { disks: config.disks })
    if (!releaseOf(version).loadsOnDemand) {
      const refusal = yield* Effect.flip(host.vmm.spawnRestoring(again, directory, files, wish))
      assert.include(refusal.reason, "cannot load memory on demand")
      assert.deepStrictEqual(yield* host.processes.scan, [])
      return
    }
    const ref = host.ref(again, yield* host.vmm.spawnRestoring(again, directory, files, wish))
    const session = yield* host.vmm.attach(ref)
    // The snapshot may go as soon as the guest goes on.
    fs.rmSync(directory, { recursive: true })
    yield* session.resume
    yield* moreTicks(again)
    yield* session.pause
    const next = snapshotDirectory(host, config, "3")
    assert.strictEqual((yield* session.snapshot(next)).length, files.length)
  })

/** What is not this VM's snapshot, or not a snapshot of an installed release, starts no process. */
const strangers = (host: CloudHypervisorHost, version: string) =>
  Effect.gen(function* () {
    const { config, directory, files } = yield* snapshotAndRestore(host, version)
    const refusals: ReadonlyArray<readonly [string, Partial<VmConfig>, string]> = [
      ["another disk", { disks: [{ serial: "data", path: "/else", readonly: false }] }, "disks"],
      ["no disk", { disks: [] }, "disks"],
      [
        "another run directory",
        { disks: config.disks, runDirectory: `${config.runDirectory}x` },
        "run directory"
      ]
    ]
    for (const [what, change, said] of refusals) {
      const again = host.configure("frozen", change)
      const refusal = yield* Effect.flip(host.vmm.spawnRestoring(again, directory, files))
      assert.include(refusal.reason, said, what)
    }
    const again = host.configure("frozen", { disks: config.disks })
    const missing = yield* Effect.flip(
      host.vmm.spawnRestoring(again, directory, files, { version: "49.0", mode: "auto" })
    )
    assert.include(missing.reason, "49.0, which is not installed")
    assert.deepStrictEqual(yield* host.processes.scan, [])
    // A full snapshot directory is no place for another.
    const { session } = yield* startVm(host, again)
    yield* session.boot
    yield* session.pause
    const taken = yield* Effect.flip(session.snapshot(directory))
    assert.include(taken.reason, "File exists")
  })

/** Killed without a word, it leaves sockets that keep no successor from starting. */
const killed = (host: CloudHypervisorHost) =>
  Effect.gen(function* () {
    const config = host.configure("killed")
    const { ref, session } = yield* startVm(host, config)
    yield* session.boot
    yield* moreTicks(config)
    const events = yield* Effect.forkChild(Stream.runCollect(session.events))
    const exit = yield* Effect.forkChild(host.processes.exit(ref))
    yield* Effect.yieldNow
    process.kill(ref.process.pid, "SIGKILL")
    assert.deepStrictEqual(yield* Fiber.join(exit), { code: null, signal: "SIGKILL" })
    yield* Fiber.join(events)
    assert.strictEqual((yield* Effect.flip(session.status)).operation, "status")
    assert.include((yield* Effect.flip(host.vmm.attach(ref))).reason, "is no more")
    assert.include(fs.readdirSync(config.runDirectory), "api.sock")
    const again = host.configure("killed")
    const next = yield* startVm(host, again)
    yield* next.session.boot
    assertCounts(yield* moreTicks(again))
  })

/** A kernel that is none is said at boot, and its VMM can be ended. */
const badKernel = (host: CloudHypervisorHost) =>
  Effect.gen(function* () {
    const config = host.configure("bad", { kernel: path.join(host.root, "initrd") })
    const { session } = yield* startVm(host, config)
    const refusal = yield* Effect.flip(session.boot)
    assert.match(refusal.reason, /kernel|Kernel|payload|boot/u)
    yield* expectStatus(session, "Prelaunch")
    yield* session.quit
  })

const describeBinary = (program: string, version: string) =>
  describe(`Cloud Hypervisor ${version}`, () => {
    const release = releaseOf(version)
    const live = (
      name: string,
      body: (host: CloudHypervisorHost) => Effect.Effect<unknown, unknown, Scope.Scope>
    ) => it.live(name, () => Effect.scoped(Effect.flatMap(cloudHypervisorHost(program), body)), testMaxMs)

    live("boots, pauses, goes on, is switched off, boots again and quits", lifecycle)
    live("a snapshot restores at exactly the next number, and can be taken again", (host) =>
      snapshotAndRestore(host, version)
    )
    live("memory on demand, where no later snapshot suffers from it", (host) => onDemand(host, version))
    live("what is not this VM's snapshot starts no process", (host) => strangers(host, version))
    live("disks come and go, and have one writer", disks)
    live("killed, it leaves nothing in the way of its successor", killed)
    live("a kernel that is none is said", badKernel)
    if (release.staysWithoutGuest)
      live("a guest that goes off is told", (host) => guestEnds(host, "poweroff"))
    else live("a guest that goes off takes its VMM along", guestEndsWithVmm)
    for (const end of ["reset", "panic"] as const) {
      live(`a guest's own ${end} is told, and ends its run`, (host) => guestEnds(host, end))
      live(`a guest's own ${end} is found by the next service`, (host) => guestEndsUnseen(host, end))
    }
  })

describe("dataplane doctor --vmm", () => {
  it.live("says of a program that is none what it is", () =>
    Effect.gen(function* () {
      const { text, exitCode } = yield* Effect.provide(
        conformance,
        settingsLayer({ CLOUD_HYPERVISOR_BIN: "/usr/bin/true" })
      )
      assert.strictEqual(exitCode, 1)
      assert.include(text, "does not say that it is Cloud Hypervisor")
    })
  )

  it.live(
    "leads each program through its life",
    (context) => {
      const programs = process.env["CLOUD_HYPERVISOR_BIN"] ?? ""
      const why = cloudHypervisorObstacle()
      if (why !== null) return Effect.sync(() => context.skip(why))
      return Effect.gen(function* () {
        const { text, exitCode } = yield* Effect.provide(
          conformance,
          settingsLayer({ CLOUD_HYPERVISOR_BIN: programs })
        )
        assert.strictEqual(exitCode, 0, text)
        for (const step of ["ping", "create", "boot", "pause", "snapshot", "restore", "shutdown"])
          assert.match(text, new RegExp(`^ok +${step} `, "mu"))
      })
    },
    testMaxMs
  )
})

describe("Cloud Hypervisor", () => {
  const obstacle = cloudHypervisorObstacle()
  if (obstacle === null) for (const { program, version } of binaries()) describeBinary(program, version)
  else {
    skipWhere(obstacle)
    it("runs its live scenarios", () => assert.fail("skipped"))
  }
})
