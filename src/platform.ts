/** Which VMM, network and agent stand under the instances, by configuration: the one place where they are chosen. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Agent } from "./guest/Agent.ts"
import { BootFiles } from "./guest/BootFiles.ts"
import { Overlay } from "./guest/Overlay.ts"
import * as simulatedAgent from "./guest/simulatedAgent.ts"
import { HostMemory } from "./host/Memory.ts"
import { Settings, SettingsRefused } from "./host/Settings.ts"
import { layerDurable, layerService } from "./host/simulated/SimulatedHost.ts"
import { Network } from "./network/Network.ts"
import * as simulatedNetwork from "./network/simulatedNetwork.ts"
import { Fitness } from "./vmm/Fitness.ts"
import { layerUnfit } from "./vmm/unfit.ts"
import { vmmProcessesLayer } from "./vmm/VmmProcess.ts"
import { qemuLayer } from "./vmm/qemu/driver.ts"
import * as simulatedVmm from "./vmm/simulated/SimulatedVmm.ts"
import { decodeSimulated } from "./vmm/simulated/settings.ts"

/** Simulated guests take no memory of the host: as many as anyone wants to try. */
const simulatedMemoryMb = 16 * 1024 * 1024

const layerSimulated = Layer.unwrap(
  Effect.map(Effect.fromResult(decodeSimulated(process.env)), (options) =>
    Layer.mergeAll(simulatedVmm.layer, simulatedNetwork.layer, simulatedAgent.layer).pipe(
      Layer.provide(layerService),
      Layer.provide(layerDurable(options)),
      Layer.provide(simulatedAgent.layerInit),
      Layer.merge(
        Layer.mergeAll(
          HostMemory.layerOf(simulatedMemoryMb),
          BootFiles.layerSimulated,
          Overlay.layerSimulated
        )
      )
    )
  )
)

/** A host whose QEMU cannot be used still serves reads, stops and deletes, and says to every start what is missing. */
const layerQemu = qemuLayer.pipe(
  Layer.catch((fault) => Layer.merge(layerUnfit("qemu"), Layer.succeed(Fitness, fault.reason))),
  Layer.provideMerge(vmmProcessesLayer),
  Layer.merge(Layer.mergeAll(Network.layer, Agent.layer, HostMemory.layer, BootFiles.layer, Overlay.layer))
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
