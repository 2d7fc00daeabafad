/**
 * The idempotency keys of the last 24 hours, under DATA_DIR. A key's first line is durable before its request begins, its
 * answer before the client has it:
 *
 *   (none) ──claim──► Running ──settle──► Answered ──24 h──► (none)
 *     ▲                 │ │
 *     └─────release─────┘ └──service or request died──► Interrupted ──resume──► Running
 *
 * Lines go to segments, one for each start of the service and each hour, which are removed whole. Beyond the bounds new
 * keys are refused, since to forget one early would break its promise.
 */
import { createHash } from "node:crypto"
import * as path from "node:path"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import {
  Busy,
  IdempotencyKeyInUse,
  IdempotencyKeyReused,
  IdempotencyOutcomeUnknown
} from "../domain/problems.ts"
import type { FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import { Paths } from "../host/Paths.ts"

export const keyLifetimeMs = 24 * 3_600_000
const segmentMs = 3_600_000
/** Keys of one day, and bytes of their lines. */
export const keysMax = 50_000
const bytesMax = 256 * 1024 * 1024

export const Answer = Schema.Struct({
  status: Schema.Int,
  headers: Schema.Record(Schema.String, Schema.String),
  body: Schema.String,
  /** SHA-256 of a body that was not known when the key was claimed. */
  streamed: Schema.NullOr(Schema.String)
})
export type Answer = typeof Answer.Type

const Line = Schema.Union([
  Schema.Struct({ begin: Schema.String, request: Schema.String, at: Schema.Int }),
  Schema.Struct({ end: Schema.String, answer: Answer }),
  Schema.Struct({ drop: Schema.String })
])
const LineJson = Schema.fromJsonString(Line)
const encode = Schema.encodeSync(LineJson)
const decode = Schema.decodeUnknownOption(LineJson)

type State =
  | { readonly _tag: "Running" }
  | { readonly _tag: "Interrupted" }
  | { readonly _tag: "Answered"; readonly file: string; readonly offset: number; readonly length: number }

interface Entry {
  readonly request: string
  readonly at: number
  state: State
}

export type Claim =
  | { readonly _tag: "Answered"; readonly answer: Answer }
  /** To be carried out: for the first time, or again after an interruption. `at` is when the key was first seen. */
  | { readonly _tag: "Mine"; readonly interrupted: boolean; readonly at: number }

export const hash = (text: string): string => createHash("sha256").update(text).digest("hex")

const reused = new IdempotencyKeyReused({
  detail: "This idempotency key was sent with another request; use a new key for a new request."
})
const inUse = new IdempotencyKeyInUse({
  detail: "The first request with this idempotency key is still under way; ask again in a moment."
})
export const outcomeUnknown = new IdempotencyOutcomeUnknown({
  detail:
    "The service was interrupted during the first request with this idempotency key. Look at what is there; to ask again, use a new key."
})
const full = new Busy({
  detail: `${keysMax} idempotency keys, or their answers, fill a day's room; leave it out.`
})
const notRecorded = (fault: FileFault) =>
  new Busy({
    detail: `The idempotency key cannot be recorded (${fault.code}); make room on the host's disk.`
  })

type Keys = Map<string, Entry>

/** What the lines of one segment say, in their order. A torn last line says nothing: nobody was told of it. */
const replay = (keys: Keys, file: string, bytes: Uint8Array): void => {
  let offset = 0
  for (const text of new TextDecoder().decode(bytes).split("\n")) {
    const length = Buffer.byteLength(text)
    const line = Option.getOrUndefined(decode(text))
    if (line !== undefined) {
      if ("begin" in line)
        keys.set(line.begin, { request: line.request, at: line.at, state: { _tag: "Interrupted" } })
      else if ("drop" in line) keys.delete(line.drop)
      else {
        const entry = keys.get(line.end)
        if (entry !== undefined) entry.state = { _tag: "Answered", file, offset, length }
      }
    }
    offset += length + 1
  }
}

interface Segment {
  readonly file: string
  readonly openedAt: number
  bytes: number
}

/** The segments on disk, oldest first, and what they say. */
const load = Effect.fnUntraced(function* (files: Files["Service"], directory: string) {
  const keys: Keys = new Map()
  const segments: Array<Segment> = []
  const names = (yield* files.list(directory)).filter((name) => /^\d+\.ndjson$/u.test(name))
  for (const name of names.toSorted((left, right) => Number.parseInt(left) - Number.parseInt(right))) {
    const file = path.join(directory, name)
    const bytes = Option.getOrElse(yield* files.read(file), () => new Uint8Array())
    replay(keys, file, bytes)
    segments.push({ file, openedAt: Number.parseInt(name), bytes: bytes.length })
  }
  return { keys, segments }
})

/** Appends lines durably, one after the other, and removes what is over its time. */
const writer = (files: Files["Service"], directory: string, keys: Keys, segments: Array<Segment>) => {
  const turn = Semaphore.makeUnsafe(1)
  let current: Segment | null = null

  const expire = Effect.fnUntraced(function* (now: number) {
    for (const [key, { at, state }] of keys)
      if (at + keyLifetimeMs <= now && state._tag !== "Running") keys.delete(key)
    while (segments[0] !== undefined && segments[0].openedAt + segmentMs + keyLifetimeMs <= now) {
      yield* files.remove(segments[0].file)
      segments.shift()
    }
  })

  const segment = Effect.fnUntraced(function* (now: number) {
    if (current !== null && current.openedAt + segmentMs > now) return current
    yield* expire(now)
    yield* files.makeDirectory(directory)
    const openedAt = Math.max(now, (segments.at(-1)?.openedAt ?? 0) + 1)
    const opened = { file: path.join(directory, `${openedAt}.ndjson`), openedAt, bytes: 0 }
    yield* files.write(opened.file, "")
    segments.push(opened)
    current = opened
    return opened
  })

  return {
    used: () => segments.reduce((sum, { bytes }) => sum + bytes, 0),
    append: (line: typeof Line.Type) =>
      turn.withPermit(
        Effect.gen(function* () {
          const target = yield* segment(yield* Clock.currentTimeMillis)
          const text = encode(line)
          const length = Buffer.byteLength(text)
          const offset = target.bytes
          // Counted before it is written: a line that was torn by a full disk takes its place all the same.
          target.bytes += length + 1
          yield* files
            .append(target.file, `${text}\n`)
            .pipe(Effect.tapError(() => Effect.sync(() => (current = null))))
          return { file: target.file, offset, length }
        })
      )
  }
}

export class IdempotencyKeys extends Context.Service<
  IdempotencyKeys,
  {
    /** `request` says what is asked for; where it differs from the first time, the key is refused. */
    readonly claim: (
      key: string,
      request: string
    ) => Effect.Effect<Claim, IdempotencyKeyReused | IdempotencyKeyInUse | Busy>
    /** The answer of a request that was carried out; durable when this ends. */
    readonly settle: (key: string, answer: Answer) => Effect.Effect<void, Busy>
    /** Nothing was done: the key is free again. */
    readonly release: (key: string) => Effect.Effect<void>
    /** It is not known what was done. */
    readonly abandon: (key: string) => Effect.Effect<void>
  }
>()("dataplane/http/IdempotencyKeys") {
  static readonly layer = Layer.effect(
    IdempotencyKeys,
    Effect.gen(function* () {
      const files = yield* Files
      const directory = (yield* Paths).idempotency
      const { keys, segments } = yield* load(files, directory)
      const lines = writer(files, directory, keys, segments)

      const read = Effect.fnUntraced(function* ({
        file,
        offset,
        length
      }: Extract<State, { _tag: "Answered" }>) {
        const bytes = yield* Effect.orDie(files.readAt(file, offset, length))
        const line = Option.flatMap(bytes, (it) => decode(new TextDecoder().decode(it)))
        if (Option.isNone(line) || !("end" in line.value))
          return yield* Effect.die(new Error("an answer that was kept is not there any more"))
        return { _tag: "Answered", answer: line.value.answer } satisfies Claim
      })

      const begin = Effect.fnUntraced(function* (key: string, request: string, at: number) {
        if (keys.size >= keysMax || lines.used() >= bytesMax) return yield* full
        keys.set(key, { request, at, state: { _tag: "Running" } })
        yield* lines.append({ begin: key, request, at }).pipe(
          Effect.tapError(() => Effect.sync(() => keys.delete(key))),
          Effect.mapError(notRecorded)
        )
        return { _tag: "Mine", interrupted: false, at } satisfies Claim
      })

      const claim = Effect.fnUntraced(function* (key: string, request: string) {
        const now = yield* Clock.currentTimeMillis
        const entry = keys.get(key)
        const live = entry !== undefined && (entry.at + keyLifetimeMs > now || entry.state._tag === "Running")
        if (!live) return yield* begin(key, request, now)
        if (entry.request !== request) return yield* reused
        switch (entry.state._tag) {
          case "Running":
            return yield* inUse
          case "Answered":
            return yield* read(entry.state)
          case "Interrupted":
            entry.state = { _tag: "Running" }
            return { _tag: "Mine", interrupted: true, at: entry.at } satisfies Claim
        }
      }, Effect.uninterruptible)

      const abandon = (key: string) =>
        Effect.sync(() => {
          const entry = keys.get(key)
          if (entry?.state._tag === "Running") entry.state = { _tag: "Interrupted" }
        })

      return IdempotencyKeys.of({
        claim: (key, request) => claim(hash(key), request),
        settle: (key, answer) =>
          lines.append({ end: hash(key), answer }).pipe(
            Effect.map((place) => {
              const entry = keys.get(hash(key))
              if (entry !== undefined) entry.state = { _tag: "Answered", ...place }
            }),
            Effect.mapError(notRecorded),
            Effect.uninterruptible
          ),
        // A line that cannot be written leaves the key as one whose outcome is not known.
        release: (key) =>
          lines.append({ drop: hash(key) }).pipe(
            Effect.map(() => void keys.delete(hash(key))),
            Effect.catch(() => abandon(hash(key))),
            Effect.uninterruptible
          ),
        abandon: (key) => abandon(hash(key))
      })
    })
  )
}
