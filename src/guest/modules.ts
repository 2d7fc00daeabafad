/**
 * The kernel modules of the guest, and what each needs. A module says itself what it depends on, in its ELF section
 * `.modinfo` (`depends=`, `softdep=pre:`), so that no depmod and no modules.dep is needed: Debian ships neither in the
 * kernel package.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as zlib from "node:zlib"
import * as Effect from "effect/Effect"
import { run } from "../host/Command.ts"
import { type CommandFault, FileFault } from "../host/Fault.ts"

export interface WantedModule {
  readonly name: string
  /** Loaded only where the machine has this virtio device (virtio 1.2, section 5: device ids); each load costs time. */
  readonly virtioDevice?: number
}

/**
 * In this order, each behind what it depends on. What the kernel has built in, or has not at all, is passed over: a VMM
 * without a panic device needs no driver for it.
 */
export const guestModules: ReadonlyArray<WantedModule> = [
  { name: "virtio_pci" },
  { name: "virtio_blk" },
  { name: "squashfs" },
  { name: "ext4" },
  { name: "overlay" },
  { name: "pvpanic" },
  { name: "pvpanic_pci" },
  { name: "button" },
  { name: "evdev" },
  { name: "virtio_net", virtioDevice: 1 },
  { name: "virtio_console", virtioDevice: 3 },
  { name: "virtio_rng", virtioDevice: 4 },
  { name: "virtio_balloon", virtioDevice: 5 },
  { name: "vmw_vsock_virtio_transport", virtioDevice: 19 },
  { name: "virtio_mem", virtioDevice: 24 }
]

export interface ModuleInfo {
  readonly depends: ReadonlyArray<string>
  /** Wanted before it, but it loads without them. */
  readonly softDepends: ReadonlyArray<string>
}

/** A module's name: file names and `depends=` mix dashes and underscores freely. */
export const moduleName = (name: string): string => name.replaceAll("-", "_")

const names = (text: string, separator: RegExp): Array<string> =>
  text
    .split(separator)
    .filter((name) => name !== "")
    .map(moduleName)

/** What a module's `.modinfo` says; the strings there are separated by NUL. */
export const moduleInfo = (module: Buffer): ModuleInfo => {
  const text = module.toString("latin1")
  const depends = [...text.matchAll(/\0depends=([^\0]*)/g)].flatMap((it) => names(it[1] ?? "", /,/))
  const softDepends = [...text.matchAll(/\0softdep=([^\0]*)/g)].flatMap((it) =>
    names(/pre:([^:]*?)(?:\s+post:|$)/.exec(it[1] ?? "")?.[1] ?? "", /\s+/)
  )
  return { depends, softDepends }
}

/**
 * Every wanted module behind all that it depends on, none twice. What only modules of one device need has that device's
 * condition too; what others need as well is loaded always. A circle (a kernel has none) is cut, not followed.
 */
export const loadOrder = (
  wanted: ReadonlyArray<WantedModule>,
  dependencies: (name: string) => ReadonlyArray<string>
): ReadonlyArray<WantedModule> => {
  const closure = (name: string, seen: Set<string>): ReadonlyArray<string> => {
    if (seen.has(name)) return []
    seen.add(name)
    return [...dependencies(name).flatMap((it) => closure(it, seen)), name]
  }
  const conditions = new Map<string, Set<number | undefined>>()
  for (const { name, virtioDevice } of wanted) {
    for (const needed of closure(name, new Set())) {
      conditions.set(needed, (conditions.get(needed) ?? new Set()).add(virtioDevice))
    }
  }
  const seen = new Set<string>()
  return wanted
    .flatMap(({ name }) => closure(name, seen))
    .map((name): WantedModule => {
      const [condition, ...others] = conditions.get(name) ?? []
      return condition === undefined || others.length > 0 ? { name } : { name, virtioDevice: condition }
    })
}

const suffixPattern = /\.ko(\.gz|\.xz|\.zst)?$/

