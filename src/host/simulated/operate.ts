/**
 * One operation of a service on the world, in its three phases (FaultPlan.ts). The first half of its effect comes before
 * its latency and the second half after it, so that whoever is killed or interrupted in between leaves a half-done
 * world, as on a real host. It fails as soon as the VMM that it talks to ends, and stops without any further effect once
 * its service is killed.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type { Course, Operation, Phase } from "./FaultPlan.ts"
import { note, type ServiceRun, type VmmProcess, type World } from "./World.ts"

export interface Work<B, A, E> {
  readonly operation: Operation
  /** The instance that it is for: draws and scripts go by it. */
  readonly id: string
  readonly fault: (reason: string) => E
  /** The first half. Fails where the operation is not possible. */
  readonly begin: Effect.Effect<B, E>
  /** The second half; its result is the answer. */
  readonly finish: (begun: B) => Effect.Effect<A, E>
  /** The VMM whose end, or silence, ends the operation. */
  readonly peer?: (begun: B | undefined) => VmmProcess | undefined
  /** Runs where the operation fails after its first half; not where it is interrupted. */
  readonly undo?: (begun: B) => void
}

/** Stops the fiber where its service is no longer there to do anything. */
export const whileServed = (run: ServiceRun): Effect.Effect<void> =>
  Effect.suspend(() => (run.alive ? Effect.void : Effect.interrupt))

const gone = <E>(work: { readonly fault: (reason: string) => E }): Effect.Effect<never, E> =>
  Effect.suspend(() => Effect.fail(work.fault("the VMM ended")))

/** Waits, but no longer than the peer and the service live. */
const during = <B, A, E, W>(
  run: ServiceRun,
  work: Work<B, A, E>,
  peer: VmmProcess | undefined,
  wait: Effect.Effect<W>
): Effect.Effect<void, E> => {
  const others = [Deferred.await(run.killed)]
  if (peer === undefined) return Effect.asVoid(Effect.raceAllFirst([wait, ...others]))
  return Effect.raceAllFirst([
    Effect.asVoid(wait),
    ...others,
    Deferred.await(peer.death).pipe(Effect.andThen(gone(work)))
  ])
}

const pass = <B, A, E>(
  world: World,
  run: ServiceRun,
  work: Work<B, A, E>,
  course: Course,
  phase: Phase,
  peer: VmmProcess | undefined
): Effect.Effect<void, E> =>
  Effect.gen(function* () {
    const { operation, id } = work
    yield* whileServed(run)
    note(world, `${operation} ${id} ${phase}`)
    yield* world.plan.onStep({ operation, id, phase })
    yield* whileServed(run)
    if (peer !== undefined && Deferred.isDoneUnsafe(peer.death)) return yield* gone(work)
    if (peer?.record.frozen === true) yield* during(run, work, peer, Effect.never)
    const outcome = course.fault?.phase === phase ? course.fault.outcome : null
    if (outcome?._tag === "Fail") return yield* Effect.fail(work.fault(outcome.reason))
    if (outcome?._tag === "Hang") {
      yield* Deferred.succeed(outcome.hang.reached, undefined)
      yield* during(run, work, peer, Deferred.await(outcome.hang.release))
    }
    return yield* whileServed(run)
  })

/** Runs an operation: begins, waits its latency, finishes. */
export const operate = <B, A, E>(world: World, run: ServiceRun, work: Work<B, A, E>): Effect.Effect<A, E> =>
  Effect.gen(function* () {
    const course = world.plan.course(work.operation, work.id)
    yield* pass(world, run, work, course, "start", work.peer?.(undefined))
    const begun = yield* work.begin
    const peer = work.peer?.(begun)
    const rest = Effect.gen(function* () {
      yield* pass(world, run, work, course, "middle", peer)
      yield* course.latencyMs === 0
        ? Effect.yieldNow
        : during(run, work, peer, Effect.sleep(course.latencyMs))
      yield* whileServed(run)
      if (peer !== undefined && Deferred.isDoneUnsafe(peer.death)) return yield* gone(work)
      const answer = yield* work.finish(begun)
      yield* pass(world, run, work, course, "end", peer)
      return answer
    })
    const { undo } = work
    return yield* undo === undefined ? rest : Effect.tapError(rest, () => Effect.sync(() => undo(begun)))
  })
