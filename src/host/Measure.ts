/**
 * How durations are measured, everywhere alike: histograms in seconds with one set of buckets. A family is one metric
 * with its labels open; the values of a label come from a closed set (verbs, phases, route templates), never from ids, so
 * that the number of series is bounded.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"

/** Upper bounds in seconds: from a step of the service itself to a snapshot of a large guest. */
export const durationBuckets: ReadonlyArray<number> = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600
]

export type Labels = Readonly<Record<string, string>>

/** One metric for each set of label values, made once. */
export const family = <Input, State>(base: Metric.Metric<Input, State>) => {
  const known = new Map<string, Metric.Metric<Input, State>>()
  return (labels: Labels): Metric.Metric<Input, State> => {
    const key = Object.values(labels).join("\0")
    const present = known.get(key)
    if (present !== undefined) return present
    const made = Metric.withAttributes(base, labels)
    known.set(key, made)
    return made
  }
}

/** A histogram of durations; `name` ends in `_seconds`. */
export const durations = (name: string, description: string) =>
  family(Metric.histogram(name, { description, boundaries: durationBuckets }))

const nanosPerSecond = 1e9

/** Seconds since a time of `Clock.currentTimeNanos`. */
export const secondsSince = (startedNs: bigint): Effect.Effect<number> =>
  Effect.map(Clock.currentTimeNanos, (now) => Number(now - startedNs) / nanosPerSecond)

/** Records how long the effect took, whatever its end; an effect that is interrupted has no duration. */
export const timed =
  <State>(histogram: Metric.Metric<number, State>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.flatMap(Clock.currentTimeNanos, (startedNs) => {
      const record = Effect.flatMap(secondsSince(startedNs), (seconds) => Metric.update(histogram, seconds))
      return Effect.tapCause(
        Effect.tap(effect, () => record),
        () => record
      )
    })
