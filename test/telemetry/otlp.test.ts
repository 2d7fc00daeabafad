/** What a collector gets, and what a service does whose collector is gone, silent or out of its mind. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as Schedule from "effect/Schedule"
import { execa } from "execa"
import { run } from "../../src/host/Command.ts"
import { layout } from "../../src/host/Paths.ts"
import { layerOtlp } from "../../src/telemetry/otlp.ts"
import { attributesOf, blackHole, collect, type CollectedSpan } from "../support/collector.ts"
import { send } from "../support/httpServer.ts"
import { serveSimulated, type SimulatedServer } from "../support/simulatedServer.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const repository = path.resolve(import.meta.dirname, "../..")

const intervals = { tracesMs: 50, metricsMs: 50 }
const secret = "hunter2-of-the-guest"

const create = (server: SimulatedServer, id: string) =>
  send(server, "POST", "/instances", {
    json: { id, name: id, image: "img-demo", memory_mb: 128, vcpus: 1, env: { PASSWORD: secret } },
    headers: { authorization: `Bearer ${secret}`, cookie: secret }
  })

/** Until something has arrived; bounded. */
const eventually = (holds: () => boolean) =>
  Effect.suspend(() => (holds() ? Effect.void : Effect.fail("not yet"))).pipe(
    Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 1_500 })
  )

const childrenOf = (spans: ReadonlyArray<CollectedSpan>, parent: CollectedSpan | undefined) =>
  spans.filter((it) => parent !== undefined && it.parentSpanId === parent.spanId)

