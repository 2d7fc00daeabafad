/** A host for tests of the QEMU driver: own directories, real processes, all of them ended with the scope. */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import { InstanceId } from "../../src/domain/Ids.ts"
import { Files } from "../../src/host/Files.ts"
import { type Layout, layout, Paths } from "../../src/host/Paths.ts"
import { decodeSettings, Settings } from "../../src/host/Settings.ts"
import { type VmConfig, Vmm, VmmProcesses, type VmmRef } from "../../src/vmm/Vmm.ts"
import { vmmProcessesLayer } from "../../src/vmm/VmmProcess.ts"
import { qemuLayer } from "../../src/vmm/qemu/driver.ts"
import { temporaryDirectory } from "./temporary.ts"
import { countingGuest } from "./vmmGuest.ts"

export const settingsLayer = (env: Readonly<Record<string, string>> = {}) =>
  Layer.sync(Settings, () => Result.getOrThrow(decodeSettings({ QEMU_ACCEL: "tcg", ...env }, false)))

export const pathsLayer = (of: Layout) => Layer.succeed(Paths, of)

/** The driver and the watch on its processes; a second one of the same directories knows none of its children. */
export const driverLayer = (of: Layout, env: Readonly<Record<string, string>> = {}) =>
  Layer.fresh(
    qemuLayer.pipe(
      Layer.provideMerge(vmmProcessesLayer),
      Layer.provideMerge(Layer.mergeAll(Files.layer, settingsLayer(env), pathsLayer(of)))
    )
  )

export interface VmmHost {
  readonly root: string
  readonly layout: Layout
  readonly vmm: Vmm["Service"]
  readonly processes: VmmProcesses["Service"]
  /** A VM of 256 MiB that boots the counting guest; console and log are new files each time. */
  readonly configure: (name: string, change?: Partial<VmConfig>) => VmConfig
  readonly ref: (config: VmConfig, process: VmmRef["process"]) => VmmRef
  /** An empty file as a disk. */
  readonly disk: (name: string, megabytes?: number) => string
  readonly directory: (name: string) => string
}

/** All VMMs of the host that are still there. */
const endAll = (processes: VmmProcesses["Service"]) =>
  Effect.flatMap(processes.scan, (left) => Effect.forEach(left, processes.kill, { discard: true })).pipe(
    Effect.orDie
  )

export const vmmHost = Effect.gen(function* () {
  const root = yield* temporaryDirectory("vmm")
  const of = layout(path.join(root, "data"), path.join(root, "run"))
  const context = yield* Layer.build(driverLayer(of))
  const processes = Context.get(context, VmmProcesses)
  const guest = yield* Effect.provide(countingGuest(root), context)
  yield* Effect.addFinalizer(() => endAll(processes))
  let run = 0
  const directory = (name: string) => {
    const made = path.join(root, name)
    fs.mkdirSync(made, { recursive: true })
    return made
  }
  const host: VmmHost = {
    root,
    layout: of,
    vmm: Context.get(context, Vmm),
    processes,
    configure: (name, change = {}) => {
      const id = InstanceId.make(name)
      const runDirectory = of.instance(id).run
      fs.mkdirSync(runDirectory, { recursive: true })
      run++
      return {
        id,
        vcpus: 1,
        memoryMb: 256,
        memoryMaxMb: 256,
        ...guest,
        cmdline: "quiet panic=-1 reboot=t no_timer_check cryptomgr.notests 8250.nr_uarts=1",
        disks: [],
        nic: null,
        consolePath: path.join(directory("console"), `${name}-${run}.log`),
        logPath: path.join(directory("log"), `${name}-${run}.log`),
        runDirectory,
        ...change
      }
    },
    ref: (config, process) => ({ id: config.id, process, runDirectory: config.runDirectory }),
    disk: (name, megabytes = 1) => {
      const file = path.join(directory("disks"), name)
      fs.writeFileSync(file, "")
      fs.truncateSync(file, megabytes * 1024 * 1024)
      return file
    },
    directory
  }
  return host
})

/** Spawned and attached: the guest stands before its first instruction. */
export const startVm = (host: VmmHost, config: VmConfig) =>
  Effect.gen(function* () {
    const ref = host.ref(config, yield* host.vmm.spawn(config))
    return { ref, session: yield* host.vmm.attach(ref) }
  })

/** What is left in a VM's run directory. */
export const runFiles = (config: VmConfig): ReadonlyArray<string> =>
  fs.readdirSync(config.runDirectory).toSorted()
