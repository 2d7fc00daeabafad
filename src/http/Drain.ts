/**
 * The service is stopping: streams that would never end by themselves end now, so that the rest of the drain is for
 * requests that do. Their clients come back with Last-Event-ID.
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

export class Drain extends Context.Service<
  Drain,
  {
    /** Resolves when the service begins to stop. */
    readonly begun: Effect.Effect<void>
    readonly begin: Effect.Effect<void>
  }
>()("dataplane/http/Drain") {
  static readonly layer: Layer.Layer<Drain> = Layer.effect(
    Drain,
    Effect.map(Deferred.make<void>(), (deferred) => ({
      begun: Deferred.await(deferred),
      begin: Effect.asVoid(Deferred.succeed(deferred, undefined))
    }))
  )
}
