/**
 * A real guest on QEMU, started by hand: no service, no driver. Its serial console is QEMU's standard output, so that
 * waiting for a line is waiting for an event.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import { pipeline } from "node:stream/promises"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as tar from "tar-stream"

export interface Entry {
  readonly name: string
  readonly type?: "directory" | "symlink" | "character-device"
  readonly mode?: number
  readonly linkname?: string
  readonly devmajor?: number
  readonly devminor?: number
  readonly content?: string | Buffer
}

/** A squashfs layer as an image's conversion makes it; a whiteout is a character device 0, 0. */
export const makeLayer = (file: string, entries: ReadonlyArray<Entry>) =>
  Effect.promise(async () => {
    const pack = tar.pack()
    for (const { content, ...header } of entries) pack.entry(header, content ?? "")
    pack.finalize()
    const tool = spawn("tar2sqfs", ["--quiet", "--force", "--compressor", "gzip", file], {
      stdio: ["pipe", "ignore", "pipe"]
    })
    const ended = new Promise<void>((resolve, reject) =>
      tool.on("exit", (code) => (code === 0 ? resolve() : reject(new Error(`tar2sqfs: exit code ${code}`))))
    )
    await pipeline(pack, tool.stdin)
    await ended
  })

const applets =
  "sh cat echo id pwd env sleep hostname ls ip date kill readlink stat mkdir touch test printf dd head wc grep ulimit"

/** Busybox with its applets: enough of an image to look around in. */
export const busyboxEntries = (): ReadonlyArray<Entry> => {
  const busybox = execFileSync("sh", ["-c", "command -v busybox"], { encoding: "utf8" }).trim()
  const directory = (name: string, mode = 0o755): Entry => ({ name, type: "directory", mode })
  return [
    directory("bin"),
    { name: "bin/busybox", mode: 0o755, content: fs.readFileSync(busybox) },
    ...applets
      .split(" ")
      .map((name): Entry => ({ name: `bin/${name}`, type: "symlink", linkname: "busybox" })),
    directory("etc"),
    { name: "etc/passwd", content: "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/home/web:/bin/sh\n" },
    { name: "etc/group", content: "root:x:0:\nweb:x:34:\nlogs:x:50:web\n" },
    { name: "etc/resolv.conf", type: "symlink", linkname: "../run/systemd/resolve/stub-resolv.conf" }
  ]
}

export const makeExt4 = (file: string, megabytes: number) =>
  Effect.sync(() => {
    fs.closeSync(fs.openSync(file, "wx"))
    fs.truncateSync(file, megabytes * 1024 * 1024)
    execFileSync("mkfs.ext4", ["-q", "-F", file], { stdio: "pipe" })
  })

/** A file in an ext4 image that nobody has mounted; "" where there is none. */
export const readExt4 = (image: string, file: string): string =>
  execFileSync("debugfs", ["-R", `cat ${file}`, image], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"]
  })

/** Whether the file system was unmounted or made read-only before its machine went off. */
export const ext4State = (image: string): string => {
  const said = execFileSync("dumpe2fs", ["-h", image], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"]
  })
  return `${/state:\s+(.*)/.exec(said)?.[1]}${said.includes("needs_recovery") ? ", needs recovery" : ""}`
}

export interface GuestDisk {
  readonly serial: string
  readonly file: string
  readonly readonly?: boolean
}

export interface MachineOptions {
  readonly directory: string
  readonly kernel: string
  readonly initrd: string
  readonly cmdline: string
  readonly disks: ReadonlyArray<GuestDisk>
  readonly mac?: string
}

export interface Machine {
  readonly agent: string
  /** All that the console showed so far. */
  readonly console: () => string
  /** Ends when the console has shown the text; fails when QEMU ends before. */
  readonly shows: (text: string) => Effect.Effect<void>
  /** QEMU's exit code. */
  readonly exit: Effect.Effect<number | null>
  readonly pressPowerButton: Effect.Effect<void>
  readonly startedAt: number
}

/** Ends QEMU's wait for a guest that hangs; the test's own bound is above it. */
const machineMaxMs = 60_000

