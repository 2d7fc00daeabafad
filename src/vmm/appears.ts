/** The socket of a VMM that is starting: seen by an event, since it says nothing else. */
import { existsSync, watch } from "node:fs"
import * as path from "node:path"
import * as Effect from "effect/Effect"

/** Ends when there is such a file; the directory must be there. */
export const appears = (file: string): Effect.Effect<void> =>
  Effect.callback<void>((done) => {
    const watcher = watch(path.dirname(file))
    const finish = () => {
      watcher.close()
      done(Effect.void)
    }
    watcher.on("error", finish).on("change", (_, name) => {
      if (name === path.basename(file)) finish()
    })
    // It may have come before the watch began.
    if (existsSync(file)) finish()
    return Effect.sync(() => watcher.close())
  })
