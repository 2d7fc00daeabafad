/**
 * Every state and verb of the contract's table on a real guest that counts aloud: a number that is missing or there
 * twice is memory that was lost or went back.
 */
import { existsSync } from "node:fs"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { execFileSync } from "node:child_process"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import { InstanceId } from "../../src/domain/Ids.ts"
import { SnapshotManifest } from "../../src/domain/Snapshot.ts"
import { createInstance, importImage } from "../support/guests.ts"
import { expectNoLeaks, inDataDir, ledger } from "../support/leaks.ts"
import { shared } from "../support/live.ts"
import {
  allLines,
  guestImage,
  inGuest,
  refused,
  untilLine,
  untilReady,
  untilTransition
} from "../support/liveGuest.ts"
import { guestSystem } from "../support/liveHost.ts"
import { expectRefusals } from "../support/liveTable.ts"
import { type Service, startService } from "../support/Service.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const ground = Effect.gen(function* () {
  const service = yield* startService({ env: { QEMU_ACCEL: "tcg" } })
  const image = yield* importImage(service, "img-guest", guestImage)
  const before = yield* ledger(service)
  const instance = yield* createInstance(service, {
    id: "counter",
    name: "Counter",
    image: image.id,
    memory_mb: 192,
    memory_max_mb: 512,
    env: { COUNT: "1" }
  })
  return { service, image, before, instance }
})

const id = InstanceId.make("counter")
const to = { params: { id } }
/** A guest that counts ten times a second and does not in this time stands still. */
const standsStillMs = 1_000
/** Long enough that a clock which was not set right shows. */
const asleepMs = 5_000
const clockToleranceS = 2

/** The numbers of the guest's run that began last. */
const counts = (service: Service) =>
  Effect.map(allLines(service, id), (lines) => {
    const numbers = lines.flatMap(({ line }) => {
      const found = /^count (\d+) at \d+$/u.exec(line)
      return found === null ? [] : [Number(found[1])]
    })
    return numbers.slice(numbers.lastIndexOf(1))
  })

const expectUnbroken = (numbers: ReadonlyArray<number>) =>
  assert.deepStrictEqual(
    numbers,
    numbers.map((_, at) => at + 1)
  )

/** Waits for the number after the ones that are known, and gives the newest. */
const countsOn = (service: Service, known: number) =>
  Effect.gen(function* () {
    yield* untilLine(service, id, ({ line }) => line.startsWith(`count ${known + 1} at `), { tail: 200 })
    const numbers = yield* counts(service)
    expectUnbroken(numbers)
    return numbers.at(-1) ?? 0
  })

const standsStill = (service: Service) =>
  Effect.gen(function* () {
    const before = yield* counts(service)
    yield* Effect.sleep(standsStillMs)
    const after = yield* counts(service)
    assert.deepStrictEqual(after, before)
    expectUnbroken(after)
    return after.length
  })

/** The guest's clock against the host's, now. */
const expectRightClock = (service: Service) =>
  Effect.gen(function* () {
    const instance = yield* service.client.instances.get(to)
    const earliest = Math.floor(Date.now() / 1000)
    const said = Number(yield* inGuest(service, instance, "date +%s"))
    const latest = Math.ceil(Date.now() / 1000)
    assert.isAtLeast(said, earliest - clockToleranceS)
    assert.isAtMost(said, latest + clockToleranceS)
  })

const linksOf = (service: Service) => Effect.orDie(service.namespace.run("ip", ["-brief", "link", "show"]))

const snapshots = (service: Service) =>
  Effect.promise(() => fs.readdir(inDataDir(service, "instances", id, "snapshot")).catch(() => []))

const decodeManifest = Schema.decodeUnknownSync(Schema.fromJsonString(SnapshotManifest))

