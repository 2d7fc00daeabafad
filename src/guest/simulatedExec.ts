/**
 * Processes and files of a simulated guest. It has no programs and no file system; a few commands do what their names
 * say, so that a control plane can be tried out:
 *
 *   echo WORDS   cat   sleep SECONDS   true   false   exit CODE   kill SIGNAL
 *
 * Any other prints its own command line and ends with 0. Files that were written to a path are read from it again until
 * the guest is gone; nothing is at any other path.
 */
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type { ExecExit, ExecOutput, ExecRequest } from "../domain/Exec.ts"
import { type AgentFault, AgentRefusal, type AgentSession, type ExecSession } from "./AgentSession.ts"

/** Bytes of stdin that `cat` holds for a reader that is slow. */
const heldMax = 64
/** What is kept of an archive that was written to a path. */
const archiveMaxBytes = 1024 * 1024

const said = (text: string): ExecOutput => ({ _tag: "Stdout", bytes: new TextEncoder().encode(text) })
const ended = (exit: ExecExit): ExecOutput => ({ _tag: "Exit", exit })

const numberOf = (word: string | undefined): number => {
  const value = Number(word)
  return Number.isFinite(value) && value >= 0 ? value : 0
}

const ran = ({ command }: ExecRequest, input: Stream.Stream<Uint8Array>): Stream.Stream<ExecOutput> => {
  const [name = "", ...words] = command
  switch (name) {
    case "echo":
      return Stream.make(said(`${words.join(" ")}\n`), ended({ code: 0 }))
    case "cat":
      return Stream.concat(
        Stream.map(input, (bytes): ExecOutput => ({ _tag: "Stdout", bytes })),
        Stream.make(ended({ code: 0 }))
      )
    case "sleep":
      return Stream.fromEffect(Effect.as(Effect.sleep(numberOf(words[0]) * 1000), ended({ code: 0 })))
    case "true":
      return Stream.make(ended({ code: 0 }))
    case "false":
      return Stream.make(ended({ code: 1 }))
    case "exit":
      return Stream.make(ended({ code: numberOf(words[0]) % 256 }))
    case "kill":
      return Stream.make(ended({ signal: words[0] ?? "TERM" }))
    default:
      return Stream.make(said(`simulated: ${command.join(" ")}\n`), ended({ code: 0 }))
  }
}

/** `closing` fails when the channel closes. */
export const simulatedExec = (
  request: ExecRequest,
  closing: Effect.Effect<never, AgentFault>
): Effect.Effect<ExecSession> =>
  Effect.gen(function* () {
    const input = yield* Queue.bounded<Uint8Array, "end">(heldMax)
    const signals = yield* Queue.bounded<ExecExit>(1)
    const stdin = Stream.fromQueue(input).pipe(Stream.catch(() => Stream.empty))
    const killed = Effect.map(Queue.take(signals), ended)
    const timeout =
      request.timeout_ms === undefined
        ? Effect.never
        : Effect.as(Effect.sleep(request.timeout_ms), ended({ timeout: true }))
    const output = ran(request, stdin).pipe(
      Stream.merge(Stream.fromEffect(Effect.raceFirst(killed, timeout)), { haltStrategy: "either" }),
      Stream.merge(Stream.fromEffectDrain(closing), { haltStrategy: "left" }),
      Stream.takeUntil((it) => it._tag === "Exit")
    )
    return {
      output,
      write: (bytes) => Effect.asVoid(Queue.offer(input, bytes)),
      endInput: Effect.asVoid(Queue.fail(input, "end")),
      resize: () => Effect.void,
      signal: (signal) => Effect.asVoid(Queue.offer(signals, { signal }))
    }
  })

/** What was written to a guest, by its process: it goes with it. */
const archives = new WeakMap<object, Map<string, Uint8Array>>()

const collected = <E, R>(archive: Stream.Stream<Uint8Array, E, R>) =>
  Stream.runFold(
    archive,
    () => new Uint8Array(0),
    (held, bytes) =>
      held.length + bytes.length > archiveMaxBytes ? held : new Uint8Array(Buffer.concat([held, bytes]))
  )

/** `asked` is the guest's answer to the request. */
export const simulatedFiles = (
  guest: object,
  asked: Effect.Effect<void, AgentFault>
): Pick<AgentSession, "readFiles" | "writeFiles"> => ({
  readFiles: (path) =>
    Effect.flatMap(asked, () => {
      const archive = archives.get(guest)?.get(path)
      return archive === undefined
        ? Effect.fail(new AgentRefusal({ operation: "read_files", reason: `${path}: no such file` }))
        : Effect.succeed(Stream.make(archive))
    }),
  writeFiles: (path, archive) =>
    Effect.gen(function* () {
      yield* asked
      const bytes = yield* collected(archive)
      const written = archives.get(guest) ?? new Map<string, Uint8Array>()
      archives.set(guest, written.set(path, bytes))
    })
})
