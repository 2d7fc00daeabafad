/**
 * The records of images in memory and on disk, with one writer at a time. A record is on disk before anybody sees it;
 * progress is in memory only, since a restart begins the work again.
 *
 * Also the garbage rule: a layer or a pull's directory that no record names is removed. While a record cannot be read,
 * nothing is, since nobody knows what it names.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Semaphore from "effect/Semaphore"
import type { Digest, ImageId } from "../domain/Ids.ts"
import type { ImageProgress } from "../domain/Image.ts"
import { Files } from "../host/Files.ts"
import { type Layout, Paths } from "../host/Paths.ts"
import { decode, encode, type ImageRecord, isWorking, layersOf } from "./ImageRecord.ts"
import type { Freed, Layers } from "./layers.ts"

export interface Entry {
  readonly record: ImageRecord
  readonly progress: ImageProgress
}

export const startOf = (phase: ImageProgress["phase"]): ImageProgress => ({
  phase,
  bytes_done: 0,
  bytes_total: 0,
  layers_done: 0,
  layers_total: 0
})

/** Progress of a record that nobody works on. */
const restingProgress = ({ status, current }: ImageRecord): ImageProgress => {
  const layers = status === "ready" && current !== null ? current.layers.length : 0
  const bytes = status === "ready" && current !== null ? current.size_bytes : 0
  return { phase: status, bytes_done: bytes, bytes_total: bytes, layers_done: layers, layers_total: layers }
}

interface Host {
  readonly files: Files["Service"]
  readonly paths: Layout
  readonly layers: Layers
  readonly entries: Map<ImageId, Entry>
  /** Names of records that cannot be read. */
  readonly unreadable: Set<string>
}

const load = Effect.fnUntraced(function* ({ files, paths, entries, unreadable }: Host) {
  for (const name of yield* files.list(paths.images)) {
    // What a write that never ended left behind.
    if (!name.endsWith(".json")) yield* files.remove(`${paths.images}/${name}`)
    else {
      const record = Option.flatMap(yield* files.readText(`${paths.images}/${name}`), decode)
      if (Option.isSome(record) && name === `${record.value.id}.json`) {
        entries.set(record.value.id, { record: record.value, progress: restingProgress(record.value) })
      } else {
        unreadable.add(name)
        yield* Effect.logError(
          `The image record ${name} cannot be read; nothing is collected until it is gone.`
        )
      }
    }
  }
})

const write = ({ files, paths, entries }: Host, record: ImageRecord, progress: ImageProgress) =>
  files.write(paths.image(record.id), encode(record)).pipe(
    Effect.tap(() => Effect.sync(() => entries.set(record.id, { record, progress }))),
    Effect.uninterruptible
  )

const change = (
  host: Host,
  id: ImageId,
  next: (record: ImageRecord) => ImageRecord,
  progress: ImageProgress | undefined
) =>
  Effect.suspend(() => {
    const before = host.entries.get(id)
    if (before === undefined) return Effect.succeed(Option.none<ImageRecord>())
    const record = next(before.record)
    const written = write(host, record, progress ?? { ...before.progress, phase: record.status })
    return Effect.as(written, Option.some(record))
  })

const nothingFreed: Freed = { layers: 0, bytes: 0 }

/** What no record names goes. Faults are left for the next time. */
const collect = (host: Host) =>
  Effect.gen(function* () {
    const { files, paths, layers, entries, unreadable } = host
    if (unreadable.size > 0) return nothingFreed
    const records = [...entries.values()].map((it) => it.record)
    const freed = yield* layers.retain(new Set<Digest>(records.flatMap(layersOf)))
    const pulls = new Set(records.filter((it) => it.work !== null).map((it) => paths.pull(it.id)))
    for (const name of yield* files.list(paths.pulls)) {
      const pull = `${paths.pulls}/${name}`
      if (!pulls.has(pull)) yield* files.remove(pull)
    }
    return freed
  }).pipe(
    Effect.catch((fault) =>
      Effect.as(Effect.logWarning(`Collecting what no image needs failed: ${fault.message}`), nothingFreed)
    ),
    Effect.uninterruptible
  )

const drop = (host: Host, id: ImageId) =>
  host.files
    .remove(host.paths.image(id))
    .pipe(
      Effect.andThen(host.files.sync(host.paths.images)),
      Effect.andThen(Effect.sync(() => host.entries.delete(id))),
      Effect.andThen(collect(host)),
      Effect.uninterruptible
    )

const makeStore = (host: Host, lock: Semaphore.Semaphore) => {
  const { entries } = host
  return {
    load: load(host),
    get: (id: ImageId): Entry | undefined => entries.get(id),
    /** Oldest first. */
    all: (): ReadonlyArray<Entry> =>
      [...entries.values()].toSorted((a, b) => (a.record.created_at < b.record.created_at ? -1 : 1)),
    working: (): number => [...entries.values()].filter((it) => isWorking(it.record)).length,
    /** Runs alone among all that write records. */
    exclusively: lock.withPermits(1),
    /** Writes a record; for use inside of `exclusively`. */
    write: (record: ImageRecord, progress: ImageProgress) => write(host, record, progress),
    /** Changes a record that is still there, and gives what it became; its progress stays unless told. */
    update: (id: ImageId, next: (record: ImageRecord) => ImageRecord, progress?: ImageProgress) =>
      lock.withPermits(1)(change(host, id, next, progress)),
    /** Changes what is seen where the disk takes no record any more. */
    showUnwritten: (record: ImageRecord) =>
      Effect.sync(() => entries.set(record.id, { record, progress: restingProgress(record) })),
    setProgress: (id: ImageId, next: (progress: ImageProgress) => ImageProgress): void => {
      const entry = entries.get(id)
      if (entry !== undefined) entries.set(id, { ...entry, progress: next(entry.progress) })
    },
    /** Removes a record, then what only it named. */
    drop: (id: ImageId) => lock.withPermits(1)(drop(host, id)),
    collect: lock.withPermits(1)(collect(host))
  }
}

export type ImageStore = ReturnType<typeof makeStore>

export const makeImageStore = (layers: Layers): Effect.Effect<ImageStore, never, Files | Paths> =>
  Effect.gen(function* () {
    const host: Host = {
      files: yield* Files,
      paths: yield* Paths,
      layers,
      entries: new Map(),
      unreadable: new Set()
    }
    return makeStore(host, Semaphore.makeUnsafe(1))
  })