interface Catalog {
  /** Module name to its file. */
  readonly files: ReadonlyMap<string, string>
  readonly builtin: ReadonlySet<string>
}

const readCatalog = async (directory: string): Promise<Catalog> => {
  const entries = await fs.readdir(directory, { recursive: true, withFileTypes: true })
  const files = new Map(
    entries
      .filter((it) => it.isFile() && suffixPattern.test(it.name))
      .map((it) => [moduleName(it.name.replace(suffixPattern, "")), path.join(it.parentPath, it.name)])
  )
  const lists = entries.filter((it) => it.name === "modules.builtin")
  const texts = await Promise.all(lists.map((it) => fs.readFile(path.join(it.parentPath, it.name), "utf8")))
  const builtin = texts.flatMap((text) => text.split("\n")).map((line) => path.basename(line.trim()))
  return { files, builtin: new Set(builtin.map((it) => moduleName(it.replace(suffixPattern, "")))) }
}

const faultOf = (target: string) => (cause: unknown) =>
  new FileFault({ operation: "read module", path: target, code: "UNREADABLE", cause })

/** A module as the kernel takes it: not compressed. */
const readModule = (file: string): Effect.Effect<Buffer, FileFault | CommandFault> => {
  const read = Effect.tryPromise({ try: () => fs.readFile(file), catch: faultOf(file) })
  const inflate = (body: (bytes: Buffer) => Buffer) =>
    read.pipe(Effect.flatMap((bytes) => Effect.try({ try: () => body(bytes), catch: faultOf(file) })))
  if (file.endsWith(".gz")) return inflate(zlib.gunzipSync)
  if (file.endsWith(".zst")) return inflate(zlib.zstdDecompressSync)
  if (file.endsWith(".xz")) return unxz(file)
  return read
}

/** Node knows no xz: the tool writes beside a copy of its own. */
const unxz = (file: string) =>
  Effect.acquireUseRelease(
    Effect.tryPromise({ try: () => fs.mkdtemp(path.join(path.dirname(file), ".xz-")), catch: faultOf(file) }),
    (temporary) =>
      Effect.gen(function* () {
        const copy = path.join(temporary, "module.xz")
        yield* Effect.tryPromise({ try: () => fs.copyFile(file, copy), catch: faultOf(file) })
        yield* run("xz", ["--decompress", copy])
        return yield* Effect.tryPromise({
          try: () => fs.readFile(path.join(temporary, "module")),
          catch: faultOf(file)
        })
      }),
    (temporary) => Effect.promise(() => fs.rm(temporary, { recursive: true, force: true }))
  )

export interface GuestModule extends WantedModule {
  readonly content: Buffer
}

/** The guest's modules from a directory such as /lib/modules/VERSION, in the order in which they load. */
export const readModules = (
  directory: string,
  wanted: ReadonlyArray<WantedModule> = guestModules
): Effect.Effect<ReadonlyArray<GuestModule>, FileFault | CommandFault> =>
  Effect.gen(function* () {
    const catalog = yield* Effect.tryPromise({ try: () => readCatalog(directory), catch: faultOf(directory) })
    const contents = new Map<string, Buffer>()
    const depends = new Map<string, ReadonlyArray<string>>()
    const queue = wanted.map((it) => it.name)
    for (let name = queue.pop(); name !== undefined; name = queue.pop()) {
      const file = catalog.files.get(name)
      if (file === undefined || catalog.builtin.has(name) || contents.has(name)) continue
      const content = yield* readModule(file)
      const info = moduleInfo(content)
      contents.set(name, content)
      depends.set(name, [...info.softDepends, ...info.depends])
      queue.push(...info.softDepends, ...info.depends)
    }
    return loadOrder(wanted, (name) => depends.get(name) ?? []).flatMap((module) => {
      const content = contents.get(module.name)
      return content === undefined ? [] : [{ ...module, content }]
    })
  })
