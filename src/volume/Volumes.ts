/**
 * The volumes of this host: a record and a disk each, in a directory of their own that appears and disappears at once.
 *
 *   (nothing) ──► <id>.tmp/ disk, record, synced ──rename──► <id>/ ──rename──► <id>.tmp/ ──► (nothing)
 *
 * Who holds a volume is in the records of instances, and theirs to say: whoever removes a volume, or grows one, has made
 * sure before that nobody does, and that nobody begins to meanwhile.
 */
import * as path from "node:path"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import { timestamp, VolumeId } from "../domain/Ids.ts"
import { HostUnfit, Unprocessable, VolumeExists, VolumeNotFound } from "../domain/problems.ts"
import { type CreateVolume, type Volume, type VolumeAttachment, volumeBytes } from "../domain/Volume.ts"
import { volumeSerial } from "../host/volumeSerial.ts"
import { step } from "../host/Boundary.ts"
import type { CommandFault, FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import { type Layout, Paths } from "../host/Paths.ts"
import { UploadBroken } from "./unpack.ts"
import { VolumeImages } from "./VolumeImages.ts"
import { decodeRecord, encodeRecord, type VolumeRecord } from "./VolumeRecord.ts"

/** Disks that are made at once: each is a process of its own, and a burst of writes. */
const makesMax = 2
const generatedIdLength = 8
const idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

export type CreateProblem = VolumeExists | Unprocessable | HostUnfit

/** A disk that cannot be used as it is: it is gone, or its file system is damaged. For those who attach it. */
export class VolumeFault extends Schema.TaggedError<VolumeFault>()("VolumeFault", {
  reason: Schema.String,
  cause: Schema.Defect()
}) {}

export class Volumes extends Context.Service<
  Volumes,
  {
    readonly list: Effect.Effect<ReadonlyArray<VolumeRecord>>
    readonly get: (id: VolumeId) => Effect.Effect<VolumeRecord, VolumeNotFound>
    readonly create: (request: CreateVolume) => Effect.Effect<VolumeRecord, CreateProblem>
    /** A new volume that holds what is in the tar; it is there once all of it is. */
    readonly importArchive: <E>(
      request: CreateVolume,
      archive: Stream.Stream<Uint8Array, E>
    ) => Effect.Effect<VolumeRecord, CreateProblem | E>
    /** Of a volume that nobody holds. */
    readonly remove: (id: VolumeId) => Effect.Effect<void, VolumeNotFound | Unprocessable | HostUnfit>
    /**
     * Makes a volume larger; one that is so already is grown to the end all the same. `online` grows it where somebody
     * holds it: the file is long enough by then, and the record says so once it is done.
     */
    readonly grow: <E>(
      id: VolumeId,
      sizeGb: number,
      online: Option.Option<Effect.Effect<void, E>>
    ) => Effect.Effect<VolumeRecord, VolumeNotFound | Unprocessable | HostUnfit | E>
    /** The file of its disk. */
    readonly disk: (id: VolumeId) => string
    /** Sees to it that the disk can be opened, read-only as well; of one that nobody else writes. */
    readonly prepare: (id: VolumeId, readonly: boolean) => Effect.Effect<void, VolumeFault>
  }
>()("dataplane/volume/Volumes") {
  static readonly layer = Layer.effect(
    Volumes,
    Effect.gen(function* () {
      const files = yield* Files
      const images = yield* VolumeImages
      const paths = yield* Paths
      return make({
        host: { files, images, paths },
        known: yield* load(files, paths),
        makes: yield* Semaphore.make(makesMax)
      })
    })
  )
}

/** A volume as clients see it. */
export const toVolume = (record: VolumeRecord, attachments: ReadonlyArray<VolumeAttachment>): Volume => ({
  id: record.id,
  name: record.name,
  size_gb: record.size_gb,
  attachments,
  created_at: record.created_at
})

interface Host {
  readonly files: Files["Service"]
  readonly images: VolumeImages["Service"]
  readonly paths: Layout
}

interface Known {
  readonly records: Map<VolumeId, VolumeRecord>
  /** Directories that are no sound volume, and ids of volumes that are being made. */
  readonly taken: Set<string>
}

const isUnfinished = (name: string) => name.endsWith(".tmp")

/** Every volume there is; what was cut off in its making or removal is gone. */
const load = Effect.fnUntraced(function* (files: Files["Service"], paths: Layout) {
  yield* files.makeDirectory(paths.volumes)
  const names = yield* files.list(paths.volumes)
  yield* Effect.forEach(names.filter(isUnfinished), (name) => files.remove(path.join(paths.volumes, name)), {
    discard: true
  })
  const known: Known = { records: new Map(), taken: new Set() }
  for (const name of names.filter((it) => !isUnfinished(it))) {
    const text = yield* files.readText(path.join(paths.volumes, name, "volume.json"))
    const record = Option.flatMap(text, decodeRecord).pipe(Option.filter((it) => it.id === name))
    if (Option.isSome(record)) known.records.set(record.value.id, record.value)
    else {
      known.taken.add(name)
      yield* Effect.logError(`volume ${name}: left as it is: its record does not parse`)
    }
  }
  return known
})

const generateId = Effect.map(
  Effect.forEach(Array.from({ length: generatedIdLength }), () =>
    Random.nextIntBetween(0, idAlphabet.length - 1)
  ),
  (picks) => VolumeId.make(`vol-${picks.map((pick) => idAlphabet.charAt(pick)).join("")}`)
)

const exists = (id: VolumeId) =>
  new VolumeExists({ detail: `There is a volume '${id}' already.`, volume_id: id })

const notFound = (id: VolumeId) =>
  new VolumeNotFound({ detail: `There is no volume '${id}'.`, volume_id: id })

/** The host's fault, in a sentence without its paths. */
const unfit = (fault: FileFault | CommandFault): HostUnfit | Unprocessable => {
  if (fault._tag === "CommandFault")
    return new HostUnfit({
      detail:
        fault.outcome === "missing"
          ? `${fault.command} is not installed on the host.`
          : `${fault.command} ${fault.outcome} on the volume's disk; the service's log has more.`
    })
  return fault.code === "EFBIG"
    ? new Unprocessable({ detail: "The host's file system cannot hold a file of that size." })
    : new HostUnfit({
        detail: `The volume's files cannot be written (${fault.code}). Make room on the host's disk and try again.`
      })
}

const logged = <A, E extends FileFault | CommandFault>(effect: Effect.Effect<A, E>) =>
  effect.pipe(
    Effect.tapError((fault) => Effect.logError(`volume: ${fault.message}`)),
    Effect.mapError(unfit)
  )

interface Place {
  readonly host: Host
  readonly known: Known
  readonly makes: Semaphore.Semaphore
}

const temporary = ({ paths }: Host, id: VolumeId) => `${paths.volume(id)}.tmp`

/** The id is nobody else's from here on, and its disk's serial is no other disk's. */
const claim = ({ records, taken }: Known, id: VolumeId) =>
  Effect.suspend(() => {
    const serial = volumeSerial(id)
    const shared = [...records.keys()].some((it) => volumeSerial(it) === serial)
    if (records.has(id) || taken.has(id) || shared) return Effect.fail(exists(id))
    taken.add(id)
    return Effect.void
  })

/** Makes a disk of that name, in a directory of which all goes again where something fails. */
type MakeDisk<E> = (file: string, directory: string) => Effect.Effect<void, E>

const put = Effect.fnUntraced(function* <E>(
  { host, known }: Place,
  request: CreateVolume & { readonly id: VolumeId },
  disk: MakeDisk<E>
) {
  const { files, paths } = host
  const { id, name, size_gb } = request
  const directory = temporary(host, id)
  const created_at = timestamp(yield* Clock.currentTimeMillis)
  const record: VolumeRecord = { version: 1, id, name, size_gb, created_at }
  yield* files.remove(directory).pipe(Effect.andThen(files.makeDirectory(directory)), logged)
  yield* disk(path.join(directory, "disk.raw"), directory).pipe(step("volume-disk"))
  yield* files
    .write(path.join(directory, "volume.json"), encodeRecord(record))
    .pipe(Effect.andThen(files.rename(directory, paths.volume(id)).pipe(step("volume-commit"))), logged)
  known.records.set(id, record)
  return record
})

const create = Effect.fnUntraced(function* <E>(place: Place, request: CreateVolume, disk: MakeDisk<E>) {
  const { host, known, makes } = place
  const id = request.id ?? (yield* generateId)
  return yield* Effect.acquireUseRelease(
    claim(known, id),
    () => makes.withPermit(put(place, { ...request, id }, disk)),
    (_, exit) =>
      Effect.suspend(() => {
        known.taken.delete(id)
        return Exit.isSuccess(exit) ? Effect.void : Effect.ignore(host.files.remove(temporary(host, id)))
      })
  )
})

const importArchive =
  (place: Place) =>
  <E>(request: CreateVolume, archive: Stream.Stream<Uint8Array, E>) =>
    Effect.suspend(() => {
      let broken: Option.Option<E> = Option.none()
      const upload = archive.pipe(
        Stream.mapError((failure) => {
          broken = Option.some(failure)
          return new UploadBroken()
        })
      )
      const bytes = volumeBytes(request.size_gb)
      const fill = (file: string, directory: string) =>
        place.host.images.fill(file, bytes, path.join(directory, "tree"), upload).pipe(
          Effect.tapError((fault) => Effect.logError(`volume: ${fault.message}`)),
          Effect.mapError((fault): E | Unprocessable | HostUnfit => {
            if (fault._tag === "ArchiveRefused")
              return new Unprocessable({ detail: `The archive cannot be imported: ${fault.reason}.` })
            if (fault._tag === "UploadBroken")
              return Option.getOrElse(broken, () => new Unprocessable({ detail: "The upload was cut off." }))
            return unfit(fault)
          })
        )
      return create(place, request, fill)
    })

const find = ({ records }: Known, id: VolumeId) =>
  Effect.suspend(() => {
    const record = records.get(id)
    return record === undefined ? Effect.fail(notFound(id)) : Effect.succeed(record)
  })

const remove = Effect.fnUntraced(function* ({ host, known }: Place, id: VolumeId) {
  const { files, paths } = host
  yield* find(known, id)
  const directory = temporary(host, id)
  // Until all of it is gone nobody else gets the name; where the rename fails, the volume is as it was.
  known.taken.add(id)
  yield* files.remove(directory).pipe(
    Effect.andThen(files.rename(paths.volume(id), directory).pipe(step("volume-forget"))),
    Effect.tap(() => Effect.sync(() => void known.records.delete(id))),
    Effect.andThen(files.remove(directory)),
    Effect.ensuring(Effect.sync(() => void known.taken.delete(id))),
    logged
  )
})

const grow = Effect.fnUntraced(function* <E>(
  { host, known }: Place,
  id: VolumeId,
  sizeGb: number,
  online: Option.Option<Effect.Effect<void, E>>
) {
  const { files, images, paths } = host
  const record = yield* find(known, id)
  const bytes = volumeBytes(sizeGb)
  const file = paths.volumeDisk(id)
  if (Option.isSome(online)) {
    yield* logged(files.extend(file, bytes).pipe(step("volume-extend")))
    yield* online.value
  } else yield* logged(images.grow(file, bytes).pipe(step("volume-grow")))
  const grown = { ...record, size_gb: sizeGb }
  yield* logged(files.write(paths.volumeRecord(id), encodeRecord(grown)).pipe(step("volume-record")))
  known.records.set(id, grown)
  return grown
})

const prepare = Effect.fnUntraced(function* ({ host, makes }: Place, id: VolumeId, readonly: boolean) {
  const { files, images, paths } = host
  const file = paths.volumeDisk(id)
  const damaged = (cause: unknown) =>
    new VolumeFault({ reason: `The disk of the volume '${id}' cannot be read.`, cause })
  const present = yield* files.exists(file).pipe(Effect.mapError(damaged))
  if (!present)
    return yield* new VolumeFault({ reason: `The disk of the volume '${id}' is gone.`, cause: undefined })
  if (readonly) yield* makes.withPermit(images.settle(file)).pipe(Effect.mapError(damaged))
})

const make = (place: Place): Volumes["Service"] => {
  const { host, known } = place
  return {
    list: Effect.sync(() =>
      [...known.records.values()].toSorted((left, right) => (left.id < right.id ? -1 : 1))
    ),
    get: (id) => find(known, id),
    create: (request) =>
      create(place, request, (file) => logged(host.images.make(file, volumeBytes(request.size_gb)))),
    importArchive: importArchive(place),
    remove: (id) => remove(place, id),
    grow: (id, sizeGb, online) => grow(place, id, sizeGb, online),
    disk: host.paths.volumeDisk,
    prepare: (id, readonly) => prepare(place, id, readonly)
  }
}
