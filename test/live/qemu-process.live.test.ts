/** QEMU processes without a guest that runs: who owns them, who sees their end, what they leave, what they refuse. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { InterfaceName, Mac } from "../../src/domain/Network.ts"
import { ProcessIdentity } from "../../src/domain/Process.ts"
import { type Disk, VmmProcesses, type VmmRef } from "../../src/vmm/Vmm.ts"
import { exitFifoName, vmmProcessesLayer } from "../../src/vmm/VmmProcess.ts"
import { liveObstacle, skipWhere } from "../support/liveHost.ts"
import { inside, namespace, within } from "../support/netns.ts"
import { pathsLayer, runFiles, startVm, type VmmHost, vmmHost } from "../support/vmmHost.ts"

const testMaxMs = 60_000
const soonMs = 2_000

/** The watch of a service that did not start these processes. */
const stranger = (host: VmmHost) =>
  Effect.map(
    Layer.build(Layer.fresh(vmmProcessesLayer).pipe(Layer.provide(pathsLayer(host.layout)))),
    (context) => Context.get(context, VmmProcesses)
  )

const soon = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.timeout(effect, soonMs)

const exits = Effect.gen(function* () {
  const host = yield* vmmHost
  const other = yield* stranger(host)
  const watched = Effect.fnUntraced(function* (name: string, before: (ref: VmmRef) => void) {
    const config = host.configure(name)
    const ref = host.ref(config, yield* host.vmm.spawn(config))
    before(ref)
    const both = yield* Effect.forkChild(
      Effect.all([host.processes.exit(ref), other.exit(ref)], { concurrency: 2 })
    )
    assert.isTrue(yield* other.isAlive(ref.process))
    return { ref, both }
  })

  const killed = yield* watched("killed", () => undefined)
  process.kill(killed.ref.process.pid, "SIGKILL")
  assert.deepStrictEqual(yield* soon(Fiber.join(killed.both)), [
    { code: null, signal: "SIGKILL" },
    { code: null, signal: null }
  ])
  assert.deepStrictEqual(yield* soon(other.exit(killed.ref)), { code: null, signal: null })

  const withoutFifo = yield* watched("no-fifo", (ref) => fs.rmSync(path.join(ref.runDirectory, exitFifoName)))
  yield* other.kill(withoutFifo.ref)
  assert.deepStrictEqual(yield* soon(Fiber.join(withoutFifo.both)), [
    { code: 0, signal: null },
    { code: null, signal: null }
  ])

  // One that does not listen to SIGTERM: stopped, it hears nothing but SIGKILL.
  const stopped = yield* watched("stopped", () => undefined)
  process.kill(stopped.ref.process.pid, "SIGSTOP")
  yield* host.processes.kill(stopped.ref)
  assert.strictEqual((yield* soon(Fiber.join(stopped.both)))[0].signal, "SIGKILL")
  yield* host.processes.kill(stopped.ref)
})

const decodeIdentity = Schema.decodeUnknownSync(Schema.fromJsonString(ProcessIdentity))

const orphans = Effect.gen(function* () {
  const host = yield* vmmHost
  const { kernel, initrd } = host.configure("orphan")
  const script = path.join(import.meta.dirname, "../support/vmmOrphan.ts")
  const printed = execFileSync(process.execPath, [script, host.root, "orphan", kernel, initrd], {
    encoding: "utf8",
    timeout: testMaxMs
  })
  const identity = decodeIdentity(printed)
  // A process that only names the directory is nobody's VMM.
  const bystander = net.createServer()
  const runDirectory = path.join(host.layout.run, "orphan")
  yield* Effect.acquireRelease(
    Effect.promise(
      () => new Promise<void>((resolve) => bystander.listen(path.join(runDirectory, "x"), resolve))
    ),
    () => Effect.promise(() => new Promise((resolve) => bystander.close(resolve)))
  )
  assert.deepStrictEqual(yield* host.processes.scan, [
    { id: host.configure("orphan").id, process: identity, runDirectory }
  ])
  const ref: VmmRef = { id: host.configure("orphan").id, process: identity, runDirectory }
  const session = yield* host.vmm.attach(ref)
  assert.deepStrictEqual(yield* session.status, { _tag: "Prelaunch" })
  const exit = yield* Effect.forkChild(host.processes.exit(ref))
  yield* session.quit
  assert.deepStrictEqual(yield* soon(Fiber.join(exit)), { code: null, signal: null })
  assert.deepStrictEqual(yield* host.processes.scan, [])
  assert.include((yield* Effect.flip(host.vmm.attach(ref))).reason, "no more")
  // Another process of that number, or of another boot, is not it.
  const self = { ...ref, process: { ...identity, pid: process.pid } }
  assert.isFalse(yield* host.processes.isAlive(self.process))
  yield* host.processes.kill(self)
})

