/** Images on the host: pulled from a registry or imported from an archive. */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { ImageId } from "../../domain/Ids.ts"
import type { Image } from "../../domain/Image.ts"
import { ageText } from "../age.ts"
import { archiveFile, counted } from "../archiveFile.ts"
import { typed } from "../Failure.ts"
import { findImage } from "../names.ts"
import { byteText, withProgress } from "../Progress.ts"
import { pull as pullImage, untilReady } from "../pulling.ts"
import { remote } from "../Remote.ts"
import { forEachReference, print, printJson, printTable } from "../results.ts"

const wished = Flag.String("id").pipe(
  Flag.withMetavar("ID"),
  Flag.withDescription("The image's id; made from its name where it is not given"),
  Flag.optional
)

const decodeId = (given: Option.Option<string>) =>
  Option.isNone(given) ? Effect.void : typed(ImageId, given.value, "--id")

const images = Argument.String("IMAGE").pipe(
  Argument.withDescription("Id, name, or the beginning of an id"),
  Argument.variadic({ min: 1 })
)

const line = ({ id, status }: Image): string => `${id} ${status}\n`

const pull = Command.make(
  "pull",
  {
    name: Argument.String("REFERENCE").pipe(Argument.withDescription("As `docker pull` takes it")),
    id: wished
  },
  Effect.fnUntraced(function* ({ name, id }) {
    const service = yield* remote
    const wishedId = yield* decodeId(id)
    const image = yield* pullImage(service, { name, ...(wishedId === undefined ? {} : { id: wishedId }) })
    yield* print(image, () => line(image))
  })
).pipe(Command.withDescription("Pull an image from a registry, and wait until it is ready"))

const importArchive = Command.make(
  "import",
  {
    file: Argument.Path("FILE", { pathType: "either" }).pipe(
      Argument.withDescription("A tar as `docker save` or an OCI layout makes it")
    ),
    id: wished
  },
  Effect.fnUntraced(function* ({ file, id }) {
    const service = yield* remote
    const wishedId = yield* decodeId(id)
    const { size, bytes } = yield* archiveFile(file)
    const image = yield* withProgress(file, { phase: "sending", done: 0, total: size }, (show) =>
      service.api.images.import({
        query: wishedId === undefined ? {} : { id: wishedId },
        payload: counted(bytes, (done) => show({ phase: "sending", done, total: size }))
      })
    )
    const ready = yield* untilReady(service, image)
    yield* print(ready, () => line(ready))
  })
).pipe(Command.withDescription("Import an archive, and wait until it is ready"))

const list = Command.make("ls", {}, () =>
  Effect.gen(function* () {
    const { api } = yield* remote
    const found = yield* api.images.list()
    const now = yield* Clock.currentTimeMillis
    yield* printTable(found, ["ID", "NAME", "STATUS", "SIZE", "CREATED"], (image) => [
      image.id,
      image.name,
      image.error === null ? image.status : `${image.status}: ${image.error}`,
      byteText(image.size_bytes),
      ageText(now, image.created_at)
    ])
  })
).pipe(Command.withDescription("List images"))

const inspect = Command.make("inspect", { images }, ({ images }) =>
  Effect.gen(function* () {
    const service = yield* remote
    const found = yield* Effect.forEach(images, (reference) => findImage(service, reference))
    yield* printJson(found.length === 1 ? found[0] : found)
  })
).pipe(Command.withDescription("Show all of an image, as JSON"))

const remove = Command.make("rm", { images }, ({ images }) =>
  Effect.gen(function* () {
    const service = yield* remote
    yield* forEachReference(
      images,
      Effect.fnUntraced(function* (reference: string) {
        const { id } = yield* findImage(service, reference)
        yield* service.api.images.remove({ params: { id } })
        return { id, deleted: true }
      }),
      ({ id }) => `${id} deleted\n`
    )
  })
).pipe(Command.withDescription("Remove images; a pull that is under way is cancelled"))

export const image = Command.make("image").pipe(
  Command.withDescription("Pull, import, list and remove images"),
  Command.withSubcommands([pull, importArchive, list, inspect, remove])
)

export const gc = Command.make("gc", {}, () =>
  Effect.gen(function* () {
    const { api } = yield* remote
    const done = yield* api.images.collect()
    yield* print(done, () => `${done.layers_removed} layers removed, ${byteText(done.bytes_freed)} freed\n`)
  })
).pipe(Command.withDescription("Remove what neither an image nor an instance needs"))
