/** A file on its way to the service: read as it is sent, counted for the progress bar. */
import { createReadStream } from "node:fs"
import { stat } from "node:fs/promises"
import * as NodeStream from "@effect/platform-node/NodeStream"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { failure } from "./Failure.ts"
import { reason } from "./text.ts"

/** The file's bytes as they are read, with its size; fails with one sentence where it cannot be read. */
export const archiveFile = (file: string) =>
  Effect.gen(function* () {
    const { size } = yield* Effect.tryPromise({
      try: async () => {
        const found = await stat(file)
        if (found.isDirectory()) throw new Error("it is a directory")
        return found
      },
      catch: (error) => failure(`Cannot read ${file}: ${reason(error)}`)
    })
    const bytes = NodeStream.fromReadable<Uint8Array, unknown>({
      evaluate: () => createReadStream(file),
      onError: (error) => error
    })
    return { size, bytes: Stream.orDie(bytes) }
  })

/** The bytes, counted as they go. */
export const counted = <E, R>(
  bytes: Stream.Stream<Uint8Array, E, R>,
  count: (sent: number) => Effect.Effect<void>
) => {
  let sent = 0
  return Stream.tap(bytes, (piece) => {
    sent += piece.length
    return count(sent)
  })
}
