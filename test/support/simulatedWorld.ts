/**
 * A simulated host for tests: the world is a value of the test, and each `startService` is one run of the service on it,
 * with its own scope. `killService` is SIGKILL: from then on the old run changes nothing, not even in its finalizers.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { InstanceId } from "../../src/domain/Ids.ts"
import { type Lease, Mac } from "../../src/domain/Network.ts"
import * as SimulatedAgent from "../../src/guest/simulatedAgent.ts"
import { Agent } from "../../src/guest/Agent.ts"
import { Files } from "../../src/host/Files.ts"
import { decodeSettings, Settings } from "../../src/host/Settings.ts"
import { type FaultPlanOptions, makeFaultPlan } from "../../src/host/simulated/FaultPlan.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import { layerService } from "../../src/host/simulated/SimulatedHost.ts"
import { makeWorld, SimulatedWorld, type World, type WorldOptions } from "../../src/host/simulated/World.ts"
import { Network } from "../../src/network/Network.ts"
import * as SimulatedNetwork from "../../src/network/simulatedNetwork.ts"
import * as SimulatedVmm from "../../src/vmm/simulated/SimulatedVmm.ts"
import { type VmConfig, Vmm, VmmProcesses, type VmmRef } from "../../src/vmm/Vmm.ts"
import { memoryFiles, type MemoryFiles } from "./simulatedFiles.ts"

export interface Service {
  readonly vmm: typeof Vmm.Service
  readonly processes: typeof VmmProcesses.Service
  readonly agent: typeof Agent.Service
  readonly network: typeof Network.Service
  /** What runs in it ends with the service. */
  readonly scope: Scope.Closeable
  /** SIGTERM: everything is closed, VMs go on. */
  readonly stop: Effect.Effect<void>
  /** SIGKILL. */
  readonly kill: Effect.Effect<void>
}

export interface TestHost {
  readonly world: World
  readonly files: MemoryFiles
  readonly startService: Effect.Effect<Service>
}

const settings = Layer.sync(Settings, () =>
  Settings.of(Result.getOrThrow(decodeSettings({ VMM: "simulated" }, false)))
)

/** The four services of a simulated host, over a world that the caller owns. */
export const simulatedServices = (
  world: World
): Layer.Layer<Vmm | VmmProcesses | Agent | Network, never, Files | Settings> =>
  Layer.mergeAll(SimulatedVmm.layer, SimulatedAgent.layer, SimulatedNetwork.layer).pipe(
    Layer.provide(layerService),
    Layer.provide(Layer.succeed(SimulatedWorld, world))
  )

const startService = (world: World, files: MemoryFiles): Effect.Effect<Service> =>
  Effect.gen(function* () {
    const scope = yield* Scope.make()
    const epoch = world.services + 1
    const layer = Layer.fresh(simulatedServices(world)).pipe(
      Layer.provide(files.layerWhile(() => world.services < epoch || world.service?.epoch === epoch)),
      Layer.provide(settings)
    )
    const context = yield* Layer.buildWithScope(layer, scope)
    const stop = Scope.close(scope, Exit.void)
    return {
      vmm: Context.get(context, Vmm),
      processes: Context.get(context, VmmProcesses),
      agent: Context.get(context, Agent),
      network: Context.get(context, Network),
      scope,
      stop,
      kill: Effect.andThen(
        Effect.sync(() => incidents.killService(world)),
        stop
      )
    }
  })

/** A host in memory: with files in memory as well, so that a virtual clock is all the time there is. */
export const makeHost = (
  options: Omit<WorldOptions, "disk" | "plan"> & FaultPlanOptions = {}
): Effect.Effect<TestHost, never, Scope.Scope> =>
  Effect.gen(function* () {
    const files = memoryFiles()
    const world = yield* makeWorld({
      ...options,
      disk: files.disk,
      plan: makeFaultPlan(options)
    }).pipe(Effect.provide(SimulatedAgent.layerInit))
    return { world, files, startService: startService(world, files) }
  })

/** Makes the directories and disks of a VM and gives its configuration. */
export const prepareVm = (
  host: TestHost,
  name: string,
  given: { readonly run?: number; readonly lease?: Lease } & Partial<VmConfig> = {}
): Effect.Effect<VmConfig> =>
  Effect.gen(function* () {
    const files = yield* Files
    const { run = 1, lease, ...rest } = given
    const data = `/data/${name}`
    const runDirectory = `/run/${name}`
    for (const directory of [
      `${data}/console`,
      `${data}/vmm`,
      `${data}/snapshot`,
      runDirectory,
      "/data/layers"
    ]) {
      yield* files.makeDirectory(directory)
    }
    for (const file of [`${data}/config.raw`, `${data}/overlay.raw`, "/data/layers/base"]) {
      if (!(yield* files.exists(file))) yield* files.write(file, "disk").pipe(Effect.orDie)
    }
    return {
      id: InstanceId.make(name),
      vcpus: 2,
      memoryMb: 512,
      memoryMaxMb: 1024,
      kernel: "/data/vmlinuz",
      initrd: "/data/initrd",
      cmdline: "quiet",
      disks: [
        { serial: "config", path: `${data}/config.raw`, readonly: false },
        { serial: "overlay", path: `${data}/overlay.raw`, readonly: false },
        { serial: "layer-0", path: "/data/layers/base", readonly: true }
      ],
      nic: lease === undefined ? null : { tap: lease.tap, mac: Mac.make(lease.mac) },
      consolePath: `${data}/console/${run}.log`,
      logPath: `${data}/vmm/${run}.log`,
      runDirectory,
      ...rest
    }
  }).pipe(Effect.orDie, Effect.provide(host.files.layer))

/** Spawns, boots, and gives what adopts it later. The session is closed. */
export const runVm = (service: Service, config: VmConfig): Effect.Effect<VmmRef> =>
  Effect.gen(function* () {
    const process = yield* service.vmm.spawn(config)
    const ref: VmmRef = { id: config.id, process, runDirectory: config.runDirectory }
    yield* Effect.scoped(Effect.flatMap(service.vmm.attach(ref), (session) => session.boot))
    return ref
  }).pipe(Effect.orDie)
