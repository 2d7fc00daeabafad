/**
 * A guest for tests of VMM drivers: Debian's cloud kernel and an initrd of busybox and an own init, which counts on the
 * console and runs what it is told through the agent's channel. It needs no disk, no network and no agent.
 */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { type CpioEntry, encodeCpio } from "../../src/guest/cpio.ts"
import { ensureKernel } from "../../src/guest/kernel.ts"
import { readModules } from "../../src/guest/modules.ts"

const system = path.resolve(import.meta.dirname, "../../.artifacts/system")
const modules = [
  "virtio_pci",
  "virtio_blk",
  "virtio_console",
  "virtio_mem",
  "pvpanic",
  "pvpanic_pci",
  "button",
  "evdev"
]

/** Prints `tick N`, N growing by one; `ready` once it takes commands; `ran` behind each command. */
const init = `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
echo online > /sys/devices/system/memory/auto_online_blocks
port=
until [ -n "$port" ]; do for it in /dev/vport*; do [ -e "$it" ] && port=$it; done; done
serials() { for it in /sys/block/vd*; do echo "disk $(cat $it/serial)"; done; echo "disks end"; }
button() { exec 3< /dev/input/$(basename $(dirname $(dirname $(grep -l Power /sys/class/input/event*/device/name)))); echo button awaited; dd of=/dev/null bs=24 count=1 <&3 2> /dev/null; echo button pressed; }
serve() {
  while true; do
    while read -r line; do eval "$line"; echo ran; done < $port
    usleep 20000
  done
}
serve &
echo ready
count=0
while true; do
  count=$((count + 1))
  echo "tick $count"
  usleep 50000
done
`

const file = (name: string, mode: number, content: Uint8Array): CpioEntry => ({
  _tag: "File",
  path: name,
  mode,
  content
})
const directory = (name: string): CpioEntry => ({ _tag: "Directory", path: name, mode: 0o755 })

export interface CountingGuest {
  readonly kernel: string
  readonly initrd: string
}

/** Fetches the kernel once for all tests, and writes the initrd into `into`. */
export const countingGuest = (into: string) =>
  Effect.gen(function* () {
    const kernel = yield* ensureKernel(system, path.join(system, "vmlinuz"), () => Effect.void)
    const found =
      kernel.modules === null
        ? []
        : yield* readModules(
            kernel.modules,
            modules.map((name) => ({ name }))
          )
    const busybox = execFileSync("sh", ["-c", "command -v busybox"], { encoding: "utf8" }).trim()
    const initrd = path.join(into, "counting.initrd")
    const archive = encodeCpio([
      ...["bin", "dev", "proc", "sys", "modules"].map(directory),
      file("init", 0o755, Buffer.from(init)),
      file("bin/busybox", 0o755, fs.readFileSync(busybox)),
      ...found.map((it, index) =>
        file(`modules/${String(index).padStart(2, "0")}-${it.name}.ko`, 0o644, it.content)
      )
    ])
    yield* Effect.promise(() => fs.promises.writeFile(initrd, archive))
    return { kernel: kernel.vmlinuz, initrd } satisfies CountingGuest
  })

/** Sends a line to the guest's init. */
export const tell = (agentSocket: string, line: string): Effect.Effect<void> =>
  Effect.callback<void>((done) => {
    const socket = net.createConnection({ path: agentSocket })
    socket
      .once("error", (cause) => done(Effect.die(cause)))
      .once("close", () => done(Effect.void))
      .resume()
    socket.end(`${line}\n`)
  })

export const consoleText = (consolePath: string): string =>
  fs.existsSync(consolePath) ? fs.readFileSync(consolePath, "latin1") : ""

/**
 * Numbers that the guest has counted, in the order of the console. A terminal takes a line and its end apart, so that
 * another process's line may come in between; the number is whole once anything follows it.
 */
export const ticks = (text: string): ReadonlyArray<number> =>
  [...text.matchAll(/tick (\d+)(?=\D)/g)].map((it) => Number(it[1]))

export const times = (text: string, part: string): number => text.split(part).length - 1

/** Waits until the console holds what is asked for: looks each time that it grows. */
export const untilConsole = (
  consolePath: string,
  what: string,
  holds: (text: string) => boolean,
  boundMs = 60_000
): Effect.Effect<string> =>
  Effect.callback<string>((done) => {
    const watcher = fs.watch(path.dirname(consolePath))
    const look = () => {
      const text = consoleText(consolePath)
      if (!holds(text)) return
      watcher.close()
      done(Effect.succeed(text))
    }
    watcher.on("change", look)
    look()
    return Effect.sync(() => watcher.close())
  }).pipe(
    Effect.timeoutOrElse({
      duration: boundMs,
      orElse: () =>
        Effect.die(new Error(`no ${what} on the console:\n${consoleText(consolePath).slice(-2_000)}`))
    })
  )
