/**
 * Real guests on QEMU under software emulation: the initrd that `scripts/build-initrd.sh` makes, one config disk after
 * another, and what the guest did with it. Boots are shared where they can be, since each takes seconds.
 *
 * Spawn to the image's process, medians of five where two host CPUs were shared with other work, in CPU seconds of QEMU
 * (least wall time in brackets): `quiet panic=-1 reboot=t` 2.8 (2.8); with cryptomgr.notests, which skips self-tests of
 * ciphers, no_timer_check and 8250.nr_uarts=1 2.45 (2.4). The same with a compressed initrd 2.4 (2.3), and with modules
 * whose signatures are cut off 2.25 (2.2), which taints the kernel and is not done. Of it the kernel takes three quarters.
 */
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { Files } from "../../src/host/Files.ts"
import { connectAgent } from "../../src/guest/Agent.ts"
import { readReport, writeConfig } from "../../src/guest/configDisk.ts"
import { GuestConfig } from "../../src/guest/GuestConfig.ts"
import { ensureInitrd, type GuestFiles } from "../../src/guest/initrd.ts"
import { guestCmdline } from "../../src/guest/kernel.ts"
import {
  busyboxEntries,
  ext4State,
  type GuestDisk,
  makeExt4,
  makeLayer,
  readExt4,
  startMachine
} from "../support/guestMachine.ts"
import { liveObstacle, skipWhere } from "../support/liveHost.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const testMaxMs = 120_000
const system = path.resolve(import.meta.dirname, "../../.artifacts/system")
const mac = "52:54:00:12:34:56"

const config = (fields: object): GuestConfig =>
  Schema.decodeSync(GuestConfig)({
    version: 1,
    hostname: "tiny",
    argv: ["/bin/true"],
    env: {},
    working_dir: "/",
    user: "",
    layers: ["layer-0", "layer-1"],
    overlay: "overlay",
    network: null,
    volumes: [],
    ...fields
  })

const guestFiles: Effect.Effect<GuestFiles, never, Files> = ensureInitrd({
  system,
  kernelPath: process.env["KERNEL_PATH"] ?? path.join(system, "vmlinuz"),
  initrdPath: path.join(system, "initrd"),
  say: () => Effect.void
}).pipe(Effect.orDie)

/** Disks of one guest, which it keeps over several boots. */
const makeGuest = Effect.gen(function* () {
  const directory = yield* temporaryDirectory("boot")
  const at = (name: string) => path.join(directory, name)
  yield* makeLayer(at("layer-0"), [...busyboxEntries(), { name: "gone", content: "from below" }])
  yield* makeLayer(at("layer-1"), [
    { name: "above", content: "from above" },
    { name: "gone", type: "character-device", devmajor: 0, devminor: 0 }
  ])
  yield* makeExt4(at("overlay"), 128)
  yield* makeExt4(at("data"), 64)
  const disks: ReadonlyArray<GuestDisk> = [
    { serial: "overlay", file: at("overlay") },
    { serial: "data", file: at("data") },
    { serial: "config", file: at("config") },
    { serial: "layer-1", file: at("layer-1"), readonly: true },
    { serial: "layer-0", file: at("layer-0"), readonly: true }
  ]
  const { kernel, initrd } = yield* guestFiles
  const boot = (fields: object, nic?: string) =>
    Effect.gen(function* () {
      yield* writeConfig(at("config"), config(fields)).pipe(Effect.orDie)
      const options = { directory, kernel: kernel.vmlinuz, initrd, cmdline: guestCmdline, disks }
      return yield* startMachine(nic === undefined ? options : { ...options, mac: nic })
    })
  const report = readReport(at("config")).pipe(Effect.orDie, Effect.map(Option.getOrUndefined))
  return { at, boot, report }
})

const live = (name: string, body: Effect.Effect<void, unknown, Scope.Scope | Files>) =>
  it.live(name, () => body.pipe(Effect.provide(Files.layer)), testMaxMs)

