/** The writable disk of a guest: ext4 on a sparse file, made once; what the guest wrote on it stays until delete. */
import { dirname } from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { run } from "../host/Command.ts"
import type { CommandFault, FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"

const mebibyte = 1024 * 1024
/**
 * Lazy tables (mke2fs(8)): an empty file system of 10 GiB then takes 4 MiB and 10 ms; the guest's kernel fills the
 * tables in as it goes.
 */
const mkfsOptions = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]

export class Overlay extends Context.Service<
  Overlay,
  {
    /** A new empty disk under this name, in place of what is there: enough for a VMM to open. */
    readonly allot: (path: string, megabytes: number) => Effect.Effect<void, FileFault>
    /**
     * Puts the file system on it, also while a VMM that has not started its guest holds it. Durable once it ends; what
     * is there when it is cut off is no file system, so a guest may only boot from a disk whose format has ended.
     */
    readonly format: (path: string) => Effect.Effect<void, FileFault | CommandFault>
  }
>()("dataplane/guest/Overlay") {
  static readonly layer = Layer.effect(
    Overlay,
    Effect.map(Files, (files) => ({
      allot: (path: string, megabytes: number) =>
        Effect.andThen(files.remove(path), files.createSparse(path, megabytes * mebibyte)),
      format: (path: string) =>
        Effect.andThen(run("mkfs.ext4", [...mkfsOptions, path]), files.sync(dirname(path)))
    }))
  )

  /** Nobody looks into a simulated guest's disk: a file of its name is enough to be locked. */
  static readonly layerSimulated = Layer.effect(
    Overlay,
    Effect.map(Files, (files) => ({
      allot: (path: string) => files.write(path, "overlay"),
      format: () => Effect.void
    }))
  )
}
