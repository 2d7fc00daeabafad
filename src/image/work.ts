/**
 * The work behind an image: from a reference or an archive to a version that guests boot. It never fails; what goes wrong
 * is in the record, as a sentence. Where an image had a version before, that one stays current and usable, and the
 * sentence says why there is no newer one.
 *
 *   pending ─► pulling ─────────────────► converting ─► ready
 *                 resolve, fetch blobs       the last layers
 *                 └─ layers are converted as their blobs arrive
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type { ImageId } from "../domain/Ids.ts"
import type { ImageProgress } from "../domain/Image.ts"
import { Files } from "../host/Files.ts"
import { durations, timed } from "../host/Measure.ts"
import { type Layout, Paths } from "../host/Paths.ts"
import type { LayerBlob } from "./convertLayer.ts"
import { fromHost, hostFault, type ImageFault } from "./ImageFault.ts"
import { type ImageRecord, type ImageVersion, promote } from "./ImageRecord.ts"
import type { ImageStore } from "./ImageStore.ts"
import { type Layers, mounted, type PlacedLayer } from "./layers.ts"
import type { ImageManifest } from "./manifest.ts"
import type { Reference } from "./Reference.ts"
import type { Archive } from "./sources/archive.ts"
import type { Found } from "./sources/Source.ts"
import type { Sources } from "./sources/Sources.ts"

/** At most one line of progress in this time. */
const progressLogMs = 1000

const phaseSeconds = durations(
  "dataplane_image_phase_seconds",
  "How long each phase of preparing an image took."
)

/** `fetch` and `convert` overlap where a registry's layers are converted as they come; `prepare` is all of it. */
const inPhase =
  (phase: "resolve" | "fetch" | "convert" | "finish" | "prepare") =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    effect.pipe(
      timed(phaseSeconds({ phase })),
      Effect.withSpan(`image ${phase}`, {}, { captureStackTrace: false })
    )

/** Faults after which what was fetched is good for the next try. */
const isResumable = (fault: ImageFault) => fault.transient || fault.reason === "timeout"

interface Host {
  readonly files: Files["Service"]
  readonly paths: Layout
  readonly store: ImageStore
  readonly layers: Layers
  readonly sources: Sources
}

const log = ({ store }: Host, event: "image.progress" | "image.ready", id: ImageId, message: string) => {
  const entry = store.get(id)
  return Effect.log(message).pipe(
    Effect.annotateLogs({
      event,
      image_id: id,
      image: entry?.record.name ?? "",
      digest: entry?.record.current?.digest ?? entry?.record.work?.digest ?? "",
      status: entry?.record.status ?? "",
      bytes_done: entry?.progress.bytes_done ?? 0,
      bytes_total: entry?.progress.bytes_total ?? 0,
      layers_done: entry?.progress.layers_done ?? 0,
      layers_total: entry?.progress.layers_total ?? 0
    })
  )
}

const update = (
  { store }: Host,
  id: ImageId,
  next: (record: ImageRecord) => ImageRecord,
  progress?: ImageProgress
) =>
  store
    .update(id, next, progress)
    .pipe(Effect.mapError((cause) => fromHost("Writing the image's record", cause)))

/** Moves an image's progress: only ever forwards, and never past the end. */
const meterOf = (host: Host, id: ImageId) => {
  let loggedAt = 0
  let layersDone = 0
  const move = (bytes: number, layers: number) =>
    host.store.setProgress(id, (it) => ({
      ...it,
      bytes_done: Math.min(Math.max(it.bytes_done, bytes), it.bytes_total),
      layers_done: Math.min(Math.max(it.layers_done, layers), it.layers_total)
    }))
  const tell = Effect.gen(function* () {
    const now = yield* Clock.currentTimeMillis
    if (now - loggedAt < progressLogMs) return
    loggedAt = now
    yield* log(host, "image.progress", id, "Image is being prepared")
  })
  return {
    bytes: (bytes: number): void => move(bytes, 0),
    layer: Effect.andThen(
      Effect.sync(() => move(0, ++layersDone)),
      tell
    ),
    tell
  }
}

