/**
 * An OpenTelemetry collector as far as a sender sees one: a loopback HTTP server that takes OTLP as JSON, refuses what is
 * none with 400, and keeps what it took.
 */
import { createServer, type Server } from "node:http"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

const Value = Schema.Struct({
  stringValue: Schema.optionalKey(Schema.String),
  intValue: Schema.optionalKey(Schema.Union([Schema.String, Schema.Int])),
  doubleValue: Schema.optionalKey(Schema.Finite),
  boolValue: Schema.optionalKey(Schema.Boolean)
})
const Attributes = Schema.Array(Schema.Struct({ key: Schema.String, value: Value }))
const Resource = Schema.Struct({ attributes: Attributes })
const hex = (digits: number) =>
  Schema.String.check(Schema.isPattern(new RegExp(`^[0-9a-f]{${digits}}$`, "u")))
const Nanos = Schema.String.check(Schema.isPattern(/^\d{16,20}$/u))

const Span = Schema.Struct({
  traceId: hex(32),
  spanId: hex(16),
  parentSpanId: Schema.optionalKey(hex(16)),
  name: Schema.String,
  startTimeUnixNano: Nanos,
  endTimeUnixNano: Nanos,
  attributes: Attributes,
  events: Schema.Array(Schema.Struct({ name: Schema.String, attributes: Attributes })),
  status: Schema.Struct({ code: Schema.Int, message: Schema.optionalKey(Schema.String) })
})
export type CollectedSpan = typeof Span.Type

const LogRecord = Schema.Struct({
  severityNumber: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 24 })),
  timeUnixNano: Nanos,
  body: Value,
  attributes: Attributes,
  traceId: Schema.optionalKey(hex(32)),
  spanId: Schema.optionalKey(hex(16))
})
export type CollectedLog = typeof LogRecord.Type

const Traces = Schema.Struct({
  resourceSpans: Schema.Array(
    Schema.Struct({
      resource: Resource,
      scopeSpans: Schema.Array(Schema.Struct({ spans: Schema.Array(Span) }))
    })
  )
})
const Logs = Schema.Struct({
  resourceLogs: Schema.Array(
    Schema.Struct({
      resource: Resource,
      scopeLogs: Schema.Array(Schema.Struct({ logRecords: Schema.Array(LogRecord) }))
    })
  )
})
const Metrics = Schema.Struct({
  resourceMetrics: Schema.Array(
    Schema.Struct({
      resource: Resource,
      scopeMetrics: Schema.Array(
        Schema.Struct({ metrics: Schema.Array(Schema.Struct({ name: Schema.String })) })
      )
    })
  )
})

export const attributesOf = (
  attributes: typeof Attributes.Type
): Readonly<Record<string, string | number | boolean | undefined>> =>
  Object.fromEntries(
    attributes.map(({ key, value }) => [
      key,
      value.stringValue ?? value.boolValue ?? value.doubleValue ?? Number(value.intValue)
    ])
  )

export interface Collector {
  readonly url: string
  readonly spans: Array<CollectedSpan>
  readonly logs: Array<CollectedLog>
  readonly metrics: Set<string>
  /** The service's name, as each batch said it. */
  readonly services: Set<unknown>
  /** Everything that came, as it came. */
  readonly bodies: Array<string>
  /** Batches that were no OTLP. */
  readonly refused: Array<string>
}

const listen = (server: Server): Promise<string> =>
  new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      const address = server.address()
      resolve(`http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`)
    })
  })

const take = (collector: Collector, path: string, body: string): void => {
  const json: unknown = JSON.parse(body)
  const said = (resource: typeof Resource.Type) =>
    collector.services.add(attributesOf(resource.attributes)["service.name"])
  if (path === "/v1/traces")
    for (const { resource, scopeSpans } of Schema.decodeUnknownSync(Traces)(json).resourceSpans) {
      said(resource)
      collector.spans.push(...scopeSpans.flatMap((it) => it.spans))
    }
  else if (path === "/v1/logs")
    for (const { resource, scopeLogs } of Schema.decodeUnknownSync(Logs)(json).resourceLogs) {
      said(resource)
      collector.logs.push(...scopeLogs.flatMap((it) => it.logRecords))
    }
  else if (path === "/v1/metrics")
    for (const { resource, scopeMetrics } of Schema.decodeUnknownSync(Metrics)(json).resourceMetrics) {
      said(resource)
      for (const { name } of scopeMetrics.flatMap((it) => it.metrics)) collector.metrics.add(name)
    }
  else throw new Error(`${path} is no signal`)
}

const scoped = (server: Server) =>
  Effect.acquireRelease(
    Effect.promise(() => listen(server)),
    () =>
      Effect.promise(async () => {
        server.closeAllConnections()
        await new Promise((resolve) => server.close(resolve))
      })
  )

/** Listens until the scope closes. */
export const collect = Effect.gen(function* () {
  const collector: Omit<Collector, "url"> = {
    spans: [],
    logs: [],
    metrics: new Set(),
    services: new Set(),
    bodies: [],
    refused: []
  }
  const server = createServer((request, response) => {
    const chunks: Array<Buffer> = []
    request.on("data", (chunk: Buffer) => chunks.push(chunk))
    request.on("end", () => {
      const body = Buffer.concat(chunks).toString("utf8")
      collector.bodies.push(body)
      try {
        take({ ...collector, url: "" }, request.url ?? "", body)
        response.writeHead(200, { "content-type": "application/json" }).end("{}")
      } catch (cause) {
        collector.refused.push(String(cause))
        response.writeHead(400).end()
      }
    })
  })
  return { ...collector, url: yield* scoped(server) } satisfies Collector
})

/** Takes connections and requests, and never answers any. Counts them. */
export const blackHole = Effect.gen(function* () {
  const seen = { requests: 0 }
  const server = createServer((request) => {
    seen.requests += 1
    request.resume()
  })
  return { url: yield* scoped(server), seen }
})
