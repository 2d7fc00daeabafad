/**
 * The simulated host of a real run: its world is files, so a service that was killed finds its VMs as they are now. Real
 * files in a temporary directory; time is virtual.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Exit from "effect/Exit"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId } from "../../src/domain/Ids.ts"
import { InterfaceName, Ipv4, Mac } from "../../src/domain/Network.ts"
import { ProcessIdentity } from "../../src/domain/Process.ts"
import { Files } from "../../src/host/Files.ts"
import { layout, Paths } from "../../src/host/Paths.ts"
import { ledger, look } from "../../src/host/simulated/ledger.ts"
import * as SimulatedHost from "../../src/host/simulated/SimulatedHost.ts"
import { directoryStorage, mapStorage, type Storage } from "../../src/host/simulated/storage.ts"
import { putTap } from "../../src/host/simulated/taps.ts"
import { SimulatedWorld, type World } from "../../src/host/simulated/World.ts"
import * as SimulatedVmm from "../../src/vmm/simulated/SimulatedVmm.ts"
import { type VmConfig, Vmm, VmmProcesses } from "../../src/vmm/Vmm.ts"

const tap = InterfaceName.make("vmtap")
const boots = ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"] as const

const temporary = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "simulated-"))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true, force: true }))
)

const vm = (root: string, name: string): VmConfig => {
  const directory = path.join(root, name)
  fs.mkdirSync(directory, { recursive: true })
  for (const disk of ["config.raw", "overlay.raw"]) fs.writeFileSync(path.join(directory, disk), "disk")
  return {
    id: InstanceId.make(name),
    vcpus: 1,
    memoryMb: 256,
    memoryMaxMb: 512,
    kernel: "/vmlinuz",
    initrd: "/initrd",
    cmdline: "",
    disks: [
      { serial: "config", path: path.join(directory, "config.raw"), readonly: false },
      { serial: "overlay", path: path.join(directory, "overlay.raw"), readonly: false }
    ],
    nic: null,
    consolePath: path.join(directory, "console.log"),
    logPath: path.join(directory, "vmm.log"),
    runDirectory: directory
  }
}

/** One run of the service, world included: what it knows comes from the storage. The end of the scope is SIGKILL. */
const run = <A, E>(
  storage: Storage,
  bootId: string,
  body: (service: {
    readonly world: World
    readonly vmm: typeof Vmm.Service
    readonly processes: typeof VmmProcesses.Service
  }) => Effect.Effect<A, E, Scope.Scope>
) =>
  Effect.scoped(
    Effect.gen(function* () {
      const world = yield* SimulatedHost.loadWorld({ storage, bootId, tickMs: 1_000 })
      const layer = SimulatedVmm.layer.pipe(
        Layer.provide(SimulatedHost.layerService),
        Layer.provide(Layer.succeed(SimulatedWorld, world)),
        Layer.provide(Files.layer)
      )
      return yield* Effect.gen(function* () {
        return yield* body({ world, vmm: yield* Vmm, processes: yield* VmmProcesses })
      }).pipe(Effect.provide(layer, { local: true }))
    })
  )

it.effect(
  "a world in files is the same for the next service: guests ran on, the dead stay dead, codes are unknown",
  () =>
    Effect.gen(function* () {
      const root = yield* temporary
      const storage = directoryStorage(path.join(root, "simulated"))
      const config = vm(root, "a")
      const refs = yield* run(storage, boots[0], ({ vmm, processes, world }) =>
        Effect.gen(function* () {
          const ref = { id: config.id, process: yield* vmm.spawn(config), runDirectory: config.runDirectory }
          const session = yield* vmm.attach(ref)
          yield* session.boot
          yield* session.resizeMemory(384)
          const other = vm(root, "b")
          const dead = { id: other.id, process: yield* vmm.spawn(other), runDirectory: other.runDirectory }
          yield* processes.kill(dead)
          putTap(world, {
            name: tap,
            owner: config.id,
            ip: Ipv4.make("10.0.0.2"),
            mac: Mac.make("52:54:00:00:00:01"),
            pinned: false
          })
          yield* TestClock.adjust(2_000)
          return { ref, dead }
        })
      )
      yield* TestClock.adjust("1 hour")
      yield* run(storage, boots[0], ({ vmm, processes, world }) =>
        Effect.gen(function* () {
          assert.deepStrictEqual(yield* processes.scan, [refs.ref])
          assert.deepStrictEqual(ledger(world).taps, [tap])
          assert.isFalse(yield* processes.isAlive(refs.dead.process))
          assert.deepStrictEqual(yield* processes.exit(refs.dead), { code: null, signal: null })
          const session = yield* vmm.attach(refs.ref)
          assert.strictEqual((yield* session.status)._tag, "Running")
          assert.strictEqual(yield* session.memoryMb, 384)
          assert.strictEqual(look(world, config.id)?.counter, 36_020)
          const fresh = yield* vmm.spawn(vm(root, "c"))
          assert.notStrictEqual(fresh.pid, refs.ref.process.pid)
          yield* TestClock.adjust(1_000)
          yield* processes.kill(refs.ref)
          yield* processes.kill({
            id: InstanceId.make("c"),
            process: fresh,
            runDirectory: path.join(root, "c")
          })
          assert.deepStrictEqual(ledger(world).processes, [])
        })
      )
      const lines = fs.readFileSync(config.consolePath, "utf8").trim().split("\n")
      assert.deepStrictEqual(
        lines.filter((line) => line.startsWith("counter")),
        ["counter 0", "counter 10", "counter 20", "counter 36030"]
      )
      assert.deepStrictEqual(fs.readdirSync(path.join(root, "simulated")), ["host.json", "tap-vmtap.json"])
    })
)

