/**
 * The files of the event log: segments of at most `segmentEvents` lines, named by the id of their first event; the newest
 * `segmentsMax` are kept.
 *
 *   events/1.ndjson   events/10001.ndjson   ...
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { InstanceEvent } from "../domain/Event.ts"
import type { FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import { Paths } from "../host/Paths.ts"

const segmentEvents = 10_000
const segmentsMax = 8

const EventJson = Schema.fromJsonString(InstanceEvent)
const encode = Schema.encodeSync(EventJson)
const decode = Schema.decodeUnknownOption(EventJson)

const segmentName = (first: number) => `${first}.ndjson`
const segmentFirst = (name: string): Option.Option<number> =>
  /^\d{1,15}\.ndjson$/.test(name) ? Option.some(Number.parseInt(name, 10)) : Option.none()

/** The events of one segment. A line that a power cut left half is not an event. */
const parse = (text: string): ReadonlyArray<InstanceEvent> =>
  text.split("\n").flatMap((line) => Option.toArray(decode(line)))

export interface Segments {
  /** What was there at the start, oldest first. */
  readonly kept: ReadonlyArray<InstanceEvent>
  /** Ids must grow; one writer. */
  readonly append: (event: InstanceEvent) => Effect.Effect<void, FileFault>
  /** Events after a cursor that are on disk, oldest first. */
  readonly after: (cursor: number) => Stream.Stream<InstanceEvent>
}

export const open = Effect.gen(function* () {
  const files = yield* Files
  const { events: directory } = yield* Paths
  yield* files.makeDirectory(directory)
  const firsts = (yield* files.list(directory))
    .flatMap((name) => Option.toArray(segmentFirst(name)))
    .toSorted((left, right) => left - right)
  const file = (first: number) => path.join(directory, segmentName(first))
  const readSegment = (first: number) =>
    files.readText(file(first)).pipe(
      Effect.map((text) => parse(Option.getOrElse(text, () => ""))),
      Effect.orElseSucceed((): ReadonlyArray<InstanceEvent> => [])
    )
  const kept = (yield* Effect.forEach(firsts, readSegment)).flat()
  const newest = firsts.at(-1)
  let lines = newest === undefined ? segmentEvents : kept.filter((event) => event.id >= newest).length
  /** What the service before wrote last may be half a line, which must not swallow the next one. */
  let separator = newest === undefined ? "" : "\n"

  const rotate = Effect.fnUntraced(function* (first: number) {
    firsts.push(first)
    lines = 0
    separator = ""
    const old = firsts.splice(0, Math.max(0, firsts.length - segmentsMax))
    yield* Effect.forEach(old, (it) => files.remove(file(it)), { discard: true })
  })

  const append = Effect.fnUntraced(function* (event: InstanceEvent) {
    if (lines >= segmentEvents) yield* rotate(event.id)
    yield* files.note(file(firsts.at(-1) ?? event.id), `${separator}${encode(event)}\n`)
    separator = ""
    lines++
  })

  const after = (cursor: number) =>
    Stream.fromIterable(
      firsts.filter((_, at) => (firsts[at + 1] ?? Number.POSITIVE_INFINITY) > cursor + 1)
    ).pipe(
      Stream.flatMap((first) => Stream.unwrap(Effect.map(readSegment(first), Stream.fromIterable))),
      Stream.filter((event) => event.id > cursor)
    )

  return { kept, append, after } satisfies Segments
})
