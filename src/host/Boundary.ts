/**
 * The seams between the steps of an action: a name is passed before and after each change to the host. Nothing happens
 * there unless someone wants to know what the host looks like at that very moment, or to end the service right there.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"

export const Boundary = Context.Reference<(name: string) => Effect.Effect<void>>("dataplane/host/Boundary", {
  defaultValue: () => () => Effect.void
})

/** One step of an action, with its two seams: `<name>:before` and `<name>:after`. */
export const step =
  (name: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.gen(function* () {
      const passed = yield* Boundary
      yield* passed(`${name}:before`)
      const value = yield* effect
      yield* passed(`${name}:after`)
      return value
    })
