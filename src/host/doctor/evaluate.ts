/** From what was seen to what is right and what is not, with the remedy for each failure. Pure. */
import * as path from "node:path"
import * as Result from "effect/Result"
import * as IpNetwork from "effect/net/IpNetwork"
import { layout, socketPathMaxBytes } from "../Paths.ts"
import type { SettingsValues } from "../Settings.ts"
import { accelerator } from "../Kvm.ts"
import { cloudHypervisorMinimum, compareVersions } from "../version.ts"
import { type Check, failed, passed } from "./Check.ts"
import { type BootFile, requiredTools, type Survey, type ToolFound } from "./Survey.ts"

/** Older ones lack the machine type pc-q35-7.2, or were never tried. */
const qemuMinimum = "7.2"
/** An image and a few overlays fit; less ends in ENOSPC at once. */
const freeMinBytes = 1024 ** 3
/** InstanceId's bound, and a length that no socket's own name reaches. */
const instanceIdMaxChars = 63
const socketNameMaxChars = 20

const setup = "run scripts/setup.sh"

/** Compares dotted versions by number: 10.0 is above 7.2. */
export const isAtLeast = (version: string, minimum: string): boolean => compareVersions(version, minimum) >= 0

interface VmmProgram {
  readonly name: "qemu" | "cloud-hypervisor"
  /** All that are installed side by side. */
  readonly programs: ReadonlyArray<{ readonly program: string; readonly found: ToolFound }>
  readonly minimum: string
  readonly variable: string
  readonly install: string
}

const qemuOf = (settings: SettingsValues, survey: Survey): VmmProgram => ({
  name: "qemu",
  programs: [{ program: settings.qemuBin, found: survey.qemu }],
  minimum: qemuMinimum,
  variable: "QEMU_BIN",
  install: "apt-get install qemu-system-x86"
})

const cloudHypervisorOf = (settings: SettingsValues, survey: Survey): VmmProgram => ({
  name: "cloud-hypervisor",
  programs: survey.cloudHypervisor.map((found, index) => ({
    program: settings.cloudHypervisorBin[index] ?? settings.cloudHypervisorBin[0],
    found
  })),
  minimum: cloudHypervisorMinimum,
  variable: "CLOUD_HYPERVISOR_BIN",
  install: "install a release of Cloud Hypervisor"
})

const checkOne = (
  { name, minimum, variable, install }: VmmProgram,
  { program, found }: VmmProgram["programs"][number]
): Check => {
  const remedy = `${install}, or set ${variable} to the program`
  if (found._tag === "Missing") return failed(name, "not installed", `${program} is not there: ${remedy}`)
  if (found._tag === "Broken") return failed(name, "does not start", `${program}: ${found.reason}; ${remedy}`)
  if (found.version === null)
    return failed(name, "does not say its version", `${program} --version: ${remedy}`)
  return isAtLeast(found.version, minimum)
    ? passed(name, `version ${found.version}`)
    : failed(name, `version ${found.version}, at least ${minimum} is needed`, remedy)
}

/** The first that is wrong; else all versions, since each of them restores what it wrote. */
const checkProgram = (vmm: VmmProgram): Check => {
  const all = vmm.programs.map((it) => checkOne(vmm, it))
  return all.find((check) => !check.ok) ?? passed(vmm.name, all.map((check) => check.detail).join(", "))
}

/** `auto` is cloud-hypervisor where its program and KVM are, else qemu. */
const chooseVmm = (settings: SettingsValues, survey: Survey): VmmProgram => {
  const cloudHypervisor = cloudHypervisorOf(settings, survey)
  if (settings.vmm === "cloud-hypervisor") return cloudHypervisor
  const auto = settings.vmm === "auto" && survey.kvm._tag === "Usable" && checkProgram(cloudHypervisor).ok
  return auto ? cloudHypervisor : qemuOf(settings, survey)
}

const kvmDetail = (survey: Survey): string => {
  switch (survey.kvm._tag) {
    case "Usable":
      return "KVM is usable"
    case "NoDevice":
      return "there is no KVM device"
    case "NoAccess":
      return `the KVM device does not open (${survey.kvm.code})`
    case "NoVirtualization":
      return "the CPU has neither vmx nor svm, so KVM cannot run a guest's kernel"
    default:
      return survey.kvm satisfies never
  }
}

const kvmRemedy = (survey: Survey): string =>
  survey.kvm._tag === "NoAccess"
    ? "run as root, or as a member of the group of /dev/kvm"
    : "turn on virtualization in the firmware (nested virtualization in a VM) and load kvm_intel or kvm_amd"

const checkAccelerator = (vmm: VmmProgram, settings: SettingsValues, survey: Survey): Check => {
  const usable = survey.kvm._tag === "Usable"
  const required = vmm.name === "cloud-hypervisor" || settings.qemuAccel === "kvm"
  if (required && !usable)
    return failed(
      "accelerator",
      kvmDetail(survey),
      `${kvmRemedy(survey)}; or set VMM=qemu and QEMU_ACCEL=auto`
    )
  if (required || accelerator(settings.qemuAccel, survey.kvm) === "kvm") return passed("accelerator", "KVM")
  const why = settings.qemuAccel === "tcg" ? "as QEMU_ACCEL says" : kvmDetail(survey)
  return passed("accelerator", `software emulation, many times slower than KVM: ${why}`)
}

const checkTools = (survey: Survey): ReadonlyArray<Check> =>
  Object.entries(survey.tools).map(([name, found]) => {
    const [, debian] = Object.entries(requiredTools).find(([tool]) => tool === name) ?? [name, name]
    const remedy = `apt-get install ${debian}, or ${setup}`
    if (found._tag === "Missing") return failed(name, "not installed", remedy)
    if (found._tag === "Broken") return failed(name, "does not start", `${found.reason}; ${remedy}`)
    return passed(name, found.version === null ? "installed" : `version ${found.version}`)
  })

