/** What a piece of work is about: the instance's record, its files, its wires; and how work fails. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { InstancePaths } from "../../host/Paths.ts"
import type { VmmSession } from "../../vmm/Vmm.ts"
import { VmmFault } from "../../vmm/Vmm.ts"
import { Failure } from "../Lifecycle.ts"
import type { Record } from "../Record.ts"
import type { Wire } from "../Wire.ts"

export interface Subject {
  readonly record: Record
  readonly paths: InstancePaths
  /** The wires to the VMM that the state owns; null where it owns none. */
  readonly wire: Wire | null
}

/** A piece of work that failed. `failure` may be shown to a client; `cause` is for the log. */
export class WorkFailed extends Schema.TaggedError<WorkFailed>()("WorkFailed", {
  failure: Failure,
  /** Nothing on the host was changed. */
  untouched: Schema.Boolean,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.failure.step}: ${this.failure.reason}`
  }
}

export const workFailed = (
  step: string,
  reason: string,
  cause: unknown,
  untouched = false,
  holders?: NonNullable<Failure["holders"]>
) =>
  new WorkFailed({
    failure: holders === undefined ? { step, reason } : { step, reason, holders },
    untouched,
    cause
  })

/** A VMM's log can be long, and names files of the host: clients get its first line, without them. */
const saidMaxChars = 200
export const sayable = (said: string): string =>
  (said.split("\n")[0] ?? "").replace(/(^|[\s'"=(:,])\/[^\s'",):]+/gu, "$1(a file)").slice(0, saidMaxChars)

/** Every failure of a step becomes the step's, with a sentence that names no path of the host. */
export const inStep =
  (step: string, reason: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, WorkFailed, R> =>
    Effect.mapError(effect, (cause) => {
      if (cause instanceof WorkFailed) return cause
      // What a VMM says of itself is the most useful sentence there is.
      return workFailed(
        step,
        cause instanceof VmmFault ? `${reason} ${sayable(cause.reason)}` : reason,
        cause
      )
    })

export const session = (subject: Subject): Effect.Effect<VmmSession, VmmFault> =>
  subject.wire === null
    ? Effect.fail(new VmmFault({ operation: "attach", reason: "no VMM is there", cause: undefined }))
    : subject.wire.session

/** A call that failed for the service may have done its work: what the VMM says of its guest now decides. */
const unlessIs =
  (wanted: "Running" | "Paused", control: VmmSession) =>
  (call: Effect.Effect<void, VmmFault>): Effect.Effect<void, VmmFault> =>
    call.pipe(
      Effect.catch((fault) =>
        Effect.matchEffect(control.status, {
          onFailure: () => Effect.fail(fault),
          onSuccess: ({ _tag }) => (_tag === wanted ? Effect.void : Effect.fail(fault))
        })
      )
    )

export const pauseGuest = (control: VmmSession) => control.pause.pipe(unlessIs("Paused", control))
export const resumeGuest = (control: VmmSession) => control.resume.pipe(unlessIs("Running", control))

/** A guest that stood still has a clock that is behind: its agent sets it right, where it answers. */
export const awaken = (subject: Subject): Effect.Effect<void> =>
  Option.match(subject.wire?.agent() ?? Option.none(), {
    onNone: () => Effect.void,
    onSome: (agent) => Effect.ignore(agent.awaken)
  })
