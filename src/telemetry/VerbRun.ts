/**
 * A verb at work on one instance, from the decision to its settlement: one span of a trace, whose parent is the request
 * that asked for it, and one duration. Its phases are its children (`host/Boundary.ts`).
 *
 *   begin ──► phases ──► end: reached, failed or cancelled
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Metric from "effect/Metric"
import type * as Tracer from "effect/Tracer"
import type { InstanceId } from "../domain/Ids.ts"
import { Transition } from "../domain/Instance.ts"
import { VerbInProgress } from "../host/Boundary.ts"
import { durations, secondsSince } from "../host/Measure.ts"

export type Outcome = "reached" | "failed" | "cancelled"

export interface VerbRun {
  readonly verb: Transition
  readonly startedNs: bigint
  readonly span: Tracer.Span
}

const verbSeconds = durations("dataplane_verb_seconds", "How long each verb took, from decision to answer.")

/** A series for each verb from the start, so that rates are right from the first one on. */
export const registerVerbs: Effect.Effect<void> = Effect.forEach(
  Transition.literals,
  (verb) => Metric.value(verbSeconds({ verb, outcome: "reached" })),
  { discard: true }
)

export const beginVerb = (
  verb: Transition,
  id: InstanceId,
  parent: Tracer.AnySpan | undefined
): Effect.Effect<VerbRun> =>
  Effect.gen(function* () {
    const attributes = { verb, instance_id: id }
    const span = yield* Effect.makeSpan(
      `verb ${verb}`,
      parent === undefined ? { root: true, attributes } : { parent, attributes }
    )
    return { verb, startedNs: yield* Clock.currentTimeNanos, span }
  })

export const endVerb = (run: VerbRun, outcome: Outcome): Effect.Effect<void> =>
  Effect.gen(function* () {
    const seconds = yield* secondsSince(run.startedNs)
    yield* Metric.update(verbSeconds({ verb: run.verb, outcome }), seconds)
    run.span.attribute("outcome", outcome)
    run.span.end(yield* Clock.currentTimeNanos, outcome === "failed" ? Exit.fail(outcome) : Exit.void)
  })

/** Makes what runs in it a part of the verb: its spans are the verb's children, its steps the verb's phases. */
export const partOf =
  (run: VerbRun | undefined) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    run === undefined
      ? effect
      : Effect.provideService(Effect.withParentSpan(effect, run.span), VerbInProgress, run.verb)
