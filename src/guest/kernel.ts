/**
 * The guest's kernel: Debian's or Ubuntu's own cloud kernel, taken out of its package and never installed on the host.
 *
 *   DATA_DIR/system/vmlinuz             the kernel, replaced by rename
 *   DATA_DIR/system/modules/<package>   what the package has under lib/modules
 *   DATA_DIR/system/kernel.json         says which package both are of; written last, so a half-made pair is made again
 *
 * A kernel of the user's own (KERNEL_PATH) is taken as it is, with the modules in `modules` beside it, or none.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { run } from "../host/Command.ts"
import { type CommandFault, FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"

/**
 * What the guest asks of its kernel; a VMM's driver adds its console (kernel Documentation, kernel-parameters.txt).
 *
 * - `quiet`: only errors on the console, which is the image's; a panic always shows.
 * - `panic=-1 reboot=t`: a kernel that panicked, or that reboots, is gone at once, so that the VMM ends or says so.
 * - `no_timer_check`: on a busy host under software emulation the check fails now and then, and with it the boot.
 * - `cryptomgr.notests`, `8250.nr_uarts=1`: time; test/live/guest-boot.live.test.ts says how much.
 * - `swiotlb=noforce`: 64 MiB of bounce buffers that virtio does not need, in guests whose memory can grow.
 */
export const guestCmdline =
  "quiet panic=-1 reboot=t no_timer_check cryptomgr.notests 8250.nr_uarts=1 swiotlb=noforce"

/** Debian first, then Ubuntu: meta packages that depend on the newest kernel for virtual machines. */
const metaPackages = ["linux-image-cloud-amd64", "linux-image-kvm", "linux-image-virtual"]
const downloadTimeoutMs = 15 * 60_000
const unpackTimeoutMs = 5 * 60_000
const packagePattern = /^linux-(image|modules)-[0-9][a-z0-9.+-]*$/

export class KernelUnavailable extends Schema.TaggedError<KernelUnavailable>()("KernelUnavailable", {
  reason: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `no guest kernel: ${this.reason}`
  }
}

export interface GuestKernel {
  readonly vmlinuz: string
  /** A directory such as /lib/modules/VERSION; null where everything needed is built in. */
  readonly modules: string | null
  /** Differs wherever the kernel or its modules do. */
  readonly identity: string
}

/** Says what is going on, in short lines for a human. */
export type Say = (line: string) => Effect.Effect<void>

const Stamp = Schema.Struct({ package: Schema.String, size: Schema.Int })
const StampText = Schema.fromJsonString(Stamp)

const attempt = <A>(operation: string, target: string, body: () => Promise<A>) =>
  Effect.tryPromise({
    try: body,
    catch: (cause) => new FileFault({ operation, path: target, code: "UNKNOWN", cause })
  })

/** Names of kernel packages among the dependencies that `apt-cache depends` prints. */
export const kernelPackages = (depends: string): ReadonlyArray<string> => [
  ...new Set(
    depends
      .split("\n")
      .map((line) => /^\s*\|?Depends: (\S+)$/.exec(line)?.[1] ?? "")
      .filter((name) => packagePattern.test(name))
  )
]

const dependsOf = (name: string) => run("apt-cache", ["depends", name]).pipe(Effect.map(kernelPackages))

/** The image package and, on Ubuntu, the package with its modules. */
const concretePackages = Effect.gen(function* () {
  for (const meta of metaPackages) {
    const packages = yield* dependsOf(meta).pipe(
      // apt-cache fails for a name that it does not know.
      Effect.catchIf(
        (fault) => fault.outcome === "failed",
        () => Effect.succeed([])
      )
    )
    const image = packages.find((name) => name.startsWith("linux-image-"))
    if (image !== undefined) {
      const modules = (yield* dependsOf(image)).filter((name) => name.startsWith("linux-modules-"))
      return { image, packages: [image, ...modules] }
    }
  }
  return yield* new KernelUnavailable({
    reason: `apt knows none of ${metaPackages.join(", ")}; run apt-get update, or set KERNEL_PATH`,
    cause: undefined
  })
})

const unavailable = (fault: CommandFault) =>
  new KernelUnavailable({
    reason:
      fault.outcome === "missing"
        ? `${fault.command} is not there; set KERNEL_PATH to a bzImage or vmlinux, with a modules directory beside it`
        : fault.message,
    cause: fault
  })

/** Downloads and unpacks into `directory`; gives the kernel file and the modules directory in it. */
const unpack = (directory: string, packages: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    yield* run("apt-get", ["-o", "APT::Sandbox::User=root", "--quiet", "download", ...packages], {
      cwd: directory,
      timeoutMs: downloadTimeoutMs
    })
    const tree = path.join(directory, "tree")
    const archives = yield* attempt("list", directory, () => fs.readdir(directory))
    for (const archive of archives.filter((name) => name.endsWith(".deb"))) {
      yield* run("dpkg-deb", ["--extract", path.join(directory, archive), tree], {
        timeoutMs: unpackTimeoutMs
      })
    }
    return yield* attempt("find kernel", tree, async () => {
      const boot = await fs.readdir(path.join(tree, "boot"))
      const versions = path.join(tree, await firstExisting(tree, ["lib/modules", "usr/lib/modules"]))
      const version = (await fs.readdir(versions))[0]
      const vmlinuz = boot.find((name) => name.startsWith("vmlinuz-"))
      if (version === undefined || vmlinuz === undefined) throw new Error("the package holds no kernel")
      return { vmlinuz: path.join(tree, "boot", vmlinuz), modules: path.join(versions, version) }
    })
  })

