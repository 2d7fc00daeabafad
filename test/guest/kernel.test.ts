/** The kernel's fetching, against an apt that the tests made: shell scripts first on PATH that note what they are asked. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { afterEach, assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { Files } from "../../src/host/Files.ts"
import { ensureKernel, kernelPackages } from "../../src/guest/kernel.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const realPath = process.env["PATH"]
afterEach(() => {
  process.env["PATH"] = realPath
})

interface Apt {
  /** Package to what `apt-cache depends` prints of it; one that is not listed is not known. */
  readonly depends: Readonly<Record<string, string>>
  /** What the download of packages does; by default it leaves one archive for each. */
  readonly download?: string
}

/** A machine with this apt, whose packages unpack to a kernel. Only the base tools of the real PATH are kept. */
const machine = (apt: Apt) =>
  Effect.gen(function* () {
    const root = yield* temporaryDirectory("kernel")
    const [bin, calls] = [path.join(root, "bin"), path.join(root, "calls")]
    const depends = Object.entries(apt.depends)
      .map(([name, text]) => `${name}) printf '%s\\n' '${text}';;`)
      .join("\n")
    const scripts = {
      "apt-cache": `case "$2" in\n${depends}\n*) echo "E: No packages found" >&2; exit 100;;\nesac`,
      "apt-get": apt.download ?? `for it; do case "$it" in linux-*) : > "$it.deb";; esac; done`,
      "dpkg-deb": `case "$2" in
        *linux-image-*) mkdir -p "$3/boot"; echo kernel > "$3/boot/vmlinuz-6.1"; mkdir -p "$3/lib/modules/6.1/kernel";;
        *linux-modules-*) mkdir -p "$3/lib/modules/6.1/kernel"; echo module > "$3/lib/modules/6.1/kernel/virtio.ko";;
      esac`
    }
    yield* Effect.promise(async () => {
      await fs.mkdir(bin)
      for (const [name, body] of Object.entries(scripts)) {
        const script = `#!/bin/sh\necho "${name} $*" >> ${calls}\n${body}\n`
        await fs.writeFile(path.join(bin, name), script, { mode: 0o755 })
      }
    })
    process.env["PATH"] = `${bin}:/usr/bin:/bin`
    const system = path.join(root, "system")
    const said: Array<string> = []
    const say = (line: string) => Effect.sync(() => void said.push(line))
    return {
      root,
      system,
      said,
      ensure: (kernelPath = path.join(system, "vmlinuz")) => ensureKernel(system, kernelPath, say),
      calls: Effect.promise(() => fs.readFile(calls, "utf8").catch(() => "")),
      names: Effect.promise(async () => (await fs.readdir(system, { recursive: true })).toSorted())
    }
  })

const debian: Apt = {
  depends: {
    "linux-image-cloud-amd64": "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-1-cloud-amd64",
    "linux-image-6.1.0-1-cloud-amd64": "linux-image-6.1.0-1-cloud-amd64\n  Depends: kmod"
  }
}

const live = (name: string, body: Effect.Effect<void, unknown, Scope.Scope | Files>) =>
  it.live(name, () => body.pipe(Effect.provide(Files.layer)))

it("kernel: packages among the dependencies", () => {
  const printed = `linux-image-virtual
  Depends: linux-image-6.8.0-31-generic
 |Depends: linux-modules-6.8.0-31-generic
  Depends: <linux-image-unsigned>
  Depends: linux-firmware
  Recommends: linux-image-9.9
  Depends: linux-image-6.8.0-31-generic`
  assert.deepStrictEqual(kernelPackages(printed), [
    "linux-image-6.8.0-31-generic",
    "linux-modules-6.8.0-31-generic"
  ])
})