const start = (manifest: ImageManifest, phase: "pulling" | "converting"): ImageProgress => ({
  phase,
  bytes_done: 0,
  bytes_total: manifest.layers.reduce((sum, it) => sum + it.size, 0),
  layers_done: 0,
  layers_total: manifest.layers.length
})

const complete = Effect.fnUntraced(function* (
  host: Host,
  id: ImageId,
  manifest: ImageManifest,
  placed: ReadonlyArray<PlacedLayer>,
  startedAt: number
) {
  const { bytes, isEmpty } = yield* host.layers.measure(placed).pipe(inPhase("finish"))
  const version: ImageVersion = {
    digest: manifest.digest,
    config: manifest.config,
    layers: placed,
    mounted: mounted(placed, isEmpty),
    size_bytes: bytes
  }
  // What was fetched has become layers. Without it a pull that a crash repeats from here finds them all made.
  yield* host.files
    .remove(host.paths.pull(id))
    .pipe(Effect.mapError((cause) => fromHost("Removing what was fetched", cause)))
  yield* update(host, id, (record) => promote(record, version), done(manifest))
  const duration = (yield* Clock.currentTimeMillis) - startedAt
  yield* log(host, "image.ready", id, "Image is ready").pipe(Effect.annotateLogs({ duration_ms: duration }))
})

/** True where the version is the current one and all of it is still here. */
const isCurrent = Effect.fnUntraced(function* (
  { store, layers }: Host,
  id: ImageId,
  manifest: ImageManifest
) {
  const current = store.get(id)?.record.current
  if (current === undefined || current === null || current.digest !== manifest.digest) return false
  for (const { key } of current.layers) if (!(yield* layers.has(key))) return false
  return true
})

/** Brings the blobs that are lacking, and makes layers of them while they come. */
const bring = Effect.fnUntraced(function* (
  host: Host,
  id: ImageId,
  { manifest, fetch }: Found,
  spend: boolean
) {
  const diffIds = manifest.layers.map((it) => it.diff_id)
  const wanted = yield* host.layers.missing(diffIds)
  const blobs = new Map<number, Deferred.Deferred<LayerBlob, ImageFault>>()
  for (const index of wanted) blobs.set(index, yield* Deferred.make<LayerBlob, ImageFault>())
  const meter = meterOf(host, id)
  const here = manifest.layers.reduce((sum, it, index) => sum + (blobs.has(index) ? 0 : it.size), 0)
  meter.bytes(here)
  const fetched = fetch({
    wanted,
    directory: host.paths.pull(id),
    spend,
    arrived: (index, blob) => {
      const deferred = blobs.get(index)
      return deferred === undefined ? Effect.void : Effect.asVoid(Deferred.succeed(deferred, blob))
    },
    progress: (bytes) =>
      Effect.andThen(
        Effect.sync(() => meter.bytes(here + bytes)),
        meter.tell
      )
  }).pipe(
    Effect.andThen(update(host, id, (record) => ({ ...record, status: "converting" }))),
    Effect.andThen(log(host, "image.progress", id, "Image is fetched")),
    inPhase("fetch")
  )
  const made = host.layers.ensure({
    diffIds,
    blob: (index) => {
      const deferred = blobs.get(index)
      return deferred === undefined
        ? Effect.fail(hostFault("A layer of this host is gone."))
        : Deferred.await(deferred)
    },
    onBytes: () => undefined,
    onLayer: meter.layer
  })
  const [placed] = yield* Effect.all([inPhase("convert")(made), fetched], { concurrency: 2 })
  return placed
})

/** The progress of a version whose every part is here. */
const done = (manifest: ImageManifest): ImageProgress => {
  const { bytes_total, layers_total } = start(manifest, "pulling")
  return { phase: "ready", bytes_done: bytes_total, bytes_total, layers_done: layers_total, layers_total }
}

