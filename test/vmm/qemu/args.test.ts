/** The command line and the layout: pure, so they are tried with hostile input and against an independent reading. */
import { assert, describe, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Schema from "effect/Schema"
import { InstanceId } from "../../../src/domain/Ids.ts"
import { InterfaceName, Mac } from "../../../src/domain/Network.ts"
import type { Disk, VmConfig } from "../../../src/vmm/Vmm.ts"
import { args, fingerprint, growthMb, type QemuHost } from "../../../src/vmm/qemu/args.ts"
import { coldPorts, fixedDisksMax, hotPorts, place, placementProblem } from "../../../src/vmm/qemu/layout.ts"

const host: QemuHost = {
  program: "qemu-system-x86_64",
  version: "7.2.22",
  machine: "pc-q35-7.2",
  accelerator: "tcg",
  cpu: "max"
}

const plain: VmConfig = {
  id: InstanceId.make("vm"),
  vcpus: 2,
  memoryMb: 1024,
  memoryMaxMb: 1024,
  kernel: "/boot/vmlinuz",
  initrd: "/boot/initrd",
  cmdline: "quiet",
  disks: [],
  nic: null,
  consolePath: "/data/console.log",
  logPath: "/data/vmm.log",
  runDirectory: "/run/chd/0/vm"
}

/** Values of an option, in order. */
const values = (argv: ReadonlyArray<string>, option: string): ReadonlyArray<string> =>
  argv.flatMap((it, at) => (argv[at - 1] === option ? [it] : []))

const Device = Schema.fromJsonString(
  Schema.StructWithRest(Schema.Struct({ driver: Schema.String }), [
    Schema.Record(Schema.String, Schema.Unknown)
  ])
)
const devices = (argv: ReadonlyArray<string>) =>
  values(argv, "-device").map((text) => Schema.decodeSync(Device)(text))

/** QEMU's own reading of `key=value,...`: a comma that is written twice is one of the value. */
const keyValues = (text: string): ReadonlyMap<string, string> =>
  new Map(
    text
      .replaceAll(",,", "\0")
      .split(",")
      .map((part) => part.replaceAll("\0", ","))
      .map((part) => [part.slice(0, part.indexOf("=")), part.slice(part.indexOf("=") + 1)])
  )

const layers = (count: number): ReadonlyArray<Disk> =>
  Array.from({ length: count }, (_, at) => ({ serial: `layer-${at}`, path: `/layers/${at}`, readonly: true }))

describe("the command line", () => {
  it("of a small machine", () => {
    const argv = args(host, plain)
    assert.match(values(argv, "-machine")[0] ?? "", /^pc-q35-7\.2,/)
    assert.deepStrictEqual(values(argv, "-accel"), ["tcg"])
    assert.deepStrictEqual(values(argv, "-cpu"), ["max"])
    assert.deepStrictEqual(values(argv, "-m"), ["size=1024M"])
    assert.deepStrictEqual(values(argv, "-smp"), ["cpus=2,sockets=1,cores=2,threads=1"])
    assert.deepStrictEqual(values(argv, "-append"), ["console=ttyS0 quiet"])
    assert.deepStrictEqual(values(argv, "-action"), ["reboot=shutdown,shutdown=pause,panic=pause"])
    assert.deepStrictEqual(values(argv, "-sandbox"), [
      "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    ])
    for (const flag of ["-S", "-nodefaults", "-no-user-config"]) assert.include(argv, flag)
    for (const absent of ["-incoming", "-netdev", "-blockdev"]) assert.notInclude(argv, absent)
    assert.notInclude(args(host, { ...plain, cmdline: "" }).join(" "), "undefined")
  })

  it("asks for the host's CPU with KVM", () => {
    const argv = args({ ...host, accelerator: "kvm", cpu: "host-0" }, plain)
    assert.deepStrictEqual([values(argv, "-accel"), values(argv, "-cpu")], [["kvm"], ["host"]])
  })

  it("of a network, with the MAC and without a boot ROM", () => {
    const nic = { tap: InterfaceName.make("tap0"), mac: Mac.make("52:54:00:00:00:01") }
    const argv = args(host, { ...plain, nic })
    assert.deepStrictEqual(JSON.parse(values(argv, "-netdev")[0] ?? ""), {
      type: "tap",
      id: "net",
      ifname: "tap0",
      script: "no",
      downscript: "no"
    })
    const card = devices(argv).find((it) => it.driver === "virtio-net-pci")
    assert.strictEqual(card?.["mac"], nic.mac)
    assert.strictEqual(card?.["romfile"], "")
  })

  it("of memory that can grow, in whole blocks", () => {
    for (const [ceiling, growth] of [
      [1024, 0],
      [1025, 0],
      [1026, 2],
      [2047, 1022],
      [1000, 0]
    ] as const) {
      const config = { ...plain, memoryMaxMb: ceiling }
      assert.strictEqual(growthMb(config), growth)
      const argv = args(host, config)
      assert.strictEqual(
        devices(argv).filter((it) => it.driver === "virtio-mem-pci").length,
        growth === 0 ? 0 : 1
      )
      assert.deepStrictEqual(values(argv, "-m"), [
        growth === 0 ? "size=1024M" : `size=1024M,maxmem=${1024 + growth}M`
      ])
    }
  })

  it("gives every device an address of its own, the first function of a slot first", () => {
    const disks = [
      ...layers(130),
      ...layers(16).map((it, at) => ({ ...it, serial: `vol-${at}`, removable: true }))
    ]
    const nic = { tap: InterfaceName.make("tap0"), mac: Mac.make("52:54:00:00:00:01") }
    const argv = args(host, { ...plain, disks, nic, memoryMaxMb: 4096 })
    const pci = devices(argv).filter((it) => it["addr"] !== undefined)
    const places = pci.map((it) => `${String(it["bus"])}/${String(it["addr"])}`)
    assert.strictEqual(new Set(places).size, places.length)
    const slots = new Set<string>()
    for (const it of pci.filter((each) => each["bus"] === "pcie.0")) {
      const [slot = "", index = ""] = String(it["addr"]).split(".")
      assert.isBelow(Number.parseInt(slot, 16), 0x1f, "1f is the chip set's")
      if (slots.has(slot)) continue
      assert.strictEqual(index, "0")
      slots.add(slot)
    }
  })

  it("leaves interrupt vectors for others than the disks, however many there are", () => {
    const of = (count: number) =>
      devices(args(host, { ...plain, disks: layers(count) })).filter(
        (it) => it.driver === "virtio-blk-pci" && it["vectors"] === undefined
      ).length
    assert.deepStrictEqual([of(1), of(48), of(49), of(150)], [1, 48, 48, 48])
  })

  it("restores a machine with its disks where the snapshot has them", () => {
    const disks = [...layers(2), { serial: "vol-b", path: "/v/b", readonly: false }]
    const argv = args(host, { ...plain, disks }, { restoring: new Map([["vol-b", 5]]) })
    assert.deepStrictEqual(values(argv, "-incoming"), ["defer"])
    assert.strictEqual(devices(argv).find((it) => it["serial"] === "vol-b")?.["bus"], "hot5")
    // Those that stay are where they were without it.
    const before = devices(args(host, { ...plain, disks: layers(2) }))
    const after = devices(argv)
    for (const serial of ["layer-0", "layer-1"])
      assert.deepStrictEqual(
        after.find((it) => it["serial"] === serial),
        before.find((it) => it["serial"] === serial)
      )
  })
})

const hostile = Arbitrary.schema(
  Schema.Literals([
    ",",
    ",,",
    "=",
    '"',
    "\\",
    "{",
    "}",
    " ",
    "\n",
    "é",
    "/",
    "a",
    "server=off",
    ",id=x",
    "'",
    "$(x)",
    "-"
  ])
)
const text = Arbitrary.map(Arbitrary.array(hostile, { maxLength: 6 }), (parts) => parts.join(""))
const flag = Arbitrary.schema(Schema.Boolean)
const disk = Arbitrary.all({ path: text, readonly: flag, removable: flag })
const configs = Arbitrary.map(
  Arbitrary.all({ path: text, cmdline: text, tap: flag, disks: Arbitrary.array(disk, { maxLength: 12 }) }),
  ({ path, cmdline, tap, disks }): VmConfig => ({
    ...plain,
    kernel: `/k/${path}`,
    initrd: `/i/${path}`,
    cmdline,
    consolePath: `/c/${path}`,
    logPath: `/l/${path}`,
    runDirectory: `/r/${path}`,
    nic: tap ? { tap: InterfaceName.make("tap0"), mac: Mac.make("52:54:00:00:00:01") } : null,
    disks: disks.map((it, at) => ({ ...it, path: `/d/${it.path}`, serial: `disk-${at}` }))
  })
)

/** The options that take a value as it is: each is one argument, whatever is in it. */
const verbatim = new Set(["-kernel", "-initrd", "-append"])
const json = new Set(["-device", "-blockdev", "-netdev", "-object"])

describe("whatever a user or a path says", () => {
  it.prop(
    "stays inside its own value",
    { config: configs },
    ({ config }) => {
      const argv = args(host, config)
      const skeleton = args(host, {
        ...plain,
        nic: config.nic,
        disks: config.disks.map((it) => ({ ...it, path: "/d" }))
      })
      assert.strictEqual(argv.length, skeleton.length, "an argument more or less")
      argv.forEach((argument, at) => {
        const option = argv[at - 1] ?? ""
        if (json.has(option)) assert.doesNotThrow(() => JSON.parse(argument))
        else if (!verbatim.has(option))
          assert.deepStrictEqual([...keyValues(argument).keys()], [...keyValues(skeleton[at] ?? "").keys()])
      })
      const channels = values(argv, "-chardev").map(keyValues)
      assert.deepStrictEqual(
        channels.map((it) => it.get("path")),
        [config.consolePath, ...["qmp.sock", "agent.sock"].map((name) => joined(config.runDirectory, name))]
      )
      assert.deepStrictEqual(
        values(argv, "-blockdev").map((it) => JSON.parse(it).file.filename),
        config.disks.map((it) => it.path)
      )
      assert.deepStrictEqual(values(argv, "-kernel"), [config.kernel])
    },
    { arbitrary: { runs: 300 } }
  )

  it.prop("gives the same line for the same input", { config: configs }, ({ config }) => {
    assert.deepStrictEqual(args(host, config), args({ ...host }, structuredClone(config)))
  })
})

/** As path.join puts a name behind a directory: written out, to be independent of it for the values used here. */
const joined = (directory: string, name: string): string => {
  const parts = `${directory}/${name}`.split("/").filter((it) => it !== "" && it !== ".")
  return `/${parts.join("/")}`
}

type Change = readonly [string, (config: VmConfig) => VmConfig]

describe("the fingerprint", () => {
  const base: VmConfig = { ...plain, disks: layers(2), memoryMaxMb: 2048 }
  const same: ReadonlyArray<Change> = [
    ["console", (it) => ({ ...it, consolePath: "/x" })],
    ["log", (it) => ({ ...it, logPath: "/x" })],
    ["run directory", (it) => ({ ...it, runDirectory: "/x" })],
    ["disk path", (it) => ({ ...it, disks: it.disks.map((each) => ({ ...each, path: "/x" })) })],
    ["kernel path", (it) => ({ ...it, kernel: "/x", initrd: "/x" })],
    ["no room for a block", (it) => ({ ...it, memoryMaxMb: 2049 })],
    [
      "not removable, said",
      (it) => ({ ...it, disks: it.disks.map((each) => ({ ...each, removable: false })) })
    ]
  ]
  const other: ReadonlyArray<Change> = [
    ["vcpus", (it) => ({ ...it, vcpus: 3 })],
    ["memory", (it) => ({ ...it, memoryMb: 1026 })],
    ["ceiling", (it) => ({ ...it, memoryMaxMb: 2050 })],
    ["a disk more", (it) => ({ ...it, disks: layers(3) })],
    ["disks in another order", (it) => ({ ...it, disks: it.disks.toReversed() })],
    ["a writable disk", (it) => ({ ...it, disks: it.disks.map((each) => ({ ...each, readonly: false })) })],
    ["a removable disk", (it) => ({ ...it, disks: it.disks.map((each) => ({ ...each, removable: true })) })],
    [
      "a network",
      (it) => ({ ...it, nic: { tap: InterfaceName.make("t"), mac: Mac.make("52:54:00:00:00:01") } })
    ]
  ]
  const print = fingerprint(host, base)

  it.each(same)("does not change with %s", (_, change) =>
    assert.strictEqual(fingerprint(host, change(base)), print)
  )
  it.each(other)("changes with %s", (_, change) =>
    assert.notStrictEqual(fingerprint(host, change(base)), print)
  )
  it.each([
    ["version", { version: "7.2.23" }],
    ["machine", { machine: "pc-q35-7.1" }],
    ["accelerator", { accelerator: "kvm" }],
    ["CPU", { cpu: "host-1" }]
  ] as const)("changes with the host's %s", (_, change) =>
    assert.notStrictEqual(fingerprint({ ...host, ...change }, base), print)
  )
})

describe("places of disks", () => {
  it("are refused where there are not enough, and for serials that cannot name one", () => {
    const problem = (disks: ReadonlyArray<Disk>) => placementProblem(disks, coldPorts(disks))
    const removable = layers(hotPorts + 1).map((it) => ({ ...it, removable: true }))
    assert.isNull(problem(layers(fixedDisksMax)))
    assert.isNotNull(problem(layers(fixedDisksMax + 1)))
    assert.isNull(problem(removable.slice(1)))
    assert.isNotNull(problem(removable))
    assert.isNotNull(problem([...layers(1), ...layers(1)]))
    for (const serial of ["", "a,b", "a b", "Ä", "x".repeat(21), "../x", "-a"])
      assert.isNotNull(problem([{ serial, path: "/d", readonly: true }]), serial)
    assert.isNotNull(placementProblem(layers(1), new Map([["layer-0", hotPorts]])))
    assert.isNotNull(
      placementProblem(
        layers(2),
        new Map([
          ["layer-0", 1],
          ["layer-1", 1]
        ])
      )
    )
  })

  it("of those that stay do not depend on those that come and go", () => {
    const stay = layers(20)
    const mixed = stay.flatMap((it, at) =>
      at % 3 === 0 ? [{ serial: `vol-${at}`, path: "/v", readonly: false, removable: true }, it] : [it]
    )
    const fixed = (disks: ReadonlyArray<Disk>) =>
      place(disks, coldPorts(disks)).filter((it) => it.place._tag === "Fixed")
    assert.deepStrictEqual(fixed(mixed), fixed(stay))
  })
})
