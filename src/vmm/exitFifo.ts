/**
 * The FIFOs that VMMs hold (VmmProcess.ts). Node cannot make one, and a process for each would cost every start of a VM
 * its milliseconds: so one `mkfifo` makes this one and the next ones, which wait as `<runRoot>/.fifo-*` and are renamed
 * into place. They belong to the run of the service: its end takes them away, and its start those of one that was killed.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { run } from "../host/Command.ts"
import type { CommandFault } from "../host/Fault.ts"

/** FIFOs made ahead at once. */
const sparesMax = 16
const sparePrefix = ".fifo-"

export interface ExitFifos {
  /** A new FIFO of this name, in place of what is there; nobody has it open. */
  readonly make: (fifo: string) => Effect.Effect<void, CommandFault>
}

const removeSpares = (runRoot: string) =>
  Effect.promise(async () => {
    const names = await fs.readdir(runRoot).catch(() => [])
    const spares = names.filter((name) => name.startsWith(sparePrefix))
    await Promise.all(spares.map((name) => fs.rm(path.join(runRoot, name), { force: true })))
  })

/** The scope takes away what was not used. */
export const exitFifos = (runRoot: string): Effect.Effect<ExitFifos, never, Scope.Scope> =>
  Effect.gen(function* () {
    const spares: Array<string> = []
    let made = 0
    yield* removeSpares(runRoot)
    yield* Effect.addFinalizer(() => removeSpares(runRoot))

    const renamed = (spare: string, fifo: string) =>
      Effect.promise(() =>
        fs.rename(spare, fifo).then(
          () => true,
          () => false
        )
      )

    const makeWithSpares = (fifo: string) =>
      Effect.gen(function* () {
        const names = Array.from({ length: sparesMax }, () => path.join(runRoot, `${sparePrefix}${made++}`))
        yield* Effect.promise(() => fs.rm(fifo, { force: true }))
        yield* run("mkfifo", ["-m", "600", fifo, ...names])
        spares.push(...names)
      })

    return {
      make: Effect.fnUntraced(function* (fifo: string) {
        const spare = spares.pop()
        // Somebody may have cleaned the directory: then they are made anew.
        if (spare !== undefined && (yield* renamed(spare, fifo))) return
        yield* makeWithSpares(fifo)
      })
    }
  })
