/**
 * What the disk knows about an image: DATA_DIR/images/<id>.json, replaced whole. Layers and blobs are counted from these
 * records and from nothing else: what no record names is garbage.
 *
 * `current` is the version that new instances get. `previous` are versions whose tag moved on; instances may still be
 * pinned to them. `work` is the version being pulled or converted, so its layers are not garbage while they are made.
 */
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Digest, ImageId, Timestamp } from "../domain/Ids.ts"
import {
  type BootImage,
  type Image,
  ImageConfig,
  type ImageDisk,
  type ImageProgress,
  ImageStatus
} from "../domain/Image.ts"
import type { Layout } from "../host/Paths.ts"
import { placesOf } from "./layers.ts"
import { ImageManifest } from "./manifest.ts"

const PlacedLayer = Schema.Struct({ diff_id: Digest, key: Digest })

export const ImageVersion = Schema.Struct({
  digest: Digest,
  config: ImageConfig,
  /** Of the whole image, bottom first. */
  layers: Schema.Array(PlacedLayer),
  /** Those that a guest mounts, bottom first (layers.ts: mounted). */
  mounted: Schema.Array(PlacedLayer),
  size_bytes: Schema.Int
})
export type ImageVersion = typeof ImageVersion.Type

export const ImageRecord = Schema.Struct({
  version: Schema.Literal(1),
  id: ImageId,
  name: Schema.String,
  source: Schema.Literals(["registry", "archive"]),
  status: ImageStatus,
  error: Schema.NullOr(Schema.String),
  created_at: Timestamp,
  current: Schema.NullOr(ImageVersion),
  previous: Schema.Array(ImageVersion),
  work: Schema.NullOr(ImageManifest)
})
export type ImageRecord = typeof ImageRecord.Type

const codec = Schema.fromJsonString(ImageRecord)
export const encode = Schema.encodeSync(codec)
export const decode = Schema.decodeUnknownOption(codec)

export const isWorking = (record: ImageRecord): boolean =>
  record.status === "pending" || record.status === "pulling" || record.status === "converting"

const nothing: ImageConfig = { entrypoint: [], cmd: [], env: {}, working_dir: "", user: "" }

/** What users see. While a moved tag is fetched, digest and config are those that new instances still get. */
export const toImage = (record: ImageRecord, progress: ImageProgress): Image => {
  const { current, work } = record
  return {
    id: record.id,
    name: record.name,
    digest: current?.digest ?? work?.digest ?? null,
    status: record.status,
    progress,
    error: record.error,
    size_bytes: current?.size_bytes ?? work?.layers.reduce((sum, it) => sum + it.size, 0) ?? 0,
    ...(current?.config ?? work?.config ?? nothing),
    created_at: record.created_at
  }
}

const keysOf = (record: ImageRecord): ReadonlySet<Digest> =>
  new Set(
    [...(record.current === null ? [] : [record.current]), ...record.previous].flatMap((it) =>
      it.layers.map(({ key }) => key)
    )
  )

/** How many of the records have a layer, by its name. */
export const countUsers = (records: ReadonlyArray<ImageRecord>): ReadonlyMap<Digest, number> => {
  const users = new Map<Digest, number>()
  for (const record of records) for (const key of keysOf(record)) users.set(key, (users.get(key) ?? 0) + 1)
  return users
}

/** What the current version takes on the disk, each layer counted once. */
export const diskOf = (
  { current }: ImageRecord,
  users: ReadonlyMap<Digest, number>,
  sizeOf: (key: Digest) => number
): ImageDisk => {
  const disk = { own_bytes: 0, shared_bytes: 0 }
  for (const key of new Set(current?.layers.map((it) => it.key))) {
    disk[(users.get(key) ?? 0) > 1 ? "shared_bytes" : "own_bytes"] += sizeOf(key)
  }
  return disk
}

export const toBootImage = (id: ImageId, version: ImageVersion, paths: Layout): BootImage => ({
  id,
  digest: version.digest,
  layers: version.mounted.map((it) => ({ diffId: it.diff_id, path: paths.layer(it.key) })),
  config: version.config
})

/** The version of that digest, current or older. */
export const versionOf = (record: ImageRecord, digest: Digest): Option.Option<ImageVersion> =>
  Option.fromNullishOr(
    [...(record.current === null ? [] : [record.current]), ...record.previous].find(
      (it) => it.digest === digest
    )
  )

/** The names of all layers that a record holds on to. A version at work claims every name that its layers may get. */
export const layersOf = (record: ImageRecord): ReadonlyArray<Digest> => {
  const versions = [...(record.current === null ? [] : [record.current]), ...record.previous]
  const working = record.work?.layers.map((it) => it.diff_id) ?? []
  return [...versions.flatMap((it) => it.layers.map((layer) => layer.key)), ...working, ...placesOf(working)]
}

/** The record with a finished version in front; the one before it stays for the instances that have it. */
export const promote = (record: ImageRecord, version: ImageVersion): ImageRecord => {
  const older = [...(record.current === null ? [] : [record.current]), ...record.previous]
  return {
    ...record,
    status: "ready",
    error: null,
    current: version,
    previous: older.filter((it) => it.digest !== version.digest),
    work: null
  }
}
