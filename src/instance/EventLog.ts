/**
 * Every outward change of every instance, in one order, with cursors that survive restarts: the source of GET /events.
 * An event is appended to a segment (EventSegments.ts) before readers see it. A kill of the service loses none; what a
 * power cut takes from the end is made up for at the next start, when each record that is ahead of the log gets an event.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import type { InstanceEvent } from "../domain/Event.ts"
import { type InstanceId, timestamp } from "../domain/Ids.ts"
import type { Instance } from "../domain/Instance.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { open, type Segments } from "./EventSegments.ts"

/** Kept in memory: what a reader who lost its connection for a moment needs. */
const recentMax = 2_000
/** Events that a live reader may be behind before it is cut off; it resumes from its cursor. */
const readerBehindMax = 4_096

type Draft = Omit<InstanceEvent, "id" | "time">

export class EventLog extends Context.Service<
  EventLog,
  {
    /** Tells a change of view, where it is one that users can see. */
    readonly transition: (from: Instance, to: Instance) => Effect.Effect<void>
    readonly created: (view: Instance) => Effect.Effect<void>
    readonly removed: (id: InstanceId) => Effect.Effect<void>
    /** Once, at the start: events for what the log missed, and for instances that went away without one. */
    readonly catchUp: (views: ReadonlyArray<Instance>) => Effect.Effect<void>
    /** Events after the cursor, then live ones; none: live ones only. Ends where the reader is too far behind. */
    readonly read: (after: Option.Option<number>) => Stream.Stream<InstanceEvent>
  }
>()("dataplane/instance/EventLog") {}

const sameOutside = (from: Instance, to: Instance): boolean =>
  from.state === to.state &&
  from.transition === to.transition &&
  from.ready === to.ready &&
  from.exit === to.exit

const draft = (type: InstanceEvent["type"], from: Instance | null, to: Instance): Draft => ({
  type,
  instance_id: to.id,
  generation: to.generation,
  from: from?.state ?? null,
  to: to.state,
  transition: to.transition,
  ready: to.ready,
  exit: to.exit
})

const deletion = (id: InstanceId, generation: number): Draft => ({
  type: "instance.deleted",
  instance_id: id,
  generation,
  from: null,
  to: null,
  transition: null,
  ready: false,
  exit: null
})

/** The end of the log in memory, and of each instance that is there the last event that the log told. */
const makeTail = (kept: ReadonlyArray<InstanceEvent>) => {
  const recent: Array<InstanceEvent> = []
  const told = new Map<InstanceId, InstanceEvent>()
  let last = 0
  const follow = (event: InstanceEvent): void => {
    last = event.id
    recent.push(event)
    if (recent.length > recentMax * 2) recent.splice(0, recent.length - recentMax)
    if (event.type === "instance.deleted") told.delete(event.instance_id)
    else told.set(event.instance_id, event)
  }
  for (const event of kept) follow(event)
  return {
    follow,
    last: () => last,
    told,
    /** Undefined where memory does not reach back so far. */
    after: (cursor: number): ReadonlyArray<InstanceEvent> | undefined => {
      const [oldest] = recent
      return oldest === undefined || oldest.id <= cursor + 1
        ? recent.filter((event) => event.id > cursor)
        : undefined
    }
  }
}

type Tail = ReturnType<typeof makeTail>

/** Whether the log ends with something else than what the record says; a new label or name is no event. */
const isBehind = (told: InstanceEvent | undefined, view: Instance): boolean =>
  told === undefined ||
  (told.generation < view.generation &&
    (told.to !== view.state ||
      told.transition !== view.transition ||
      JSON.stringify(told.exit) !== JSON.stringify(view.exit)))

/** The past first, then what came since the subscription, each event once; a gap ends the stream. */
const read = (
  segments: Segments,
  tail: Tail,
  hub: PubSub.PubSub<InstanceEvent>,
  after: Option.Option<number>
) =>
  Stream.unwrap(
    Effect.gen(function* () {
      const live = yield* PubSub.subscribe(hub)
      const upTo = tail.last()
      const from = Option.getOrElse(after, () => upTo)
      const recent = tail.after(from)
      const past = recent === undefined ? segments.after(from) : Stream.fromIterable(recent)
      let next = Math.max(upTo, from) + 1
      const since = Stream.fromEffectRepeat(PubSub.take(live)).pipe(
        Stream.filter((event) => event.id >= next),
        Stream.takeWhile((event) => event.id === next++)
      )
      return Stream.concat(
        Stream.filter(past, (event) => event.id <= upTo),
        since
      )
    })
  ).pipe(Stream.scoped)

export const layerEventLog = Layer.effect(
  EventLog,
  Effect.gen(function* () {
    const segments = yield* open
    const tail = makeTail(segments.kept)
    const hub = yield* PubSub.sliding<InstanceEvent>(readerBehindMax)
    const order = yield* Semaphore.make(1)

    const write = Effect.fnUntraced(function* (event: Draft) {
      const time = timestamp(yield* Clock.currentTimeMillis)
      const full: InstanceEvent = { ...event, id: tail.last() + 1, time }
      yield* segments.append(full)
      tail.follow(full)
      yield* PubSub.publish(hub, full)
    })

    const append = (event: Draft) =>
      write(event).pipe(
        Effect.catch((fault) =>
          logEvent("defect", "an event cannot be written", {
            reason: fault.message,
            instance_id: event.instance_id
          })
        ),
        Effect.uninterruptible,
        (writing) => order.withPermit(writing)
      )

    const catchUp = Effect.fnUntraced(function* (views: ReadonlyArray<Instance>) {
      const present = new Set(views.map((view) => view.id))
      const missed = [...tail.told].filter(([id]) => !present.has(id))
      yield* Effect.forEach(missed, ([id, { generation }]) => append(deletion(id, generation)), {
        discard: true
      })
      yield* Effect.forEach(
        views.filter((view) => isBehind(tail.told.get(view.id), view)),
        (view) =>
          append({ ...draft("instance.changed", null, view), from: tail.told.get(view.id)?.to ?? null }),
        { discard: true }
      )
    })

    return EventLog.of({
      transition: (from, to) =>
        sameOutside(from, to) ? Effect.void : append(draft("instance.changed", from, to)),
      created: (view) => append(draft("instance.created", null, view)),
      removed: (id) => Effect.suspend(() => append(deletion(id, tail.told.get(id)?.generation ?? 0))),
      catchUp,
      read: (after) => read(segments, tail, hub, after)
    })
  })
)
