/**
 * The disk of a volume as a file: sparse, raw, one ext4 over all of it. Nothing here mounts: the host's kernel never
 * reads a file system that a guest wrote, only e2fsprogs do, as programs that may fail.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { run } from "../host/Command.ts"
import type { CommandFault, FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import { ArchiveRefused, unpack, type UploadBroken } from "./unpack.ts"

/**
 * Lazy tables (mke2fs(8)): an empty file system then takes a few MiB, whatever its size. No blocks are kept for root:
 * nothing of the guest's system is on a volume.
 */
const mkfsOptions = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]
/** 16 TiB of bitmaps take a while on a slow disk. */
const mkfsTimeoutMs = 600_000
const checkTimeoutMs = 600_000
/** e2fsck(8): errors were there and are corrected. */
const corrected = 1
/** ext4, super block: at byte 1024, s_feature_incompat at 0x60 of it; its journal holds what the disk does not yet. */
const featuresOffset = 1024 + 0x60
const needsRecovery = 0x4
const magicOffset = 1024 + 0x38
const ext4Magic = 0xef53

export class VolumeImages extends Context.Service<
  VolumeImages,
  {
    /** A new disk of that many bytes, empty, durable. */
    readonly make: (file: string, bytes: number) => Effect.Effect<void, FileFault | CommandFault>
    /**
     * A new disk that holds what is in the tar; `directory` is private, and there for it to unpack into. Fails with
     * ArchiveRefused where the archive is no sound tar, holds what a volume cannot, or does not fit.
     */
    readonly fill: (
      file: string,
      bytes: number,
      directory: string,
      archive: Stream.Stream<Uint8Array, UploadBroken>
    ) => Effect.Effect<void, FileFault | CommandFault | ArchiveRefused | UploadBroken>
    /** Grows a disk that nobody has open, with its file system. */
    readonly grow: (file: string, bytes: number) => Effect.Effect<void, FileFault | CommandFault>
    /** Plays back the journal of a disk whose guest did not unmount it: readers cannot. Nobody has it open. */
    readonly settle: (file: string) => Effect.Effect<void, FileFault | CommandFault>
  }
>()("dataplane/volume/VolumeImages") {
  static readonly layer = Layer.effect(
    VolumeImages,
    Effect.map(Files, (files) => {
      const format = Effect.fnUntraced(function* (file: string, bytes: number, more: ReadonlyArray<string>) {
        yield* files.createSparse(file, bytes)
        yield* run("mkfs.ext4", [...mkfsOptions, ...more, file], { timeoutMs: mkfsTimeoutMs })
        yield* files.sync(file)
      })
      const check = (options: string, file: string) =>
        run("e2fsck", [options, file], { timeoutMs: checkTimeoutMs }).pipe(
          Effect.catchIf(
            (fault) => fault.exitCode === corrected,
            () => Effect.succeed("")
          )
        )
      return {
        make: (file, bytes) => format(file, bytes, []),
        fill: Effect.fnUntraced(function* (file, bytes, directory, archive) {
          yield* unpack(directory, bytes, archive).pipe(Effect.provideService(Files, files))
          yield* format(file, bytes, ["-d", directory]).pipe(Effect.catchTag("CommandFault", notFitting))
          yield* files.remove(directory)
        }),
        grow: Effect.fnUntraced(function* (file: string, bytes: number) {
          yield* files.extend(file, bytes)
          // resize2fs asks for a check since the last mount, and for one that looked at everything.
          yield* check("-fp", file)
          yield* run("resize2fs", [file], { timeoutMs: checkTimeoutMs })
          yield* files.sync(file)
        }),
        settle: Effect.fnUntraced(function* (file: string) {
          const [magic, features] = yield* Effect.all([
            files.readAt(file, magicOffset, 2),
            files.readAt(file, featuresOffset, 4)
          ])
          if (little(magic) !== ext4Magic || (little(features) & needsRecovery) === 0) return
          yield* check("-p", file)
          yield* files.sync(file)
        })
      }
    })
  )

  /** Nobody looks into a simulated guest's disk: a file of its name is enough to be locked. */
  static readonly layerSimulated = Layer.effect(
    VolumeImages,
    Effect.map(Files, (files) => ({
      make: (file, bytes) => files.createSparse(file, bytes),
      fill: Effect.fnUntraced(function* (file, bytes, _, archive) {
        yield* Stream.runDrain(archive)
        yield* files.createSparse(file, bytes)
      }),
      grow: (file, bytes) => files.extend(file, bytes),
      settle: () => Effect.void
    }))
  )
}

/** The bytes as one number; 0 where they are not there. */
const little = (bytes: Option.Option<Uint8Array>): number =>
  Option.match(bytes, {
    onNone: () => 0,
    onSome: (it) => it.reduce((sum, byte, at) => sum + byte * 2 ** (8 * at), 0)
  })

/** mke2fs says so where it runs out of blocks or inodes; it has no exit code of its own for it. */
const full = /could not allocate (block|inode)|no free space/iu

const notFitting = (fault: CommandFault): Effect.Effect<never, CommandFault | ArchiveRefused> =>
  full.test(fault.stderr)
    ? Effect.fail(new ArchiveRefused({ reason: "its content does not fit into the volume", cause: fault }))
    : Effect.fail(fault)
