/**
 * What may become an image: a reference that somebody asks for, an archive that somebody sends. Decides which record it
 * is about, writes it, and starts the work; one at a time, so that the same reference is never two pulls.
 */
import { randomUUID } from "node:crypto"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Ref from "effect/Ref"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import { digestHex, type ImageId, timestamp } from "../domain/Ids.ts"
import type { CreateImage } from "../domain/Image.ts"
import { Busy, ImageExists, InvalidRequest, PayloadTooLarge, Unprocessable } from "../domain/problems.ts"
import type { Files } from "../host/Files.ts"
import type { Layout } from "../host/Paths.ts"
import { fromHost, type ImageFault } from "./ImageFault.ts"
import { type ImageRecord, isWorking, toImage } from "./ImageRecord.ts"
import { type Entry, type ImageStore, startOf } from "./ImageStore.ts"
import { digestOf } from "./manifest.ts"
import { defaultIds, format, parse, type Reference } from "./Reference.ts"
import { type Archive, type ArchiveBounds, openArchive, spool } from "./sources/archive.ts"
import type { Work } from "./work.ts"

export const uploadPrefix = "import-"
/** Digits of a digest in the name of an image that has none of its own. */
const digestShown = 12

export interface Admission {
  readonly files: Files["Service"]
  readonly paths: Layout
  readonly store: ImageStore
  readonly work: Work
  readonly bounds: ArchiveBounds & { readonly workMax: number }
  /** Starts an image's work in the background. */
  readonly run: (id: ImageId, work: Effect.Effect<void>) => Effect.Effect<unknown>
}

/** How an archive that was refused looks to its sender. */
const uploadProblem = (fault: ImageFault): InvalidRequest | PayloadTooLarge | Unprocessable => {
  switch (fault.reason) {
    case "too-large":
      return new PayloadTooLarge({ detail: fault.detail })
    case "corrupt":
    case "unsupported":
    case "unknown-image":
      return new InvalidRequest({ detail: fault.detail })
    default:
      return new Unprocessable({ detail: fault.detail })
  }
}

const diskProblem = (cause: unknown) =>
  new Unprocessable({ detail: fromHost("Writing the image's record", cause).detail })

type Place =
  | { readonly _tag: "Known"; readonly entry: Entry }
  | { readonly _tag: "New"; readonly id: ImageId }

/** The record that a reference, with or without an id of the user's, is about; or the id for a new one. */
const placeOf = (
  store: ImageStore,
  reference: Reference,
  wish: ImageId | undefined
): Result.Result<Place, ImageExists> => {
  const name = format(reference)
  const taken = (id: ImageId) =>
    Result.fail(
      new ImageExists({
        detail: `The id ${id} belongs to the image ${store.get(id)?.record.name ?? ""}. Choose another id, or delete that image.`,
        image_id: id
      })
    )
  if (wish !== undefined) {
    const entry = store.get(wish)
    if (entry === undefined) return Result.succeed({ _tag: "New", id: wish })
    return entry.record.name === name ? Result.succeed({ _tag: "Known", entry }) : taken(wish)
  }
  const entry = store.all().find((it) => it.record.name === name)
  if (entry !== undefined) return Result.succeed({ _tag: "Known", entry })
  const ids = defaultIds(reference, digestOf(Buffer.from(name)))
  const id = ids.find((it) => store.get(it) === undefined)
  return id === undefined ? taken(ids[1]) : Result.succeed({ _tag: "New", id })
}

const recordOf = (place: Place, name: string, now: number): ImageRecord =>
  place._tag === "Known"
    ? place.entry.record
    : {
        version: 1,
        id: place.id,
        name,
        source: "registry",
        status: "pending",
        error: null,
        created_at: timestamp(now),
        current: null,
        previous: [],
        work: null
      }

const mustHaveRoom = ({ store, bounds }: Admission) =>
  store.working() < bounds.workMax
    ? Effect.void
    : Effect.fail(
        new Busy({ detail: `${bounds.workMax} images are being prepared already. Try again later.` })
      )

