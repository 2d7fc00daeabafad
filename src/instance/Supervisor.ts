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
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type * as Tracer from "effect/Tracer"
import type { InstanceId } from "../domain/Ids.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import * as Actor from "./Actor.ts"
import { EventLog } from "./EventLog.ts"
import type { Probe } from "./Lifecycle.ts"
import type { Record } from "./Record.ts"
import { probe as probeHost, reconcileOne, recover, type Recovered } from "./recover.ts"
import * as Registry from "./Registry.ts"

/** Restarts of one actor within the window; one more and the instance rests. */
const restartsMax = 2
const restartWindowMs = 5_000

type ActorServices =
  | Effect.Services<ReturnType<typeof Actor.make>>
  | Effect.Services<ReturnType<typeof probeHost>>
  | Effect.Services<ReturnType<typeof reconcileOne>>

type Published = Parameters<typeof Actor.make>[2]

interface Life {
  readonly id: InstanceId
  readonly registry: Registry.Registry
  readonly published: Published
  readonly started: (actor: Actor.Actor) => void
  /** The span of the request that creates it. */
  readonly parent: Tracer.AnySpan | undefined
}

/** One life of an actor, from a record to how it ended and the record that it left. */
const liveOnce = Effect.fnUntraced(function* (life: Life, record: Record, probe: Probe | null) {
  const actor = yield* Actor.make(record, probe, life.published, life.parent)
  life.registry.put(life.id, actor)
  life.started(actor)
  const exit = yield* Effect.exit(actor.run)
  return { exit, record: actor.record() }
}, Effect.scoped)

/** One actor after the other for the same instance, until one ends because the instance is gone. True where it is. */
const supervise = Effect.fnUntraced(function* (life: Life, first: Record, found: Probe | null) {
  let record = first
  let probe = found
  let restarts: ReadonlyArray<number> = []
  while (true) {
    const ended = yield* liveOnce(life, record, probe)
    record = ended.record
    if (Exit.isSuccess(ended.exit)) return true
    if (Cause.hasInterruptsOnly(ended.exit.cause)) return false
    const reason = Cause.pretty(ended.exit.cause)
    yield* logEvent("defect", `${life.id}: its actor failed`, { instance_id: life.id, reason })
    const now = yield* Clock.currentTimeMillis
    const recent = restarts.filter((at) => now - at < restartWindowMs)
    if (recent.length >= restartsMax) {
      const rests = `${life.id}: rests after ${restartsMax} restarts of its actor`
      yield* logEvent("defect", rests, { instance_id: life.id })
      return yield* Effect.never
    }
    restarts = [...recent, now]
    yield* Effect.ignore(reconcileOne(record))
    probe = yield* probeHost(record)
  }
})

const tellAdopted = ({ record, probe }: Recovered) =>
  logEvent("instance.adopted", `${record.spec.id}: adopted`, {
    instance_id: record.spec.id,
    generation: record.generation,
    to: record.lifecycle.state._tag,
    pid: probe.vmm?.pid ?? null
  })

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
      const published: Published = (view, from) =>
        Effect.andThen(
          Effect.sync(() => registry.publish(view)),
          events.transition(from, view)
        )

      const start = Effect.fnUntraced(function* (record: Record, probe: Probe | null) {
        const { id } = record.spec
        const live = yield* Deferred.make<Actor.Actor>()
        const started = (actor: Actor.Actor) => void Deferred.doneUnsafe(live, Effect.succeed(actor))
        const parent = Option.getOrUndefined(yield* Effect.option(Effect.currentParentSpan))
        const body = Effect.gen(function* () {
          if (!(yield* supervise({ id, registry, published, started, parent }, record, probe))) return
          registry.remove(id)
          yield* events.removed(id)
        })
        yield* FiberMap.run(
          fibers,
          id,
          Effect.updateContext(body, (_: Context.Context<never>) => services)
        )
        const actor = yield* Deferred.await(live)
        if (probe === null) yield* events.created(actor.view())
        return actor
      })

      const recovered = yield* recover
      yield* Effect.forEach(recovered, ({ record, probe }) => start(record, probe), { discard: true })
      const adopted = recovered.filter(({ probe }) => probe.vmm !== null)
      yield* Effect.forEach(adopted, tellAdopted, { discard: true })
      yield* events.catchUp(registry.list({}))
      return Supervisor.of({ registry, start })
    })
  )
}
