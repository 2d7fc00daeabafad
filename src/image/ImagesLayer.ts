/**
 * The Images service. Records are the truth (ImageStore); work runs in fibers that belong to the layer, one per image at
 * most, a few at once; the rest wait as `pending`. A caller who goes away cancels nothing; the layer's end stops all work
 * and leaves the records as they are.
 *
 * At the start, what a crash left behind is swept, and work that was under way begins again where that is possible: a pull
 * can be repeated, an upload cannot.
 *
 *   Images ──► admit ──► work ──► sources   (bytes in)
 *     │          │         └────► layers    (squashfs out)
 *     └──────────┴──────────────► ImageStore (records)
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberMap from "effect/FiberMap"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type * as Stream from "effect/Stream"
import { type Digest, ImageId, type InstanceId } from "../domain/Ids.ts"
import type { ImageGcReport } from "../domain/Image.ts"
import { Busy, ImageInUse, ImageNotFound, ImageNotReady } from "../domain/problems.ts"
import { Files } from "../host/Files.ts"
import type { FileFault } from "../host/Fault.ts"
import { Paths } from "../host/Paths.ts"
import { Settings } from "../host/Settings.ts"
import { type Admission, admitArchive, admitReference, uploadPrefix } from "./admit.ts"
import { ImageGc } from "./ImageGc.ts"
import { countUsers, diskOf, isWorking, toBootImage, toImage, versionOf } from "./ImageRecord.ts"
import { Images } from "./Images.ts"
import { type Entry, type ImageStore, makeImageStore, startOf } from "./ImageStore.ts"
import { type Layers, makeLayers } from "./layers.ts"
import type { LayerBounds } from "./LayerStream.ts"
import { format, parse } from "./Reference.ts"
import type { ArchiveBounds } from "./sources/archive.ts"
import { pullRetryTimes } from "./sources/registry.ts"
import { makeSources, type SourceBounds, type SourceSettings, type Sources } from "./sources/Sources.ts"
import { makeWork } from "./work.ts"

export interface ImageBounds extends LayerBounds, ArchiveBounds, SourceBounds {
  /** Images that are pulled or converted at once; more wait. */
  readonly workAtOnce: number
  /** Images that are being worked on or wait for it; more are refused with 503. */
  readonly workMax: number
  /** Archives that are received at once; more are refused with 503. */
  readonly uploadsAtOnce: number
  /** Below this many free bytes, what can be had again is let go: broken pulls, and what containerd keeps for us. */
  readonly lowSpaceBytes: number
}

export const defaultImageBounds: ImageBounds = {
  layerMaxBytes: 64 * 2 ** 30,
  layerMaxEntries: 1_000_000,
  archiveMaxBytes: 64 * 2 ** 30,
  workAtOnce: 2,
  workMax: 64,
  uploadsAtOnce: 4,
  lowSpaceBytes: 2 * 2 ** 30,
  pullRetryTimes
}

const lostUpload = "The service stopped before the archive was converted. Import it again."
const lostLayer = "A layer of the image is gone from this host. POST the image again to get it back."

const isImageId = Schema.is(ImageId)

const notFound = (image: string) =>
  new ImageNotFound({
    detail: `There is no image ${image} on this host. Pull it with POST /images first.`,
    image
  })

const entryOf = (store: ImageStore, id: ImageId) =>
  Effect.suspend(() => {
    const entry = store.get(id)
    return entry === undefined ? Effect.fail(notFound(id)) : Effect.succeed(entry)
  })

/** By id first, else by the reference that the text means; of several with one name, one that is usable. */
const lookUp = (store: ImageStore, image: string): Entry | undefined => {
  const byId = isImageId(image) ? store.get(image) : undefined
  if (byId !== undefined) return byId
  const name = Option.getOrUndefined(Result.getSuccess(Result.map(parse(image), format)))
  const named = store.all().filter((it) => it.record.name === name)
  return named.find((it) => it.record.current !== null) ?? named[0]
}

const resolve = Effect.fnUntraced(function* ({ store, paths }: Admission, image: string) {
  const entry = lookUp(store, image)
  if (entry === undefined) return yield* notFound(image)
  const { id, current, status, error } = entry.record
  if (current !== null) return toBootImage(id, current, paths)
  return yield* new ImageNotReady({
    detail:
      status === "failed"
        ? `The image ${id} could not be prepared: ${error ?? ""}`
        : `The image ${id} is ${status}. Wait until it is ready.`,
    image_id: id,
    image_status: status
  })
})

