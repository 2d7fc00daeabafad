/** Every variable of the configuration: its default, its right values, and the one line that refuses a wrong one. */
import { spawnSync } from "node:child_process"
import { inspect } from "node:util"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { describe, expect, it } from "vitest"
import { decodeSettings, type Environment, isOpen, SettingsRefused } from "../../src/host/Settings.ts"

const decode = (env: Environment, terminal = false) => Result.getOrThrow(decodeSettings(env, terminal))
const refusal = (env: Environment): SettingsRefused | undefined =>
  Result.match(decodeSettings(env, false), { onSuccess: () => undefined, onFailure: (refused) => refused })

const secret = "0123456789abcdef0123456789abcdef"

describe("defaults", () => {
  it("are the contract's", () => {
    const settings = decode({})
    expect(settings).toEqual({
      port: 8080,
      host: "127.0.0.1",
      dataDir: "/var/lib/cloud-hypervisor-dataplane",
      subnet: { bridge: "vmbr0", cidr: "192.168.100.0/24", gateway: "192.168.100.1", dns: "1.1.1.1" },
      containerdSocket: "/run/containerd/containerd.sock",
      imageSource: "auto",
      jwtSecret: null,
      vmm: "auto",
      cloudHypervisorBin: ["cloud-hypervisor"],
      qemuBin: "qemu-system-x86_64",
      qemuAccel: "auto",
      kernelPath: "/var/lib/cloud-hypervisor-dataplane/system/vmlinuz",
      initrdPath: "/var/lib/cloud-hypervisor-dataplane/system/initrd",
      logLevel: "info",
      logFormat: "json",
      otlpEndpoint: null
    })
  })

  it("an empty variable is one that is not set", () => {
    const names = ["PORT", "HOST", "JWT_SECRET", "VMM", "SUBNET_GATEWAY", "KERNEL_PATH", "LOG_FORMAT"]
    expect(decode(Object.fromEntries(names.map((name) => [name, ""])))).toEqual(decode({}))
  })

  it("a terminal gets sentences, everything else JSON, and either can be asked for", () => {
    expect(decode({}, true).logFormat).toBe("pretty")
    expect(decode({ LOG_FORMAT: "json" }, true).logFormat).toBe("json")
    expect(decode({ LOG_FORMAT: "pretty" }).logFormat).toBe("pretty")
  })

  it("kernel and initrd are under DATA_DIR, and the gateway is the subnet's first address", () => {
    const settings = decode({ DATA_DIR: "/srv/vms/../vms", SUBNET_CIDR: "10.20.0.0/16" })
    expect(settings.kernelPath).toBe("/srv/vms/system/vmlinuz")
    expect(settings.initrdPath).toBe("/srv/vms/system/initrd")
    expect(settings.subnet.gateway).toBe("10.20.0.1")
  })
})

describe("who can reach the port", () => {
  const cases: ReadonlyArray<readonly [Environment, string, boolean]> = [
    [{}, "127.0.0.1", false],
    [{ JWT_SECRET: secret }, "0.0.0.0", false],
    [{ JWT_SECRET: secret, HOST: "127.0.0.1" }, "127.0.0.1", false],
    [{ HOST: "0.0.0.0" }, "0.0.0.0", true],
    [{ HOST: "::" }, "::", true],
    [{ HOST: "::1" }, "::1", false],
    [{ HOST: "localhost" }, "localhost", false],
    [{ HOST: "127.9.9.9" }, "127.9.9.9", false],
    [{ HOST: "10.0.0.4" }, "10.0.0.4", true]
  ]
  it.each(cases)("%j listens on %s; open without a token: %s", (env, host, open) => {
    const settings = decode(env)
    expect(settings.host).toBe(host)
    expect(isOpen(settings)).toBe(open)
  })
})

it("CLOUD_HYPERVISOR_BIN names releases side by side, in their order", () => {
  expect(decode({ CLOUD_HYPERVISOR_BIN: "ch" }).cloudHypervisorBin).toEqual(["ch"])
  expect(decode({ CLOUD_HYPERVISOR_BIN: "/opt/53/ch:/opt/52/ch:ch" }).cloudHypervisorBin).toEqual([
    "/opt/53/ch",
    "/opt/52/ch",
    "ch"
  ])
})

