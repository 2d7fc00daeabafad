/** The clients who wait for a verb of one instance, by the transition whose settlement answers them. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type { Transition } from "../domain/Instance.ts"
import type { Settlement } from "./Lifecycle.ts"
import type { Reply } from "./Reply.ts"

export type Waiter = Deferred.Deferred<Reply>

export const toReply = (settlement: Settlement): Reply => {
  switch (settlement.outcome) {
    case "reached":
      return { _tag: "Reached" }
    case "failed":
      return { _tag: "Failed", verb: settlement.verb, failure: settlement.failure }
    case "cancelled":
      return { _tag: "Cancelled", verb: settlement.verb, by: settlement.by }
  }
}

export const makeWaiters = () => {
  const waiting = new Map<Transition, Array<Waiter>>()
  return {
    add: (verb: Transition, waiter: Waiter): void => {
      const present = waiting.get(verb)
      if (present === undefined) waiting.set(verb, [waiter])
      else present.push(waiter)
    },
    settle: (settlement: Settlement): Effect.Effect<void> => {
      const present = waiting.get(settlement.verb) ?? []
      waiting.delete(settlement.verb)
      return Effect.forEach(present, (waiter) => Deferred.succeed(waiter, toReply(settlement)), {
        discard: true
      })
    },
    /** The end of the actor: everybody who still waits is told the same. */
    settleAll: (reply: Reply): Effect.Effect<void> => {
      const present = [...waiting.values()].flat()
      waiting.clear()
      return Effect.forEach(present, (waiter) => Deferred.succeed(waiter, reply), { discard: true })
    }
  }
}

export type Waiters = ReturnType<typeof makeWaiters>
