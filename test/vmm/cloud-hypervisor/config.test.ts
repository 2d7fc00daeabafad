import { assert, describe, it } from "@effect/vitest"
import { InstanceId } from "../../../src/domain/Ids.ts"
import { InterfaceName, Mac } from "../../../src/domain/Network.ts"
import { bodyMaxBytes } from "../../../src/vmm/cloud-hypervisor/Client.ts"
import {
  args,
  disksMax,
  disksProblem,
  fingerprint,
  growthMb,
  machineConfig
} from "../../../src/vmm/cloud-hypervisor/config.ts"
import {
  isCopied,
  modeObstacle,
  releaseOf,
  versionIn,
  versionObstacle
} from "../../../src/vmm/cloud-hypervisor/Release.ts"
import type { Disk, VmConfig } from "../../../src/vmm/Vmm.ts"
import { conversation } from "../../support/recordedConversation.ts"

const disk = (serial: string, change: Partial<Disk> = {}): Disk => ({
  serial,
  path: `/run/vm/${serial}.raw`,
  readonly: false,
  ...change
})

const config: VmConfig = {
  id: InstanceId.make("vm"),
  vcpus: 1,
  memoryMb: 128,
  memoryMaxMb: 256,
  kernel: "/run/vm/kernel",
  initrd: "/run/vm/initrd",
  cmdline: "",
  disks: [disk("data")],
  nic: null,
  consolePath: "/run/vm/console",
  logPath: "/run/vm/log",
  runDirectory: "/run/vm"
}

describe("a VM for Cloud Hypervisor", () => {
  it.each(["53.0", "52.0", "51.2"])("is what the real %s took", (version) => {
    const taken = conversation(version).find((it) => it.call === "vm.create")
    assert.strictEqual(taken?.status, 204)
    assert.deepStrictEqual(JSON.parse(taken?.body ?? ""), machineConfig(config, null))
  })

  it("has Landlock's rules where there is Landlock", () => {
    const rules = [{ path: "/data/snapshot", access: "rw" }] as const
    assert.deepInclude(machineConfig(config, rules), { landlock_enable: true, landlock_rules: rules })
  })

  it("names its TAP and its MAC, and cannot grow where that is not wanted", () => {
    const nic = { tap: InterfaceName.make("vm1"), mac: Mac.make("52:54:00:00:00:02") }
    const made = machineConfig({ ...config, nic, memoryMaxMb: 128, cmdline: "quiet" }, null)
    assert.deepStrictEqual(made.net, [{ id: "net", tap: "vm1", mac: "52:54:00:00:00:02" }])
    assert.deepStrictEqual(made.memory, { size: 128 * 1024 * 1024 })
    assert.strictEqual(made.payload.cmdline, "console=ttyS0 quiet")
  })

  it("grows in whole regions", () =>
    assert.deepStrictEqual(
      [128, 129, 256, 257, 64].map((memoryMaxMb) => growthMb({ memoryMb: 128, memoryMaxMb })),
      [0, 128, 128, 256, 0]
    ))

  it("keeps room in the first segment for disks to come, whatever the image has", () => {
    const layers = Array.from({ length: 120 }, (_, index) => disk(`layer-${index}`, { readonly: true }))
    const disks = [disk("config"), disk("overlay"), disk("volume", { removable: true }), ...layers]
    const made = machineConfig({ ...config, disks }, null)
    const segments = new Map<number, number>()
    for (const { pci_segment = 0 } of made.disks ?? [])
      segments.set(pci_segment, (segments.get(pci_segment) ?? 0) + 1)
    assert.deepStrictEqual(
      [...segments],
      [
        [0, 11],
        [1, 31],
        [2, 31],
        [3, 31],
        [4, 19]
      ]
    )
    assert.deepStrictEqual(made.platform, { num_pci_segments: 5 })
    assert.isBelow(Buffer.byteLength(JSON.stringify(made)), bodyMaxBytes)
  })

  it("refuses disks that cannot be named or are too many", () => {
    assert.isNull(disksProblem([disk("a"), disk("layer-100")]))
    assert.include(disksProblem([disk("a b")]) ?? "", "cannot name")
    assert.include(disksProblem([disk("_own")]) ?? "", "cannot name")
    assert.include(disksProblem([disk("x".repeat(21))]) ?? "", "cannot name")
    assert.include(disksProblem([disk("a"), disk("a")]) ?? "", "one serial")
    const many = Array.from({ length: disksMax + 1 }, (_, index) => disk(`d${index}`))
    assert.include(disksProblem(many) ?? "", "are more than")
  })

  it("depends in its snapshots on devices and CPU, and not on paths", () => {
    const base = fingerprint("cpu", config)
    const moved = {
      ...config,
      kernel: "/else",
      runDirectory: "/run/else",
      disks: [disk("data", { path: "/else" })]
    }
    assert.strictEqual(fingerprint("cpu", moved), base)
    const changes: ReadonlyArray<Partial<VmConfig>> = [
      { vcpus: 2 },
      { memoryMb: 129 },
      { memoryMaxMb: 512 },
      { disks: [] },
      { disks: [disk("data", { readonly: true })] }
    ]
    const others = [
      fingerprint("other", config),
      ...changes.map((it) => fingerprint("cpu", { ...config, ...it }))
    ]
    assert.strictEqual(new Set([base, ...others]).size, others.length + 1)
  })
})

describe("a release", () => {
  it("is known by what it says of itself", () => {
    assert.strictEqual(versionIn("cloud-hypervisor v53.0-dirty\nMigration"), "53.0")
    assert.strictEqual(versionIn("cloud-hypervisor v51.2"), "51.2")
    assert.strictEqual(versionIn("v54.0.1-12-gabcdef"), "54.0.1")
    assert.isUndefined(versionIn("cloud-hypervisor"))
  })

  it("is refused below 51.2, with a sentence", () => {
    for (const version of ["51.1", "51.0", "50.2", "9.0"])
      assert.include(versionObstacle(version) ?? "", "at least 51.2")
    for (const version of ["51.2", "52.0", "53.0", "100.0"]) assert.isNull(versionObstacle(version))
  })

  it("stays without its guest since 52.0", () => {
    assert.include(args(releaseOf("53.0"), "/run/vm"), "--no-shutdown")
    assert.notInclude(args(releaseOf("51.2"), "/run/vm"), "--no-shutdown")
  })

  it("loads on demand only where no later snapshot suffers from it", () => {
    assert.isTrue(isCopied("auto") && isCopied("copy") && !isCopied("on_demand"))
    for (const version of ["51.2", "52.0", "52.9"]) {
      assert.match(modeObstacle(releaseOf(version), "on_demand") ?? "", /^Cloud Hypervisor .*\.$/u)
      assert.isNull(modeObstacle(releaseOf(version), "copy"))
      assert.isNull(modeObstacle(releaseOf(version), "auto"))
    }
    for (const version of ["53.0", "54.1"]) assert.isNull(modeObstacle(releaseOf(version), "on_demand"))
  })
})
