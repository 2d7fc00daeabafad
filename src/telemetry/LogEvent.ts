/**
 * The structured log, an interface like any other: one JSON object a line on stdout, `time, level, event, message` and
 * the fields that apply. `event` is a closed list. Environment values and tokens have no field to be written to.
 */
import * as Effect from "effect/Effect"
import type * as LogLevel from "effect/LogLevel"
import * as Schema from "effect/Schema"
import { Generation, Timestamp } from "../domain/Ids.ts"

export const LogEventName = Schema.Literals([
  "instance.transition",
  "instance.exit",
  "instance.restart",
  "instance.adopted",
  "vmm.spawned",
  "vmm.exited",
  "snapshot.written",
  "image.progress",
  "image.ready",
  "volume.attached",
  "network.lease",
  "http.request",
  "metrics.snapshot",
  "host.reconciled",
  "server.started",
  "server.draining",
  "defect"
]).annotate({ identifier: "LogEventName" })
export type LogEventName = typeof LogEventName.Type

export const LogLineLevel = Schema.Literals(["trace", "debug", "info", "warn", "error", "fatal"])
export type LogLineLevel = typeof LogLineLevel.Type

/** What a field may hold: text, a number or a flag. Anything else is not written. */
export const LogField = Schema.Union([Schema.String, Schema.Finite, Schema.Boolean, Schema.Null])
export type LogField = typeof LogField.Type

/** One line of stdout. Fields beside the named ones are snake_case and plain; readers ignore those they do not know. */
export const LogEvent = Schema.StructWithRest(
  Schema.Struct({
    time: Timestamp,
    level: LogLineLevel,
    event: LogEventName,
    message: Schema.String,
    instance_id: Schema.optionalKey(Schema.String),
    generation: Schema.optionalKey(Generation),
    from: Schema.optionalKey(Schema.String),
    to: Schema.optionalKey(Schema.String),
    verb: Schema.optionalKey(Schema.String),
    duration_ms: Schema.optionalKey(Schema.Finite),
    reason: Schema.optionalKey(Schema.String)
  }),
  [Schema.Record(Schema.String, LogField)]
).annotate({ identifier: "LogEvent", description: "One line of the structured log." })
export type LogEvent = typeof LogEvent.Type

/** The fields that the contract names, and any other plain one. */
export interface LogFields {
  readonly instance_id?: string
  readonly generation?: number
  readonly from?: string
  readonly to?: string
  readonly verb?: string
  readonly duration_ms?: number
  readonly reason?: string
  readonly [field: string]: LogField | undefined
}

/** The annotation that makes a log call a line of the structured log; calls without it are free text, on stderr. */
export const eventAnnotation = "event"

/**
 * Writes one event. `message` is a short human sentence; everything that a machine wants is in `fields`.
 * A `defect` is an error, everything else `Info` unless said otherwise.
 */
export const logEvent = (
  event: LogEventName,
  message: string,
  fields: LogFields = {},
  level: LogLevel.Severity = event === "defect" ? "Error" : "Info"
): Effect.Effect<void> =>
  Effect.logWithLevel(level)(message).pipe(Effect.annotateLogs({ ...fields, [eventAnnotation]: event }))
