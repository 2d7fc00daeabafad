/**
 * The whole service behind http, on a simulated host and files in memory: real actors, records, rules and recovery under
 * a virtual clock. The world and the files are the test's and outlive each run of the service.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { InstanceId } from "../../src/domain/Ids.ts"
import type { CreateInstance } from "../../src/domain/Instance.ts"
import { BootFiles } from "../../src/guest/BootFiles.ts"
import { Overlay } from "../../src/guest/Overlay.ts"
import * as SimulatedAgent from "../../src/guest/simulatedAgent.ts"
import { Boundary } from "../../src/host/Boundary.ts"
import { Files } from "../../src/host/Files.ts"
import { HostMemory } from "../../src/host/Memory.ts"
import { layout, Paths } from "../../src/host/Paths.ts"
import { decodeSettings, Settings } from "../../src/host/Settings.ts"
import { type FaultPlanOptions, makeFaultPlan } from "../../src/host/simulated/FaultPlan.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import { makeWorld, type World } from "../../src/host/simulated/World.ts"
import { layerEventLog, EventLog } from "../../src/instance/EventLog.ts"
import { Instances } from "../../src/instance/Instances.ts"
import { instancesLayer } from "../../src/instance/InstancesLayer.ts"
import { Journal } from "../../src/instance/Journal.ts"
import { Store } from "../../src/instance/Store.ts"
import { Supervisor } from "../../src/instance/Supervisor.ts"
import { VolumeImages } from "../../src/volume/VolumeImages.ts"
import { Volumes } from "../../src/volume/Volumes.ts"
import { memoryFiles, type MemoryFiles } from "./simulatedFiles.ts"
import { demoImage, simulatedImages } from "./simulatedImages.ts"
import { simulatedServices } from "./simulatedWorld.ts"

const dataDir = "/data"
export const servicePaths = layout(dataDir, "/run/chd")

export interface SimulatedService {
  readonly instances: typeof Instances.Service
  readonly events: typeof EventLog.Service
  readonly volumes: typeof Volumes.Service
  /** SIGTERM: everything is closed, VMs go on. */
  readonly stop: Effect.Effect<void>
  /** SIGKILL: from then on nothing of this run changes the world. */
  readonly kill: Effect.Effect<void>
}

export interface SimulatedPlace {
  readonly world: World
  readonly files: MemoryFiles
  readonly start: Effect.Effect<SimulatedService>
}

export interface PlaceOptions extends FaultPlanOptions {
  /** Passed at every seam of the service's own steps. */
  readonly boundary?: (name: string) => Effect.Effect<void>
  readonly subnet?: string
  /** Spans are made, as where there is a collector. */
  readonly traced?: boolean
}

const settingsLayer = (subnet: string) =>
  Layer.sync(Settings, () =>
    Settings.of(
      Result.getOrThrow(
        decodeSettings(
          {
            VMM: "simulated",
            DATA_DIR: dataDir,
            SUBNET_CIDR: subnet,
            SUBNET_GATEWAY: subnet.replace(/\.\d+\/\d+$/, ".1")
          },
          false
        )
      )
    )
  )

/** What the service stands on: files, settings, and the simulated host. */
export const layerGround = (world: World, files: MemoryFiles, options: PlaceOptions) => {
  const epoch = world.services + 1
  const host = Layer.mergeAll(
    // A service that was killed writes nothing any more, not even in its finalizers.
    files.layerWhile(() => world.services < epoch || world.service?.epoch === epoch),
    Layer.succeed(Paths, servicePaths),
    settingsLayer(options.subnet ?? "10.77.0.0/16"),
    Layer.succeed(References.TracerEnabled, options.traced ?? false),
    Layer.succeed(Boundary, options.boundary ?? (() => Effect.void))
  )
  const platform = Layer.mergeAll(
    Layer.fresh(simulatedServices(world)),
    BootFiles.layerSimulated,
    Overlay.layerSimulated,
    HostMemory.layerOf(16 * 1024 * 1024),
    VolumeImages.layerSimulated,
    simulatedImages("/data/layers/base.squashfs")
  )
  return Layer.provideMerge(platform, host)
}

/** The instances over their ground, which the caller provides. */
export const layerInstances = instancesLayer.pipe(
  Layer.provide(Supervisor.layer),
  Layer.provideMerge(layerEventLog),
  Layer.provideMerge(Volumes.layer),
  Layer.provide([Store.layer, Journal.layer])
)

const serviceLayer = (world: World, files: MemoryFiles, options: PlaceOptions) =>
  Layer.provide(layerInstances, layerGround(world, files, options))

const startService = (world: World, files: MemoryFiles, options: PlaceOptions) =>
  Effect.gen(function* () {
    const scope = yield* Scope.make()
    const context = yield* Layer.buildWithScope(Layer.fresh(serviceLayer(world, files, options)), scope)
    const stop = Scope.close(scope, Exit.void)
    return {
      instances: Context.get(context, Instances),
      events: Context.get(context, EventLog),
      volumes: Context.get(context, Volumes),
      stop,
      kill: Effect.andThen(
        Effect.sync(() => incidents.killService(world)),
        stop
      )
    } satisfies SimulatedService
  }).pipe(Effect.orDie)

export const makePlace = (options: PlaceOptions = {}): Effect.Effect<SimulatedPlace, never, Scope.Scope> =>
  Effect.gen(function* () {
    const files = memoryFiles()
    const world = yield* makeWorld({ ...options, disk: files.disk, plan: makeFaultPlan(options) }).pipe(
      Effect.provide(SimulatedAgent.layerInit)
    )
    yield* Effect.gen(function* () {
      const disk = yield* Files
      yield* disk.makeDirectory("/data/layers")
      yield* disk.write("/data/layers/base.squashfs", "layer")
    }).pipe(Effect.orDie, Effect.provide(files.layer))
    return { world, files, start: startService(world, files, options) }
  })

/** The smallest request there is. */
export const request = (id: string, more: Partial<CreateInstance> = {}): CreateInstance => ({
  id: InstanceId.make(id),
  name: id,
  image: demoImage,
  memory_mb: 128,
  vcpus: 1,
  env: {},
  overlay_mb: 64,
  volumes: [],
  network: { enabled: true },
  labels: {},
  restart_policy: "never",
  start: true,
  ...more
})
