/**
 * Which VMM, network and agent stand under the instances, by configuration: the one place where they are chosen. Only the
 * chosen ones are loaded.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Agent } from "./guest/Agent.ts"
import { BootFiles } from "./guest/BootFiles.ts"
import { Overlay } from "./guest/Overlay.ts"
import { probeKvm } from "./host/Kvm.ts"
import { HostMemory } from "./host/Memory.ts"
import { Settings } from "./host/Settings.ts"
import { Network } from "./network/Network.ts"
import { Fitness } from "./vmm/Fitness.ts"
import type { Vmm } from "./vmm/Vmm.ts"
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

const loadCloudHypervisor = Effect.map(
  Effect.promise(() => import("./vmm/cloud-hypervisor/driver.ts")),
  ({ cloudHypervisorLayer }) => cloudHypervisorLayer
)

const layerCloudHypervisor = Layer.unwrap(
  Effect.map(loadCloudHypervisor, (driver) =>
    driver.pipe(
      Layer.catch((fault) =>
        Layer.merge(layerUnfit("cloud-hypervisor"), Layer.succeed(Fitness, fault.reason))
      )
    )
  )
)

/** Cloud Hypervisor where its program is and KVM runs guests' kernels, else QEMU, which runs everywhere. */
const layerAuto = Layer.unwrap(
  Effect.map(Effect.all([loadCloudHypervisor, probeKvm]), ([driver, kvm]) =>
    kvm._tag === "Usable" ? driver.pipe(Layer.catch(() => layerQemuDriver)) : layerQemuDriver
  )
)

/** What stands beside every real driver. */
const onHost = <E, R>(driver: Layer.Layer<Vmm, E, R>) =>
  driver.pipe(
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
        return onHost(layerCloudHypervisor)
      case "qemu":
        return onHost(layerQemuDriver)
      case "auto":
        return onHost(layerAuto)
    }
  })
)
