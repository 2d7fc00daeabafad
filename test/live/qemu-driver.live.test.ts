/**
 * The QEMU driver on real processes and real Linux guests under software emulation. Boots take seconds, so each guest
 * that runs is led through as much as one guest can; what needs no guest stays at the first instruction.
 */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { crc32 } from "node:zlib"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { SnapshotFile } from "../../src/domain/Snapshot.ts"
import type { Disk, VmConfig, VmmRef, VmmSession, VmmStatus } from "../../src/vmm/Vmm.ts"
import { agentSocket } from "../../src/vmm/qemu/args.ts"
import { liveObstacle, skipWhere } from "../support/liveHost.ts"
import { consoleText, tell, ticks, times, untilConsole } from "../support/vmmGuest.ts"
import { runFiles, startVm, type VmmHost, vmmHost } from "../support/vmmHost.ts"

/** A process for each of 60 disks takes 20 s under software emulation, and three times that beside another guest. */
const answerMaxMs = 150_000
const testMaxMs = 240_000

const tellGuest = (config: VmConfig, line: string) => tell(agentSocket(config.runDirectory), line)

const untilReady = (config: VmConfig, boots: number) =>
  untilConsole(config.consolePath, `boot ${boots}`, (text) => times(text, "ready") >= boots)

/** Sends a line, and waits until the guest ran it. */
const asked = (config: VmConfig, line: string) =>
  Effect.gen(function* () {
    const before = times(consoleText(config.consolePath), "ran")
    yield* tellGuest(config, line)
    return yield* untilConsole(config.consolePath, line, (text) => times(text, "ran") > before, answerMaxMs)
  })

const moreTicks = (config: VmConfig, count = 3) => {
  const before = ticks(consoleText(config.consolePath)).length
  return untilConsole(config.consolePath, "more ticks", (text) => ticks(text).length >= before + count)
}

const expectStatus = (session: VmmSession, tag: VmmStatus["_tag"]) =>
  Effect.map(session.status, (status) => assert.strictEqual(status._tag, tag))

/** Each number is one more than the one before. */
const assertCounts = (numbers: ReadonlyArray<number>) => {
  const gap = numbers.findIndex((it, index) => index > 0 && it !== (numbers[index - 1] ?? 0) + 1)
  assert.strictEqual(gap, -1, `after ${numbers[gap - 1]} comes ${numbers[gap]}`)
}

const pauseAndResume = (config: VmConfig, session: VmmSession) =>
  Effect.gen(function* () {
    yield* session.pause
    yield* expectStatus(session, "Paused")
    yield* session.pause
    const still = consoleText(config.consolePath)
    const button = yield* Effect.flip(session.powerButton)
    assert.include(button.reason, "not running")
    yield* session.status
    assert.strictEqual(consoleText(config.consolePath), still, "a paused guest counts on")
    yield* session.resume
    yield* expectStatus(session, "Running")
    assertCounts(ticks(yield* moreTicks(config)))
  })

const lifecycle = Effect.gen(function* () {
  const host = yield* vmmHost
  const config = host.configure("cycle")
  const { ref, session } = yield* startVm(host, config)
  yield* expectStatus(session, "Prelaunch")
  assert.include((yield* Effect.flip(session.resume)).reason, "prelaunch")
  yield* session.boot
  yield* untilReady(config, 1)
  yield* pauseAndResume(config, session)
  yield* tellGuest(config, "button")
  // The kernel keeps key presses for who has the device open, and for nobody else.
  yield* untilConsole(config.consolePath, "awaited button", (text) => text.includes("button awaited"))
  yield* session.powerButton
  yield* untilConsole(config.consolePath, "pressed button", (text) => text.includes("button pressed"))

  yield* session.powerOff
  yield* expectStatus(session, "Off")
  yield* session.boot
  yield* untilReady(config, 2)
  yield* session.pause
  yield* session.powerOff
  yield* expectStatus(session, "Off")
  assert.strictEqual(times(consoleText(config.consolePath), "ready"), 2)
  yield* session.quit
  assert.deepStrictEqual(yield* host.processes.exit(ref), { code: 0, signal: null })
  assert.isFalse(yield* host.processes.isAlive(ref.process))
  assert.deepStrictEqual(yield* host.processes.scan, [])
})

