/**
 * A simulated snapshot: `<directory>/state`, one line of JSON that holds the guest's memory and the layout of its
 * machine, and one line with the SHA-256 of the first. Half a file does not pass its check.
 */
import { createHash } from "node:crypto"
import * as path from "node:path"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { SnapshotFile } from "../../domain/Snapshot.ts"
import { Memory } from "../../host/simulated/guest.ts"

const stateName = "state"
export const stateFile = (directory: string): string => path.join(directory, stateName)

const Snapshot = Schema.Struct({
  fingerprint: Schema.String,
  memoryMb: Schema.Int,
  memory: Memory,
  /** Host time (epoch) since which the guest stands still. */
  sinceMs: Schema.Finite
})
export type Snapshot = typeof Snapshot.Type

const decode = Schema.decodeUnknownOption(Schema.fromJsonString(Snapshot))
const checksum = (body: string): string => createHash("sha256").update(body).digest("hex")

export const encodeSnapshot = (snapshot: Snapshot): string => {
  const body = JSON.stringify(snapshot)
  return `${body}\n${checksum(body)}\n`
}

/** The snapshot's one file, as its manifest names it. */
export const filesOf = (text: string): ReadonlyArray<SnapshotFile> => [
  { name: stateName, bytes: Buffer.byteLength(text), checksum: `sha256:${checksum(text)}` }
]

/** None for a file that is cut, changed, or not a snapshot. */
export const decodeSnapshot = (text: string): Option.Option<Snapshot> => {
  const [body, sum] = text.split("\n")
  return body !== undefined && sum === checksum(body) ? decode(body) : Option.none()
}
