/**
 * Reports what should never happen. Clients get a problem without a cause; the cause goes to the log, as a `defect`.
 * A problem is an answer, not a defect, whatever its status.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as ErrorReporter from "effect/ErrorReporter"
import type * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Schema from "effect/Schema"
import { logEvent } from "./LogEvent.ts"

/** A schema's error could print the very values that it refused; those may be a guest's environment. */
export const describeDefect = (defect: unknown): string => {
  if (Schema.isSchemaError(defect)) return "a value did not match its schema"
  return Cause.pretty(Cause.die(defect))
}

const isReported = (reason: Cause.Reason<unknown>): Option.Option<string> =>
  reason._tag !== "Die" ||
  HttpServerResponse.isHttpServerResponse(reason.defect) ||
  ErrorReporter.isIgnored(reason.defect)
    ? Option.none()
    : Option.some(describeDefect(reason.defect))

/** Writes every defect of a cause to the log. */
export const reportDefects = (cause: Cause.Cause<unknown>, message: string): Effect.Effect<void> =>
  Effect.forEach(
    cause.reasons.flatMap((reason) => Option.toArray(isReported(reason))),
    (text) => logEvent("defect", message, { reason: text }),
    { discard: true }
  )

/** One report a cause, however many scopes it passes through. */
const reporter = (): ErrorReporter.ErrorReporter => {
  const seen = new WeakSet<object>()
  return {
    [ErrorReporter.TypeId]: ErrorReporter.TypeId,
    report: ({ cause, fiber }) => {
      const fresh = cause.reasons.filter((reason) => {
        const key = reason._tag === "Die" ? reason.defect : undefined
        if (typeof key !== "object" || key === null) return reason._tag === "Die"
        return !seen.has(key) && seen.add(key) !== undefined
      })
      Effect.runForkWith(fiber.context)(
        reportDefects(Cause.fromReasons(fresh), "a request failed in a way that it should not")
      )
    }
  }
}

export const layerDefects: Layer.Layer<never> = ErrorReporter.layer([Effect.sync(reporter)])
