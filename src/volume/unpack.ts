/**
 * An uploaded tar into a private directory, from where mke2fs copies it into a volume: neither mounts anything. GNU tar
 * keeps hostile names inside of the directory (no `..`, no leading slash, links out of it made last), and runs with no
 * more rights than owners and modes need: device nodes cannot be made. No file can be longer than the volume, nor the
 * archive; the host's disk keeps a reserve of bytes and of files.
 */
import * as fs from "node:fs/promises"
import type { Writable } from "node:stream"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { type Child, commandFault, spawnPiped } from "../host/Command.ts"
import { type CommandFault, FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"

/** The archive is not sound, or holds what a volume cannot. `reason` ends a sentence that begins with it. */
export class ArchiveRefused extends Schema.TaggedError<ArchiveRefused>()("ArchiveRefused", {
  reason: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `the archive is refused: ${this.reason}`
  }
}

/** The upload failed; whoever sends it knows how. */
export class UploadBroken extends Schema.TaggedError<UploadBroken>()("UploadBroken", {}) {}

/** Headers and padding of an archive whose content fits, and then some. */
const archiveSlackBytes = 64 * 1024 * 1024
/** The host's room is looked at once in so many bytes: 32,768 empty files at most come in between. */
const lookEveryBytes = 16 * 1024 * 1024
const reserveBytes = 256 * 1024 * 1024
const reserveFiles = 65_536
/** What tar said, as far as a client is told. */
const saidMaxChars = 200

const tarOptions = [
  ["--extract", "--file", "-", "--numeric-owner", "--same-owner", "--same-permissions"],
  [
    "--no-overwrite-dir",
    "--delay-directory-restore",
    "--warning=no-timestamp",
    "--warning=no-unknown-keyword"
  ],
  ["--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability"]
].flat()

/** capabilities(7): owners, modes and file capabilities of what it makes; no mknod, no other process, no other file system. */
const rights = "-all,+chown,+dac_override,+fowner,+fsetid,+setfcap"

const commandOf = (directory: string, bytes: number): readonly [string, ReadonlyArray<string>] => [
  "prlimit",
  [
    `--fsize=${bytes}`,
    ...(process.getuid?.() === 0
      ? ["setpriv", "--no-new-privs", `--bounding-set=${rights}`, "--inh-caps=-all"]
      : []),
    "tar",
    ...tarOptions,
    "--directory",
    directory
  ]
]

const refused = (reason: string, cause?: unknown) => new ArchiveRefused({ reason, cause })

/** Ends when the pipe takes more, or is broken: what tar says then is told by its end. */
const write = (pipe: Writable, chunk: Uint8Array) =>
  Effect.callback<void>((resume) => {
    if (pipe.destroyed || pipe.write(chunk)) return resume(Effect.void)
    const go = () => {
      pipe.off("drain", go).off("close", go)
      resume(Effect.void)
    }
    pipe.on("drain", go).on("close", go)
    return Effect.sync(() => pipe.off("drain", go).off("close", go))
  })

const room = (directory: string) =>
  Effect.tryPromise({
    try: () => fs.statfs(directory),
    catch: (cause) => new FileFault({ operation: "statfs", path: directory, code: "UNKNOWN", cause })
  }).pipe(
    Effect.flatMap((it) =>
      it.bavail * it.bsize > reserveBytes && (it.files === 0 || it.ffree > reserveFiles)
        ? Effect.void
        : Effect.fail(refused("the host's disk has no room for its content"))
    )
  )

/** Without names of the host: tar says them of files that it makes, which are the client's own. */
const said = (stderr: string): string => {
  const line = stderr.split("\n").find((it) => it.trim() !== "" && !it.includes("Removing leading")) ?? ""
  return line.replace(/^(\/\S+\/)?tar: /u, "").slice(0, saidMaxChars)
}

/** tar(1), return value: it could not do all of it. */
const fatal = 2

const failureOf = (fault: CommandFault, stderr: string): CommandFault | ArchiveRefused => {
  if (fault.exitCode === fatal) return refused(`tar says: ${said(stderr)}`, fault)
  // SIGXFSZ: setrlimit(2), RLIMIT_FSIZE.
  return fault.outcome === "failed" && fault.exitCode === null
    ? refused("a file in it is larger than the volume", fault)
    : fault
}

const finished = (child: Child, stderr: () => string) =>
  Effect.tryPromise({
    try: () => child,
    catch: (cause) => failureOf(commandFault("tar", [], cause), stderr())
  })

/** Unpacks all of it, or fails. What was unpacked by then stays: the directory is the caller's. */
export const unpack = (
  directory: string,
  volumeBytes: number,
  archive: Stream.Stream<Uint8Array, UploadBroken>
): Effect.Effect<void, UploadBroken | ArchiveRefused | CommandFault | FileFault, Files> =>
  Effect.gen(function* () {
    const files = yield* Files
    yield* files.makeDirectory(directory)
    yield* room(directory)
    const child = yield* spawnPiped(...commandOf(directory, volumeBytes))
    let stderr = ""
    child.stdin.on("error", () => undefined)
    child.stdout.resume()
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr = (stderr + text).slice(0, 4096)
    })
    let bytes = 0
    let looked = 0
    yield* Stream.runForEach(archive, (chunk) =>
      Effect.gen(function* () {
        bytes += chunk.length
        if (bytes > volumeBytes + archiveSlackBytes) return yield* refused("it is larger than the volume")
        if (bytes - looked >= lookEveryBytes) {
          looked = bytes
          yield* room(directory)
        }
        yield* write(child.stdin, chunk)
      })
    )
    child.stdin.end()
    yield* finished(child, () => stderr)
  }).pipe(Effect.scoped)