/** The next event of a session, asked for before what causes it. */
const nextEvent = (session: VmmSession) => Effect.map(Stream.runHead(session.events), Option.getOrThrow)

const guestEnds = Effect.gen(function* () {
  const host = yield* vmmHost
  const config = host.configure("ends")
  const ref = host.ref(config, yield* host.vmm.spawn(config))
  yield* Effect.scoped(
    Effect.gen(function* () {
      const session = yield* host.vmm.attach(ref)
      yield* session.boot
      yield* untilReady(config, 1)
      yield* tellGuest(config, "poweroff -f")
      assert.deepStrictEqual(yield* nextEvent(session), { _tag: "GuestOff", cause: "poweroff" })
      yield* expectStatus(session, "Off")
      yield* session.boot
      yield* untilReady(config, 2)
      yield* tellGuest(config, "reboot -f")
      assert.deepStrictEqual(yield* nextEvent(session), { _tag: "GuestOff", cause: "reset" })
      yield* expectStatus(session, "Off")
      yield* session.boot
      yield* untilReady(config, 3)
    })
  )
  // Nobody is attached now.
  yield* tellGuest(config, "echo c > /proc/sysrq-trigger")
  yield* untilConsole(config.consolePath, "panic", (text) => text.includes("Kernel panic"))
  const session = yield* host.vmm.attach(ref)
  const panicked = session.status.pipe(Effect.repeat({ until: (status) => status._tag === "Panicked" }))
  yield* panicked.pipe(Effect.timeout(10_000))
  const exit = yield* Effect.forkChild(host.processes.exit(ref))
  const last = yield* Effect.forkChild(Stream.runCollect(session.events))
  process.kill(ref.process.pid, "SIGKILL")
  assert.deepStrictEqual(yield* Fiber.join(exit), { code: null, signal: "SIGKILL" })
  yield* Fiber.join(last)
  assert.strictEqual((yield* Effect.flip(session.status)).operation, "status")
})

const volume = (host: VmmHost, serial: string): Disk => ({
  serial,
  path: host.disk(`${serial}.raw`, 8),
  readonly: false,
  removable: true
})

/** A snapshot that is given up midway leaves the guest as it was, and nothing on the disk. */
const cancelledSnapshot = (host: VmmHost, config: VmConfig, session: VmmSession) =>
  Effect.gen(function* () {
    const directory = host.directory("cancelled")
    yield* session.pause
    const written = yield* Effect.forkChild(untilWritten(directory))
    yield* Effect.yieldNow
    const work = yield* Effect.forkChild(session.snapshot(directory))
    yield* Fiber.join(written)
    yield* Fiber.interrupt(work)
    assert.deepStrictEqual(fs.readdirSync(directory), [])
    yield* expectStatus(session, "Paused")
    yield* session.resume
    assertCounts(ticks(yield* moreTicks(config)))
  })

const untilWritten = (directory: string) =>
  Effect.callback<void>((done) => {
    const watcher = fs.watch(directory)
    watcher.once("change", () => {
      watcher.close()
      done(Effect.void)
    })
    return Effect.sync(() => watcher.close())
  })

/** QEMU dies while it saves its guest: said at once, and nothing stays that looks like a snapshot. */
const killedSnapshot = (host: VmmHost, ref: VmmRef, session: VmmSession) =>
  Effect.gen(function* () {
    const directory = host.directory("killed")
    const written = yield* Effect.forkChild(untilWritten(directory))
    yield* Effect.yieldNow
    const work = yield* Effect.forkChild(Effect.flip(session.snapshot(directory)))
    yield* Fiber.join(written)
    process.kill(ref.process.pid, "SIGKILL")
    assert.strictEqual((yield* Fiber.join(work)).operation, "snapshot")
    assert.deepStrictEqual(fs.readdirSync(directory), [])
  })

