/** Temporary directories that end with their scope. */
import * as fs from "node:fs/promises"
import * as os from "node:os"
import * as path from "node:path"
import * as Effect from "effect/Effect"

/** A new directory, removed with all it holds when the scope closes. Short, so that sockets fit into it. */
export const temporaryDirectory = (purpose: string) =>
  Effect.acquireRelease(
    Effect.promise(() => fs.mkdtemp(path.join(os.tmpdir(), `chd-${purpose}-`))),
    (directory) => Effect.promise(() => fs.rm(directory, { recursive: true, force: true }))
  )
