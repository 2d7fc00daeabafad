/**
 * Every outward change of every instance, in one order, with cursors that survive restarts: the source of GET /events.
 *
 *   events/<first id>.ndjson   a segment of at most `segmentEvents` lines; the newest `segmentsMax` are kept
 *
 * A line is appended before readers see it. A kill of the service loses none; what a power cut takes from the end is made
 * up for at the next start, when each record that is ahead of the log gets an event.
 */
import * as path from "node:path"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import { InstanceEvent } from "../domain/Event.ts"
import { type InstanceId, timestamp } from "../domain/Ids.ts"
import type { Instance } from "../domain/Instance.ts"
import { Files } from "../host/Files.ts"
import { Paths } from "../host/Paths.ts"
import { logEvent } from "../telemetry/LogEvent.ts"

const segmentEvents = 10_000
const segmentsMax = 8
/** Kept in memory: what a reader who lost its connection for a moment needs. */
const recentMax = 2_000
/** Events that a live reader may be behind before it is cut off; it resumes from its cursor. */
const readerBehindMax = 4_096

const EventJson = Schema.fromJsonString(InstanceEvent)
const encode = Schema.encodeSync(EventJson)
const decode = Schema.decodeUnknownOption(EventJson)

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

const segmentName = (first: number) => `${first}.ndjson`
const segmentFirst = (name: string): Option.Option<number> =>
  /^\d{1,15}\.ndjson$/.test(name) ? Option.some(Number.parseInt(name, 10)) : Option.none()

const openLog = Effect.gen(function* () {
  const files = yield* Files
  const { events: directory } = yield* Paths
  yield* files.makeDirectory(directory)
  const firsts = (yield* files.list(directory))
    .flatMap((name) => Option.toArray(segmentFirst(name)))
    .toSorted((left, right) => left - right)
  const readSegment = (first: number) =>
    files.readText(path.join(directory, segmentName(first))).pipe(
      Effect.map((text) =>
        Option.getOrElse(text, () => "")
          .split("\n")
          // A line that a power cut left half is not an event.
          .flatMap((line) => Option.toArray(decode(line)))
      ),
      Effect.orElseSucceed((): Array<InstanceEvent> => [])
    )
  const kept = (yield* Effect.forEach(firsts, readSegment)).flat()
  return { files, directory, firsts, readSegment, kept }
})

export const layerEventLog = Layer.effect(
  EventLog,
  Effect.gen(function* () {
    const { files, directory, firsts, readSegment, kept } = yield* openLog
    const hub = yield* PubSub.sliding<InstanceEvent>(readerBehindMax)
    const order = yield* Semaphore.make(1)
    const recent = kept.slice(-recentMax)
    /** Of each instance that is there, as far as the log tells. */
    const generations = new Map<InstanceId, number>()
    const follow = (event: InstanceEvent): void => {
      if (event.type === "instance.deleted") generations.delete(event.instance_id)
      else generations.set(event.instance_id, event.generation)
    }
    kept.forEach(follow)
    let last = kept.at(-1)?.id ?? 0
    const newest = firsts.at(-1)
    let lines = newest === undefined ? segmentEvents : kept.filter((event) => event.id >= newest).length
    /** What the service before wrote last may be half a line, which must not swallow the next one. */
    let separator = newest === undefined ? "" : "\n"

    const rotate = Effect.gen(function* () {
      firsts.push(last + 1)
      lines = 0
      separator = ""
      const old = firsts.splice(0, Math.max(0, firsts.length - segmentsMax))
      yield* Effect.forEach(old, (first) => files.remove(path.join(directory, segmentName(first))), {
        discard: true
      })
    })

    const append = (event: Draft) =>
      order.withPermit(
        Effect.gen(function* () {
          if (lines >= segmentEvents) yield* rotate
          const full: InstanceEvent = {
            ...event,
            id: last + 1,
            time: timestamp(yield* Clock.currentTimeMillis)
          }
          yield* files.note(
            path.join(directory, segmentName(firsts.at(-1) ?? 1)),
            `${separator}${encode(full)}\n`
          )
          separator = ""
          last = full.id
          lines++
          follow(full)
          recent.push(full)
          if (recent.length > recentMax * 2) recent.splice(0, recent.length - recentMax)
          yield* PubSub.publish(hub, full)
        }).pipe(
          Effect.catch((fault) =>
            logEvent("defect", "an event cannot be written", {
              reason: fault.message,
              instance_id: event.instance_id
            })
          ),
          Effect.uninterruptible
        )
      )

    const deleted = (id: InstanceId): Draft => ({
      type: "instance.deleted",
      instance_id: id,
      generation: generations.get(id) ?? 0,
      from: null,
      to: null,
      transition: null,
      ready: false,
      exit: null
    })

    const catchUp = Effect.fnUntraced(function* (views: ReadonlyArray<Instance>) {
      const present = new Set(views.map((view) => view.id))
      const missed = [...generations.keys()].filter((id) => !present.has(id))
      yield* Effect.forEach(missed, (id) => append(deleted(id)), { discard: true })
      const ahead = views.filter((view) => (generations.get(view.id) ?? 0) < view.generation)
      yield* Effect.forEach(ahead, (view) => append(draft("instance.changed", null, view)), { discard: true })
    })

    /** Events after the cursor that are on disk or in memory, oldest first. */
    const past = (after: number) => {
      const [oldest] = recent
      if (oldest === undefined || oldest.id <= after + 1)
        return Stream.fromIterable(recent.filter((event) => event.id > after))
      const wanted = firsts.filter((_, at) => (firsts[at + 1] ?? Number.POSITIVE_INFINITY) > after + 1)
      return Stream.fromIterable(wanted).pipe(
        Stream.flatMap((first) => Stream.unwrap(Effect.map(readSegment(first), Stream.fromIterable))),
        Stream.filter((event) => event.id > after)
      )
    }

    /** The past first, then what came since the subscription, each event once; a gap ends the stream. */
    const read = (after: Option.Option<number>) =>
      Stream.unwrap(
        Effect.gen(function* () {
          const live = yield* PubSub.subscribe(hub)
          const from = Option.getOrElse(after, () => last)
          const upTo = last
          const before = past(from).pipe(Stream.filter((event) => event.id <= upTo))
          let next = Math.max(upTo, from) + 1
          const since = Stream.fromEffectRepeat(PubSub.take(live)).pipe(
            Stream.filter((event) => event.id >= next),
            Stream.takeWhile((event) => event.id === next++)
          )
          return Stream.concat(before, since)
        })
      ).pipe(Stream.scoped)

    return EventLog.of({
      transition: (from, to) =>
        sameOutside(from, to) ? Effect.void : append(draft("instance.changed", from, to)),
      created: (view) => append(draft("instance.created", null, view)),
      removed: (id) => append(deleted(id)),
      catchUp,
      read
    })
  })
)