it.effect("a world in files does not survive the machine: another boot, no process, no TAP", () =>
  Effect.gen(function* () {
    const root = yield* temporary
    const storage = mapStorage()
    const config = vm(root, "a")
    const process = yield* run(storage, boots[0], ({ vmm }) => vmm.spawn(config))
    yield* run(storage, boots[1], ({ vmm, processes, world }) =>
      Effect.gen(function* () {
        assert.deepStrictEqual(ledger(world).processes, [])
        assert.isFalse(yield* processes.isAlive(process))
        const again = yield* vmm.spawn(config)
        assert.strictEqual(again.boot_id, boots[1])
        assert.isTrue(yield* processes.isAlive(again))
        assert.isFalse(yield* processes.isAlive({ ...again, boot_id: boots[0] }))
      })
    )
  })
)

it.effect("a world in files drops what is not its own: half a write, a text that is no record", () =>
  Effect.gen(function* () {
    const root = yield* temporary
    const directory = path.join(root, "simulated")
    const storage = directoryStorage(directory)
    yield* run(storage, boots[0], ({ vmm }) => vmm.spawn(vm(root, "a")))
    fs.writeFileSync(path.join(directory, "vmm-7.json"), '{"process":{')
    fs.writeFileSync(path.join(directory, "vmm-8.json.tmp"), "{}")
    yield* run(storage, boots[0], ({ world }) =>
      Effect.sync(() => assert.strictEqual(ledger(world).processes.length, 1))
    )
    assert.strictEqual(fs.readdirSync(directory).length, 2)
  })
)

it.effect("a world in files ends what was told to end while nobody was there", () =>
  Effect.gen(function* () {
    const root = yield* temporary
    const storage = mapStorage()
    const config = vm(root, "a")
    yield* run(storage, boots[0], ({ vmm, processes, world }) =>
      Effect.gen(function* () {
        const ref = { id: config.id, process: yield* vmm.spawn(config), runDirectory: config.runDirectory }
        world.plan.hangNext("kill")
        yield* Effect.forkScoped(processes.kill(ref), { startImmediately: true })
        assert.strictEqual(ledger(world).processes.length, 1)
      })
    )
    yield* TestClock.adjust(10_000)
    yield* run(storage, boots[0], ({ world }) =>
      Effect.sync(() => assert.deepStrictEqual(ledger(world).processes, []))
    )
  })
)

it.effect(
  "a world in files is under DATA_DIR/simulated, with this machine's boot id and pids that no real process has",
  () =>
    Effect.gen(function* () {
      const root = yield* temporary
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(
        SimulatedHost.layerDurable({ seed: 1 }).pipe(Layer.provide(Layer.succeed(Paths, layout(root)))),
        scope
      )
      const world = yield* Effect.provide(SimulatedWorld, context)
      const config = vm(root, "a")
      const identity = yield* Effect.scoped(
        Effect.flatMap(Vmm, (vmm) => vmm.spawn(config)).pipe(
          Effect.provide(
            SimulatedVmm.layer.pipe(
              Layer.provide(SimulatedHost.layerService),
              Layer.provide(Layer.succeed(SimulatedWorld, world)),
              Layer.provide(Files.layer)
            )
          )
        )
      )
      yield* Scope.close(scope, Exit.void)
      assert.deepStrictEqual(ProcessIdentity.make(identity), identity)
      assert.isAbove(identity.pid, 4_194_304)
      assert.strictEqual(identity.boot_id, fs.readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim())
      assert.isTrue(fs.existsSync(path.join(root, "simulated", `vmm-${identity.pid}.json`)))
      assert.strictEqual(
        fs.statSync(path.join(root, "simulated", `vmm-${identity.pid}.json`)).mode & 0o777,
        0o600
      )
    })
)