/** A disk without room is refused before anything is written to it. */
const fullDisk = (host: VmmHost, session: VmmSession) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const directory = host.directory("full")
      execFileSync("mount", ["-t", "tmpfs", "-o", "size=16m", "none", directory])
      return directory
    }),
    (directory) =>
      Effect.gen(function* () {
        assert.include((yield* Effect.flip(session.snapshot(directory))).reason, "are free")
        assert.deepStrictEqual(fs.readdirSync(directory), [])
        yield* expectStatus(session, "Paused")
      }),
    (directory) => Effect.sync(() => execFileSync("umount", [directory]))
  )

const growAndPlug = (host: VmmHost, config: VmConfig, session: VmmSession) =>
  Effect.gen(function* () {
    assert.strictEqual(yield* session.memoryMb, 256)
    assert.strictEqual(yield* session.resizeMemory(384), 384)
    assert.include((yield* Effect.flip(session.resizeMemory(255))).reason, "256 MiB")
    assert.include((yield* Effect.flip(session.resizeMemory(1024))).reason, "size")
    yield* session.addDisk(volume(host, "vol-b"))
    yield* session.addDisk(volume(host, "vol-c"))
    assert.include((yield* Effect.flip(session.addDisk(volume(host, "vol-c")))).reason, "disk-vol-c")
    yield* untilSerials(config, ["layer-0", "vol-a", "vol-b", "vol-c"])
    yield* session.removeDisk("vol-b")
    yield* untilSerials(config, ["layer-0", "vol-a", "vol-c"])
    assert.isAbove((yield* Effect.flip(session.removeDisk("vol-b"))).reason.length, 0)
  })

const serials = (config: VmConfig) =>
  Effect.map(asked(config, "serials"), (text) => {
    const listed = text.slice(0, text.lastIndexOf("disks end"))
    const from = Math.max(0, listed.lastIndexOf("disks end"))
    return [...listed.slice(from).matchAll(/disk ([a-z]+-[a-z0-9]+?)(?=tick|\s)/g)]
      .flatMap((it) => it[1] ?? [])
      .toSorted()
  })

const untilSerials = (config: VmConfig, expected: ReadonlyArray<string>) =>
  serials(config).pipe(
    Effect.repeat({ until: (found) => found.join() === expected.join(), times: 20 }),
    Effect.map((found) => assert.deepStrictEqual(found, expected))
  )

/** What is wrong with a state file is said before a process is started, or ends the process that found it. */
const damagedSnapshots = (
  host: VmmHost,
  config: VmConfig,
  snapshot: string,
  files: ReadonlyArray<SnapshotFile>
) =>
  Effect.gen(function* () {
    const bytes = fs.readFileSync(path.join(snapshot, "state"))
    const damaged = host.directory("damaged")
    const refuse = (content: Buffer, of = files) => {
      fs.writeFileSync(path.join(damaged, "state"), content)
      return Effect.map(Effect.flip(host.vmm.spawnRestoring(config, damaged, of)), (fault) => fault.reason)
    }
    assert.include(yield* refuse(bytes.subarray(0, bytes.length - 1)), "not complete")
    assert.include(yield* refuse(Buffer.alloc(0)), "not complete")
    assert.include(yield* refuse(bytes, []), "not the file")
    assert.include(
      yield* refuse(
        bytes,
        files.map((it) => ({ ...it, bytes: it.bytes + 1 }))
      ),
      "not the file"
    )
    assert.deepStrictEqual(fs.existsSync(config.logPath), false, "a process was started")
    // Memory that differs in one bit loads well, and is found by its checksum alone.
    const flipped = Buffer.from(bytes)
    const at = flipped.lastIndexOf("tick ")
    flipped.writeUInt8(flipped.readUInt8(at) ^ 1, at)
    assert.include(yield* refuse(flipped), "damaged")
    assert.deepStrictEqual(yield* host.processes.scan, [])
    assert.deepStrictEqual(runFiles(config), [])
  })

