/** Every failure that the doctor knows, one at a time, on a host that is otherwise sound. */
import { assert, describe, it } from "vitest"
import * as Result from "effect/Result"
import { exitCode, formatChecks, healthCheck, isFit } from "../../../src/host/doctor/Check.ts"
import { evaluate, isAtLeast } from "../../../src/host/doctor/evaluate.ts"
import type { Survey, ToolFound } from "../../../src/host/doctor/Survey.ts"
import { decodeSettings, type Environment } from "../../../src/host/Settings.ts"

const settings = (env: Environment = {}) => Result.getOrThrow(decodeSettings(env, false))
const found = (version: string): ToolFound => ({ _tag: "Found", version })
const bytes = (...values: ReadonlyArray<number>) => Uint8Array.from(values)

const sound: Survey = {
  isRoot: true,
  qemu: found("7.2.22"),
  cloudHypervisor: [{ _tag: "Missing" }],
  kvm: { _tag: "Usable" },
  tools: {
    skopeo: found("1.9.3"),
    tar2sqfs: found("1.2.0"),
    "mkfs.ext4": { _tag: "Found", version: null },
    ip: found("6.1.0"),
    bridge: found("6.1.0"),
    nft: found("1.0.6"),
    fallocate: found("2.38.1")
  },
  forwarding: { on: true, writable: true },
  bridge: null,
  routes: [
    { destination: "default", device: "eth0" },
    { destination: "10.0.0.0/8", device: "eth0" }
  ],
  dataDirectory: { _tag: "Usable", freeBytes: 50 * 1024 ** 3 },
  kernel: { _tag: "Found", bytes: 7_000_000, head: bytes(0x7f, 0x45, 0x4c, 0x46) },
  initrd: { _tag: "Found", bytes: 900_000, head: bytes(0x30) }
}

const failures = (survey: Partial<Survey>, env: Environment = {}) =>
  evaluate(settings(env), { ...sound, ...survey }).filter((check) => !check.ok)

const cases: ReadonlyArray<{
  readonly name: string
  readonly survey: Partial<Survey>
  readonly env?: Environment
  readonly check: string
  readonly detail: RegExp
  readonly fix: RegExp
}> = [
  {
    name: "no QEMU",
    survey: { qemu: { _tag: "Missing" } },
    check: "qemu",
    detail: /not installed/,
    fix: /qemu-system-x86.*QEMU_BIN/
  },
  {
    name: "an old QEMU",
    survey: { qemu: found("6.2.0") },
    check: "qemu",
    detail: /6\.2\.0, at least 7\.2/,
    fix: /apt-get/
  },
  {
    name: "a QEMU that does not start",
    survey: { qemu: { _tag: "Broken", reason: "libfoo.so is missing" } },
    check: "qemu",
    detail: /does not start/,
    fix: /libfoo/
  },
  {
    name: "a Cloud Hypervisor that was asked for and is not there",
    survey: {},
    env: { VMM: "cloud-hypervisor" },
    check: "cloud-hypervisor",
    detail: /not installed/,
    fix: /CLOUD_HYPERVISOR_BIN/
  },
  {
    name: "Cloud Hypervisor without KVM",
    survey: { cloudHypervisor: [found("53.0")], kvm: { _tag: "NoDevice" } },
    env: { VMM: "cloud-hypervisor" },
    check: "accelerator",
    detail: /no KVM device/,
    fix: /VMM=qemu/
  },
  {
    name: "KVM that was asked for and is closed to us",
    survey: { kvm: { _tag: "NoAccess", code: "EACCES" } },
    env: { QEMU_ACCEL: "kvm" },
    check: "accelerator",
    detail: /EACCES/,
    fix: /group of \/dev\/kvm/
  },
  {
    name: "KVM that was asked for on a CPU without virtualization",
    survey: { kvm: { _tag: "NoVirtualization" } },
    env: { QEMU_ACCEL: "kvm" },
    check: "accelerator",
    detail: /vmx nor svm/,
    fix: /firmware/
  },
  {
    name: "no skopeo",
    survey: { tools: { ...sound.tools, skopeo: { _tag: "Missing" } } },
    check: "skopeo",
    detail: /not installed/,
    fix: /apt-get install skopeo/
  },
  {
    name: "no tar2sqfs, whose package has another name",
    survey: { tools: { ...sound.tools, tar2sqfs: { _tag: "Missing" } } },
    check: "tar2sqfs",
    detail: /not installed/,
    fix: /apt-get install squashfs-tools-ng/
  },
  { name: "no root", survey: { isRoot: false }, check: "privileges", detail: /not root/, fix: /as root/ },
  {
    name: "forwarding off for good",
    survey: { forwarding: { on: false, writable: false } },
    check: "forwarding",
    detail: /off/,
    fix: /sysctl -w net\.ipv4\.ip_forward=1/
  },
  {
    name: "a bridge's name on another interface",
    survey: { bridge: { kind: "veth" } },
    check: "bridge",
    detail: /no bridge/,
    fix: /BRIDGE_NAME/
  },
  {
    name: "a subnet inside a network that the host reaches otherwise",
    survey: { routes: [{ destination: "192.168.0.0/16", device: "wlan0" }] },
    check: "subnet",
    detail: /192\.168\.0\.0\/16 over wlan0/,
    fix: /SUBNET_CIDR/
  },
  {
    name: "a single address of the subnet that is routed elsewhere",
    survey: { routes: [{ destination: "192.168.100.77", device: "tun0" }] },
    check: "subnet",
    detail: /tun0/,
    fix: /SUBNET_CIDR/
  },
  {
    name: "a DATA_DIR that cannot be written",
    survey: { dataDirectory: { _tag: "Unusable", code: "EROFS" } },
    check: "data-dir",
    detail: /EROFS/,
    fix: /DATA_DIR/
  },
  {
    name: "a full disk",
    survey: { dataDirectory: { _tag: "Usable", freeBytes: 1024 ** 3 - 1 } },
    check: "disk",
    detail: /1\.0 GiB free, at least/,
    fix: /make room/
  },
  {
    name: "no kernel",
    survey: { kernel: { _tag: "Missing" } },
    check: "kernel",
    detail: /missing/,
    fix: /setup\.sh/
  },
  {
    name: "a kernel that is none",
    survey: { kernel: { _tag: "Found", bytes: 4, head: bytes(1, 2, 3, 4) } },
    check: "kernel",
    detail: /neither a bzImage nor an ELF/,
    fix: /KERNEL_PATH/
  },
  {
    name: "an empty initrd",
    survey: { initrd: { _tag: "Found", bytes: 0, head: bytes() } },
    check: "initrd",
    detail: /empty/,
    fix: /INITRD_PATH/
  },
  {
    name: "an initrd that cannot be read",
    survey: { initrd: { _tag: "Unreadable", code: "EACCES" } },
    check: "initrd",
    detail: /EACCES/,
    fix: /INITRD_PATH/
  }
]

