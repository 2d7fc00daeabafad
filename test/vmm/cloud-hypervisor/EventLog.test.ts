import * as fs from "node:fs"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Files } from "../../../src/host/Files.ts"
import {
  after,
  follow,
  type History,
  RecordSplitter,
  untouched
} from "../../../src/vmm/cloud-hypervisor/EventLog.ts"
import { statusOf } from "../../../src/vmm/cloud-hypervisor/machine.ts"
import type { EventRecord } from "../../../src/vmm/cloud-hypervisor/protocol.ts"
import { recordedText } from "../../support/recordedConversation.ts"
import { temporaryDirectory } from "../../support/temporary.ts"

const versions = ["53.0", "52.0", "51.2"]
const names = (records: ReadonlyArray<EventRecord>) => records.map((it) => `${it.source} ${it.event}`)
const event = (name: string, source = "vm", properties?: Record<string, string>): EventRecord => ({
  source,
  event: name,
  ...(properties === undefined ? {} : { properties })
})
const text = (record: EventRecord) =>
  `${JSON.stringify({ timestamp: { secs: 0, nanos: 1 }, properties: null, ...record }, null, 2)}\n\n`

describe.each(versions)("the events that %s wrote", (version) => {
  const bytes = Buffer.from(recordedText(`events-${version}`))

  it("are the same records wherever they are cut", () => {
    const whole = names(new RecordSplitter().push(bytes))
    assert.strictEqual(whole[0], "vmm starting")
    assert.deepStrictEqual(whole.slice(-2), ["vm deleted", "vmm shutdown"])
    assert.include(whole, "vm snapshotted")
    for (const size of [1, 2, 7, 64, 1000]) {
      const splitter = new RecordSplitter()
      const found: Array<EventRecord> = []
      for (let at = 0; at < bytes.length; at += size)
        found.push(...splitter.push(bytes.subarray(at, at + size)))
      assert.deepStrictEqual(names(found), whole)
    }
  })

  it("are read from the middle of a record on", () => {
    const whole = names(new RecordSplitter().push(bytes))
    const found = names(new RecordSplitter(false).push(bytes.subarray(50)))
    assert.deepStrictEqual(found, whole.slice(1))
  })
})

describe("what is no record", () => {
  it.each([
    ["garbage", "what is this\n\n"],
    ["a hole", `${"\0".repeat(10_000)}\n\n`],
    ["another shape", '{"source": 7}\n\n'],
    ["one that never ends", `{"source": "${"x".repeat(300_000)}"}\n\n`]
  ])("%s is skipped to the next record", (_, wrong) => {
    const splitter = new RecordSplitter()
    const all = Buffer.from(`${text(event("booting"))}${wrong}${text(event("booted"))}`)
    const found: Array<EventRecord> = []
    for (let at = 0; at < all.length; at += 4096) found.push(...splitter.push(all.subarray(at, at + 4096)))
    assert.deepStrictEqual(names(found), ["vm booting", "vm booted"])
  })
})

const historyOf = (...records: ReadonlyArray<EventRecord>): History => records.reduce(after, untouched)
const panic = event("panic", "guest", { event: "panic" })

