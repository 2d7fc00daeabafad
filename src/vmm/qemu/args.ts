/**
 * The command line of a QEMU q35 machine: a pure function of the VM's configuration and of what is known of the host.
 * Whatever a user or a path puts into it goes through JSON (`-blockdev`, `-device`, `-netdev`, `-object`), through an
 * argument of its own (`-kernel`, `-initrd`, `-append`), or through `escaped`; nothing is ever split at a comma that is
 * not ours.
 *
 * The machine stops where its guest ends (`-action`, QEMU 6.0), so that the reason can still be asked for: a power-off
 * and a reset leave it in status `shutdown`, a panic that the guest's pvpanic driver reports in `guest-panicked`.
 */
import { createHash } from "node:crypto"
import * as path from "node:path"
import type { Disk, Nic, VmConfig } from "../Vmm.ts"
import {
  agentSlot,
  coldPorts,
  diskId,
  entropySlot,
  functionAddress,
  hotPorts,
  isFirstFunction,
  memorySlot,
  networkSlot,
  nodeName,
  panicSlot,
  place,
  type PlacedDisk,
  portAddress,
  portId,
  type Ports
} from "./layout.ts"

/** What the host decides, found once (discovery.ts). */
export interface QemuHost {
  readonly program: string
  /** Such as 7.2.22. */
  readonly version: string
  /** A versioned type, such as pc-q35-7.2: a snapshot is bound to it. */
  readonly machine: string
  readonly accelerator: "kvm" | "tcg"
  /** What the guest sees as CPU: a name for emulation, a digest of the host's own for KVM. */
  readonly cpu: string
}

export const qmpSocket = (runDirectory: string): string => path.join(runDirectory, "qmp.sock")
export const agentSocket = (runDirectory: string): string => path.join(runDirectory, "agent.sock")
export const migrationSocket = (runDirectory: string): string => path.join(runDirectory, "migrate.sock")

/** virtio-mem: what the guest takes and gives back at once; the huge page size of x86. */
export const memoryBlockMb = 2
const mib = 1024 * 1024

export const memoryDevice = "vmem"
const consoleArgument = "console=ttyS0"

/** A value inside QEMU's `key=value,...` syntax: a comma is written twice (qemu(1), -name). */
export const escaped = (value: string): string => value.replaceAll(",", ",,")

type Json = null | boolean | number | string | { readonly [key: string]: Json }

/** How far live growth may go beyond the memory at boot, in MiB, in whole blocks. */
export const growthMb = (config: Pick<VmConfig, "memoryMb" | "memoryMaxMb">): number =>
  Math.max(0, Math.floor((config.memoryMaxMb - config.memoryMb) / memoryBlockMb) * memoryBlockMb)

/** A file as a block node, raw. QEMU locks it: one writer or any number of readers, among all QEMUs of the host. */
export const diskNode = (disk: Disk) => ({
  driver: "raw",
  "node-name": nodeName(disk.serial),
  "read-only": disk.readonly,
  discard: disk.readonly ? "ignore" : "unmap",
  file: { driver: "file", filename: disk.path, aio: "threads", locking: "on" }
})

/** A block node as a disk of the guest, without its place. */
export const diskDevice = (disk: Disk) => ({
  driver: "virtio-blk-pci",
  id: diskId(disk.serial),
  serial: disk.serial,
  drive: nodeName(disk.serial),
  // All queues of a disk are served by one thread of QEMU; more of them cost interrupts and bring nothing.
  "num-queues": 1,
  "disable-legacy": "on"
})

interface Properties {
  readonly [key: string]: Json
}

const device = (value: Properties): ReadonlyArray<string> => ["-device", JSON.stringify(value)]

const object = (value: Properties): ReadonlyArray<string> => ["-object", JSON.stringify(value)]

const machineArgs = (host: QemuHost, config: VmConfig): ReadonlyArray<string> =>
  [
    [
      "-machine",
      `${host.machine},smm=off,sata=off,smbus=off,vmport=off,i8042=off,dump-guest-core=off,mem-merge=off,suppress-vmdesc=on`
    ],
    ["-accel", host.accelerator],
    ["-cpu", host.accelerator === "kvm" ? "host" : "max"],
    ["-smp", `cpus=${config.vcpus},sockets=1,cores=${config.vcpus},threads=1`],
    [
      "-m",
      growthMb(config) === 0
        ? `size=${config.memoryMb}M`
        : `size=${config.memoryMb}M,maxmem=${config.memoryMb + growthMb(config)}M`
    ],
    ["-rtc", "base=utc"],
    // A guest that sleeps (ACPI S3, S4) could be woken by nobody.
    ["-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1"]
  ].flat()

const processArgs = (config: VmConfig): ReadonlyArray<string> =>
  [
    ["-name", `guest=${escaped(config.id)},process=vm:${escaped(config.id)}`],
    ["-nodefaults", "-no-user-config", "-display", "none", "-S"],
    ["-action", "reboot=shutdown,shutdown=pause,panic=pause"],
    ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
  ].flat()