/** A host that connects, says half a word and leaves. */
const strayHost = (socket: string) =>
  Effect.callback<void>((resume) => {
    const stray = net.connect(socket, () => stray.end(Buffer.from([9, 1, 1, 1, 1])))
    stray.on("error", () => undefined)
    stray.on("close", () => resume(Effect.void))
  })

/** QEMU makes its sockets a moment after it started, and says so nowhere; as the service does, it is tried again. */
const socketRetryMs = 50
const socketRetries = 200
const session = (socket: string) =>
  connectAgent({ _tag: "UnixSocket", path: socket }).pipe(
    Effect.retry({ schedule: Schedule.spaced(socketRetryMs), times: socketRetries })
  )

const look = `
echo "user $(id -u):$(id -g) groups $(id -G)"
echo "cwd $(pwd) host $(hostname) home $HOME term $TERM greeting $GREETING path $PATH"
echo "files $(ulimit -n) stdin $(readlink /proc/self/fd/0)"
echo "above $(cat /above) gone $(test -e /gone && echo there || echo not)"
echo "resolv $(cat /etc/resolv.conf) link $(readlink /etc/resolv.conf || echo none)"
echo "hosts $(grep tiny /etc/hosts) name $(cat /etc/hostname)"
echo "eth0 $(ip -4 addr show eth0 | grep inet) lo $(ip addr show lo | grep -c LOOPBACK,UP)"
echo "route $(ip route | grep default)"
echo "data $(grep -c '/data/web ext4 ro' /proc/mounts)"
echo again > /dev/stdout
`

describe("a guest on QEMU", () => {
  skipWhere(liveObstacle(["debugfs", "dumpe2fs"]))

  live(
    "looks as its config says, talks to hosts that come and go, and ends when it is asked",
    Effect.gen(function* () {
      const guest = yield* makeGuest
      const machine = yield* guest.boot(
        {
          argv: ["sh", "-c", `${look}\ntrap 'date +%s; exit 5' TERM\necho up\nwhile :; do sleep 0.1; done`],
          env: { GREETING: "grüß dich" },
          working_dir: "/srv/new",
          user: "web",
          network: { mac, ip: "10.9.8.7", prefix: 24, gateway: "10.9.8.1", dns: ["1.1.1.1", "9.9.9.9"] },
          volumes: [{ serial: "data", mount_path: "/data/web", readonly: true }]
        },
        mac
      )
      const ready = yield* Effect.scoped(
        Effect.gen(function* () {
          const first = yield* session(machine.agent)
          yield* first.ready
          yield* first.ping
          return performance.now() - machine.startedAt
        })
      )
      console.log(`spawn to ready under software emulation: ${(ready / 1_000).toFixed(1)} s`)
      yield* strayHost(machine.agent)
      const again = yield* session(machine.agent)
      yield* again.ready
      yield* Effect.all([again.ping, again.sync, again.ping], { concurrency: "unbounded" })
      const memory = yield* again.memory
      assert.isTrue(memory.totalKib > 128 * 1024 && memory.availableKib < memory.totalKib)
      yield* machine.shows("up\n")
      yield* again.awaken
      const awakened = Date.now() / 1_000
      yield* again.shutdown(10_000)
      assert.strictEqual(yield* machine.exit, 0)
      yield* again.closed

      const lines = machine.console().split("\n")
      const expected = [
        "user 33:34 groups 34 50",
        `cwd /srv/new host tiny home /home/web term dumb greeting ${Buffer.from("grüß dich").toString("latin1")} path /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`,
        "files 1048576 stdin /dev/null",
        "above from above gone not",
        "resolv nameserver 1.1.1.1",
        "nameserver 9.9.9.9 link none",
        "hosts 10.9.8.7\ttiny name tiny",
        "eth0     inet 10.9.8.7/24 brd 10.9.8.255 scope global eth0 lo 1",
        "route default via 10.9.8.1 dev eth0 ",
        "data 1",
        "again"
      ]
      assert.deepStrictEqual(
        lines.filter((line) => expected.includes(line)),
        expected,
        machine.console()
      )
      assert.notInclude(machine.console(), "\r")
      assert.notInclude(machine.console(), "dataplane:")
      const clock = Number(lines.find((line) => /^\d{9,}$/.test(line)))
      assert.approximately(clock, awakened, 10)
      assert.deepStrictEqual(yield* guest.report, { kind: "stopped" })
      assert.strictEqual(ext4State(guest.at("overlay")), "clean")
    })
  )
})

