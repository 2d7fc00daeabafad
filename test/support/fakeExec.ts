/** A process that a test plays: what was said to it, and what it says when the test wants. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type { ExecOutput, ExecRequest } from "../../src/domain/Exec.ts"
import { GuestLost, type GuestRefused } from "../../src/domain/guestProblems.ts"
import { InstanceId } from "../../src/domain/Ids.ts"
import type { Instances, RunningExec } from "../../src/instance/Instances.ts"
import { fakeInstance } from "./fakeServices.ts"
import { serveFakes, type TestServerOptions } from "./httpServer.ts"

export interface FakeProcess {
  readonly request: ExecRequest
  /** Everything that reached it, in order: bytes as text. */
  readonly heard: Queue.Queue<string>
  readonly say: (kind: "Stdout" | "Stderr", bytes: string | Uint8Array) => Effect.Effect<void>
  readonly exit: (exit: Extract<ExecOutput, { readonly _tag: "Exit" }>["exit"]) => Effect.Effect<void>
  readonly fail: (problem: GuestLost | GuestRefused) => Effect.Effect<void>
  /** Ends when the process's scope closed: it is killed. */
  readonly ended: Effect.Effect<void>
}

const lose = (effect: Effect.Effect<unknown>): Effect.Effect<void> => Effect.asVoid(effect)

/** Processes in the order in which they are started. */
const fakeProcesses = Effect.gen(function* () {
  const started = yield* Queue.unbounded<FakeProcess>()
  const exec: Instances["Service"]["exec"] = (_id, request) =>
    Effect.gen(function* () {
      const heard = yield* Queue.unbounded<string>()
      const said = yield* Queue.bounded<ExecOutput, GuestLost | GuestRefused>(1)
      const ended = yield* Deferred.make<void>()
      yield* Effect.addFinalizer(() => Deferred.succeed(ended, undefined))
      const hear = (text: string) => lose(Queue.offer(heard, text))
      yield* Queue.offer(started, {
        request,
        heard,
        say: (_tag, bytes) => lose(Queue.offer(said, { _tag, bytes: Buffer.from(bytes) })),
        exit: (exit) => lose(Queue.offer(said, { _tag: "Exit", exit })),
        fail: (problem) => lose(Queue.fail(said, problem)),
        ended: Deferred.await(ended)
      })
      const running: RunningExec = {
        output: Stream.fromPull(Effect.succeed(Effect.map(Queue.take(said), (it) => [it] as const))).pipe(
          Stream.takeUntil((it) => it._tag === "Exit")
        ),
        write: (bytes) => (bytes.length === 0 ? Effect.void : hear(Buffer.from(bytes).toString())),
        endInput: hear("end"),
        resize: ({ rows, cols }) => hear(`resize ${rows} ${cols}`),
        signal: (signal) => hear(`signal ${signal}`)
      }
      return running
    })
  return { started, exec }
})

export const execId = InstanceId.make("a1")
export const execPath = "/instances/a1/exec"

/** The server with one Running instance, whose processes the test plays. */
export const serveExec = (options: TestServerOptions = {}) =>
  Effect.gen(function* () {
    const server = yield* serveFakes(options)
    const { started, exec } = yield* fakeProcesses
    server.world.instances.set(execId, fakeInstance(execId))
    server.world.exec = exec
    return { server, started }
  })

export const lost = new GuestLost({
  detail: "The guest went away; the instance is Standby.",
  instance_id: execId
})
