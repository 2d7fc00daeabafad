/**
 * A host for tests of the Cloud Hypervisor driver: the real binaries that CLOUD_HYPERVISOR_BIN names, own directories, all
 * processes ended with the scope. Guests are the counting guest, which runs wherever /dev/kvm opens.
 */
import { execFileSync } from "node:child_process"
import { accessSync, constants, mkdirSync, truncateSync, writeFileSync } from "node:fs"
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { InstanceId } from "../../src/domain/Ids.ts"
import { Files } from "../../src/host/Files.ts"
import { layout, type Layout } from "../../src/host/Paths.ts"
import { type CounterPlan, counterGuest } from "../../src/vmm/cloud-hypervisor/counterGuest.ts"
import { cloudHypervisorLayer } from "../../src/vmm/cloud-hypervisor/driver.ts"
import { versionIn } from "../../src/vmm/cloud-hypervisor/Release.ts"
import { type VmConfig, Vmm, VmmProcesses } from "../../src/vmm/Vmm.ts"
import { vmmProcessesLayer } from "../../src/vmm/VmmProcess.ts"
import { temporaryDirectory } from "./temporary.ts"
import { pathsLayer, settingsLayer, type VmmHost } from "./vmmHost.ts"

const opens = (file: string, mode: number): boolean => {
  try {
    accessSync(file, mode)
    return true
  } catch {
    return false
  }
}

export interface Binary {
  readonly program: string
  readonly version: string
}

/** The binaries under test, in the order of CLOUD_HYPERVISOR_BIN. */
export const binaries = (): ReadonlyArray<Binary> =>
  (process.env["CLOUD_HYPERVISOR_BIN"] ?? "")
    .split(":")
    .filter((program) => program !== "")
    .map((program) => ({
      program,
      version: versionIn(execFileSync(program, ["--version"], { encoding: "utf8" })) ?? "unknown"
    }))

/** Null where the real binary can run here; else a sentence. */
export const cloudHypervisorObstacle = (): string | null => {
  const named = process.env["CLOUD_HYPERVISOR_BIN"] ?? ""
  if (named === "") return "needs CLOUD_HYPERVISOR_BIN: the path of a Cloud Hypervisor release"
  const missing = named.split(":").find((program) => !opens(program, constants.X_OK))
  if (missing !== undefined) return `CLOUD_HYPERVISOR_BIN names ${missing}, which cannot be run`
  return opens("/dev/kvm", constants.R_OK | constants.W_OK)
    ? null
    : "needs /dev/kvm, which does not open here"
}

export const driverLayer = (of: Layout, programs: string) =>
  Layer.fresh(
    cloudHypervisorLayer.pipe(
      Layer.provideMerge(vmmProcessesLayer),
      Layer.provideMerge(
        Layer.mergeAll(Files.layer, settingsLayer({ CLOUD_HYPERVISOR_BIN: programs }), pathsLayer(of))
      )
    )
  )

const endAll = (processes: VmmProcesses["Service"]) =>
  Effect.flatMap(processes.scan, (left) => Effect.forEach(left, processes.kill, { discard: true })).pipe(
    Effect.orDie
  )

export interface CloudHypervisorHost extends VmmHost {
  /** The counting guest as a kernel file. */
  readonly guest: (name: string, plan?: CounterPlan) => string
}

/** A VM of 128 MiB with the counting guest; console and log are new files each time. */
export const cloudHypervisorHost = Effect.fnUntraced(function* (programs: string) {
  const root = yield* temporaryDirectory("chv")
  const of = layout(path.join(root, "data"), path.join(root, "run"))
  const context = yield* Layer.build(driverLayer(of, programs))
  const processes = Context.get(context, VmmProcesses)
  yield* Effect.addFinalizer(() => endAll(processes))
  let run = 0
  const directory = (name: string) => {
    const made = path.join(root, name)
    mkdirSync(made, { recursive: true })
    return made
  }
  const guest = (name: string, plan?: CounterPlan) => {
    const file = path.join(directory("guests"), name)
    writeFileSync(file, counterGuest(plan))
    return file
  }
  const kernel = guest("counter")
  const initrd = path.join(root, "initrd")
  writeFileSync(initrd, "no initrd: the counting guest looks at none")
  const host: CloudHypervisorHost = {
    root,
    layout: of,
    vmm: Context.get(context, Vmm),
    processes,
    guest,
    configure: (name, change = {}) => {
      const id = InstanceId.make(name)
      const runDirectory = of.instance(id).run
      mkdirSync(runDirectory, { recursive: true })
      run++
      const config: VmConfig = {
        id,
        vcpus: 1,
        memoryMb: 128,
        memoryMaxMb: 128,
        kernel,
        initrd,
        cmdline: "",
        disks: [],
        nic: null,
        consolePath: path.join(directory("console"), `${name}-${run}.log`),
        logPath: path.join(directory("log"), `${name}-${run}.log`),
        runDirectory,
        ...change
      }
      return config
    },
    ref: (config, process) => ({ id: config.id, process, runDirectory: config.runDirectory }),
    disk: (name, megabytes = 1) => {
      // Where volumes are: what a VMM under Landlock may open later.
      const file = path.join(directory("data/volumes"), name)
      writeFileSync(file, "")
      truncateSync(file, megabytes * 1024 * 1024)
      return file
    },
    directory
  }
  return host
})

/** A directory for a snapshot of this VM, where its VMM may write one. */
export const snapshotDirectory = (host: VmmHost, config: VmConfig, name: string): string => {
  const made = path.join(host.layout.instance(config.id).snapshots, name)
  mkdirSync(made, { recursive: true })
  return made
}