const snapshotAndRestore = Effect.gen(function* () {
  const host = yield* vmmHost
  const cold: ReadonlyArray<Disk> = [
    { serial: "layer-0", path: host.disk("layer.raw"), readonly: true },
    volume(host, "vol-a")
  ]
  const config = host.configure("sleeper", { memoryMaxMb: 512, disks: cold })
  const { ref, session } = yield* startVm(host, config)
  yield* session.boot
  yield* untilReady(config, 1)
  yield* growAndPlug(host, config, session)
  yield* cancelledSnapshot(host, config, session)

  const [first, second] = [host.directory("first"), host.directory("second")]
  assert.include((yield* Effect.flip(session.snapshot(first))).reason, "not paused")
  yield* session.pause
  yield* fullDisk(host, session)
  const [file] = yield* session.snapshot(first)
  const state = path.join(first, "state")
  assert.deepStrictEqual(file, {
    name: "state",
    bytes: fs.statSync(state).size,
    checksum: `crc32:${crc32(fs.readFileSync(state)).toString(16).padStart(8, "0")}`
  })
  yield* expectStatus(session, "Paused")
  assert.deepStrictEqual(fs.readdirSync(first), ["state"])
  yield* session.resume
  yield* moreTicks(config)
  yield* session.pause
  const older = yield* session.snapshot(second)
  // Saved twice without a run in between.
  const files = yield* session.snapshot(host.directory("third"))
  process.kill(ref.process.pid, "SIGKILL")
  assert.strictEqual((yield* host.processes.exit(ref)).signal, "SIGKILL")
  const before = consoleText(config.consolePath)

  const again = host.configure("sleeper", {
    memoryMaxMb: 512,
    disks: [...cold, { serial: "vol-c", path: host.disk("vol-c.raw", 8), readonly: false }]
  })
  yield* damagedSnapshots(host, again, second, older)
  const restored = host.ref(again, yield* host.vmm.spawnRestoring(again, host.directory("third"), files))
  const revived = yield* host.vmm.attach(restored)
  yield* expectStatus(revived, "Paused")
  assert.strictEqual(yield* revived.memoryMb, 384)
  yield* revived.resume
  yield* moreTicks(again)
  assertCounts(ticks(before + consoleText(again.consolePath)))
  yield* untilSerials(again, ["layer-0", "vol-a", "vol-c"])
  yield* revived.removeDisk("vol-c")
  yield* revived.removeDisk("vol-a")
  yield* untilSerials(again, ["layer-0"])
  assert.strictEqual(yield* revived.resizeMemory(256), yield* revived.memoryMb)
  yield* revived.pause
  yield* revived.snapshot(host.directory("fourth"))
  yield* revived.powerOff
  yield* expectStatus(revived, "Off")
  yield* revived.boot
  yield* untilReady(again, 1)
  yield* revived.pause
  yield* killedSnapshot(host, restored, revived)
})

const manyLayers = Effect.gen(function* () {
  const host = yield* vmmHost
  const layer = host.disk("layer.raw")
  const disks = Array.from({ length: 60 }, (_, at): Disk => ({
    serial: `layer-${at}`,
    path: layer,
    readonly: true
  }))
  const config = host.configure("deep", { disks })
  const { session } = yield* startVm(host, config)
  yield* session.boot
  yield* untilReady(config, 1)
  yield* untilSerials(config, disks.map((disk) => disk.serial).toSorted())
  yield* asked(
    config,
    "for it in /dev/vd*; do dd if=$it of=/dev/null bs=4096 count=1 2>/dev/null && echo block; done"
  )
  assert.strictEqual(times(consoleText(config.consolePath), "block"), disks.length)
})

describe("the QEMU driver on a real guest", () => {
  skipWhere(liveObstacle())
  it.live(
    "boots, pauses, resumes, goes off and boots again, and quits",
    () => Effect.scoped(lifecycle),
    testMaxMs
  )
  it.live("tells how its guest ended, also when nobody was there", () => Effect.scoped(guestEnds), testMaxMs)
  it.live(
    "restores a guest where it was, with the disks and memory that came later",
    () => Effect.scoped(snapshotAndRestore),
    testMaxMs
  )
  it.live("boots with 60 layers, and reads them all", () => Effect.scoped(manyLayers), testMaxMs)
})
