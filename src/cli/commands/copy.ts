/**
 * Files between this host and a guest, as cp has it: into a directory that is there, else under the name that is given.
 * `-` is a tar on stdin or stdout.
 */
import { stat } from "node:fs/promises"
import * as path from "node:path"
import * as NodeStream from "@effect/platform-node/NodeStream"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { InstanceId } from "../../domain/Ids.ts"
import { counted } from "../archiveFile.ts"
import { exitCodes, failure, failureOf } from "../Failure.ts"
import { findInstance } from "../names.ts"
import { byteText, withProgress } from "../Progress.ts"
import { type Remote, remote } from "../Remote.ts"
import { note } from "../results.ts"
import { reason } from "../text.ts"

type Place =
  | { readonly _tag: "Guest"; readonly reference: string; readonly path: string }
  | { readonly _tag: "Host"; readonly path: string }

/** `vm:/path` is a guest's; a path that begins with `/` or `.` never is. */
const placeOf = (word: string): Place => {
  const [, reference, inner] = /^([^/.:][^/:]*):(.*)$/su.exec(word) ?? []
  return reference === undefined || inner === undefined
    ? { _tag: "Host", path: word }
    : { _tag: "Guest", reference, path: inner }
}

const read = (service: Remote, id: InstanceId, at: string) =>
  service.guest.guests.readFiles({ params: { id }, query: { path: at } })

/** What is at a path of the guest, by the top of its archive. */
const kindOf = (service: Remote, id: InstanceId, at: string) =>
  Effect.gen(function* () {
    const { isDirectoryArchive } = yield* Effect.promise(() => import("../unpackFiles.ts"))
    const archive = yield* read(service, id, at)
    return (yield* isDirectoryArchive(archive)) === true ? "directory" : "file"
  }).pipe(
    Effect.catch((error) =>
      Effect.flatMap(failureOf(error), (problem) =>
        // The guest itself says that there is nothing to read: it is not there yet.
        problem.exitCode === exitCodes.failure ? Effect.succeed("absent") : Effect.fail(problem)
      )
    )
  )

const standardInput = NodeStream.fromReadable<Uint8Array, unknown>({
  evaluate: () => process.stdin,
  onError: (error) => error
})

const hostKind = (file: string) =>
  Effect.tryPromise({
    try: async () => ((await stat(file)).isDirectory() ? "directory" : "file"),
    catch: (error) => failure(`Cannot read ${file}: ${reason(error)}`)
  })

/** The directory that is written into, and the name that the top of the archive has in it. */
const target = (service: Remote, id: InstanceId, source: string, at: string) =>
  Effect.gen(function* () {
    const name = source.endsWith("/.") ? "." : path.basename(path.resolve(source))
    if (at.endsWith("/")) return { directory: at, name }
    const there = yield* kindOf(service, id, at)
    if (there === "directory") return { directory: at, name }
    if (there === "file" && (yield* hostKind(source)) === "directory")
      return yield* failure(`${at} is a file in the guest, and ${source} is a directory.`)
    return { directory: path.posix.dirname(at), name: path.posix.basename(at) }
  })

const send = (
  service: Remote,
  id: InstanceId,
  at: string,
  payload: Stream.Stream<Uint8Array>,
  title: string
) =>
  withProgress(title, { phase: "sending" }, (show) =>
    service.guest.guests.writeFiles({
      params: { id },
      query: { path: at },
      payload: counted(payload, (done) => show({ phase: `sending, ${byteText(done)}` }))
    })
  )

const intoGuest = (service: Remote, id: InstanceId, source: string, at: string) =>
  Effect.gen(function* () {
    if (source === "-") return yield* send(service, id, at, Stream.orDie(standardInput), "stdin")
    yield* hostKind(source)
    const { packFiles } = yield* Effect.promise(() => import("../packFiles.ts"))
    const { directory, name } = yield* target(service, id, source, at)
    const skipped: Array<string> = []
    const archive = packFiles(source, name, (file) => void skipped.push(file))
    yield* send(service, id, directory, Stream.orDie(archive), source)
    yield* Effect.forEach(skipped, (file) => note(`${file} is neither a file nor a directory: left out.`))
  })

const outOfGuest = (service: Remote, id: InstanceId, at: string, place: string) =>
  Effect.gen(function* () {
    const archive = yield* read(service, id, at)
    if (place === "-")
      return yield* Stream.runForEach(archive, (piece) => Effect.sync(() => process.stdout.write(piece)))
    const { unpackFiles } = yield* Effect.promise(() => import("../unpackFiles.ts"))
    const skipped = yield* withProgress(at, { phase: "receiving" }, (show) =>
      unpackFiles(
        counted(archive, (done) => show({ phase: `receiving, ${byteText(done)}` })),
        place
      )
    )
    yield* Effect.forEach(skipped, (file) => note(`${file} is neither a file nor a directory: left out.`))
  })

export const copy = Command.make(
  "cp",
  {
    from: Argument.String("FROM").pipe(
      Argument.withDescription("A file or directory here, or INSTANCE:/path; - for a tar on stdin")
    ),
    to: Argument.String("TO").pipe(
      Argument.withDescription("Where it goes, of which one has to be INSTANCE:/path; - for a tar on stdout")
    )
  },
  Effect.fnUntraced(function* ({ from, to }) {
    const [source, goal] = [placeOf(from), placeOf(to)]
    const inGuest = [source, goal].filter((place) => place._tag === "Guest")
    const [guest] = inGuest
    if (guest === undefined || inGuest.length !== 1)
      return yield* failure("cp takes one path of a guest, as INSTANCE:/path, and one of this host.", "usage")
    if (!guest.path.startsWith("/"))
      return yield* failure(`A path of a guest begins with /; not "${guest.path}".`, "usage")
    const service = yield* remote
    const { id } = yield* findInstance(service, guest.reference)
    yield* source._tag === "Host"
      ? intoGuest(service, id, source.path, guest.path)
      : outOfGuest(service, id, source.path, goal.path)
  })
).pipe(Command.withDescription("Copy files into a guest, or out of it"))