describe("one instance through all its states", { timeout: 180_000 }, () => {
  const common = shared(ground)

  it.live("paused, its guest stands still; resumed, it goes on", () =>
    Effect.gen(function* () {
      const { service, instance } = yield* common
      yield* expectRefusals(service, instance, "Running")
      yield* countsOn(service, 3)
      yield* untilReady(service, instance)
      const paused = yield* service.client.instances.pause(to)
      assert.strictEqual(paused.state, "Paused")
      assert.strictEqual(paused.vmm.pid, instance.vmm.pid)
      assert.deepStrictEqual(yield* service.client.instances.pause(to), paused)
      const last = yield* standsStill(service)
      yield* expectRefusals(service, instance, "Paused")
      assert.strictEqual((yield* service.client.instances.resume(to)).state, "Running")
      yield* countsOn(service, last)
    })
  )

  it.live(
    "in standby there is a snapshot and no process; restored, the guest goes on at the next number",
    () =>
      Effect.gen(function* () {
        const { service, instance } = yield* common
        const pid = instance.vmm.pid ?? 0
        const tap = instance.network.tap ?? ""
        assert.include(yield* linksOf(service), tap)
        const standby = yield* service.client.instances.standby({ ...to })
        assert.deepInclude(standby, {
          state: "Standby",
          has_snapshot: true,
          ready: false,
          memory_actual_mb: null
        })
        assert.isNull(standby.vmm.pid)
        assert.isNotNull(standby.standby_at)
        assert.deepStrictEqual(standby.network, instance.network)
        assert.isFalse(existsSync(`/proc/${pid}`), "the VMM is gone")
        assert.notInclude(yield* linksOf(service), tap)
        yield* expectRefusals(service, instance, "Standby")
        yield* expectComplete(service)
        const last = yield* standsStill(service)
        yield* Effect.sleep(asleepMs)

        const restored = yield* service.client.instances.restore({ ...to, query: {} })
        assert.deepInclude(restored, { state: "Running", has_snapshot: false, exit: null })
        assert.deepStrictEqual(restored.network, instance.network)
        yield* untilReady(service, instance)
        yield* expectRightClock(service)
        yield* countsOn(service, last)
        assert.deepStrictEqual(yield* snapshots(service), [])
      })
  )

  /** One snapshot, whole: every file that its manifest names, and no half one beside it. */
  const expectComplete = (service: Service) =>
    Effect.gen(function* () {
      const [number, ...others] = yield* snapshots(service)
      assert.isEmpty(others)
      const directory = inDataDir(service, "instances", id, "snapshot", number ?? "")
      const manifest = decodeManifest(
        yield* Effect.promise(() => fs.readFile(path.join(directory, "manifest.json"), "utf8"))
      )
      assert.isFalse(manifest.paused)
      assert.deepStrictEqual(
        manifest.disks.map(({ serial }) => serial),
        ["config", "overlay"]
      )
      for (const { name, bytes } of manifest.files)
        assert.strictEqual((yield* Effect.promise(() => fs.stat(path.join(directory, name)))).size, bytes)
      assert.sameMembers(yield* Effect.promise(() => fs.readdir(directory)), [
        "manifest.json",
        ...manifest.files.map(({ name }) => name)
      ])
    })

  it.live(
    "what was paused comes back paused where that is asked for, and wakes up with the right clock",
    () =>
      Effect.gen(function* () {
        const { service, instance } = yield* common
        yield* service.client.instances.pause(to)
        const last = yield* standsStill(service)
        assert.strictEqual((yield* service.client.instances.standby(to)).state, "Standby")
        const restored = yield* service.client.instances.restore({ ...to, query: { resume: false } })
        assert.deepInclude(restored, { state: "Paused", ready: false })
        assert.strictEqual(yield* standsStill(service), last)
        yield* Effect.sleep(asleepMs)
        assert.strictEqual((yield* service.client.instances.resume(to)).state, "Running")
        yield* untilReady(service, instance)
        yield* expectRightClock(service)
        yield* countsOn(service, last)
      })
  )

  it.live(
    "a restore that lacks what the snapshot needs says what, touches nothing, and works when it is back",
    () =>
      Effect.gen(function* () {
        const { service, instance } = yield* common
        assert.strictEqual((yield* service.client.instances.standby(to)).state, "Standby")
        const last = (yield* counts(service)).length
        const before = yield* ledger(service)
        const refusal = (says: RegExp) =>
          Effect.gen(function* () {
            const problem = yield* refused(service, "POST", `/instances/${id}/restore`)
            assert.match(problem.detail, says)
            const { state, has_snapshot } = yield* service.client.instances.get(to)
            assert.deepStrictEqual({ state, has_snapshot }, { state: "Standby", has_snapshot: true })
            const { descriptors: _, ...now } = yield* ledger(service)
            const { descriptors: __, ...then } = before
            assert.deepStrictEqual(now, then, "nothing was touched")
          })

        const overlay = inDataDir(service, "instances", id, "overlay.raw")
        const { mtimeNs } = yield* Effect.promise(() => fs.stat(overlay, { bigint: true }))
        execFileSync("touch", ["-m", overlay])
        yield* refusal(/overlay/u)
        // Node sets times in floating point, which is not exact to the nanosecond.
        const exact = `@${mtimeNs / 1_000_000_000n}.${`${mtimeNs % 1_000_000_000n}`.padStart(9, "0")}`
        execFileSync("touch", ["-m", "-d", exact, overlay])

        const other = path.join(yield* temporaryDirectory("kernel"), "vmlinuz")
        yield* Effect.promise(() => fs.copyFile(guestSystem().kernel, other))
        yield* Effect.promise(() => fs.appendFile(other, "another build"))
        yield* service.stop("SIGTERM")
        yield* service.start({ KERNEL_PATH: other })
        yield* refusal(/kernel/u)
        yield* service.stop("SIGTERM")
        yield* service.start({ KERNEL_PATH: guestSystem().kernel })

        assert.strictEqual((yield* service.client.instances.restore({ ...to, query: {} })).state, "Running")
        yield* untilReady(service, instance)
        yield* countsOn(service, last)
      })
  )

  it.live("memory grows while it runs, within its bound", () =>
    Effect.gen(function* () {
      const { service, instance } = yield* common
      const total = Effect.map(inGuest(service, instance, "grep MemTotal /proc/meminfo"), (text) =>
        Number(/(\d+)/u.exec(text)?.[1] ?? 0)
      )
      const before = yield* total
      const grown = yield* service.client.instances.patch({ ...to, payload: { memory_mb: 448 } })
      assert.deepInclude(grown, { memory_mb: 448, memory_actual_mb: 448, state: "Running" })
      assert.isAtLeast((yield* total) - before, 200 * 1024)
      const tooMuch = yield* refused(service, "PATCH", `/instances/${id}`, { memory_mb: 1024 })
      assert.match(tooMuch.detail, /memory_max_mb 512/u)
      const smaller = yield* service.client.instances.patch({ ...to, payload: { memory_mb: 192 } })
      assert.strictEqual(smaller.memory_mb, 192)
      yield* countsOn(service, (yield* counts(service)).length)
    })
  )

  it.live("off by shutdown its VMM stays; started, another guest boots in it", () =>
    Effect.gen(function* () {
      const { service, instance } = yield* common
      const { vmm } = yield* service.client.instances.get(to)
      const off = yield* service.client.instances.shutdown(to)
      assert.deepInclude(off, { state: "Shutdown", ready: false })
      assert.deepStrictEqual(off.vmm, vmm)
      assert.strictEqual(off.exit?.reason, "shutdown")
      const last = yield* standsStill(service)
      assert.isAbove(last, 1)
      yield* expectRefusals(service, instance, "Shutdown")
      const again = yield* service.client.instances.start(to)
      assert.deepInclude(again, { state: "Running", exit: null })
      assert.deepStrictEqual(again.vmm, vmm)
      yield* untilReady(service, instance)
      yield* untilLine(service, id, ({ line }) => line.startsWith("count 2 at "), { tail: 1 })
      expectUnbroken(yield* counts(service))
    })
  )

  it.live("a stop cancels a standby, and leaves no half snapshot", () =>
    Effect.gen(function* () {
      const { service, instance } = yield* common
      const { generation } = yield* service.client.instances.get(to)
      const standby = yield* Effect.forkChild(refused(service, "POST", `/instances/${id}/standby`))
      yield* untilTransition(service, id, "standby", generation)
      const stopped = yield* service.client.instances.stop({ ...to, query: {} })
      assert.deepInclude(stopped, { state: "Stopped", has_snapshot: false })
      const problem = yield* Fiber.join(standby)
      assert.strictEqual(problem.name, "verb-cancelled")
      assert.deepInclude(problem.members, { verb: "standby", by: "stop" })
      assert.deepStrictEqual(yield* snapshots(service), [])
      yield* expectRefusals(service, instance, "Stopped")
      const wait = yield* refused(service, "GET", `/instances/${id}/wait?state=Running&timeout_ms=50`)
      assert.deepInclude(wait.members, { status: 408, state: "Stopped" })
    })
  )

  it.live("a snapshot can be given up, and a stopped instance starts with more memory", () =>
    Effect.gen(function* () {
      const { service, instance } = yield* common
      const waiting = yield* Effect.forkChild(
        service.client.instances.wait({ ...to, query: { state: "Running", ready: true } })
      )
      yield* service.client.instances.patch({ ...to, payload: { memory_mb: 256 } })
      yield* service.client.instances.start(to)
      assert.deepInclude(yield* Fiber.join(waiting), { state: "Running", ready: true, memory_mb: 256 })
      const total = yield* inGuest(service, instance, "grep MemTotal /proc/meminfo")
      assert.isAtLeast(Number(/(\d+)/u.exec(total)?.[1] ?? 0), 200 * 1024)
      yield* service.client.instances.standby(to)
      const kept = yield* refused(service, "POST", `/instances/${id}/stop`)
      assert.strictEqual(kept.name, "invalid-state")
      const stopped = yield* service.client.instances.stop({ ...to, query: { discard_snapshot: true } })
      assert.deepInclude(stopped, { state: "Stopped", has_snapshot: false })
      assert.deepStrictEqual(yield* snapshots(service), [])
    })
  )

  it.live("a stop cancels a create", () =>
    Effect.gen(function* () {
      const { service, image } = yield* common
      const early = InstanceId.make("early")
      const creating = yield* Effect.forkChild(
        refused(service, "POST", "/instances", { id: early, name: "Early", image: image.id, memory_mb: 128 })
      )
      yield* untilTransition(service, early, "create", 0)
      const stopped = yield* service.client.instances.stop({ params: { id: early }, query: {} })
      assert.strictEqual(stopped.state, "Stopped")
      assert.deepInclude((yield* Fiber.join(creating)).members, { verb: "create", by: "stop" })
      yield* service.client.instances.remove({ params: { id: early } })
    })
  )

  it.live("deleted in every state, nothing of it is left", () =>
    Effect.gen(function* () {
      const { service, image, before } = yield* common
      const make = (name: string, start: boolean) =>
        createInstance(service, { id: name, name, image: image.id, memory_mb: 128, start })
      const created = yield* make("created", false)
      yield* expectRefusals(service, created, "Created")
      const running = yield* make("running", true)
      const paused = yield* make("paused", true)
      yield* service.client.instances.pause({ params: { id: paused.id } })
      const frozen = yield* make("frozen", true)
      assert.strictEqual(
        (yield* service.client.instances.standby({ params: { id: frozen.id } })).state,
        "Standby"
      )
      yield* untilReady(service, running)
      const off = yield* service.client.instances.shutdown({ params: { id: running.id } })
      assert.strictEqual(off.state, "Shutdown")
      // The counter itself is Stopped.
      for (const it of [created.id, off.id, paused.id, frozen.id, id]) {
        yield* service.client.instances.remove({ params: { id: it } })
        assert.strictEqual((yield* refused(service, "DELETE", `/instances/${it}`)).name, "instance-not-found")
      }
      yield* expectNoLeaks(service, before, (line) => /^files: events\/|^descriptors: /u.test(line))
    })
  )
})
