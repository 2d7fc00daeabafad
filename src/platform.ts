/**
 * Which VMM, network and agent stand under the instances, by configuration: the one place where they are chosen. Only the
 * chosen ones are loaded.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Agent } from "./guest/Agent.ts"
import { BootFiles } from "./guest/BootFiles.ts"
import { Overlay } from "./guest/Overlay.ts"
import { HostMemory } from "./host/Memory.ts"
import { Settings, SettingsRefused } from "./host/Settings.ts"
import { Network } from "./network/Network.ts"
import { Fitness } from "./vmm/Fitness.ts"
import { layerUnfit } from "./vmm/unfit.ts"
import { vmmProcessesLayer } from "./vmm/VmmProcess.ts"
import { VolumeImages } from "./volume/VolumeImages.ts"

/** Simulated guests take no memory of the host: as many as anyone wants to try. */
const simulatedMemoryMb = 16 * 1024 * 1024

const layerSimulated = Layer.unwrap(
  Effect.gen(function* () {
    const [host, vmm, settings, network, agent] = yield* Effect.promise(() =>
      Promise.all([
        import("./host/simulated/SimulatedHost.ts"),
        import("./vmm/simulated/SimulatedVmm.ts"),
        import("./vmm/simulated/settings.ts"),
        import("./network/simulatedNetwork.ts"),
        import("./guest/simulatedAgent.ts")
      ])
    )
    const options = yield* Effect.fromResult(settings.decodeSimulated(process.env))
    return Layer.mergeAll(vmm.layer, network.layer, agent.layer).pipe(
      Layer.provide(host.layerService),
      Layer.provide(host.layerDurable(options)),
      Layer.provide(agent.layerInit),
      Layer.merge(
        Layer.mergeAll(
          HostMemory.layerOf(simulatedMemoryMb),
          BootFiles.layerSimulated,
          Overlay.layerSimulated,
          VolumeImages.layerSimulated
        )
      )
    )
  })
)

/** A host whose QEMU cannot be used still serves reads, stops and deletes, and says to every start what is missing. */
const layerQemuDriver = Layer.unwrap(
  Effect.map(
    Effect.promise(() => import("./vmm/qemu/driver.ts")),
    ({ qemuLayer }) =>
      qemuLayer.pipe(
        Layer.catch((fault) => Layer.merge(layerUnfit("qemu"), Layer.succeed(Fitness, fault.reason)))
      )
  )
)

const layerQemu = layerQemuDriver.pipe(
  Layer.provideMerge(vmmProcessesLayer),
  Layer.merge(
    Layer.mergeAll(
      Network.layer,
      Agent.layer,
      HostMemory.layer,
      BootFiles.layer,
      Overlay.layer,
      VolumeImages.layer
    )
  )
)

export const layerPlatform = Layer.unwrap(
  Effect.gen(function* () {
    const settings = yield* Settings
    switch (settings.vmm) {
      case "simulated":
        return layerSimulated
      case "cloud-hypervisor":
        return yield* new SettingsRefused({
          variable: "VMM",
          shown: settings.vmm,
          right: "one of auto, qemu, simulated; this build has no Cloud Hypervisor driver"
        })
      default:
        return layerQemu
    }
  })
)