describe("a collector", () => {
  it.live("gets request, verb, work and phases as one trace, the metrics, and the lines of the log", () =>
    Effect.gen(function* () {
      const collector = yield* collect
      const server = yield* serveSimulated({ under: layerOtlp(collector.url, intervals) })
      expect((yield* create(server, "one")).status).toBe(201)
      expect((yield* send(server, "POST", "/instances/one/standby")).status).toBe(200)
      yield* send(server, "POST", "/instances", {
        json: { name: "x", image: 5, env: { PASSWORD: 5, T: secret } }
      })
      const { spans, logs, metrics } = collector
      yield* eventually(
        () =>
          spans.some((it) => it.name === "verb standby") &&
          spans.some((it) => it.name === "POST /instances/:id/standby") &&
          logs.some((it) => attributesOf(it.attributes)["event"] === "snapshot.written") &&
          metrics.has("dataplane_verb_seconds")
      )
      expect(collector.refused).toEqual([])
      expect([...collector.services]).toEqual(["cloud-hypervisor-dataplane"])
      const request = spans.find((it) => it.name === "POST /instances/:id/standby")
      const verb = childrenOf(spans, request).find((it) => it.name === "verb standby")
      const work = childrenOf(spans, verb)
      expect(work.map((it) => it.name)).toContain("work Snapshot")
      const phases = childrenOf(
        spans,
        work.find((it) => it.name === "work Snapshot")
      )
      expect(phases.map((it) => it.name)).toEqual(
        expect.arrayContaining(["pause", "snapshot", "manifest", "commit"])
      )
      expect(new Set([request, verb, ...work, ...phases].map((it) => it?.traceId)).size).toBe(1)
      expect(attributesOf(verb?.attributes ?? [])).toMatchObject({ instance_id: "one", outcome: "reached" })
      expect(attributesOf(request?.attributes ?? [])).toMatchObject({
        "http.route": "/instances/:id/standby",
        "http.response.status_code": 200
      })
      const created = spans.find((it) => it.name === "POST /instances")
      expect(spans.find((it) => it.name === "verb create")?.traceId).toBe(created?.traceId)
      // Each line of stdout arrived once, with the same fields.
      const event = server.events.find((it) => it["event"] === "snapshot.written")
      const sent = logs.filter((it) => attributesOf(it.attributes)["event"] === "snapshot.written")
      expect(sent).toHaveLength(1)
      expect(sent[0]?.body.stringValue).toBe(event?.["message"])
      expect(attributesOf(sent[0]?.attributes ?? [])).toMatchObject({ instance_id: "one", snapshot: 1 })
      for (const body of collector.bodies) expect(body).not.toContain(secret)
    }).pipe(Effect.scoped)
  )

  it.live("gets a span of each host command, without its arguments, and a failure without its values", () =>
    Effect.gen(function* () {
      const collector = yield* collect
      yield* Effect.all([run("true", [secret]), Effect.flip(run("sh", ["-c", "exit 3"]))]).pipe(
        Effect.provide(layerOtlp(collector.url, intervals)),
        Effect.scoped
      )
      yield* eventually(() => collector.spans.length >= 2)
      expect(collector.spans.map(({ name, status }) => [name, status.code])).toEqual([
        ["host true", 1],
        ["host sh", 2]
      ])
      for (const body of collector.bodies) expect(body).not.toContain(secret)
    }).pipe(Effect.scoped)
  )

  it.live("that OTEL_EXPORTER_OTLP_ENDPOINT names is sent to by the service itself, to its last line", () =>
    Effect.gen(function* () {
      const collector = yield* collect
      const dataDir = yield* temporaryDirectory("otlp")
      yield* Effect.addFinalizer(() =>
        Effect.promise(() => fs.rm(layout(dataDir).run, { recursive: true, force: true }))
      )
      const service = yield* Effect.acquireRelease(
        Effect.sync(() =>
          execa(process.execPath, ["src/main.ts", "serve"], {
            cwd: repository,
            env: {
              VMM: "simulated",
              PORT: "0",
              DATA_DIR: dataDir,
              OTEL_EXPORTER_OTLP_ENDPOINT: collector.url
            },
            reject: false,
            all: true
          })
        ),
        (it) => Effect.promise(async () => void (it.kill("SIGKILL"), await it))
      )
      const lines = () => collector.logs.map((it) => attributesOf(it.attributes)["event"])
      yield* eventually(() => lines().includes("server.started"))
      service.kill("SIGTERM")
      const ended = yield* Effect.promise(() => service)
      expect([ended.exitCode, ended.exitCode === 0 ? "" : ended.all]).toEqual([0, ""])
      expect(lines()).toContain("server.draining")
      expect([...collector.metrics]).toContain("dataplane_instances")
      expect(collector.refused).toEqual([])
    }).pipe(Effect.scoped)
  )

  const dead: ReadonlyArray<readonly [string, Effect.Effect<string, never, Scope.Scope>]> = [
    ["is not there", Effect.succeed("http://127.0.0.1:1")],
    ["takes everything and never answers", Effect.map(blackHole, ({ url }) => url)],
    ["refuses everything", Effect.map(collect, ({ url }) => `${url}/no/such/place`)]
  ]
  for (const [what, endpoint] of dead)
    it.live(`that ${what} breaks nothing, and the service still stops`, () =>
      Effect.gen(function* () {
        const scope = yield* Scope.make()
        const url = yield* endpoint
        const server = yield* serveSimulated({ under: layerOtlp(url, intervals) }).pipe(Scope.provide(scope))
        expect((yield* create(server, "one")).status).toBe(201)
        for (let index = 0; index < 200; index++)
          expect((yield* send(server, "GET", "/instances/one")).status).toBe(200)
        for (const name of ["pause", "resume", "standby", "restore", "stop"])
          expect((yield* send(server, "POST", `/instances/one/${name}`)).status).toBe(200)
        expect(server.events.filter((it) => it["event"] === "defect")).toEqual([])
        expect(server.events.some((it) => it["event"] === "instance.transition")).toBe(true)
        yield* Scope.close(scope, Exit.void)
        expect(
          Exit.isSuccess(yield* Effect.exit(send(server, "GET", "/health").pipe(Effect.timeout(5_000))))
        ).toBe(false)
      }).pipe(Effect.scoped)
    )
})