describe("a guest's history", () => {
  it.each<readonly [string, ReadonlyArray<EventRecord>, string, string]>([
    ["nothing", [event("starting", "vmm")], "Created", "Prelaunch"],
    ["a refused boot", [event("booting")], "Created", "Prelaunch"],
    ["a boot", [event("booting"), event("booted")], "Running", "Running"],
    ["a pause", [event("booted"), event("pausing"), event("paused")], "Paused", "Paused"],
    ["a power-off", [event("booted"), event("shutdown")], "Created", "Off"],
    ["a second boot", [event("booted"), event("shutdown"), event("booted")], "Running", "Running"],
    ["a reset", [event("booted"), event("rebooting")], "Running", "Off"],
    ["a reset that is over", [event("booted"), event("rebooting"), event("rebooted")], "Running", "Off"],
    ["a reset, switched off", [event("booted"), event("rebooting"), event("shutdown")], "Created", "Off"],
    [
      "a reset, booted again",
      [event("rebooting"), event("rebooted"), event("shutdown"), event("booted")],
      "Running",
      "Running"
    ],
    ["a restore", [event("restoring"), event("restored")], "Paused", "Paused"],
    ["a panic", [event("booted"), panic], "Running", "Panicked"],
    [
      "a panic and a reset",
      [event("booted"), panic, event("rebooting"), event("rebooted")],
      "Running",
      "Panicked"
    ],
    ["a panic, switched off", [event("booted"), panic, event("shutdown")], "Created", "Panicked"],
    [
      "a crash kernel",
      [event("booted"), event("panic", "guest", { event: "crash_loaded" })],
      "Running",
      "Running"
    ],
    ["a panic, booted again", [panic, event("shutdown"), event("booted")], "Running", "Running"],
    ["a device that resets itself", [event("booted"), event("reset", "virtio-device")], "Running", "Running"],
    ["a breakpoint", [event("booted")], "BreakPoint", "Broken"]
  ])("of %s makes of the API's state what it is", (_, records, state, wanted) =>
    assert.strictEqual(statusOf(state, historyOf(...records))._tag, wanted)
  )
})

const seen = (log: Effect.Success<ReturnType<typeof follow>>, name: string) =>
  Effect.flatMap(
    log.first((record) => record.event === name),
    (found) => Effect.timeout(found, 20_000)
  )

describe("the follower", () => {
  it.live("knows what was before it came, tells what comes, and is given no record twice", () =>
    Effect.gen(function* () {
      const files = yield* Files
      const file = path.join(yield* temporaryDirectory("events"), "events")
      fs.writeFileSync(file, text(event("booted")) + text(event("rebooting")).slice(0, 30))
      const log = yield* follow(files, file)
      assert.deepStrictEqual(log.history(), { started: true, ended: null, panicked: false })
      const told: Array<string> = []
      yield* log.listen((record, before) => void told.push(`${record.event} ${before.ended}`))
      const last = yield* Effect.forkChild(seen(log, "deleted"))
      yield* Effect.yieldNow
      fs.appendFileSync(file, text(event("rebooting")).slice(30))
      fs.appendFileSync(file, text(event("shutdown")) + text(event("deleted")))
      yield* Fiber.join(last)
      assert.deepStrictEqual(told, ["rebooting null", "shutdown reset", "deleted reset"])
      assert.strictEqual(log.history().ended, "reset")
    }).pipe(Effect.scoped, Effect.provide(Files.layer))
  )

  it.live("of a flood gives back what it has read, and takes the newest part of one that it finds", () =>
    Effect.gen(function* () {
      const files = yield* Files
      const file = path.join(yield* temporaryDirectory("flood"), "events")
      fs.writeFileSync(file, "")
      const log = yield* follow(files, file)
      const flood = text(event("reset", "virtio-device", { id: "disk-data" })).repeat(2_000)
      const last = yield* Effect.forkChild(seen(log, "shutdown"))
      yield* Effect.yieldNow
      const handle = fs.openSync(file, "a")
      for (let written = 0; written < 12 * 1024 * 1024; written += flood.length) fs.writeSync(handle, flood)
      fs.writeSync(handle, text(event("shutdown")))
      fs.closeSync(handle)
      yield* Fiber.join(last)
      // The hole is made behind the last record: its bytes are there until the next one comes.
      const again = yield* seen(log, "deleted").pipe(Effect.forkChild)
      yield* Effect.yieldNow
      fs.appendFileSync(file, text(event("deleted")))
      yield* Fiber.join(again)
      const { size, blocks } = fs.statSync(file)
      assert.isAbove(size, 12 * 1024 * 1024)
      assert.isBelow(blocks * 512, 8 * 1024 * 1024)
      const other = yield* follow(files, file)
      assert.deepStrictEqual(other.history(), { started: true, ended: "poweroff", panicked: false })
    }).pipe(Effect.scoped, Effect.provide(Files.layer))
  )

  it.live("fails where there is no file", () =>
    Effect.gen(function* () {
      const fault = yield* Effect.flip(follow(yield* Files, "/nonexistent/events"))
      assert.include(fault.reason, "cannot be read")
    }).pipe(Effect.scoped, Effect.provide(Files.layer))
  )
})
