/**
 * Files in memory, for tests under a virtual clock: the simulated world's disk and the service's `Files` see the same
 * ones. Content is kept in blocks, so that a disk of 4 MiB that is nearly empty costs next to nothing. Nothing here ever
 * waits: under a virtual clock, no real time passes.
 */
import { createHash } from "node:crypto"
import * as path from "node:path"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { FileFault } from "../../src/host/Fault.ts"
import { Files } from "../../src/host/Files.ts"
import type { Disk } from "../../src/host/simulated/disk.ts"

export interface MemoryFiles {
  readonly disk: Disk
  readonly layer: Layer.Layer<Files>
  /** For one run of a service: once it is not alive, whatever it still writes stops its fiber and changes nothing. */
  readonly layerWhile: (alive: () => boolean) => Layer.Layer<Files>
  /** All files under a directory, or at all, sorted. */
  readonly names: (directory?: string) => ReadonlyArray<string>
  readonly text: (file: string) => string
  /** The errno that writes through `Files` fail with from now on, such as ENOSPC; null: they succeed. */
  failing: string | null
}

const blockBytes = 4096
const freeBytes = 1024 ** 4

interface SparseFile {
  size: number
  readonly blocks: Map<number, Uint8Array>
  modifiedMs: number
}

interface Contents {
  readonly files: Map<string, SparseFile>
  /** Of each directory, the names in it: nothing here looks through all files. */
  readonly directories: Map<string, Set<string>>
}

const enter = ({ directories }: Contents, name: string): void =>
  void directories.get(path.dirname(name))?.add(path.basename(name))

const put = (contents: Contents, name: string, file: SparseFile): void => {
  contents.files.set(name, file)
  enter(contents, name)
}

const addDirectory = (contents: Contents, name: string): void => {
  if (contents.directories.has(name)) return
  addDirectory(contents, path.dirname(name))
  contents.directories.set(name, new Set())
  enter(contents, name)
}

/** A file, or a directory with all that is under it. */
const drop = (contents: Contents, name: string): void => {
  const { files, directories } = contents
  for (const child of directories.get(name) ?? []) drop(contents, `${name}/${child}`)
  if (!files.delete(name) && !directories.delete(name)) return
  directories.get(path.dirname(name))?.delete(path.basename(name))
}

const bytesOf = (content: string | Uint8Array): Uint8Array =>
  typeof content === "string" ? new TextEncoder().encode(content) : content

const readFrom = (file: SparseFile, offset: number, length: number): Uint8Array => {
  const bytes = new Uint8Array(Math.max(0, Math.min(length, file.size - offset)))
  for (const [index, block] of file.blocks) {
    const from = index * blockBytes - offset
    if (from >= bytes.length || from + blockBytes <= 0) continue
    const visible = block.subarray(Math.max(0, -from), Math.min(blockBytes, bytes.length - from))
    bytes.set(visible, Math.max(0, from))
  }
  return bytes
}

const writeTo = (file: SparseFile, offset: number, bytes: Uint8Array): void => {
  for (let at = 0; at < bytes.length;) {
    const index = Math.floor((offset + at) / blockBytes)
    const within = offset + at - index * blockBytes
    const part = bytes.subarray(at, at + blockBytes - within)
    const block = file.blocks.get(index)
    if (block !== undefined) block.set(part, within)
    else if (part.some((byte) => byte !== 0)) {
      const made = new Uint8Array(blockBytes)
      made.set(part, within)
      file.blocks.set(index, made)
    }
    at += part.length
  }
  file.size = Math.max(file.size, offset + bytes.length)
}

const emptyFile = (modifiedMs: number): SparseFile => ({ size: 0, blocks: new Map(), modifiedMs })

const found = ({ files }: Contents, name: string): SparseFile => {
  const file = files.get(name)
  if (file === undefined) throw new Error(`ENOENT: ${name}`)
  return file
}

/** The file of that name, made where there is none and its directory is there. */
const opened = (contents: Contents, name: string): SparseFile => {
  const { files, directories } = contents
  const present = files.get(name)
  if (present !== undefined) return present
  if (!directories.has(path.dirname(name))) throw new Error(`ENOENT: ${path.dirname(name)}`)
  const file = emptyFile(0)
  put(contents, name, file)
  return file
}

const makeDisk = (contents: Contents): Disk => ({
  exists: (name) => contents.files.has(name),
  touch: (name) => void opened(contents, name),
  append: (name, text) => {
    const file = opened(contents, name)
    writeTo(file, file.size, bytesOf(text))
  },
  remove: (name) => (contents.files.has(name) ? drop(contents, name) : undefined),
  readAt: (name, offset, length) => readFrom(found(contents, name), offset, length),
  writeAt: (name, offset, bytes) => writeTo(found(contents, name), offset, bytes),
  size: (name) => found(contents, name).size
})

type Writing = (
  operation: string,
  target: string,
  body: (nowMs: number) => void
) => Effect.Effect<void, FileFault>