const kernelArgs = (config: VmConfig): ReadonlyArray<string> =>
  [
    ["-kernel", config.kernel, "-initrd", config.initrd],
    ["-append", config.cmdline === "" ? consoleArgument : `${consoleArgument} ${config.cmdline}`]
  ].flat()

const onBus = (slot: number) => ({ bus: "pcie.0", addr: functionAddress(slot, 0), "disable-legacy": "on" })

const channelArgs = (config: VmConfig): ReadonlyArray<string> =>
  [
    ["-chardev", `file,id=console,path=${escaped(config.consolePath)},append=on`],
    device({ driver: "isa-serial", chardev: "console" }),
    ["-chardev", `socket,id=qmp,path=${escaped(qmpSocket(config.runDirectory))},server=on,wait=off`],
    ["-mon", "chardev=qmp,mode=control"],
    ["-chardev", `socket,id=agent,path=${escaped(agentSocket(config.runDirectory))},server=on,wait=off`],
    device({ driver: "virtio-serial-pci", id: "serial", max_ports: 2, ...onBus(agentSlot) }),
    device({ driver: "virtserialport", bus: "serial.0", nr: 1, chardev: "agent", name: "agent.0" }),
    device({ driver: "pvpanic-pci", id: "panic", bus: "pcie.0", addr: functionAddress(panicSlot, 0) }),
    object({ "qom-type": "rng-builtin", id: "entropy" }),
    device({ driver: "virtio-rng-pci", id: "rng", rng: "entropy", ...onBus(entropySlot) })
  ].flat()

const nicArgs = (nic: Nic): ReadonlyArray<string> =>
  [
    ["-netdev", JSON.stringify({ type: "tap", id: "net", ifname: nic.tap, script: "no", downscript: "no" })],
    // No boot ROM: the kernel is given, so nothing boots from the network.
    device({
      driver: "virtio-net-pci",
      id: "nic",
      netdev: "net",
      mac: nic.mac,
      romfile: "",
      ...onBus(networkSlot)
    })
  ].flat()

const memoryArgs = (config: VmConfig): ReadonlyArray<string> =>
  growthMb(config) === 0
    ? []
    : [
        object({
          "qom-type": "memory-backend-ram",
          id: "growth",
          size: growthMb(config) * mib,
          reserve: false
        }),
        device({
          driver: "virtio-mem-pci",
          id: memoryDevice,
          memdev: "growth",
          "block-size": memoryBlockMb * mib,
          "requested-size": 0,
          bus: "pcie.0",
          addr: functionAddress(memorySlot, 0)
        })
      ].flat()

const portArgs: ReadonlyArray<string> = Array.from({ length: hotPorts }, (_, port) =>
  device({
    driver: "pcie-root-port",
    id: portId(port),
    bus: "pcie.0",
    addr: portAddress(port),
    multifunction: isFirstFunction(port),
    chassis: port + 1,
    slot: port + 1,
    // One virtio device needs no more; the default windows take 100 ms longer to boot under software emulation.
    "io-reserve": 0,
    "mem-reserve": mib,
    "pref64-reserve": mib
  })
).flat()

const diskArgs = ({ disk, place }: PlacedDisk): ReadonlyArray<string> =>
  [
    ["-blockdev", JSON.stringify(diskNode(disk))],
    device({
      ...diskDevice(disk),
      ...(place._tag === "Fixed"
        ? {
            bus: "pcie.0",
            addr: place.address,
            multifunction: place.address.endsWith(".0"),
            ...(place.ownInterrupts ? {} : { vectors: 0 })
          }
        : { bus: portId(place.port), addr: "00.0" })
    })
  ].flat()

export interface ArgsOptions {
  /** Waits for a snapshot instead of standing at the first instruction; its disks are in these ports. */
  readonly restoring?: Ports
}

/** The arguments behind the program's name. The same input gives the same output, argument by argument. */
export const args = (host: QemuHost, config: VmConfig, options: ArgsOptions = {}): ReadonlyArray<string> => [
  ...processArgs(config),
  ...machineArgs(host, config),
  ...kernelArgs(config),
  ...channelArgs(config),
  ...(config.nic === null ? [] : nicArgs(config.nic)),
  ...memoryArgs(config),
  ...portArgs,
  ...place(config.disks, options.restoring ?? coldPorts(config.disks)).flatMap(diskArgs),
  ...(options.restoring === undefined ? [] : ["-incoming", "defer"])
]

/** Grows where a release lays out devices in another way, so that snapshots of the former one are told apart. */
const layoutRevision = 1

/**
 * What a snapshot of this VM needs to be restored: version, machine type, CPU, accelerator and the devices with their
 * sizes, and neither paths nor addresses of this run. 64 hexadecimal digits.
 */
export const fingerprint = (host: QemuHost, config: VmConfig): string =>
  createHash("sha256")
    .update(
      JSON.stringify([
        layoutRevision,
        [host.version, host.machine, host.accelerator, host.cpu],
        [config.vcpus, config.memoryMb, growthMb(config), config.nic !== null],
        config.disks.map((disk) => [disk.serial, disk.readonly, disk.removable === true])
      ])
    )
    .digest("hex")
