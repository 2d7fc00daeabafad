/**
 * A VM as Cloud Hypervisor is told of it (VmConfig of its API), and the command line of the process that is told. Pure.
 *
 * The serial port is the process's standard output, which its starter opened for appending on the run's console file: the
 * mode `File` would be opened anew, and truncated, by every boot and every reset of the guest.
 */
import { createHash } from "node:crypto"
import * as path from "node:path"
import type { Disk, VmConfig } from "../Vmm.ts"
import type { Release } from "./Release.ts"

export const apiSocket = (runDirectory: string): string => path.join(runDirectory, "api.sock")
/** Left behind by 53.0 and later, which lock their socket with it. */
export const apiLock = (runDirectory: string): string => path.join(runDirectory, "api.sock.lock")
export const vsockSocket = (runDirectory: string): string => path.join(runDirectory, "vsock.sock")
export const eventsFile = (runDirectory: string): string => path.join(runDirectory, "events")

/** The guest's vsock port on which its agent listens. */
export const agentPort = 1024
/** Addresses are per VM: the host's end is a socket of this VM alone. 0 to 2 mean hypervisor, local and host. */
const guestCid = 3

const mib = 1024 * 1024
/** virtio-mem: a region in steps of 128 MiB, given and taken in blocks of 2 MiB. */
const growthStepMb = 128
export const memoryBlockMb = 2

/** Slots of a PCI segment that disks of the image take; the rest stays for the other devices and for disks to come. */
const firstSegmentDisks = 10
/** 32 slots, the first of which is the root's. */
const laterSegmentDisks = 31
/** Cloud Hypervisor's own bound on `num_pci_segments`. */
const segmentsMax = 96
export const disksMax = firstSegmentDisks + (segmentsMax - 1) * laterSegmentDisks

/** Serials of virtio-blk have 20 bytes at most, and a device's id must not be one of the VMM's own, which begin with `_`. */
const serialPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,19}$/u

export const diskId = (serial: string): string => `disk-${serial}`

/** Why these disks cannot be had, as a sentence; null where they can. */
export const disksProblem = (disks: ReadonlyArray<Disk>): string | null => {
  const wrong = disks.find((disk) => !serialPattern.test(disk.serial))
  if (wrong !== undefined) return `the serial '${wrong.serial}' cannot name a disk`
  if (new Set(disks.map((disk) => disk.serial)).size !== disks.length) return "two disks have one serial"
  return disks.length > disksMax ? `${disks.length} disks are more than ${disksMax}` : null
}

/** How far live growth may go, in MiB: a whole region, of which the ceiling may be a part. */
export const growthMb = (config: Pick<VmConfig, "memoryMb" | "memoryMaxMb">): number =>
  Math.ceil(Math.max(0, config.memoryMaxMb - config.memoryMb) / growthStepMb) * growthStepMb

/**
 * `image_type` is said, since a VMM that has to guess believes what a guest writes into the first sector; backing files of
 * other formats stay closed by default (51.0).
 */
export const diskConfig = (disk: Disk, segment = 0) => ({
  id: diskId(disk.serial),
  serial: disk.serial,
  path: disk.path,
  readonly: disk.readonly,
  image_type: "Raw",
  ...(segment === 0 ? {} : { pci_segment: segment })
})

/** Disks that may come and go stay in the first segment; those of an image with many layers overflow into others. */
const disksConfig = (disks: ReadonlyArray<Disk>) => {
  let fixed = 0
  return disks.map((disk) => {
    if (disk.removable === true) return diskConfig(disk)
    const place = fixed++ - firstSegmentDisks
    return diskConfig(disk, place < 0 ? 0 : 1 + Math.floor(place / laterSegmentDisks))
  })
}

export interface LandlockRule {
  readonly path: string
  readonly access: "r" | "rw"
}

/**
 * The body of vm.create. `landlock`: what the VMM may open besides what the configuration names, or null where this kernel
 * has no Landlock.
 */
export const machineConfig = (config: VmConfig, landlock: ReadonlyArray<LandlockRule> | null) => {
  const growth = growthMb(config)
  const disks = disksConfig(config.disks)
  const segments = 1 + Math.max(0, ...disks.map((disk) => disk.pci_segment ?? 0))
  return {
    // A guest in the guest is one more way into the host's kernel, and its state does not survive a snapshot everywhere.
    cpus: { boot_vcpus: config.vcpus, max_vcpus: config.vcpus, nested: false },
    memory: {
      size: config.memoryMb * mib,
      ...(growth === 0 ? {} : { hotplug_method: "VirtioMem", hotplug_size: growth * mib })
    },
    payload: {
      kernel: config.kernel,
      initramfs: config.initrd,
      cmdline: config.cmdline === "" ? "console=ttyS0" : `console=ttyS0 ${config.cmdline}`
    },
    ...(segments === 1 ? {} : { platform: { num_pci_segments: segments } }),
    ...(disks.length === 0 ? {} : { disks }),
    ...(config.nic === null ? {} : { net: [{ id: "net", tap: config.nic.tap, mac: config.nic.mac }] }),
    rng: { src: "/dev/urandom" },
    // Both default to the terminal.
    serial: { mode: "Tty" },
    console: { mode: "Off" },
    vsock: { id: "vsock", cid: guestCid, socket: vsockSocket(config.runDirectory) },
    pvpanic: true,
    ...(landlock === null ? {} : { landlock_enable: true, landlock_rules: landlock })
  }
}

/** The arguments behind the program's name. */
export const args = (release: Release, runDirectory: string): ReadonlyArray<string> =>
  [
    ["--api-socket", `path=${apiSocket(runDirectory)}`],
    ["--event-monitor", `path=${eventsFile(runDirectory)}`],
    ["--seccomp", "true"],
    release.staysWithoutGuest ? ["--no-shutdown"] : []
  ].flat()

/** Grows where a release of this service lays out devices in another way. */
const layoutRevision = 1

/**
 * What a snapshot of this VM needs besides the version that wrote it, which is compared apart: the devices with their
 * sizes, and neither paths nor addresses of this run. 64 hexadecimal digits.
 */
export const fingerprint = (cpu: string, config: VmConfig): string =>
  createHash("sha256")
    .update(
      JSON.stringify([
        layoutRevision,
        cpu,
        [config.vcpus, config.memoryMb, growthMb(config), config.nic !== null],
        config.disks.map((disk) => [disk.serial, disk.readonly, disk.removable === true])
      ])
    )
    .digest("hex")