const oneWriter = Effect.gen(function* () {
  const host = yield* vmmHost
  const overlay: Disk = { serial: "overlay", path: host.disk("overlay.raw"), readonly: false }
  const layer: Disk = { serial: "layer-0", path: host.disk("layer.raw"), readonly: true }
  yield* startVm(host, host.configure("first", { disks: [layer, overlay] }))
  const second = host.configure("second", { disks: [layer, overlay] })
  const refusal = yield* Effect.flip(host.vmm.spawn(second))
  assert.include(refusal.reason, "exit code 1")
  assert.include(refusal.reason, "lock")
  assert.deepStrictEqual(runFiles(second), [])
  const reader = host.configure("reader", { disks: [{ ...overlay, readonly: true }] })
  assert.include((yield* Effect.flip(host.vmm.spawn(reader))).reason, "lock")
  const { session } = yield* startVm(host, host.configure("third", { disks: [layer] }))
  assert.include((yield* Effect.flip(session.addDisk(overlay))).reason, "lock")
  assert.strictEqual((yield* host.processes.scan).length, 2)
})

const refusals = Effect.gen(function* () {
  const host = yield* vmmHost
  const missing = host.configure("missing", { kernel: "/nowhere/vmlinuz" })
  assert.include((yield* Effect.flip(host.vmm.spawn(missing))).reason, "/nowhere/vmlinuz")
  assert.deepStrictEqual(runFiles(missing), [])
  const clash = host.configure("clash", {
    disks: [
      { serial: "a", path: host.disk("a"), readonly: true },
      { serial: "a", path: host.disk("b"), readonly: true }
    ]
  })
  assert.include((yield* Effect.flip(host.vmm.spawn(clash))).reason, "one serial")
  const cut = host.configure("cut")
  const spawning = yield* Effect.forkChild(host.vmm.spawn(cut))
  yield* Effect.yieldNow
  yield* Fiber.interrupt(spawning)
  assert.deepStrictEqual(yield* host.processes.scan, [])
  assert.deepStrictEqual(runFiles(cut), [])
})

const rounds = Effect.gen(function* () {
  const host = yield* vmmHost
  const descriptors = () => fs.readdirSync("/proc/self/fd").length
  const children = () =>
    execFileSync("ps", ["-o", "pid=,comm=", "--ppid", `${process.pid}`], { encoding: "utf8" })
  const seen: Array<number> = []
  for (let round = 0; round < 10; round++) {
    const config = host.configure("round")
    yield* Effect.scoped(
      Effect.gen(function* () {
        const { ref, session } = yield* startVm(host, config)
        if (round % 2 === 0) yield* session.quit
        else yield* host.processes.kill(ref)
        yield* soon(host.processes.exit(ref))
      })
    )
    assert.deepStrictEqual(yield* host.processes.scan, [])
    // QEMU removes its sockets; the FIFO goes with the directory, which is the caller's.
    assert.deepStrictEqual(runFiles(config), [exitFifoName])
    assert.notInclude(children(), "vm:round")
    seen.push(descriptors())
  }
  assert.isAtMost(seen.at(-1) ?? 0, (seen[1] ?? 0) + 1, `descriptors grow: ${seen.join()}`)
})

const network = Effect.gen(function* () {
  const host = yield* vmmHost
  const where = yield* namespace
  yield* within(where, "ip", "tuntap", "add", "tap7", "mode", "tap")
  const nic = { tap: InterfaceName.make("tap7"), mac: Mac.make("52:54:00:00:00:07") }
  const config = host.configure("wired", { nic })
  const ref = host.ref(config, yield* inside(where)(host.vmm.spawn(config)))
  assert.deepStrictEqual(yield* host.processes.scan, [ref])
  // Taken by the first: a second QEMU cannot have it.
  const second = host.configure("second", { nic })
  assert.include((yield* Effect.flip(inside(where)(host.vmm.spawn(second)))).reason, "busy")
  yield* host.processes.kill(ref)
})

describe("QEMU processes", () => {
  skipWhere(liveObstacle())
  it.live(
    "are seen to end, by their parent and by a service that found them",
    () => Effect.scoped(exits),
    testMaxMs
  )
  it.live(
    "outlive the service that started them, and are found and adopted",
    () => Effect.scoped(orphans),
    testMaxMs
  )
  it.live("never share a disk that one of them writes", () => Effect.scoped(oneWriter), testMaxMs)
  it.live(
    "that cannot start, or are not wanted any more, leave nothing",
    () => Effect.scoped(refusals),
    testMaxMs
  )
  it.live("leave nothing in ten rounds", () => Effect.scoped(rounds), testMaxMs)
  it.live("open their TAP in the namespace that commands run in", () => Effect.scoped(network), testMaxMs)
})
