/** Processes that run in the guest beside the image's own, over streams of the channel. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { ExecOutput, ExecRequest } from "../domain/Exec.ts"
import { type AgentBusy, AgentFault, AgentRefusal, type ExecSession } from "./AgentSession.ts"
import type { AgentStream } from "./AgentStream.ts"
import { exitOf, type Last, sentence } from "./protocol.ts"

/** A guest that does not tell the end of a process whose time is over is not waited for any longer than this. */
const timeoutSlackMs = 5_000

/** Opens a stream for as long as the scope, and waits for the guest's answer. */
export type OpenStream = (
  opening: { readonly type: "exec" } & ExecRequest
) => Effect.Effect<AgentStream, AgentFault | AgentRefusal | AgentBusy, Scope.Scope>

const ended = (last: Last): Effect.Effect<ExecOutput, AgentFault | AgentRefusal> => {
  if (last.type === "failed")
    return Effect.fail(new AgentRefusal({ operation: "exec", reason: sentence(last.reason) }))
  return Option.match(exitOf(last), {
    onNone: () =>
      Effect.fail(
        new AgentFault({
          operation: "exec",
          reason: "the guest names an end that no process has",
          cause: undefined
        })
      ),
    onSome: (exit) => Effect.succeed<ExecOutput>({ _tag: "Exit", exit })
  })
}

const outputOf = (stream: AgentStream): ExecSession["output"] => {
  const said = Effect.flatMap(stream.next, (next): Effect.Effect<ExecOutput, AgentFault | AgentRefusal> => {
    if (next._tag === "Last") return ended(next.last)
    const { stderr, bytes } = next.segment
    return Effect.succeed({ _tag: stderr ? "Stderr" : "Stdout", bytes })
  })
  return Stream.unfold(false, (over) =>
    over ? Effect.undefined : Effect.map(said, (output) => [output, output._tag === "Exit"] as const)
  )
}

export const exec = Effect.fnUntraced(function* (open: OpenStream, request: ExecRequest) {
  const stream = yield* open({ type: "exec", ...request })
  if (request.timeout_ms !== undefined) {
    yield* Effect.sleep(request.timeout_ms + timeoutSlackMs).pipe(
      Effect.andThen(Effect.sync(() => stream.conclude({ type: "exit", timeout: true }))),
      Effect.forkScoped
    )
  }
  const session: ExecSession = {
    output: outputOf(stream),
    write: stream.write,
    endInput: stream.endInput,
    resize: ({ rows, cols }) => stream.tell({ type: "resize", rows, cols }),
    signal: (signal) => stream.tell({ type: "signal", signal })
  }
  return session
})