const command = (options: MachineOptions): ReadonlyArray<string> => {
  const drives = options.disks.flatMap(({ serial, file, readonly = false }) => [
    "-blockdev",
    JSON.stringify({
      driver: "raw",
      "node-name": serial,
      "read-only": readonly,
      file: { driver: "file", filename: file }
    }),
    "-device",
    `virtio-blk-pci,drive=${serial},serial=${serial}`
  ])
  // The user network of QEMU, cut off from everything: nothing of this leaves QEMU's process.
  const nic =
    options.mac === undefined
      ? []
      : [
          "-netdev",
          "user,id=n0,restrict=on",
          "-device",
          `virtio-net-pci,netdev=n0,mac=${options.mac},romfile=`
        ]
  return [
    ..."-M pc-q35-7.2 -accel tcg -cpu max -smp 1 -m 256M".split(" "),
    ..."-nodefaults -no-user-config -display none -no-reboot -action panic=exit-failure".split(" "),
    // A clock that is far off, as after a long sleep.
    ..."-rtc base=2001-02-03T04:05:06".split(" "),
    "-kernel",
    options.kernel,
    "-initrd",
    options.initrd,
    "-append",
    `console=ttyS0 ${options.cmdline}`,
    ..."-chardev stdio,id=s0,signal=off -serial chardev:s0".split(" "),
    "-chardev",
    `socket,id=ag,path=${path.join(options.directory, "agent")},server=on,wait=off`,
    ..."-device virtio-serial-pci -device virtserialport,chardev=ag,name=agent.0 -device pvpanic-pci".split(
      " "
    ),
    "-qmp",
    `unix:${path.join(options.directory, "qmp")},server=on,wait=off`,
    ...drives,
    ...nic
  ]
}

const pressButton = (socket: string) =>
  Effect.callback<void>((resume) => {
    const qmp = net.connect(socket)
    qmp.on("error", () => undefined)
    qmp.on("data", (chunk: Buffer) => {
      if (chunk.includes("POWERDOWN")) qmp.destroy()
    })
    qmp.on("close", () => resume(Effect.void))
    qmp.write(`{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}`)
  })

/** Starts QEMU; it is killed with the scope, if the guest has not ended it by then. */
export const startMachine = (options: MachineOptions) =>
  Effect.gen(function* () {
    const startedAt = performance.now()
    const exit = yield* Deferred.make<number | null>()
    const waiting = new Map<string, Deferred.Deferred<void>>()
    let shown = ""
    let errors = ""
    const look = () => {
      for (const [text, latch] of waiting) if (shown.includes(text)) Deferred.doneUnsafe(latch, Effect.void)
    }
    yield* Effect.acquireRelease(
      Effect.sync((): ChildProcess => {
        const qemu = spawn("qemu-system-x86_64", command(options), { stdio: ["ignore", "pipe", "pipe"] })
        qemu.stdout.on("data", (chunk: Buffer) => {
          shown += chunk.toString("latin1")
          look()
        })
        qemu.stderr.on("data", (chunk: Buffer) => (errors += chunk.toString()))
        qemu.on("close", (code) => Deferred.doneUnsafe(exit, Effect.succeed(code)))
        return qemu
      }),
      (qemu) => Effect.sync(() => qemu.kill("SIGKILL")).pipe(Effect.andThen(Deferred.await(exit)))
    )
    const bounded = <A>(effect: Effect.Effect<A>, what: string): Effect.Effect<A> =>
      effect.pipe(
        Effect.timeoutOrElse({
          duration: machineMaxMs,
          orElse: () => Effect.die(new Error(`${what} did not come; console:\n${shown}\n${errors}`))
        })
      )
    const machine: Machine = {
      agent: path.join(options.directory, "agent"),
      console: () => shown,
      shows: (text) =>
        Effect.suspend(() => {
          const latch = waiting.get(text) ?? Deferred.makeUnsafe<void>()
          waiting.set(text, latch)
          look()
          const died = Deferred.await(exit).pipe(
            Effect.flatMap((code) => Effect.die(new Error(`QEMU ended with ${code}: ${errors}\n${shown}`)))
          )
          return bounded(Effect.raceFirst(Deferred.await(latch), died), `"${text}"`)
        }),
      exit: bounded(Deferred.await(exit), "the end of QEMU"),
      pressPowerButton: pressButton(path.join(options.directory, "qmp")),
      startedAt
    }
    return machine
  })