const checkPrivileges = (survey: Survey): Check =>
  survey.isRoot
    ? passed("privileges", "root")
    : failed("privileges", "not root: TAPs, rules and mounts need it", "run the service as root")

const checkForwarding = ({ forwarding }: Survey): Check => {
  const name = "forwarding"
  if (forwarding?.on === true) return passed(name, "on")
  if (forwarding?.writable === true) return passed(name, "off; the service turns it on when it starts")
  return failed(name, "off: guests reach nothing beyond this host", "sysctl -w net.ipv4.ip_forward=1")
}

const checkBridge = ({ subnet }: SettingsValues, { bridge }: Survey): Check => {
  if (bridge === null) return passed("bridge", `${subnet.bridge} will be made when the service starts`)
  return bridge.kind === "bridge"
    ? passed("bridge", `${subnet.bridge} is there`)
    : failed(
        "bridge",
        `${subnet.bridge} is no bridge`,
        "set BRIDGE_NAME to another name, or remove that interface"
      )
}

const networkOf = (destination: string) =>
  IpNetwork.ipv4FromString(destination.includes("/") ? destination : `${destination}/32`)

const checkSubnet = ({ subnet }: SettingsValues, { routes }: Survey): Check => {
  const ours = networkOf(subnet.cidr)
  const taken = routes.find(({ destination, device }) => {
    const theirs = networkOf(destination)
    const both = Result.all([ours, theirs])
    return (
      device !== subnet.bridge &&
      Result.isSuccess(both) &&
      IpNetwork.overlaps(both.success[0], both.success[1])
    )
  })
  return taken === undefined
    ? passed("subnet", `${subnet.cidr} is free`)
    : failed(
        "subnet",
        `${subnet.cidr} overlaps the route to ${taken.destination} over ${taken.device}`,
        "set SUBNET_CIDR to a network that this host does not reach otherwise"
      )
}

const inGib = (bytes: number): string => `${(bytes / 1024 ** 3).toFixed(1)} GiB`

const checkDisk = ({ dataDir }: SettingsValues, { dataDirectory }: Survey): ReadonlyArray<Check> => {
  if (dataDirectory._tag === "Unusable") {
    const remedy = `make DATA_DIR (${dataDir}) a directory that the service can write, or set it to another one`
    return [failed("data-dir", `cannot be written (${dataDirectory.code})`, remedy)]
  }
  const free = `${inGib(dataDirectory.freeBytes)} free`
  const ample = dataDirectory.freeBytes >= freeMinBytes
  return [
    passed("data-dir", "can be written"),
    ample
      ? passed("disk", free)
      : failed(
          "disk",
          `${free}, at least ${inGib(freeMinBytes)} is needed`,
          `make room on the file system of ${dataDir}`
        )
  ]
}

const startsWith = (head: Uint8Array, magic: ReadonlyArray<number>, at = 0): boolean =>
  magic.every((byte, index) => head[at + index] === byte)

const elf = [0x7f, 0x45, 0x4c, 0x46]
/** "HdrS", the header of a bzImage (kernel.org, x86 boot protocol). */
const bzImage = [0x48, 0x64, 0x72, 0x53]
const bzImageAt = 0x202

const isKernel = (head: Uint8Array): boolean => startsWith(head, elf) || startsWith(head, bzImage, bzImageAt)
const isAnything = (): boolean => true

const checkBootFile = (
  name: "kernel" | "initrd",
  target: string,
  found: BootFile,
  isRight: (head: Uint8Array) => boolean
): Check => {
  const remedy = `${setup}, or set ${name.toUpperCase()}_PATH to another one than ${target}`
  if (found._tag === "Missing") return failed(name, "missing", remedy)
  if (found._tag === "Unreadable") return failed(name, `cannot be read (${found.code})`, remedy)
  if (found.bytes === 0) return failed(name, "empty", remedy)
  return isRight(found.head)
    ? passed(name, `${(found.bytes / 1024 ** 2).toFixed(1)} MiB`)
    : failed(name, "neither a bzImage nor an ELF file", remedy)
}

const checkSockets = ({ dataDir }: SettingsValues): Check => {
  const longest = path.join(
    layout(dataDir).run,
    "i".repeat(instanceIdMaxChars),
    "s".repeat(socketNameMaxChars)
  )
  const bytes = Buffer.byteLength(longest)
  return bytes <= socketPathMaxBytes
    ? passed("sockets", `paths of at most ${bytes} bytes`)
    : failed(
        "sockets",
        `paths of ${bytes} bytes; the kernel takes ${socketPathMaxBytes}`,
        "use a shorter run directory"
      )
}

/** The verdict on everything that VMs need. The simulated VMM needs a place for its files only. */
export const evaluate = (settings: SettingsValues, survey: Survey): ReadonlyArray<Check> => {
  if (settings.vmm === "simulated") return checkDisk(settings, survey)
  const vmm = chooseVmm(settings, survey)
  return [
    checkProgram(vmm),
    checkAccelerator(vmm, settings, survey),
    ...checkTools(survey),
    checkPrivileges(survey),
    checkForwarding(survey),
    checkBridge(settings, survey),
    checkSubnet(settings, survey),
    ...checkDisk(settings, survey),
    checkBootFile("kernel", settings.kernelPath, survey.kernel, isKernel),
    checkBootFile("initrd", settings.initrdPath, survey.initrd, isAnything),
    checkSockets(settings)
  ]
}
