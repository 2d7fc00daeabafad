/**
 * One real service for a file of live tests: a boot takes seconds, so tests share it, and what it costs to start it is
 * paid once. Nothing is started where the host cannot run guests; the tests are skipped then, and say why.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterAll, beforeAll } from "vitest"
import { liveObstacle, skipWhere } from "./liveHost.ts"

/** A service that the machine's other work slows down, its image and its first guests included. */
const prepareMaxMs = 120_000

/**
 * Called in a `describe`: what `make` gives, for all of its tests, released after the last one. `tools` are asked for
 * besides those that every guest needs.
 */
export const shared = <A>(
  make: Effect.Effect<A, unknown, Scope.Scope>,
  tools: ReadonlyArray<string> = []
): Effect.Effect<A> => {
  const obstacle = liveObstacle(tools)
  skipWhere(obstacle)
  const scope = Scope.makeUnsafe()
  let made: Effect.Effect<A> = Effect.die(new Error("the tests' common ground was not made"))
  beforeAll(async () => {
    if (obstacle !== null) return
    made = Effect.succeed(await Effect.runPromise(Scope.provide(make, scope)))
  }, prepareMaxMs)
  afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)), prepareMaxMs)
  return Effect.suspend(() => made)
}
