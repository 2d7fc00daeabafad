/** What a simulated snapshot depends on besides its files: the version of the simulation and the layout of the machine. */
import type { InterfaceName, Mac } from "../../domain/Network.ts"
import type { Disk } from "../Vmm.ts"

export const simulatedVersion = "1"

interface Layout {
  readonly vcpus: number
  readonly memoryMb: number
  readonly memoryMaxMb: number
  readonly disks: ReadonlyArray<Disk>
  readonly nic: { readonly tap: InterfaceName; readonly mac: Mac } | null
}

/** `memoryMb` is the memory that the guest booted with. */
export const fingerprint = (layout: Layout): string =>
  JSON.stringify([
    `simulated-${simulatedVersion}`,
    layout.vcpus,
    layout.memoryMb,
    layout.memoryMaxMb,
    // Disks that came while the guest ran are the last ones of their machine, whatever their instance says.
    layout.disks.map((disk) => `${disk.serial} ${disk.readonly}`).toSorted(),
    layout.nic?.mac ?? null
  ])

export const fingerprintOf = (record: Layout & { readonly bootMemoryMb: number }): string =>
  fingerprint({ ...record, memoryMb: record.bootMemoryMb })