/** Starts the pull of a reference, or joins the one that is under way. */
export const admitReference = Effect.fnUntraced(function* (admission: Admission, request: CreateImage) {
  const { store, work, run } = admission
  const reference = yield* Effect.fromResult(parse(request.name)).pipe(
    Effect.mapError((detail) => new Unprocessable({ detail }))
  )
  return yield* store.exclusively(
    Effect.gen(function* () {
      const place = yield* Effect.fromResult(placeOf(store, reference, request.id))
      if (place._tag === "Known" && isWorking(place.entry.record)) {
        return toImage(place.entry.record, place.entry.progress)
      }
      yield* mustHaveRoom(admission)
      const before = recordOf(place, format(reference), yield* Clock.currentTimeMillis)
      const record: ImageRecord = { ...before, source: "registry", status: "pending", error: null }
      yield* store.write(record, startOf("pending")).pipe(Effect.mapError(diskProblem))
      yield* run(record.id, work.pull(record.id, reference))
      return toImage(record, startOf("pending"))
    })
  )
})

/** The reference that an archive's name means; a bare tag, or no name at all, is `localhost/ID`. */
const archiveReference = (archive: Archive, id: ImageId | undefined): Reference => {
  const { name } = archive
  const named =
    name !== null && /[/:]/u.test(name) ? Option.getOrUndefined(Result.getSuccess(parse(name))) : undefined
  if (named !== undefined) return named
  const tag = name !== null && /^\w[\w.-]{0,127}$/u.test(name) ? name : "latest"
  const path = id ?? `imported-${digestHex(archive.manifest.digest).slice(0, digestShown)}`
  return { domain: "localhost", path, tag, digest: null }
}

/** A received archive becomes a record at work. */
const accept = (admission: Admission, id: ImageId | undefined, archive: Archive, file: string) => {
  const { store, work, run } = admission
  return store.exclusively(
    Effect.gen(function* () {
      const reference = archiveReference(archive, id)
      const place = yield* Effect.fromResult(placeOf(store, reference, id))
      const before = recordOf(place, format(reference), yield* Clock.currentTimeMillis)
      if (place._tag === "Known" && isWorking(before)) {
        return yield* new Busy({
          detail: `The image ${before.id} is being prepared now. Import it when that is done.`
        })
      }
      yield* mustHaveRoom(admission)
      const record: ImageRecord = {
        ...before,
        source: "archive",
        status: "converting",
        error: null,
        work: archive.manifest
      }
      const progress = {
        ...startOf("converting"),
        bytes_total: archive.manifest.layers.reduce((sum, it) => sum + it.size, 0),
        layers_total: archive.manifest.layers.length
      }
      yield* store.write(record, progress).pipe(Effect.mapError(diskProblem))
      yield* run(record.id, work.unpack(record.id, archive, file))
      return toImage(record, progress)
    })
  )
}

/** Receives an archive, and starts its conversion. Nothing of one that is refused, or broke off, stays. */
export const admitArchive = Effect.fnUntraced(function* <E>(
  admission: Admission,
  id: ImageId | undefined,
  upload: Stream.Stream<Uint8Array, E>
) {
  const { files, paths, bounds } = admission
  const file = `${paths.temporary}/${uploadPrefix}${randomUUID()}.tar`
  const broken = yield* Ref.make(Option.none<E>())
  const bytes = Stream.toAsyncIterable(
    upload.pipe(Stream.tapError((error) => Ref.set(broken, Option.some(error))))
  )
  const refused = (fault: ImageFault) =>
    Effect.flatMap(
      Ref.get(broken),
      (error): Effect.Effect<never, E | InvalidRequest | PayloadTooLarge | Unprocessable> =>
        Option.isSome(error) ? Effect.fail(error.value) : Effect.fail(uploadProblem(fault))
    )
  return yield* spool(bytes, file, bounds).pipe(
    Effect.flatMap((index) => openArchive(file, index)),
    Effect.catch(refused),
    Effect.flatMap((archive) => accept(admission, id, archive, file)),
    Effect.onError(() => Effect.ignore(files.remove(file)))
  )
})
