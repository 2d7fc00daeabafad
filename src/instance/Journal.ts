/**
 * What the dataplane did with one instance, in order: a line for each transition, the `dataplane` source of its logs.
 * Told, not promised: the record is the truth, and a line lost to a power cut changes nothing.
 */
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { InstanceId, Timestamp } from "../domain/Ids.ts"
import { Files } from "../host/Files.ts"
import { Paths } from "../host/Paths.ts"

/** One run file that is never followed by another: run 1, first byte at offset 0. */
const fileName = "1.0.log"

export interface JournalEntry {
  readonly time: Timestamp
  readonly event: string
  readonly message: string
  readonly generation: number
  readonly from?: string
  readonly to?: string
  readonly reason?: string
}

export class Journal extends Context.Service<
  Journal,
  { readonly tell: (id: InstanceId, entry: JournalEntry) => Effect.Effect<void> }
>()("dataplane/instance/Journal") {
  static readonly layer = Layer.effect(
    Journal,
    Effect.gen(function* () {
      const files = yield* Files
      const paths = yield* Paths
      const tell = (id: InstanceId, entry: JournalEntry) => {
        const directory = paths.instance(id).journal
        return files.note(path.join(directory, fileName), `${JSON.stringify(entry)}\n`).pipe(Effect.ignore)
      }
      return Journal.of({ tell })
    })
  )
}
