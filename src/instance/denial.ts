/** A denial as clients get it: the reason, where the instance stands, and what it would take now. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { timestamp } from "../domain/Ids.ts"
import { allowed } from "./decide.ts"
import { transitionOf } from "./decide/step.ts"
import type { Lifecycle } from "./Lifecycle.ts"
import { outwardState } from "./project.ts"
import type { Reply } from "./Reply.ts"

type Denied = Extract<Reply, { readonly _tag: "Denied" }>

export const denial = (lifecycle: Lifecycle, reason: string): Effect.Effect<Denied> =>
  Effect.map(Clock.currentTimeMillis, (now) => ({
    _tag: "Denied",
    reason,
    state: outwardState(lifecycle.state),
    transition: transitionOf(lifecycle.state),
    allowed: allowed(lifecycle, timestamp(now))
  }))