live(
  "kernel: Debian's is fetched once, and then found without asking anybody",
  Effect.gen(function* () {
    const host = yield* machine(debian)
    const kernel = yield* host.ensure()
    assert.strictEqual(kernel.vmlinuz, path.join(host.system, "vmlinuz"))
    assert.strictEqual(yield* Effect.promise(() => fs.readFile(kernel.vmlinuz, "utf8")), "kernel\n")
    assert.strictEqual(kernel.modules, path.join(host.system, "modules/linux-image-6.1.0-1-cloud-amd64"))
    assert.include(yield* host.calls, "download linux-image-6.1.0-1-cloud-amd64\n")
    const calls = yield* host.calls
    assert.deepStrictEqual(yield* host.ensure(), kernel)
    assert.strictEqual(yield* host.calls, calls)
    assert.deepStrictEqual(host.said, ["kernel: downloading linux-image-6.1.0-1-cloud-amd64"])
    const names = yield* host.names
    assert.deepStrictEqual(
      names.filter((it) => !it.startsWith("modules")),
      ["kernel.json", "vmlinuz"]
    )
  })
)

live(
  "kernel: Ubuntu keeps the modules in a package of their own",
  Effect.gen(function* () {
    const host = yield* machine({
      depends: {
        "linux-image-virtual": "linux-image-virtual\n  Depends: linux-image-6.8.0-31-generic",
        "linux-image-6.8.0-31-generic": "x\n  Depends: kmod\n  Depends: linux-modules-6.8.0-31-generic"
      }
    })
    const { modules } = yield* host.ensure()
    const module = path.join(modules ?? "", "kernel/virtio.ko")
    assert.strictEqual(yield* Effect.promise(() => fs.readFile(module, "utf8")), "module\n")
  })
)

for (const lost of ["kernel.json", "vmlinuz", "modules"]) {
  live(
    `kernel: without its ${lost} it is half made, and made again`,
    Effect.gen(function* () {
      const host = yield* machine(debian)
      const kernel = yield* host.ensure()
      yield* Effect.promise(() => fs.rm(path.join(host.system, lost), { recursive: true }))
      assert.deepStrictEqual(yield* host.ensure(), kernel)
      assert.strictEqual((yield* host.calls).match(/apt-get/g)?.length, 2)
    })
  )
}

live(
  "kernel: a download that fails leaves nothing, says why, and can be repeated",
  Effect.gen(function* () {
    const host = yield* machine({ ...debian, download: "echo 'E: Failed to fetch' >&2; exit 100" })
    const fault = yield* Effect.flip(host.ensure())
    assert.match(fault.message, /^no guest kernel: apt-get failed with exit code 100: E: Failed to fetch$/)
    assert.deepStrictEqual(yield* host.names, [])
  })
)

live(
  "kernel: an apt that knows none, and a machine without apt",
  Effect.gen(function* () {
    const host = yield* machine({ depends: {} })
    assert.include((yield* Effect.flip(host.ensure())).message, "run apt-get update, or set KERNEL_PATH")
    process.env["PATH"] = path.join(host.root, "nothing")
    assert.include((yield* Effect.flip(host.ensure())).message, "apt-cache is not there; set KERNEL_PATH")
  })
)

live(
  "kernel: the user's own is taken as it is, with the modules beside it or none",
  Effect.gen(function* () {
    const host = yield* machine({ depends: {} })
    const own = path.join(host.root, "own/vmlinux")
    assert.include((yield* Effect.flip(host.ensure(own))).message, "does not exist")
    yield* Effect.promise(async () => {
      await fs.mkdir(path.dirname(own))
      await fs.writeFile(own, "mine")
    })
    const bare = yield* host.ensure(own)
    assert.deepStrictEqual([bare.vmlinuz, bare.modules], [own, null])
    yield* Effect.promise(() => fs.mkdir(path.join(host.root, "own/modules")))
    const full = yield* host.ensure(own)
    assert.strictEqual(full.modules, path.join(host.root, "own/modules"))
    assert.notStrictEqual(full.identity, bare.identity)
    assert.strictEqual(yield* host.calls, "")
  })
)