const pinned = Effect.fnUntraced(function* ({ store, paths }: Admission, id: ImageId, digest: Digest) {
  const { record } = yield* entryOf(store, id)
  return yield* Option.match(versionOf(record, digest), {
    onNone: () => Effect.fail(notFound(`${id}@${digest}`)),
    onSome: (version) => Effect.succeed(toBootImage(id, version, paths))
  })
})

/** Names of users in a sentence are bounded. */
const usersShown = 10

const inUse = (id: ImageId, users: ReadonlyArray<InstanceId>) => {
  const names = users.slice(0, usersShown).join(", ") + (users.length > usersShown ? ", ..." : "")
  const detail = `The image ${id} is used by ${names}. Delete ${users.length === 1 ? "that instance" : "those instances"} first.`
  return new ImageInUse({ detail, image_id: id, instances: [...users] })
}

const remove = Effect.fnUntraced(function* (
  store: ImageStore,
  cancel: (id: ImageId) => Effect.Effect<void>,
  id: ImageId,
  users: ReadonlyArray<InstanceId>
) {
  yield* entryOf(store, id)
  yield* users.length > 0 ? Effect.fail(inUse(id, users)) : Effect.void
  yield* cancel(id)
  yield* store.drop(id).pipe(Effect.orDie)
})

/** Forgets older versions that nobody has, and what only they needed. */
const collect = Effect.fnUntraced(
  function* (store: ImageStore, inUse: ReadonlyArray<{ readonly id: ImageId; readonly digest: Digest }>) {
    const used = new Set(inUse.map((it) => `${it.id}@${it.digest}`))
    for (const { record } of store.all()) {
      const isUsed = (digest: Digest) => used.has(`${record.id}@${digest}`)
      if (record.previous.every((it) => isUsed(it.digest))) continue
      yield* store.update(record.id, (now) => ({
        ...now,
        previous: now.previous.filter((it) => isUsed(it.digest))
      }))
    }
    const { layers, bytes } = yield* store.collect
    return { layers_removed: layers, bytes_freed: bytes } satisfies ImageGcReport
  },
  Effect.catch((fault: FileFault) =>
    Effect.as(Effect.logWarning(`Forgetting image versions failed: ${fault.message}`), {
      layers_removed: 0,
      bytes_freed: 0
    })
  )
)

/** Whatever no running work owns: nothing runs yet. */
const sweep = Effect.fnUntraced(function* ({ files, paths, store }: Admission, layers: Layers) {
  for (const directory of [paths.images, paths.layers, paths.temporary, paths.pulls]) {
    yield* files.makeDirectory(directory)
  }
  yield* layers.sweep
  for (const name of yield* files.list(paths.temporary)) {
    if (name.startsWith(uploadPrefix)) yield* files.remove(`${paths.temporary}/${name}`)
  }
  yield* store.load
})

/** Takes up what was under way, and says so where something is lost. */
const resume = Effect.fnUntraced(function* ({ store, work, run }: Admission, layers: Layers) {
  for (const { record } of store.all()) {
    const { id, current } = record
    const sizes = yield* Effect.forEach(current?.layers ?? [], (it) =>
      layers.learn(it.key).pipe(Effect.orElseSucceed(() => Number.NaN))
    )
    const isLacking = sizes.includes(0)
    if (record.source === "registry" && (isWorking(record) || isLacking)) {
      const reference = yield* Effect.fromResult(parse(record.name)).pipe(Effect.orDie)
      // What is lost is brought back as it was: instances are pinned to that digest.
      const digest = isLacking && current !== null ? current.digest : reference.digest
      const kept = isLacking ? null : current
      yield* store.update(id, (it) => ({ ...it, status: "pending", current: kept }), startOf("pending"))
      yield* run(id, work.pull(id, { ...reference, digest }))
    } else if (isWorking(record)) {
      const status = current === null ? "failed" : "ready"
      yield* store.update(id, (it) => ({ ...it, status, error: lostUpload, work: null }), startOf(status))
    } else if (isLacking) {
      yield* store.update(
        id,
        (it) => ({ ...it, status: "failed", error: lostLayer, current: null }),
        startOf("failed")
      )
    }
  }
  yield* store.collect
})