const firstExisting = async (root: string, candidates: ReadonlyArray<string>): Promise<string> => {
  for (const candidate of candidates) {
    if (
      await fs.stat(path.join(root, candidate)).then(
        () => true,
        () => false
      )
    )
      return candidate
  }
  throw new Error(`none of ${candidates.join(", ")} in the package`)
}

const stampPath = (system: string) => path.join(system, "kernel.json")
const modulesPath = (system: string, name: string) => path.join(system, "modules", name)

/** The kernel that an earlier run left, where it is whole. */
const existing = (system: string, vmlinuz: string) =>
  Effect.gen(function* () {
    const files = yield* Files
    const text = yield* files.readText(stampPath(system))
    const stamp = Option.flatMap(text, Schema.decodeUnknownOption(StampText))
    if (Option.isNone(stamp)) return Option.none<GuestKernel>()
    const modules = modulesPath(system, stamp.value.package)
    const kernel = yield* files.stat(vmlinuz)
    const whole =
      Option.exists(kernel, (it) => it.size === stamp.value.size) && (yield* files.exists(modules))
    return whole
      ? Option.some<GuestKernel>({ vmlinuz, modules, identity: text.pipe(Option.getOrElse(() => "")) })
      : Option.none<GuestKernel>()
  })

/** Moves what was unpacked to its place. The stamp comes last. */
const install = (
  system: string,
  vmlinuz: string,
  image: string,
  unpacked: { readonly vmlinuz: string; readonly modules: string }
) =>
  Effect.gen(function* () {
    const files = yield* Files
    const modules = modulesPath(system, image)
    yield* files.remove(stampPath(system))
    yield* files.makeDirectory(path.dirname(modules))
    yield* files.remove(modules)
    yield* files.rename(unpacked.modules, modules)
    yield* files.rename(unpacked.vmlinuz, vmlinuz)
    const size = Option.match(yield* files.stat(vmlinuz), { onNone: () => 0, onSome: (it) => it.size })
    const identity = JSON.stringify({ package: image, size })
    yield* files.write(stampPath(system), identity)
    const others = (yield* files.list(path.dirname(modules))).filter((name) => name !== image)
    yield* Effect.forEach(others, (name) => files.remove(modulesPath(system, name)))
    return { vmlinuz, modules, identity } satisfies GuestKernel
  })

const fetch = (system: string, vmlinuz: string, say: Say) =>
  Effect.gen(function* () {
    const files = yield* Files
    yield* files.makeDirectory(system)
    const { image, packages } = yield* concretePackages
    yield* say(`kernel: downloading ${image}`)
    return yield* Effect.acquireUseRelease(
      attempt("mkdtemp", system, () => fs.mkdtemp(path.join(system, ".kernel-"))),
      (temporary) =>
        unpack(temporary, packages).pipe(Effect.flatMap((it) => install(system, vmlinuz, image, it))),
      (temporary) => Effect.ignore(files.remove(temporary))
    )
  }).pipe(Effect.catchTag("CommandFault", (fault) => Effect.fail(unavailable(fault))))

/** A user's own kernel; its identity is what stat says of it, and of its modules directory. */
const ownKernel = (kernelPath: string) =>
  Effect.gen(function* () {
    const files = yield* Files
    const kernel = yield* files.stat(kernelPath)
    if (Option.isNone(kernel)) {
      return yield* new KernelUnavailable({ reason: `${kernelPath} does not exist`, cause: undefined })
    }
    const beside = path.join(path.dirname(kernelPath), "modules")
    const modules = (yield* files.exists(beside)) ? beside : null
    const changed = yield* attempt("stat", kernelPath, () =>
      Promise.all([kernelPath, ...(modules === null ? [] : [modules])].map((it) => fs.stat(it)))
    )
    const identity = JSON.stringify([kernelPath, modules, changed.map((it) => [it.size, it.mtimeMs])])
    return { vmlinuz: kernelPath, modules, identity } satisfies GuestKernel
  })

/**
 * Makes sure that a kernel is there, and gives it. At once where an earlier run left one. `system` is
 * DATA_DIR/system; `kernelPath` the configured KERNEL_PATH, by default `vmlinuz` in there.
 */
export const ensureKernel = (
  system: string,
  kernelPath: string,
  say: Say
): Effect.Effect<GuestKernel, KernelUnavailable | FileFault, Files> =>
  Effect.gen(function* () {
    const vmlinuz = path.join(system, "vmlinuz")
    if (path.resolve(kernelPath) !== path.resolve(vmlinuz)) return yield* ownKernel(kernelPath)
    const found = yield* existing(system, vmlinuz)
    return Option.isSome(found) ? found.value : yield* fetch(system, vmlinuz, say)
  })
