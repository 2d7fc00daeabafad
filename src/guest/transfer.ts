/** Files of the guest, as tar streams out of it and into it. Nothing is held but the window of the stream. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type AgentBusy, AgentFault, AgentRefusal } from "./AgentSession.ts"
import type { AgentStream } from "./AgentStream.ts"
import { type Last, sentence } from "./protocol.ts"

/** A guest that neither takes nor gives a byte of a transfer for so long is given up: a slow disk moves a little. */
const silenceMs = 120_000

export type OpenTransfer = (opening: {
  readonly type: "read_files" | "write_files"
  readonly path: string
}) => Effect.Effect<AgentStream, AgentFault | AgentRefusal | AgentBusy, Scope.Scope>

type Operation = Parameters<OpenTransfer>[0]["type"]

const unlessSilent =
  (operation: Operation) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | AgentFault, R> =>
    Effect.timeoutOrElse(effect, {
      duration: silenceMs,
      orElse: () =>
        Effect.fail(
          new AgentFault({ operation, reason: `the guest was silent for ${silenceMs} ms`, cause: undefined })
        )
    })

const endOf = (operation: Operation, last: Last): Effect.Effect<void, AgentRefusal> =>
  last.type === "ended"
    ? Effect.void
    : Effect.fail(
        new AgentRefusal({
          operation,
          reason: last.type === "failed" ? sentence(last.reason) : "it ended as what it is not"
        })
      )

export const readFiles = Effect.fnUntraced(function* (open: OpenTransfer, path: string) {
  const operation = "read_files"
  const stream = yield* open({ type: operation, path })
  return Stream.unfold(undefined, () =>
    stream.next.pipe(
      unlessSilent(operation),
      Effect.flatMap((next) =>
        next._tag === "Bytes"
          ? Effect.succeed([next.segment.bytes, undefined] as const)
          : Effect.as(endOf(operation, next.last), undefined)
      )
    )
  )
})

/** The guest's word counts, whether it comes when all is written or in the middle because its disk is full. */
export const writeFiles = <E, R>(
  open: OpenTransfer,
  path: string,
  archive: Stream.Stream<Uint8Array, E, R>
): Effect.Effect<void, AgentFault | AgentRefusal | AgentBusy | E, R> =>
  Effect.scoped(
    Effect.gen(function* () {
      const operation = "write_files"
      const stream = yield* open({ type: operation, path })
      const said = Effect.flatMap(stream.next, (next) =>
        // No credit is given for bytes out of the guest: the rules let none come.
        next._tag === "Last" ? endOf(operation, next.last) : Effect.void
      )
      const pump = archive.pipe(
        Stream.runForEach((bytes) => unlessSilent(operation)(stream.write(bytes))),
        Effect.andThen(stream.endInput),
        Effect.andThen(unlessSilent(operation)(Effect.never))
      )
      return yield* Effect.raceFirst(said, pump)
    })
  )