describe("the doctor", () => {
  it("finds nothing wrong with a sound host", () => {
    assert.deepStrictEqual(failures({}), [])
  })

  for (const { name, survey, env, check, detail, fix } of cases) {
    it(`sees ${name}, and nothing else`, () => {
      const found = failures(survey, env)
      assert.deepStrictEqual(
        found.map((it) => it.name),
        [check]
      )
      assert.match(found[0]?.detail ?? "", detail)
      assert.match(found[0]?.fix ?? "", fix)
    })
  }

  it("takes software emulation for slow, not for wrong", () => {
    for (const kvm of [{ _tag: "NoDevice" }, { _tag: "NoVirtualization" }] as const) {
      const checks = evaluate(settings(), { ...sound, kvm })
      assert.isTrue(isFit(checks))
      assert.match(checks.find((check) => check.name === "accelerator")?.detail ?? "", /software emulation/)
    }
  })

  it("judges the VMM that auto comes to", () => {
    const vmmOf = (survey: Partial<Survey>) => evaluate(settings(), { ...sound, ...survey })[0]?.name
    const cloudHypervisor = [found("53.0"), found("51.2")]
    assert.strictEqual(vmmOf({ cloudHypervisor }), "cloud-hypervisor")
    assert.strictEqual(vmmOf({ cloudHypervisor, kvm: { _tag: "NoDevice" } }), "qemu")
    assert.strictEqual(vmmOf({ cloudHypervisor: [found("53.0"), found("50.0")] }), "qemu")
    assert.strictEqual(vmmOf({}), "qemu")
  })

  it("does not take its own bridge's route for a conflict", () => {
    const routes = [{ destination: "192.168.100.0/24", device: "vmbr0" }]
    assert.deepStrictEqual(failures({ routes, bridge: { kind: "bridge" } }), [])
  })

  it("knows a bzImage by its header", () => {
    const head = new Uint8Array(0x206)
    head.set(bytes(0x48, 0x64, 0x72, 0x53), 0x202)
    assert.deepStrictEqual(failures({ kernel: { _tag: "Found", bytes: 1, head } }), [])
    assert.strictEqual(
      failures({ kernel: { _tag: "Found", bytes: 1, head: head.subarray(0, 0x204) } }).length,
      1
    )
  })

  it("asks for nothing but a place for files where VMMs are simulated", () => {
    const bare = { qemu: { _tag: "Missing" }, isRoot: false, kernel: { _tag: "Missing" } } as const
    assert.deepStrictEqual(failures(bare, { VMM: "simulated" }), [])
    assert.strictEqual(
      failures({ dataDirectory: { _tag: "Unusable", code: "EROFS" } }, { VMM: "simulated" }).length,
      1
    )
  })

  it("compares versions by number", () => {
    assert.isTrue(isAtLeast("10.0", "7.2"))
    assert.isTrue(isAtLeast("7.2", "7.2"))
    assert.isTrue(isAtLeast("7.2.1", "7.2"))
    assert.isFalse(isAtLeast("7.1.99", "7.2"))
    assert.isFalse(isAtLeast("7", "7.2"))
  })
})

describe("what the doctor says", () => {
  const checks = evaluate(settings({ DATA_DIR: "/srv/vms" }), {
    ...sound,
    kernel: { _tag: "Missing" },
    dataDirectory: { _tag: "Unusable", code: "EACCES" }
  })

  it("puts the remedy under each failure, and ends with the verdict and the exit code", () => {
    const text = formatChecks(checks)
    assert.match(text, /^FAIL kernel +missing\n +fix: run scripts\/setup\.sh/m)
    assert.match(text, /^ok {3}qemu +version 7\.2\.22$/m)
    assert.match(text, /2 to fix\.\n$/)
    assert.strictEqual(exitCode(checks), 1)
    assert.strictEqual(exitCode(evaluate(settings(), sound)), 0)
  })

  it("tells clients no path of the host", () => {
    const told = checks.map(healthCheck)
    assert.notInclude(JSON.stringify(told), "/srv/vms")
    assert.notInclude(JSON.stringify(told), "/dev/")
    assert.deepStrictEqual(Object.keys(told[0] ?? {}), ["name", "ok", "detail"])
  })
})
