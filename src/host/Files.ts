/**
 * Files whose content survives a power cut: a write is to a temporary name, fsync, rename, fsync of the directory. A
 * service, so that tests and the simulated host can put a full disk or a failing fsync under everything.
 */
import { constants } from "node:fs"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import { sha256 } from "./Checksum.ts"
import { run } from "./Command.ts"
import { type CommandFault, FileFault } from "./Fault.ts"

/** Files of the service hold guests' secrets (environment, disks): nobody else reads them. */
const fileMode = 0o600
const directoryMode = 0o700

const errnoOf = (cause: unknown): string =>
  Predicate.hasProperty(cause, "code") && Predicate.isString(cause.code) ? cause.code : "UNKNOWN"

const attempt = <A>(operation: string, target: string, body: () => Promise<A>): Effect.Effect<A, FileFault> =>
  Effect.tryPromise({
    try: body,
    catch: (cause) => new FileFault({ operation, path: target, code: errnoOf(cause), cause })
  })

export interface FileStat {
  /** Apparent size. */
  readonly size: number
  /** Bytes that the file system really holds for it. */
  readonly allocated: number
  readonly isDirectory: boolean
  /** Time of the last write, nanoseconds since the epoch. */
  readonly modifiedNs: bigint
}

const syncDirectory = async (directory: string): Promise<void> => {
  const handle = await fs.open(directory, "r")
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Zeros at the end of a content become a hole instead of blocks, in units of this many. */
const holeBytes = 64 * 1024
const hole = new Uint8Array(holeBytes)

/** Where the zeros at the end begin. */
const contentEnd = (content: Uint8Array): number => {
  let end = content.length
  while (end >= holeBytes && Buffer.compare(content.subarray(end - holeBytes, end), hole) === 0)
    end -= holeBytes
  return end
}

const writeDurable = async (target: string, content: string | Uint8Array): Promise<void> => {
  const temporary = `${target}.tmp-${process.pid}`
  const handle = await fs.open(temporary, "w", fileMode)
  try {
    const bytes = typeof content === "string" ? Buffer.from(content) : content
    await handle.writeFile(bytes.subarray(0, contentEnd(bytes)))
    await handle.truncate(bytes.length)
    await handle.sync()
  } finally {
    await handle.close()
  }
  await fs.rename(temporary, target)
  await syncDirectory(path.dirname(target))
}

const appendDurable = async (target: string, content: string): Promise<void> => {
  const handle = await fs.open(target, "a", fileMode)
  try {
    await handle.writeFile(content)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

const readAt = async (target: string, offset: number, length: number): Promise<Uint8Array> => {
  const handle = await fs.open(target, "r")
  try {
    const { buffer, bytesRead } = await handle.read(new Uint8Array(length), 0, length, offset)
    return buffer.subarray(0, bytesRead)
  } finally {
    await handle.close()
  }
}

const overwrite = async (target: string, offset: number, bytes: Uint8Array): Promise<void> => {
  const handle = await fs.open(target, "r+")
  try {
    await handle.write(bytes, 0, bytes.length, offset)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

const createSparse = async (target: string, bytes: number): Promise<void> => {
  const handle = await fs.open(target, constants.O_CREAT | constants.O_EXCL | constants.O_RDWR, fileMode)
  try {
    await handle.truncate(bytes)
  } finally {
    await handle.close()
  }
}

const extend = async (target: string, bytes: number): Promise<void> => {
  const handle = await fs.open(target, "r+")
  try {
    const { size } = await handle.stat()
    if (size < bytes) await handle.truncate(bytes)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** None where the file is not there; every other failure stays one. */
const orNone = <A>(effect: Effect.Effect<A, FileFault>): Effect.Effect<Option.Option<A>, FileFault> =>
  effect.pipe(
    Effect.map(Option.some),
    Effect.catchIf(
      (fault) => fault.code === "ENOENT" || fault.code === "ENOTDIR",
      () => Effect.succeed(Option.none<A>())
    )
  )

const live = {
  /** Replaces a file whole and durably: readers see the old or the new content, also after a power cut. */
  write: (target: string, content: string | Uint8Array) =>
    attempt("write", target, () => writeDurable(target, content)),
  /**
   * Overwrites a range of a file that is there, and syncs: the same file, for whoever holds it open. Not atomic; `write`
   * is, and is to be preferred.
   */
  overwrite: (target: string, offset: number, bytes: Uint8Array) =>
    attempt("overwrite", target, () => overwrite(target, offset, bytes)),
  /** Appends and syncs. */
  append: (target: string, content: string) =>
    attempt("append", target, () => appendDurable(target, content)),
  /** Appends without a sync: for text that a power cut may take. */
  note: (target: string, content: string) =>
    attempt("append", target, () => fs.appendFile(target, content, { mode: fileMode })),
  /** The bytes of a range, fewer where the file ends before it; none where there is no such file. */
  readAt: (target: string, offset: number, length: number) =>
    orNone(attempt("read", target, () => readAt(target, offset, length))),
  /** The whole content, or none where there is no such file. */
  read: (target: string) => orNone(attempt("read", target, () => fs.readFile(target))),
  readText: (target: string) => orNone(attempt("read", target, () => fs.readFile(target, "utf8"))),
  /** SHA-256 of a file, streamed, as 64 hexadecimal digits. */
  sha256: (target: string) => sha256(target),
  /** Names in a directory, sorted; empty where there is no such directory. */
  list: (directory: string) =>
    orNone(attempt("list", directory, () => fs.readdir(directory))).pipe(
      Effect.map(Option.match({ onNone: (): Array<string> => [], onSome: (names) => names.toSorted() }))
    ),
  stat: (target: string) =>
    orNone(attempt("stat", target, () => fs.stat(target, { bigint: true }))).pipe(
      Effect.map(
        Option.map((it): FileStat => ({
          size: Number(it.size),
          allocated: Number(it.blocks) * 512,
          isDirectory: it.isDirectory(),
          modifiedNs: it.mtimeNs
        }))
      )
    ),
  exists: (target: string) =>
    orNone(attempt("stat", target, () => fs.stat(target))).pipe(Effect.map(Option.isSome)),
  makeDirectory: (directory: string) =>
    attempt("mkdir", directory, () => fs.mkdir(directory, { recursive: true, mode: directoryMode })).pipe(
      Effect.asVoid
    ),
  /** Removes a file or a tree; ignored where there is none. */
  remove: (target: string) =>
    attempt("remove", target, () => fs.rm(target, { recursive: true, force: true })),
  /** Atomic and durable: both directories are synced. */
  rename: (from: string, to: string) =>
    attempt("rename", to, async () => {
      await fs.rename(from, to)
      await syncDirectory(path.dirname(to))
      if (path.dirname(from) !== path.dirname(to)) await syncDirectory(path.dirname(from))
    }),
  /** fsync of a file, or of a directory's names. */
  sync: (target: string) => attempt("fsync", target, () => syncDirectory(target)),
  /** A new file of the given apparent size without blocks; fails where the name is taken. */
  createSparse: (target: string, bytes: number) =>
    attempt("create", target, () => createSparse(target, bytes)),
  /** Makes a file that long, with a hole at its end, and syncs; one that is longer stays so. */
  extend: (target: string, bytes: number) => attempt("extend", target, () => extend(target, bytes)),
  /** Gives the blocks of a range back; size and later offsets stay (fallocate(2), FALLOC_FL_PUNCH_HOLE). */
  punchHole: (target: string, offset: number, length: number): Effect.Effect<void, CommandFault> =>
    run("fallocate", ["--punch-hole", "--offset", `${offset}`, "--length", `${length}`, target]).pipe(
      Effect.asVoid
    ),
  /** Bytes that an unprivileged writer could still write on the file system of `target`. */
  freeBytes: (target: string) =>
    attempt("statfs", target, () => fs.statfs(target)).pipe(Effect.map((it) => it.bavail * it.bsize)),
  totalBytes: (target: string) =>
    attempt("statfs", target, () => fs.statfs(target)).pipe(Effect.map((it) => it.blocks * it.bsize))
}

export class Files extends Context.Service<Files, typeof live>()("dataplane/host/Files") {
  static readonly layer = Layer.succeed(Files, live)
}