const wrong: ReadonlyArray<readonly [string, ReadonlyArray<string>, RegExp]> = [
  ["PORT", ["65536", "-1", "80.5", "http", "8e3", " 80", "0x50", "99999999"], /port number from 0 to 65535/u],
  ["HOST", ["300.1.1.1", "a b", "-x", "host_name", "1.2.3", "http://x"], /IP address or a host name/u],
  ["DATA_DIR", ["/a\0b", `/${"x".repeat(4096)}`], /directory's path/u],
  ["BRIDGE_NAME", ["", "Vmbr0", "0br", "a".repeat(16), "a/b", "a b"].slice(1), /interface name/u],
  [
    "SUBNET_CIDR",
    [
      "192.168.100.0",
      "192.168.100.1/24",
      "10.0.0.0/8",
      "10.0.0.0/31",
      "256.0.0.0/16",
      "10.0.0.0/16/3",
      "fd00::/64"
    ],
    /IPv4 network, \/16 to \/30/u
  ],
  [
    "SUBNET_GATEWAY",
    ["192.168.101.1", "192.168.100.0", "192.168.100.255", "gateway", "192.168.100.01"],
    /host address of SUBNET_CIDR 192\.168\.100\.0\/24, 192\.168\.100\.1 to 192\.168\.100\.254/u
  ],
  ["DNS_SERVER", ["1.1.1", "dns.example", "1.1.1.256", "::1", "01.1.1.1"], /IPv4 address/u],
  ["CONTAINERD_SOCKET", ["containerd.sock", `/${"s".repeat(107)}`], /absolute path of at most 107 bytes/u],
  ["IMAGE_SOURCE", ["docker", "AUTO"], /one of auto, containerd, registry/u],
  ["JWT_SECRET", ["short", "é".repeat(15)], /at least 32 bytes/u],
  ["VMM", ["kvm", "firecracker"], /one of auto, cloud-hypervisor, qemu, simulated/u],
  [
    "CLOUD_HYPERVISOR_BIN",
    ["./ch", "a b", "-x", "ch:", "ch::ch", ":ch", "/a:b c", "a:".repeat(16) + "a"],
    /program's name or its absolute path/u
  ],
  ["QEMU_BIN", ["bin/qemu", "qemu;rm"], /program's name or its absolute path/u],
  ["QEMU_ACCEL", ["hvf", "KVM"], /one of auto, kvm, tcg/u],
  ["KERNEL_PATH", ["vmlinuz", "./vmlinuz"], /absolute path/u],
  ["INITRD_PATH", ["initrd"], /absolute path/u],
  ["LOG_LEVEL", ["verbose", "INFO"], /one of debug, info, warn, error/u],
  ["LOG_FORMAT", ["text"], /one of json, pretty/u],
  ["OTEL_EXPORTER_OTLP_ENDPOINT", ["localhost:4318", "grpc://x", "http://"], /http or https URL/u]
]

describe("a wrong value", () => {
  it.each(wrong.flatMap(([name, values, right]) => values.map((value) => [name, value, right] as const)))(
    "%s=%j is refused in one line that says what would be right",
    (name, value, right) => {
      const refused = refusal({ [name]: value })
      expect(refused).toBeInstanceOf(SettingsRefused)
      expect(refused?.variable).toBe(name)
      expect(refused?.message.startsWith(`${name}=`)).toBe(true)
      expect(refused?.message).toMatch(right)
      expect(refused?.message).not.toMatch(/[\r\n\0]/u)
      expect(refused?.message.length).toBeLessThan(400)
    }
  )

  it("names the value, but never a secret", () => {
    expect(refusal({ PORT: "http" })?.message).toBe(
      "PORT=http: a port number from 0 to 65535 (0 takes any free one)"
    )
    expect(refusal({ JWT_SECRET: "hunter2" })?.message).not.toContain("hunter2")
    expect(refusal({ OTEL_EXPORTER_OTLP_ENDPOINT: "ftp://u:hunter2@h" })?.message).not.toContain("hunter2")
    expect(refusal({ DATA_DIR: `/${"x".repeat(5000)}` })?.message).toContain("...")
    expect(refusal({ VMM: "a\nb" })?.message.split("\n")).toHaveLength(1)
  })

  it("a secret is not printed by whoever prints the settings", () => {
    const settings = decode({ JWT_SECRET: secret })
    expect(JSON.stringify(settings)).not.toContain(secret)
    expect(inspect(settings)).not.toContain(secret)
    expect(settings.jwtSecret === null ? "" : Redacted.value(settings.jwtSecret)).toBe(secret)
  })

  it("the gateway is judged by the subnet that is given with it", () => {
    expect(refusal({ SUBNET_CIDR: "10.0.0.0/30", SUBNET_GATEWAY: "192.168.100.1" })?.variable).toBe(
      "SUBNET_GATEWAY"
    )
    expect(decode({ SUBNET_CIDR: "10.0.0.0/30", SUBNET_GATEWAY: "10.0.0.2" }).subnet.gateway).toBe("10.0.0.2")
  })

  it("ends a program that needs the settings with exit code 2", () => {
    const program = `
      import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
      import * as Layer from "effect/Layer"
      import { Settings } from "./src/host/Settings.ts"
      NodeRuntime.runMain(Layer.launch(Settings.layer))`
    const ended = spawnSync(process.execPath, ["--input-type=module", "--eval", program], {
      env: { ...process.env, PORT: "http" },
      encoding: "utf8",
      timeout: 20_000
    })
    expect(ended.status).toBe(2)
    expect(`${ended.stdout}${ended.stderr}`).toContain("PORT=http: a port number")
  })
})
