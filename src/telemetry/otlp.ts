/**
 * Traces, metrics and logs to an OpenTelemetry collector (OTLP over HTTP, JSON), where OTEL_EXPORTER_OTLP_ENDPOINT names
 * one. They are sent in the background in batches. A collector that is down, refuses or never answers costs nothing but what
 * was to be sent to it: after `answerTimeoutMs` a batch counts as failed, what is buffered is dropped, and the exporter
 * tries again a minute later.
 *
 * The logs are the lines of the structured log and nothing else. A span that fails says so without the values that an
 * error may hold: those may be a guest's environment.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as OtlpExporter from "effect/observability/OtlpExporter"
import * as OtlpMetrics from "effect/observability/OtlpMetrics"
import * as OtlpResource from "effect/observability/OtlpResource"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as OtlpTracer from "effect/observability/OtlpTracer"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import { version } from "../domain/Version.ts"
import { describeDefect } from "./defects.ts"
import type { LogEvent, LogLineLevel } from "./LogEvent.ts"
import { toLogEvent } from "./Logger.ts"

const serviceName = "cloud-hypervisor-dataplane"
/** A collector on the same host or network answers in milliseconds. */
const answerTimeoutMs = 5_000
/** What is not sent by then, when the service stops, is lost. */
const shutdownTimeoutMs = 1_000
const logsEveryMs = 1_000
const batchMax = 1_000

export interface OtlpIntervals {
  readonly tracesMs: number
  readonly metricsMs: number
}
const defaults: OtlpIntervals = { tracesMs: 5_000, metricsMs: 10_000 }

const resource = { serviceName, serviceVersion: version }

/** OpenTelemetry's severity numbers (logs data model, SeverityNumber). */
const severities: Readonly<Record<LogLineLevel, number>> = {
  trace: 1,
  debug: 5,
  info: 9,
  warn: 13,
  error: 17,
  fatal: 21
}

const nanosPerMilli = 1_000_000n

const logRecord = (line: LogEvent, span: Tracer.AnySpan | undefined) => {
  const { time, level, message, ...fields } = line
  const timeUnixNano = `${BigInt(Date.parse(time)) * nanosPerMilli}`
  return {
    severityNumber: severities[level],
    severityText: level.toUpperCase(),
    timeUnixNano,
    observedTimeUnixNano: timeUnixNano,
    body: { stringValue: message },
    attributes: OtlpResource.entriesToAttributes(Object.entries(fields)),
    droppedAttributesCount: 0,
    ...(span === undefined ? {} : { traceId: span.traceId.padStart(32, "0"), spanId: span.spanId })
  }
}

/** Sends what the logger of stdout writes, field by field; beside it, not in its place. */
const layerLogs = (url: string) =>
  Logger.layer(
    [
      Effect.gen(function* () {
        const serialization = yield* OtlpSerialization.OtlpSerialization
        const exporter = yield* OtlpExporter.make({
          label: "OtlpLogger",
          url,
          headers: undefined,
          exportInterval: logsEveryMs,
          maxBatchSize: batchMax,
          shutdownTimeout: shutdownTimeoutMs,
          body: (logRecords) => [
            serialization.logs({
              resourceLogs: [
                {
                  resource: OtlpResource.make(resource),
                  scopeLogs: [{ scope: { name: serviceName, version }, logRecords }]
                }
              ]
            }),
            Effect.void
          ]
        })
        return Logger.make<unknown, void>((call) => {
          const line = toLogEvent(call)
          if (Option.isSome(line)) exporter.push(logRecord(line.value, call.fiber.cache.span))
        })
      })
    ],
    { mergeWithExisting: true }
  )

/** How a span ended, told without what its error holds. */
const withoutValues = <A>(exit: Exit.Exit<A, unknown>): Exit.Exit<A, unknown> => {
  if (Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause)) return exit
  const error = new Error(describeDefect(Cause.squash(exit.cause)).split("\n")[0])
  delete error.stack
  return Exit.fail(error)
}

const guarded = (inner: Tracer.Tracer): Tracer.Tracer =>
  Tracer.make({
    span: (options) => {
      const span = inner.span(options)
      const end = span.end.bind(span)
      span.end = (endTime, exit) => end(endTime, withoutValues(exit))
      return span
    }
  })

const layerTraces = (url: string, exportInterval: number) =>
  Layer.effect(
    Tracer.Tracer,
    Effect.map(
      OtlpTracer.make({
        url,
        resource,
        exportInterval,
        maxBatchSize: batchMax,
        shutdownTimeout: shutdownTimeoutMs
      }),
      guarded
    )
  )

/** A client whose requests end in any case, and that no span is made of. */
const layerClient = Layer.effect(
  HttpClient.HttpClient,
  Effect.map(
    HttpClient.HttpClient,
    HttpClient.transformResponse(
      Effect.timeoutOrElse({
        duration: answerTimeoutMs,
        orElse: () => Effect.die(new Error("the collector does not answer"))
      })
    )
  )
).pipe(Layer.provide(FetchHttpClient.layer))

/** `endpoint` is the collector's base URL, such as http://127.0.0.1:4318. Put over the logger, which it adds to. */
export const layerOtlp = (endpoint: string, intervals: Partial<OtlpIntervals> = {}): Layer.Layer<never> => {
  const { tracesMs, metricsMs } = { ...defaults, ...intervals }
  const url = (signal: string) => `${endpoint.replace(/\/+$/u, "")}/v1/${signal}`
  return Layer.mergeAll(
    layerTraces(url("traces"), tracesMs),
    Layer.effectDiscard(
      OtlpMetrics.make({
        url: url("metrics"),
        resource,
        exportInterval: metricsMs,
        shutdownTimeout: shutdownTimeoutMs
      })
    ),
    layerLogs(url("logs"))
  ).pipe(Layer.provide([OtlpExporter.layerFlusher, OtlpSerialization.layerJson, layerClient]), Layer.orDie)
}
