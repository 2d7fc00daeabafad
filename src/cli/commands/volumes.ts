/** Volumes: disks that outlive instances, and which instance has them. */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { VolumeId } from "../../domain/Ids.ts"
import { MountPath, type Volume, VolumeSizeGb } from "../../domain/Volume.ts"
import { ageText } from "../age.ts"
import { archiveFile, counted } from "../archiveFile.ts"
import { typed } from "../Failure.ts"
import { findInstance, findVolume } from "../names.ts"
import { withProgress } from "../Progress.ts"
import { remote } from "../Remote.ts"
import { forEachReference, print, printJson, printTable } from "../results.ts"
import { instance } from "./list.ts"

const volume = Argument.String("VOLUME").pipe(Argument.withDescription("Id, name, or the beginning of an id"))
const volumes = Argument.variadic(volume, { min: 1 })
const name = Argument.String("NAME").pipe(Argument.withDescription("Free text for people"))
const size = Flag.Int("size").pipe(
  Flag.withAlias("s"),
  Flag.withMetavar("GIB"),
  Flag.withDescription("Size in GiB; takes only what is written"),
  Flag.withDefault(1)
)
const wished = Flag.String("id").pipe(
  Flag.withMetavar("ID"),
  Flag.withDescription("The volume's id; the service makes one where it is not given"),
  Flag.optional
)

const decodeId = (given: Option.Option<string>) =>
  Option.isNone(given)
    ? Effect.succeed({})
    : Effect.map(typed(VolumeId, given.value, "--id"), (id) => ({ id }))
const decodeSize = (given: number) => typed(VolumeSizeGb, given, "The size")

const line = ({ id, size_gb }: Volume): string => `${id} ${size_gb} GiB\n`

const holders = ({ attachments }: Volume): string =>
  attachments
    .map(
      ({ instance_id, mount_path, readonly }) =>
        `${instance_id}:${mount_path}${readonly ? " (read-only)" : ""}`
    )
    .join(", ")

const create = Command.make(
  "create",
  { name, size, id: wished },
  Effect.fnUntraced(function* ({ name, size, id }) {
    const { guest } = yield* remote
    const payload = { name, size_gb: yield* decodeSize(size), ...(yield* decodeId(id)) }
    const made = yield* guest.volumes.create({ payload })
    yield* print(made, () => line(made))
  })
).pipe(Command.withDescription("Create a volume with an empty ext4"))

const list = Command.make("ls", {}, () =>
  Effect.gen(function* () {
    const { guest } = yield* remote
    const now = yield* Clock.currentTimeMillis
    yield* printTable(
      yield* guest.volumes.list(),
      ["ID", "NAME", "SIZE", "ATTACHED TO", "CREATED"],
      (volume) => [
        volume.id,
        volume.name,
        `${volume.size_gb} GiB`,
        holders(volume) || "-",
        ageText(now, volume.created_at)
      ]
    )
  })
).pipe(Command.withDescription("List volumes"))

const inspect = Command.make("inspect", { volumes }, ({ volumes }) =>
  Effect.gen(function* () {
    const service = yield* remote
    const found = yield* Effect.forEach(volumes, (reference) => findVolume(service, reference))
    yield* printJson(found.length === 1 ? found[0] : found)
  })
).pipe(Command.withDescription("Show all of a volume, as JSON"))

const remove = Command.make("rm", { volumes }, ({ volumes }) =>
  Effect.gen(function* () {
    const service = yield* remote
    yield* forEachReference(
      volumes,
      Effect.fnUntraced(function* (reference: string) {
        const { id } = yield* findVolume(service, reference)
        yield* service.guest.volumes.remove({ params: { id } })
        return { id, deleted: true }
      }),
      ({ id }) => `${id} deleted\n`
    )
  })
).pipe(Command.withDescription("Delete volumes that no instance holds"))

const grow = Command.make(
  "grow",
  { volume, size: Argument.Int("GIB").pipe(Argument.withDescription("The new size in GiB; never smaller")) },
  Effect.fnUntraced(function* ({ volume, size }) {
    const service = yield* remote
    const size_gb = yield* decodeSize(size)
    const { id } = yield* findVolume(service, volume)
    const grown = yield* service.guest.volumes.grow({ params: { id }, payload: { size_gb } })
    yield* print(grown, () => line(grown))
  })
).pipe(Command.withDescription("Grow a volume and its file system, a mounted one too"))

const importArchive = Command.make(
  "import",
  {
    name,
    file: Argument.Path("FILE", { pathType: "either" }).pipe(
      Argument.withDescription("A tar of the volume's files")
    ),
    size,
    id: wished
  },
  Effect.fnUntraced(function* ({ name, file, size, id }) {
    const { guest } = yield* remote
    const query = { name, size_gb: yield* decodeSize(size), ...(yield* decodeId(id)) }
    const { size: total, bytes } = yield* archiveFile(file)
    const made = yield* withProgress(file, { phase: "sending", done: 0, total }, (show) =>
      guest.volumes.import({
        query,
        payload: counted(bytes, (done) => show({ phase: "sending", done, total }))
      })
    )
    yield* print(made, () => line(made))
  })
).pipe(Command.withDescription("Create a volume from a tar"))

export const volumeCommand = Command.make("volume").pipe(
  Command.withDescription("Create, list, grow, import and delete volumes"),
  Command.withSubcommands([create, list, inspect, remove, grow, importArchive])
)

export const attach = Command.make(
  "attach",
  {
    instance,
    volume,
    path: Argument.String("PATH").pipe(Argument.withDescription("Where the guest mounts it")),
    readonly: Flag.Boolean("readonly").pipe(
      Flag.withDescription("The guest may only read; any number of readers may share a volume"),
      Flag.withDefault(false),
      Flag.withoutNegation
    )
  },
  Effect.fnUntraced(function* ({ instance, volume, path, readonly }) {
    const service = yield* remote
    const mount_path = yield* typed(MountPath, path, "PATH")
    const { id } = yield* findInstance(service, instance)
    const { id: volumeId } = yield* findVolume(service, volume)
    const changed = yield* service.guest.guests.attach({
      params: { id, volumeId },
      payload: { mount_path, readonly }
    })
    yield* print(changed, () => `${volumeId} at ${mount_path} of ${id}\n`)
  })
).pipe(Command.withDescription("Attach a volume: live to a running guest, else at its next boot"))

export const detach = Command.make(
  "detach",
  {
    instance,
    volume,
    force: Flag.Boolean("force").pipe(
      Flag.withDescription("Also where programs of the guest have files on it open"),
      Flag.withDefault(false),
      Flag.withoutNegation
    )
  },
  Effect.fnUntraced(function* ({ instance, volume, force }) {
    const service = yield* remote
    const { id } = yield* findInstance(service, instance)
    const { id: volumeId } = yield* findVolume(service, volume)
    const changed = yield* service.guest.guests.detach({ params: { id, volumeId }, query: { force } })
    yield* print(changed, () => `${volumeId} detached from ${id}\n`)
  })
).pipe(Command.withDescription("Detach a volume from an instance"))
