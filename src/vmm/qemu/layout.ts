/**
 * Where each device sits. A snapshot holds devices by their PCI address, so the layout is a function of what is asked
 * for and of nothing else; the one thing that it cannot know, which port a disk was put into while the guest ran, is
 * kept in the head of the snapshot (stateFile.ts).
 *
 *   pcie.0  01      network                08.0 … 1a.7   disks that stay: 19 slots of 8 functions
 *           02      agent channel          1b.0 … 1c.7   16 root ports, hot0 … hot15, one removable disk each
 *           03      panic notifier
 *           04      entropy
 *           06      memory (virtio-mem)
 *
 * Functions of one slot cannot be plugged one by one, so disks that come and go have a root port (PCI Express, 6.7) of
 * their own.
 */
import type { Disk } from "../Vmm.ts"

export const networkSlot = 0x01
export const agentSlot = 0x02
export const panicSlot = 0x03
export const entropySlot = 0x04
export const memorySlot = 0x06
const fixedSlot = 0x08
const portSlot = 0x1b
const functionsPerSlot = 8

/** Layers (127 at most), overlay and configuration fit beside sixteen volumes. */
export const fixedDisksMax = (portSlot - fixedSlot) * functionsPerSlot
export const hotPorts = 16

/** Port numbers of disks by serial. */
export type Ports = ReadonlyMap<string, number>

/**
 * Disks with interrupts of their own (MSI-X, two each). An x86 CPU has about 200 vectors for all devices, and a guest of
 * one CPU with 127 disks had none left for its agent's channel; the disks behind these share interrupt lines.
 */
export const ownInterruptsMax = 48

export type Place =
  | { readonly _tag: "Fixed"; readonly address: string; readonly ownInterrupts: boolean }
  | { readonly _tag: "Port"; readonly port: number }

export interface PlacedDisk {
  readonly disk: Disk
  readonly place: Place
}

/** `slot.function`, as QEMU's `addr` takes it: both hexadecimal. */
export const functionAddress = (slot: number, index: number): string =>
  `${(slot + Math.floor(index / functionsPerSlot)).toString(16).padStart(2, "0")}.${index % functionsPerSlot}`

/** The first function of a slot says that the slot has more (PCI, header type bit 7). */
export const isFirstFunction = (index: number): boolean => index % functionsPerSlot === 0

export const portId = (port: number): string => `hot${port}`
export const portAddress = (port: number): string => functionAddress(portSlot, port)

/** QEMU's ids begin with a letter and share one name space: a prefix keeps any serial clear of our own. */
export const diskId = (serial: string): string => `disk-${serial}`
export const nodeName = diskId

/** What a serial must be to name a device: virtio-blk tells the guest 20 bytes of it. */
export const serialPattern = /^[a-z0-9][a-z0-9-]{0,19}$/

/** Ports of a machine that starts: removable disks take them in their order. */
export const coldPorts = (disks: ReadonlyArray<Disk>): Ports =>
  new Map(disks.filter((disk) => disk.removable === true).map((disk, index) => [disk.serial, index]))

const fixedPlace = (index: number): Place => ({
  _tag: "Fixed",
  address: functionAddress(fixedSlot, index),
  ownInterrupts: index < ownInterruptsMax
})

/** Each disk at its place, in the order given. A disk with a port in `ports` is there, the others fill the functions. */
export const place = (disks: ReadonlyArray<Disk>, ports: Ports): ReadonlyArray<PlacedDisk> => {
  let fixed = 0
  return disks.map((disk) => {
    const port = ports.get(disk.serial)
    return {
      disk,
      place: port === undefined ? fixedPlace(fixed++) : { _tag: "Port", port }
    }
  })
}

/** Why these disks cannot be placed, as a sentence; null where they can. */
export const placementProblem = (disks: ReadonlyArray<Disk>, ports: Ports): string | null => {
  const bad = disks.find((disk) => !serialPattern.test(disk.serial))
  if (bad !== undefined) return `the serial '${bad.serial}' is not 1 to 20 of a-z, 0-9 and inner dashes`
  if (new Set(disks.map((disk) => disk.serial)).size < disks.length) return "two disks have one serial"
  const used = disks.flatMap((disk) => ports.get(disk.serial) ?? [])
  if (used.some((port) => port < 0 || port >= hotPorts) || new Set(used).size < used.length)
    return `at most ${hotPorts} disks can be removable`
  if (disks.length - used.length > fixedDisksMax)
    return `at most ${fixedDisksMax} disks fit into this machine`
  return null
}
