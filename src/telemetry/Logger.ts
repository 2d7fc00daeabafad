/**
 * Where log calls go. A call that carries an event becomes one line of the structured log on stdout, JSON or, on a
 * terminal, a sentence for people. A call without one is free text for whoever debugs the service, and goes to stderr,
 * so that stdout holds the closed list of events and nothing else.
 */
import * as Cause from "effect/Cause"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import type * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as References from "effect/References"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { timestamp } from "../domain/Ids.ts"
import type { SettingsValues } from "../host/Settings.ts"
import { eventAnnotation, type LogEvent, LogEventName, LogField, type LogLineLevel } from "./LogEvent.ts"

/** Longer texts are cut: a line of the log stays a line that tools accept. */
export const fieldMaxChars = 4096

const levels: Readonly<Record<LogLevel.LogLevel, LogLineLevel>> = {
  All: "trace",
  Trace: "trace",
  Debug: "debug",
  Info: "info",
  Warn: "warn",
  Error: "error",
  Fatal: "fatal",
  None: "info"
}

const cut = (text: string): string =>
  text.length > fieldMaxChars ? `${text.slice(0, fieldMaxChars)}...` : text

const messageOf = (message: unknown): string =>
  cut((Array.isArray(message) ? message : [message]).filter(Predicate.isString).join(" "))

const isLogField = Schema.is(LogField)
const fieldName = /^[a-z][a-z0-9_]{0,63}$/u
/** Names that the line itself has. */
const reserved = new Set(["time", "level", "message", eventAnnotation])

const fieldsOf = (annotations: Readonly<Record<string, unknown>>): Record<string, LogField> => {
  const fields: Record<string, LogField> = {}
  for (const [name, value] of Object.entries(annotations)) {
    if (reserved.has(name) || !fieldName.test(name) || !isLogField(value)) continue
    fields[name] = Predicate.isString(value) ? cut(value) : value
  }
  return fields
}

/** The line that a log call is, or none for free text. */
export const toLogEvent = (call: Logger.Options<unknown>): Option.Option<LogEvent> => {
  const annotations = call.fiber.getRef(References.CurrentLogAnnotations)
  return Result.getSuccess(decodeName(annotations[eventAnnotation])).pipe(
    Option.map((event) => ({
      time: timestamp(call.date.getTime()),
      level: levels[call.logLevel],
      event,
      message: messageOf(call.message),
      ...fieldsOf(annotations)
    }))
  )
}
const decodeName = Schema.decodeUnknownResult(LogEventName)

const freeText = (call: Logger.Options<unknown>): string => {
  const annotations = Object.entries(fieldsOf(call.fiber.getRef(References.CurrentLogAnnotations)))
  const cause = call.cause.reasons.length === 0 ? "" : ` ${cut(Cause.pretty(call.cause))}`
  const fields = annotations.map(([name, value]) => ` ${name}=${value}`).join("")
  return `${call.date.toISOString()} ${levels[call.logLevel]} ${messageOf(call.message)}${fields}${cause}`
}

const colours: Readonly<Record<LogLineLevel, number>> = {
  trace: 90,
  debug: 90,
  info: 36,
  warn: 33,
  error: 31,
  fatal: 31
}

const sentence = ({ time, level, event, message, ...fields }: LogEvent): string => {
  const details = Object.entries(fields)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => ` \u001b[90m${name}=\u001b[0m${value}`)
    .join("")
  return `\u001b[90m${time.slice(11, 23)}\u001b[0m \u001b[${colours[level]}m${event}\u001b[0m ${message}${details}`
}

/** Where lines go; tests put their own in place. */
export interface LogSink {
  readonly stdout: (line: string) => void
  readonly stderr: (line: string) => void
}

/** A reader that goes away ends the log, never the service. */
const processSink = (): LogSink => {
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => undefined)
  return {
    stdout: (line) => process.stdout.write(`${line}\n`),
    stderr: (line) => process.stderr.write(`${line}\n`)
  }
}

const logger = (format: SettingsValues["logFormat"], sink: LogSink): Logger.Logger<unknown, void> => {
  const render = format === "json" ? (event: LogEvent) => JSON.stringify(event) : sentence
  return Logger.make((call) =>
    Option.match(toLogEvent(call), {
      onNone: () => sink.stderr(freeText(call)),
      onSome: (event) => sink.stdout(render(event))
    })
  )
}

const minimum: Readonly<Record<SettingsValues["logLevel"], LogLevel.LogLevel>> = {
  debug: "Debug",
  info: "Info",
  warn: "Warn",
  error: "Error"
}

/** The one logger of the service, and the level below which nothing is written. */
export const layerLogger = (
  settings: Pick<SettingsValues, "logFormat" | "logLevel">,
  sink: LogSink = processSink()
): Layer.Layer<never> =>
  Layer.merge(
    Logger.layer([logger(settings.logFormat, sink)]),
    Layer.succeed(References.MinimumLogLevel, minimum[settings.logLevel])
  )
