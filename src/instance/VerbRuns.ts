/** The verbs that one instance is at work on. Most have one or none; a second one waits for the end of the first. */
import * as Effect from "effect/Effect"
import type * as Tracer from "effect/Tracer"
import type { InstanceId } from "../domain/Ids.ts"
import type { Transition } from "../domain/Instance.ts"
import { beginVerb, endVerb, type Outcome, type VerbRun } from "../telemetry/VerbRun.ts"
import { transitionOf } from "./decide/step.ts"
import type { State } from "./Lifecycle.ts"

export const makeVerbRuns = (id: InstanceId) => {
  const runs = new Map<Transition, VerbRun>()
  const end = (verb: Transition, outcome: Outcome): Effect.Effect<void> => {
    const run = runs.get(verb)
    runs.delete(verb)
    return run === undefined ? Effect.void : endVerb(run, outcome)
  }
  return {
    /** The verb that a state is at work on, begun where it is new. */
    enter: Effect.fnUntraced(function* (state: State, parent: Tracer.AnySpan | undefined) {
      const verb = transitionOf(state)
      if (verb === null) return undefined
      const present = runs.get(verb)
      if (present !== undefined) return present
      const run = yield* beginVerb(verb, id, parent)
      runs.set(verb, run)
      return run
    }),
    of: (state: State): VerbRun | undefined => {
      const verb = transitionOf(state)
      return verb === null ? undefined : runs.get(verb)
    },
    end,
    /** The instance rests, or its actor ends: what nobody settled came to nothing. */
    endAll: (outcome: Outcome): Effect.Effect<void> =>
      Effect.forEach([...runs.keys()], (verb) => end(verb, outcome), { discard: true })
  }
}

export type VerbRuns = ReturnType<typeof makeVerbRuns>