const writes = (contents: Contents, writing: Writing) => {
  const replace = (target: string, content: string | Uint8Array, nowMs: number): void => {
    const file = emptyFile(nowMs)
    writeTo(file, 0, bytesOf(content))
    put(contents, target, file)
  }
  const append = (target: string, content: string) =>
    writing("append", target, (nowMs) => {
      const file = opened(contents, target)
      writeTo(file, file.size, bytesOf(content))
      file.modifiedMs = nowMs
    })
  return {
    append,
    note: append,
    write: (target: string, content: string | Uint8Array) =>
      writing("write", target, (nowMs) => replace(target, content, nowMs)),
    overwrite: (target: string, offset: number, bytes: Uint8Array) =>
      writing("overwrite", target, (nowMs) => {
        const file = found(contents, target)
        writeTo(file, offset, bytes)
        file.modifiedMs = nowMs
      }),
    createSparse: (target: string, bytes: number) =>
      writing("create", target, (nowMs) => put(contents, target, { ...emptyFile(nowMs), size: bytes })),
    extend: (target: string, bytes: number) =>
      writing("extend", target, (nowMs) => {
        const file = found(contents, target)
        file.size = Math.max(file.size, bytes)
        file.modifiedMs = nowMs
      }),
    sync: (target: string) => writing("fsync", target, () => undefined),
    punchHole: (target: string, offset: number, length: number) =>
      Effect.sync(() => {
        const file = found(contents, target)
        for (const index of file.blocks.keys()) {
          const start = index * blockBytes
          if (start >= offset && start + blockBytes <= offset + length) file.blocks.delete(index)
        }
      })
  }
}

const reads = ({ files, directories }: Contents) => {
  const bytes = (target: string) =>
    Effect.sync(() =>
      Option.map(Option.fromUndefinedOr(files.get(target)), (file) => readFrom(file, 0, file.size))
    )
  return {
    read: (target: string) =>
      Effect.map(
        bytes(target),
        Option.map((it) => Buffer.from(it))
      ),
    readAt: (target: string, offset: number, length: number) =>
      Effect.sync(() =>
        Option.map(Option.fromUndefinedOr(files.get(target)), (file) => readFrom(file, offset, length))
      ),
    readText: (target: string) =>
      Effect.map(
        bytes(target),
        Option.map((it) => new TextDecoder().decode(it))
      ),
    sha256: (target: string) =>
      Effect.flatMap(
        bytes(target),
        Option.match({
          onNone: () =>
            Effect.fail(new FileFault({ operation: "read", path: target, code: "ENOENT", cause: target })),
          onSome: (it) => Effect.sync(() => createHash("sha256").update(it).digest("hex"))
        })
      ),
    list: (directory: string) => Effect.sync(() => [...(directories.get(directory) ?? [])].toSorted()),
    stat: (target: string) =>
      Effect.sync(() => {
        const file = files.get(target)
        if (file === undefined && !directories.has(target)) return Option.none()
        return Option.some({
          size: file?.size ?? 0,
          allocated: (file?.blocks.size ?? 0) * blockBytes,
          isDirectory: file === undefined,
          modifiedNs: BigInt(Math.round((file?.modifiedMs ?? 0) * 1_000_000))
        })
      }),
    exists: (target: string) => Effect.sync(() => files.has(target) || directories.has(target)),
    freeBytes: () => Effect.succeed(freeBytes),
    totalBytes: () => Effect.succeed(2 * freeBytes)
  }
}

/** Names: they are not durable content, so a full disk does not refuse them. */
const names = (contents: Contents, living: Effect.Effect<void>) => ({
  makeDirectory: (directory: string) => Effect.map(living, () => addDirectory(contents, directory)),
  remove: (target: string) => Effect.map(living, () => drop(contents, target))
})

/** A rename moves a file, or a directory with all that is under it, and replaces a file of the new name. */
const rename = (contents: Contents, from: string, to: string): void => {
  const { files, directories } = contents
  const file = files.get(from)
  if (file === undefined) {
    const children = directories.get(from) ?? new Set()
    addDirectory(contents, to)
    for (const child of children) rename(contents, `${from}/${child}`, `${to}/${child}`)
  } else put(contents, to, file)
  drop(contents, from)
}

const filesOver = (contents: Contents, failing: () => string | null, alive: () => boolean) => {
  const living = Effect.suspend(() => (alive() ? Effect.void : Effect.interrupt))
  const writing: Writing = (operation, target, body) =>
    Effect.gen(function* () {
      yield* living
      const absent =
        contents.directories.has(path.dirname(target)) || contents.files.has(target) ? null : "ENOENT"
      // A full disk has room for what a sync needs.
      const refusal = failing() === "ENOSPC" && operation === "fsync" ? null : failing()
      const code = refusal ?? absent
      if (code !== null) return yield* new FileFault({ operation, path: target, code, cause: code })
      return body(yield* Clock.currentTimeMillis)
    })
  return Files.of({
    ...reads(contents),
    ...writes(contents, writing),
    ...names(contents, living),
    rename: (from, to) => writing("rename", to, () => rename(contents, from, to))
  })
}

const namesUnder = (contents: Contents, directory: string): ReadonlyArray<string> =>
  [...(contents.directories.get(directory) ?? [])].flatMap((child) => {
    const name = path.join(directory, child)
    return contents.files.has(name) ? [name] : namesUnder(contents, name)
  })

export const memoryFiles = (): MemoryFiles => {
  const contents: Contents = { files: new Map(), directories: new Map([["/", new Set()]]) }
  const layerWhile = (alive: () => boolean) =>
    Layer.sync(Files, () => filesOver(contents, () => memory.failing, alive))
  const memory: MemoryFiles = {
    disk: makeDisk(contents),
    layer: layerWhile(() => true),
    layerWhile,
    names: (directory = "/") => namesUnder(contents, directory).toSorted(),
    text: (name) => {
      const file = contents.files.get(name)
      return file === undefined ? "" : new TextDecoder().decode(readFrom(file, 0, file.size))
    },
    failing: null
  }
  return memory
}
