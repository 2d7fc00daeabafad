/** The writable disk of a guest: ext4 on a sparse file, made once; what the guest wrote on it stays until delete. */
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
    /** Makes the disk where it is not there yet; never leaves a half-made one under its name. */
    readonly make: (path: string, megabytes: number) => Effect.Effect<void, FileFault | CommandFault>
  }
>()("dataplane/guest/Overlay") {
  static readonly layer = Layer.effect(
    Overlay,
    Effect.map(Files, (files) => ({
      make: Effect.fnUntraced(function* (path: string, megabytes: number) {
        if (yield* files.exists(path)) return
        const temporary = `${path}.tmp`
        yield* files.remove(temporary)
        yield* files.createSparse(temporary, megabytes * mebibyte)
        yield* run("mkfs.ext4", [...mkfsOptions, temporary])
        yield* files.rename(temporary, path)
      })
    }))
  )

  /** Nobody looks into a simulated guest's disk: a file of its name is enough to be locked. */
  static readonly layerSimulated = Layer.effect(
    Overlay,
    Effect.map(Files, (files) => ({
      make: Effect.fnUntraced(function* (path: string) {
        if (!(yield* files.exists(path))) yield* files.write(path, "overlay")
      })
    }))
  )
}
