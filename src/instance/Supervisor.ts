/**
 * Keeps one actor alive for each record. A defect in an actor ends that actor only: the host is probed and another actor
 * goes on from the record, at most twice in five seconds; after that the instance rests, answers that it does, and its
 * neighbours never notice. Closing the supervisor's scope ends all actors and leaves every VM running.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberMap from "effect/FiberMap"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { InstanceId } from "../domain/Ids.ts"
import type { Instance } from "../domain/Instance.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import * as Actor from "./Actor.ts"
import { EventLog } from "./EventLog.ts"
import type { Probe } from "./Lifecycle.ts"
import type { Record } from "./Record.ts"
import { probe as probeHost, reconcileOne, recover } from "./recover.ts"
import * as Registry from "./Registry.ts"

/** Restarts of one actor within the window; one more and the instance rests. */
const restartsMax = 2
const restartWindowMs = 5_000

type ActorServices =
  | Effect.Services<ReturnType<typeof Actor.make>>
  | Effect.Services<ReturnType<typeof probeHost>>
  | Effect.Services<ReturnType<typeof reconcileOne>>

export class Supervisor extends Context.Service<
  Supervisor,
  {
    readonly registry: Registry.Registry
    /** Starts the actor of a record that is durable already. */
    readonly start: (record: Record, probe: Probe | null) => Effect.Effect<Actor.Actor>
  }
>()("dataplane/instance/Supervisor") {
  static readonly layer = Layer.effect(
    Supervisor,
    Effect.gen(function* () {
      const registry = Registry.make()
      const events = yield* EventLog
      const fibers = yield* FiberMap.make<InstanceId>()
      const services = yield* Effect.context<Exclude<ActorServices, Scope.Scope>>()

      const published = (view: Instance, from: Instance) =>
        Effect.andThen(
          Effect.sync(() => registry.publish(view)),
          events.transition(from, view)
        )

      /** One actor after the other for the same instance, until one ends because the instance is gone. */
      const supervise = Effect.fnUntraced(function* (
        id: InstanceId,
        first: { readonly record: Record; readonly probe: Probe | null },
        started: (actor: Actor.Actor) => void
      ) {
        let { record, probe } = first
        const restarts: Array<number> = []
        while (true) {
          const exit = yield* Effect.scoped(
            Effect.gen(function* () {
              const actor = yield* Actor.make(record, probe, published)
              registry.put(id, actor)
              started(actor)
              const ended = yield* Effect.exit(actor.run)
              record = actor.record()
              return ended
            })
          )
          if (Exit.isSuccess(exit)) break
          if (Cause.hasInterruptsOnly(exit.cause)) return
          yield* logEvent("defect", `${id}: its actor failed`, {
            instance_id: id,
            reason: Cause.pretty(exit.cause)
          })
          const now = yield* Clock.currentTimeMillis
          const recent = restarts.filter((at) => now - at < restartWindowMs)
          if (recent.length >= restartsMax) {
            yield* logEvent("defect", `${id}: rests after ${restartsMax} restarts of its actor`, {
              instance_id: id
            })
            return yield* Effect.never
          }
          restarts.splice(0, restarts.length, ...recent, now)
          yield* Effect.ignore(reconcileOne(record))
          probe = yield* probeHost(record)
        }
        registry.remove(id)
        yield* events.removed(id)
      })

      const start = Effect.fnUntraced(function* (record: Record, probe: Probe | null) {
        const started = yield* Deferred.make<Actor.Actor>()
        yield* FiberMap.run(
          fibers,
          record.spec.id,
          supervise(record.spec.id, { record, probe }, (actor) => {
            Deferred.doneUnsafe(started, Effect.succeed(actor))
          }).pipe(Effect.provideContext(services))
        )
        return yield* Deferred.await(started)
      })

      const recovered = yield* recover
      yield* Effect.forEach(recovered, ({ record, probe }) => start(record, probe), { discard: true })
      const adopted = recovered.filter(({ probe }) => probe.vmm !== null)
      yield* Effect.forEach(
        adopted,
        ({ record, probe }) =>
          logEvent("instance.adopted", `${record.spec.id}: adopted`, {
            instance_id: record.spec.id,
            generation: record.generation,
            to: record.lifecycle.state._tag,
            pid: probe.vmm?.pid ?? null
          }),
        { discard: true }
      )
      yield* events.catchUp(registry.list({}))
      return Supervisor.of({
        registry,
        start: (record, probe) =>
          Effect.tap(start(record, probe), (actor) =>
            probe === null ? events.created(actor.view()) : Effect.void
          )
      })
    })
  )
}