/** containerd keeps what we pulled as long as there is an image of that name. */
const releaseUnnamed = (store: ImageStore, sources: Sources) =>
  Effect.suspend(() => sources.retain(new Set(store.all().map((it) => it.record.name))))

/** Lets go of what can be had again, where the disk gets full. Images that somebody asked for stay. */
const relieve = Effect.fnUntraced(
  function* ({ files, paths, store }: Omit<Admission, "run">, bounds: ImageBounds, sources: Sources) {
    if ((yield* files.freeBytes(paths.root)) >= bounds.lowSpaceBytes) return
    for (const { record } of store.all()) {
      if (isWorking(record) || record.work === null) continue
      yield* store.update(record.id, (it) => (isWorking(it) ? it : { ...it, work: null }))
    }
    yield* store.collect
    yield* sources.retain(new Set())
  },
  Effect.catch((fault: FileFault) => Effect.logWarning(`Making room failed: ${fault.message}`))
)

const make = Effect.fnUntraced(function* (
  bounds: ImageBounds,
  settings: SourceSettings
): Effect.fn.Return<Context.Context<Images | ImageGc>, FileFault, Files | Paths | Scope.Scope> {
  const layers = yield* makeLayers(bounds)
  const store = yield* makeImageStore(layers)
  const sources = yield* makeSources(settings, bounds)
  const work = yield* makeWork(store, layers, sources)
  const slots = Semaphore.makeUnsafe(bounds.workAtOnce)
  const uploads = Semaphore.makeUnsafe(bounds.uploadsAtOnce)
  const fibers = yield* FiberMap.make<ImageId>()
  const host = { files: yield* Files, paths: yield* Paths, store, work, bounds }
  const makeRoom = relieve(host, bounds, sources)
  const admission: Admission = {
    ...host,
    run: (id, effect) => FiberMap.run(fibers, id, slots.withPermits(1)(Effect.andThen(makeRoom, effect)))
  }
  yield* sweep(admission, layers)
  yield* sources.sweep
  const release = Effect.forkIn(releaseUnnamed(store, sources), yield* Effect.scope)
  yield* release
  yield* resume(admission, layers)
  const showAll = (entries: ReadonlyArray<Entry>) => {
    const users = countUsers(store.all().map((it) => it.record))
    return entries.map(({ record, progress }) => ({
      ...toImage(record, progress),
      disk: diskOf(record, users, layers.sizeOf)
    }))
  }
  const full = new Busy({
    detail: `${bounds.uploadsAtOnce} archives are being received already. Try again later.`
  })
  const images = Images.of({
    create: (request) => admitReference(admission, request),
    importArchive: <E>(id: ImageId | undefined, archive: Stream.Stream<Uint8Array, E>) =>
      uploads
        .withPermitsIfAvailable(1)(admitArchive(admission, id, archive))
        .pipe(Effect.flatMap(Option.match({ onNone: () => Effect.fail(full), onSome: Effect.succeed }))),
    list: Effect.sync(() => showAll(store.all())),
    get: (id) =>
      Effect.flatMap(entryOf(store, id), (entry) => {
        const [image] = showAll([entry])
        return image === undefined ? Effect.fail(notFound(id)) : Effect.succeed(image)
      }),
    resolve: (image) => resolve(admission, image),
    pinned: (id, digest) => pinned(admission, id, digest),
    remove: (id, users) =>
      Effect.ensuring(
        remove(store, (it) => FiberMap.remove(fibers, it), id, users),
        release
      )
  })
  const gc = ImageGc.of({ collect: (inUse) => Effect.tap(collect(store, inUse), () => makeRoom) })
  return Context.make(Images, images).pipe(Context.add(ImageGc, gc))
})

/** The service with bounds of one's own, for tests and small hosts. */
export const makeImagesLayer = (
  bounds: ImageBounds,
  settings: SourceSettings
): Layer.Layer<Images | ImageGc, FileFault, Files | Paths> => Layer.effectContext(make(bounds, settings))

export const imagesLayer: Layer.Layer<Images | ImageGc, FileFault, Files | Paths | Settings> = Layer.unwrap(
  Effect.map(Settings, (settings) => makeImagesLayer(defaultImageBounds, settings))
)
