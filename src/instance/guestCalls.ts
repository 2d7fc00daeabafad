/**
 * What clients do inside of a guest: processes and files. They change no state, so they go past the mailbox, straight to
 * the channel that the actor's wire holds; an instance that goes to standby or ends takes the channel, and with it all
 * of them.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { ExecRequest } from "../domain/Exec.ts"
import { GuestLost, GuestNotReady, GuestRefused } from "../domain/guestProblems.ts"
import type { InstanceId } from "../domain/Ids.ts"
import type { Instance, Transition } from "../domain/Instance.ts"
import { Busy, InvalidState } from "../domain/problems.ts"
import type { AgentBusy, AgentFault, AgentRefusal } from "../guest/AgentSession.ts"
import type { Actor } from "./Actor.ts"
import { notFound } from "./answers.ts"
import { denial } from "./denial.ts"
import type { RunningExec, Upload } from "./Instances.ts"
import { Supervisor } from "./Supervisor.ts"

type Operation = "exec" | "read_files" | "write_files"

/** A guest runs on through these. */
const harmless: ReadonlySet<Transition> = new Set<Transition>(["resize", "attach", "detach"])

const runs = ({ state, transition }: Instance): boolean =>
  state === "Running" && (transition === null || harmless.has(transition))

const where = ({ state, transition }: Instance): string =>
  transition === null ? state : `${state} and busy with ${transition}`

const invalid = (id: InstanceId, actor: Actor, operation: Operation): Effect.Effect<never, InvalidState> =>
  Effect.flatMap(
    denial(
      actor.record().lifecycle,
      `${operation} takes a Running instance; '${id}' is ${where(actor.view())}.`
    ),
    ({ reason: detail, state, transition, allowed }) =>
      Effect.fail(new InvalidState({ detail, instance_id: id, state, transition, verb: operation, allowed }))
  )

const lost = (id: InstanceId, actor: Actor): GuestLost => {
  const view = actor.view()
  const now = runs(view)
    ? "The connection to it was lost; ask again once it is ready."
    : `The instance is ${where(view)}.`
  return new GuestLost({
    detail: `The guest of '${id}' went away before it was done. ${now}`,
    instance_id: id
  })
}

const refused = (id: InstanceId, refusal: AgentRefusal): GuestRefused =>
  new GuestRefused({ detail: `The guest of '${id}' refuses: ${refusal.reason}`, instance_id: id })

/** In a client's words: what the guest says of itself is passed on, what the channel says is not. */
const asProblem = (id: InstanceId, actor: Actor) => ({
  AgentFault: () => Effect.fail(lost(id, actor)),
  AgentRefusal: (refusal: AgentRefusal) => Effect.fail(refused(id, refusal)),
  AgentBusy: (busy: AgentBusy) => Effect.fail(new Busy({ detail: `'${id}': ${busy.reason}; try again.` }))
})

/** The actor of an instance whose guest can be talked to, and the channel to it. */
const guestOf = Effect.fnUntraced(function* (id: InstanceId, operation: Operation) {
  const { registry } = yield* Supervisor
  const actor = registry.actor(id) ?? (yield* notFound(id))
  if (!runs(actor.view())) return yield* invalid(id, actor, operation)
  const agent = actor.agent()
  if (Option.isSome(agent)) return { actor, agent: agent.value }
  return yield* new GuestNotReady({
    detail: `The guest of '${id}' has not answered; wait with GET /instances/${id}/wait?ready=true.`,
    instance_id: id
  })
})

export const exec = Effect.fnUntraced(function* (id: InstanceId, request: ExecRequest) {
  const { actor, agent } = yield* guestOf(id, "exec")
  const problems = asProblem(id, actor)
  const session = yield* Effect.catchTags(agent.exec(request), problems)
  const told = <A>(effect: Effect.Effect<A, AgentFault>) =>
    Effect.catchTag(effect, "AgentFault", problems.AgentFault)
  const running: RunningExec = {
    output: session.output.pipe(
      Stream.catchTags({
        AgentFault: () => Stream.fromEffectDrain(problems.AgentFault()),
        AgentRefusal: (refusal) => Stream.fromEffectDrain(problems.AgentRefusal(refusal))
      })
    ),
    write: (bytes) => told(session.write(bytes)),
    endInput: told(session.endInput),
    resize: (size) => told(session.resize(size)),
    signal: (signal) => told(session.signal(signal))
  }
  return running
})

export const readFiles = Effect.fnUntraced(function* (id: InstanceId, path: string) {
  const { actor, agent } = yield* guestOf(id, "read_files")
  const problems = asProblem(id, actor)
  const archive = yield* Effect.catchTags(agent.readFiles(path), problems)
  return archive.pipe(
    Stream.catchTags({
      AgentFault: () => Stream.fromEffectDrain(problems.AgentFault()),
      AgentRefusal: (refusal) => Stream.fromEffectDrain(problems.AgentRefusal(refusal))
    })
  )
})

export const writeFiles = Effect.fnUntraced(function* (id: InstanceId, path: string, archive: Upload) {
  const { actor, agent } = yield* guestOf(id, "write_files")
  return yield* Effect.catchTags(agent.writeFiles(path, archive), asProblem(id, actor))
})