describe("how a guest on QEMU ends", () => {
  skipWhere(liveObstacle(["debugfs", "dumpe2fs"]))

  live(
    "its exit code arrives, what it wrote stays, and what it left behind does not hold it up",
    Effect.gen(function* () {
      const guest = yield* makeGuest
      const machine = yield* guest.boot({
        argv: [
          "/bin/sh",
          "-c",
          `(trap "" TERM; sleep 1000) & mkdir -p /root; echo kept > /root/file; echo too > /data/web/file; exit 7`
        ],
        volumes: [{ serial: "data", mount_path: "/data/web", readonly: false }]
      })
      assert.strictEqual(yield* machine.exit, 0)
      assert.deepStrictEqual(yield* guest.report, { kind: "exited", code: 7 })
      assert.strictEqual(machine.console(), "")
      assert.strictEqual(readExt4(guest.at("overlay"), "/upper/root/file"), "kept\n")
      assert.strictEqual(readExt4(guest.at("data"), "/file"), "too\n")
      assert.deepStrictEqual(
        [ext4State(guest.at("overlay")), ext4State(guest.at("data"))],
        ["clean", "clean"]
      )

      const again = yield* guest.boot({ argv: ["sh", "-c", "cat /root/file; kill -KILL $$"] })
      assert.strictEqual(yield* again.exit, 0)
      assert.strictEqual(again.console(), "kept\n")
      assert.deepStrictEqual(yield* guest.report, { kind: "signaled", signal: 9 })
    })
  )

  live(
    "a process that cannot start is reported in a sentence, on the console too",
    Effect.gen(function* () {
      const guest = yield* makeGuest
      const machine = yield* guest.boot({ argv: ["/bin/nope"] })
      assert.strictEqual(yield* machine.exit, 0)
      assert.deepStrictEqual(yield* guest.report, { kind: "failed", message: "/bin/nope: no such file" })
      assert.strictEqual(machine.console(), "dataplane: /bin/nope: no such file\n")
    })
  )

  live(
    "the power button ends it; a process that does not listen is killed after the grace",
    Effect.gen(function* () {
      const guest = yield* makeGuest
      const machine = yield* guest.boot({
        argv: ["sh", "-c", `trap "echo heard" TERM; echo up; while :; do sleep 0.1; done`]
      })
      yield* machine.shows("up\n")
      yield* machine.pressPowerButton
      yield* machine.shows("heard\n")
      const agent = yield* session(machine.agent)
      yield* agent.shutdown(0)
      assert.strictEqual(yield* machine.exit, 0)
      assert.deepStrictEqual(yield* guest.report, { kind: "stopped" })
    })
  )

  live(
    "a kernel that panics says so on the console and to the VMM, and leaves no report",
    Effect.gen(function* () {
      const guest = yield* makeGuest
      const machine = yield* guest.boot({ argv: ["sh", "-c", "echo c > /proc/sysrq-trigger"] })
      assert.strictEqual(yield* machine.exit, 1)
      assert.include(machine.console(), "Kernel panic - not syncing: sysrq triggered crash")
      assert.isUndefined(yield* guest.report)
    })
  )
})

describe("the initrd", () => {
  skipWhere(liveObstacle())

  live(
    "a second build does nothing, and takes no time",
    Effect.gen(function* () {
      const { initrd } = yield* guestFiles
      const before = fs.statSync(initrd, { bigint: true })
      const began = performance.now()
      yield* guestFiles
      assert.isBelow(performance.now() - began, 1_000)
      assert.strictEqual(fs.statSync(initrd, { bigint: true }).ino, before.ino)
    })
  )
})
