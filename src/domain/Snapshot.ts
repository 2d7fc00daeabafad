/**
 * The manifest of a snapshot: what it holds and what it needs. It is written last, after everything that it names is
 * durable, and the directory takes its final name after that: a snapshot is complete or it is not there.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Digest, Timestamp, VolumeId } from "./Ids.ts"
import { VmmKind } from "./Instance.ts"
import { Lease } from "./Network.ts"

const Sha256 = Schema.String.check(Schema.isPattern(/^[0-9a-f]{64}$/u))

/**
 * `<algorithm>:<hexadecimal digits>`. Against decay and cut-off writes, not against forgery: whoever can write a snapshot
 * can write its manifest. The driver chooses the algorithm, since it hashes the guest's memory while the user waits.
 */
export const Checksum = Schema.String.check(Schema.isPattern(/^(crc32:[0-9a-f]{8}|sha256:[0-9a-f]{64})$/u))

/** A file of the snapshot itself. */
export const SnapshotFile = Schema.Struct({ name: Schema.String, bytes: Schema.Int, checksum: Checksum })
export type SnapshotFile = typeof SnapshotFile.Type

/** A disk that must be just as the guest left it: its content is not in the snapshot. */
export const SnapshotDisk = Schema.Struct({
  serial: Schema.String,
  bytes: Schema.Int,
  /** Time of the last write, in nanoseconds since the epoch, as text: a write after the snapshot shows. */
  modified_ns: Schema.String
})
export type SnapshotDisk = typeof SnapshotDisk.Type

export const SnapshotManifest = Schema.Struct({
  version: Schema.Literal(1),
  number: Schema.Int,
  created_at: Timestamp,
  paused: Schema.Boolean,
  vmm: Schema.Struct({ kind: VmmKind, version: Schema.String, fingerprint: Schema.String }),
  memory_mb: Schema.Int,
  image_digest: Digest,
  layers: Schema.Array(Digest),
  kernel_sha256: Sha256,
  initrd_sha256: Sha256,
  lease: Schema.NullOr(Lease),
  files: Schema.Array(SnapshotFile),
  disks: Schema.Array(SnapshotDisk),
  /** Which of the disks are volumes, and how the guest has them. */
  volumes: Schema.Array(
    Schema.Struct({ volume_id: VolumeId, serial: Schema.String, readonly: Schema.Boolean })
  ).pipe(Schema.withDecodingDefaultKey(Effect.succeed([])))
}).annotate({ identifier: "SnapshotManifest" })
export type SnapshotManifest = typeof SnapshotManifest.Type