const pull = Effect.fnUntraced(function* (host: Host, id: ImageId, reference: Reference) {
  const startedAt = yield* Clock.currentTimeMillis
  yield* update(host, id, (record) => ({ ...record, status: "pulling", error: null }))
  yield* log(host, "image.progress", id, "Image is looked up")
  // The first time, what is at hand will do; whoever asks again wants what the reference means by now.
  const refresh = (host.store.get(id)?.record.current ?? null) !== null
  const source = yield* host.sources.choose
  const found = yield* source.resolve(reference, { refresh }).pipe(inPhase("resolve"))
  const { manifest } = found
  if (yield* isCurrent(host, id, manifest)) {
    yield* update(host, id, (record) => ({ ...record, status: "ready", work: null }), done(manifest))
    yield* log(host, "image.ready", id, "Image is up to date")
  } else {
    yield* update(host, id, (record) => ({ ...record, work: manifest }), start(manifest, "pulling"))
    // Blobs are given up as layers are made of them. The rare layer that must be read twice is fetched twice.
    const placed = yield* Effect.scoped(bring(host, id, found, true)).pipe(
      Effect.catchIf(
        (fault) => fault.reason === "spent",
        () => Effect.scoped(bring(host, id, found, false))
      )
    )
    yield* complete(host, id, manifest, placed, startedAt)
  }
})

const unpack = Effect.fnUntraced(function* (host: Host, id: ImageId, { manifest, blobs }: Archive) {
  const startedAt = yield* Clock.currentTimeMillis
  const meter = meterOf(host, id)
  yield* log(host, "image.progress", id, "Image is received")
  let read = 0
  const layers = host.layers.ensure({
    diffIds: manifest.layers.map((it) => it.diff_id),
    blob: (index) => {
      const blob = blobs[index]
      return blob === undefined
        ? Effect.fail(hostFault("A layer of the archive is gone."))
        : Effect.succeed(blob)
    },
    onBytes: (bytes) => meter.bytes((read += bytes)),
    onLayer: meter.layer
  })
  const placed = yield* inPhase("convert")(layers)
  yield* complete(host, id, manifest, placed, startedAt)
})

/** Puts the sentence into the record; into the view alone where even that cannot be written. */
const fail = Effect.fnUntraced(function* (host: Host, id: ImageId, fault: ImageFault) {
  const failed = (record: ImageRecord): ImageRecord => ({
    ...record,
    status: record.current === null ? "failed" : "ready",
    error: record.current === null ? fault.detail : `There is no newer version: ${fault.detail}`
  })
  yield* Effect.logWarning(`Image ${id} failed: ${fault.detail}`, fault)
  // Whoever sees the failure sees a host without leftovers of it.
  if (!isResumable(fault)) yield* Effect.ignore(update(host, id, (record) => ({ ...record, work: null })))
  yield* host.store.collect
  yield* update(host, id, failed).pipe(
    Effect.catch(() => {
      const entry = host.store.get(id)
      return entry === undefined ? Effect.void : host.store.showUnwritten(failed(entry.record))
    })
  )
  yield* log(host, "image.progress", id, "Image failed").pipe(Effect.annotateLogs({ reason: fault.detail }))
})

const settled = (
  host: Host,
  id: ImageId,
  effect: Effect.Effect<void, ImageFault, Files>
): Effect.Effect<void> =>
  effect.pipe(
    Effect.catch((fault) => fail(host, id, fault)),
    Effect.catchDefect((defect) =>
      fail(host, id, hostFault("The work on the image broke off on this host.", defect))
    ),
    Effect.provideService(Files, host.files)
  )

export const makeWork = (store: ImageStore, layers: Layers, sources: Sources) =>
  Effect.gen(function* () {
    const host: Host = { files: yield* Files, paths: yield* Paths, store, layers, sources }
    return {
      pull: (id: ImageId, reference: Reference) =>
        settled(host, id, pull(host, id, reference).pipe(inPhase("prepare"))),
      /** Removes the archive's file at its end, whatever that is. */
      unpack: (id: ImageId, archive: Archive, file: string) =>
        settled(host, id, unpack(host, id, archive).pipe(inPhase("prepare"))).pipe(
          Effect.ensuring(Effect.ignore(host.files.remove(file)))
        )
    }
  })

export type Work = Effect.Success<ReturnType<typeof makeWork>>
