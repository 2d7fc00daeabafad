/** GET /metrics and GET /resources after a life with everything in it: every family of the contract, by the format's rules. */
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { Instance } from "../../src/domain/Instance.ts"
import { Resources } from "../../src/domain/Resources.ts"
import { crashVmm } from "../../src/host/simulated/incidents.ts"
import { InstanceId } from "../../src/domain/Ids.ts"
import { LogEvent } from "../../src/telemetry/LogEvent.ts"
import { tellMetrics } from "../../src/telemetry/metricsSnapshot.ts"
import { layerLogger } from "../../src/telemetry/Logger.ts"
import { type MetricFamily, parseExposition, type Sample } from "../support/exposition.ts"
import { fakeResources } from "../support/fakeResources.ts"
import { fakeInstance, fakeWorld } from "../support/fakeServices.ts"
import { send, serveFakes } from "../support/httpServer.ts"
import { serveSimulated, type SimulatedServer } from "../support/simulatedServer.ts"

const scrape = (server: { readonly url: string }) =>
  Effect.map(send(server, "GET", "/metrics"), ({ status, text }) => {
    expect(status).toBe(200)
    return parseExposition(text)
  })

const sampleOf = (
  families: ReadonlyMap<string, MetricFamily>,
  family: string,
  labels: Readonly<Record<string, string>>,
  suffix = ""
): number | undefined =>
  families
    .get(family)
    ?.samples.find(
      (it) =>
        it.name === family + suffix &&
        Object.entries(labels).every(([name, value]) => it.labels[name] === value)
    )?.value

const create = (server: SimulatedServer, id: string, more: object = {}) =>
  send(server, "POST", "/instances", {
    json: { id, name: id, image: "img-demo", memory_mb: 256, vcpus: 1, ...more }
  })

const verb = (server: SimulatedServer, id: string, name: string) =>
  send(server, "POST", `/instances/${id}/${name}`)

/** Once round all verbs, a crash with its restart, and a delete. */
const live = Effect.fnUntraced(function* (server: SimulatedServer, id: string) {
  expect((yield* create(server, id, { restart_policy: "on-failure" })).status).toBe(201)
  for (const name of ["pause", "resume", "shutdown", "start", "standby", "restore", "stop", "start"])
    expect([name, (yield* verb(server, id, name)).status]).toEqual([name, 200])
  yield* Effect.sync(() => crashVmm(server.world, InstanceId.make(id)))
  // The service sees the death in its own time; from there on the API can be waited on.
  yield* Effect.suspend(() =>
    server.events.some((it) => it["event"] === "instance.restart") ? Effect.void : Effect.fail("not yet")
  ).pipe(Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 1_000 }))
  const back = yield* send(server, "GET", `/instances/${id}/wait?state=Running&timeout_ms=20000`)
  expect(back.status).toBe(200)
})

const phases: Readonly<Record<string, ReadonlyArray<string>>> = {
  create: ["prepare", "overlay", "config", "tap", "spawn", "boot"],
  pause: ["pause"],
  resume: ["resume"],
  shutdown: ["ask"],
  standby: ["pause", "snapshot", "manifest", "commit", "kill", "tap-remove"],
  restore: ["check", "tap", "spawn", "resume"],
  stop: ["ask", "kill", "tap-remove", "run-remove"],
  delete: ["files-remove"]
}

describe("metrics", () => {
  it.live("every verb, each of its phases, gauges and counters are there, and their text is legal", () =>
    Effect.gen(function* () {
      const server = yield* serveSimulated()
      yield* create(server, "other")
      yield* live(server, "one")
      yield* verb(server, "one", "stop")
      yield* send(server, "DELETE", "/instances/one")
      yield* send(server, "GET", "/instances/nobody")
      const families = yield* scrape(server)
      for (const [name, steps] of Object.entries(phases)) {
        expect([
          name,
          sampleOf(families, "dataplane_verb_seconds", { verb: name, outcome: "reached" }, "_count")
        ]).toEqual([name, expect.toSatisfy((count: number) => count >= 1)])
        for (const phase of steps)
          expect([
            name,
            phase,
            sampleOf(families, "dataplane_phase_seconds", { verb: name, phase }, "_count")
          ]).toEqual([name, phase, expect.toSatisfy((count: number) => count >= 1)])
      }
      expect(sampleOf(families, "dataplane_instances", { state: "Running" })).toBe(1)
      expect(sampleOf(families, "dataplane_instances", { state: "Standby" })).toBe(0)
      expect(sampleOf(families, "dataplane_memory_bytes", { kind: "allocated" })).toBe(256 * 2 ** 20)
      expect(sampleOf(families, "dataplane_addresses", { kind: "allocated" })).toBe(1)
      for (const reason of ["standby", "stopped", "vmm-died"])
        expect(sampleOf(families, "dataplane_vmm_exits_total", { reason })).toBeGreaterThanOrEqual(1)
      const missed = { route: "/instances/:id", method: "GET", status: "404" }
      expect(sampleOf(families, "dataplane_http_requests_total", missed)).toBeGreaterThanOrEqual(1)
      expect(families.get("dataplane_reconciled_leftovers_total")?.samples).toHaveLength(3)
    }).pipe(Effect.scoped)
  )

  it.live("what happens to an instance is told, each event once, with its fields", () =>
    Effect.gen(function* () {
      const server = yield* serveSimulated()
      yield* live(server, "one")
      const decode = Schema.decodeUnknownSync(LogEvent)
      const told = server.events.map((line) => decode(line))
      const of = (event: string) => told.filter((line) => line.event === event)
      // create (shutdown and start keep the VMM), restore, start after stop, restart.
      expect(of("vmm.spawned").map(({ pid }) => typeof pid)).toEqual(["number", "number", "number", "number"])
      expect(of("snapshot.written").map((it) => it["snapshot"])).toEqual([1])
      expect(of("vmm.exited").map(({ reason }) => reason)).toEqual(["standby", "stopped", "vmm-died"])
      expect(of("instance.restart").map(({ reason, restarts }) => [reason, restarts])).toEqual([
        ["vmm-died", 1]
      ])
      expect(of("instance.exit").map((it) => it["to"])).toContain("Waiting")
    }).pipe(Effect.scoped)
  )

  it.live("no series names an instance, an image, or a path that a client made up", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      for (let index = 0; index < 50; index++) {
        server.world.instances.set(`i${index}`, fakeInstance(`i${index}`, index))
        yield* send(server, "GET", `/instances/i${index}`)
        yield* send(server, "GET", `/made-up-${index}`)
        yield* send(server, "DELETE", `/instances/gone-${index}`)
      }
      const families = yield* scrape(server)
      const samples = [...families.values()].flatMap((it): ReadonlyArray<Sample> => it.samples)
      const values = new Set(samples.flatMap(({ labels }) => Object.values(labels)))
      for (const value of values) expect(value).not.toMatch(/^i\d|made-up|gone-|img-/u)
      const requests = families.get("dataplane_http_requests_total")?.samples ?? []
      expect(new Set(requests.map(({ labels }) => labels["route"])).size).toBeLessThanOrEqual(60)
    }).pipe(Effect.scoped)
  )

  it.effect("once a minute the log has the figures", () =>
    Effect.gen(function* () {
      const lines: Array<string> = []
      const sink = { stdout: (line: string) => void lines.push(line), stderr: () => undefined }
      const world = fakeWorld()
      world.instances.set("a", fakeInstance("a", 0, { memory_mb: 512 }))
      yield* Effect.gen(function* () {
        yield* tellMetrics(fakeResources(world).totals)
        yield* TestClock.adjust("59 seconds")
        expect(lines).toHaveLength(0)
        yield* TestClock.adjust("1 seconds")
        expect(lines).toHaveLength(1)
        yield* TestClock.adjust("2 minutes")
        expect(lines).toHaveLength(3)
      }).pipe(Effect.provide(layerLogger({ logFormat: "json", logLevel: "info" }, sink)))
      expect(Schema.decodeSync(Schema.fromJsonString(LogEvent))(lines[0] ?? "")).toMatchObject({
        event: "metrics.snapshot",
        instances: 1,
        running: 1,
        memory_allocated_mb: 512,
        http_requests: expect.any(Number)
      })
    }).pipe(Effect.scoped)
  )
})

describe("resources", () => {
  it.live("say what is given out and what is free, in all and for each instance", () =>
    Effect.gen(function* () {
      const server = yield* serveSimulated()
      const ask = Effect.map(send(server, "GET", "/resources"), ({ status, json }) => {
        expect(status).toBe(200)
        return Schema.decodeUnknownSync(Resources, { onExcessProperty: "error" })(json)
      })
      const empty = yield* ask
      expect([empty.cpus.allocated, empty.memory_mb.allocated, empty.addresses.allocated]).toEqual([0, 0, 0])
      yield* create(server, "a", { vcpus: 3, overlay_mb: 512 })
      yield* create(server, "b", { network: { enabled: false } })
      const both = yield* ask
      expect([both.cpus.allocated, both.memory_mb.allocated]).toEqual([4, 512])
      expect(both.memory_mb.free).toBe(empty.memory_mb.free - 512)
      expect([both.addresses.allocated, both.addresses.free]).toEqual([1, empty.addresses.capacity - 1])
      expect(both.disk_mb.allocated).toBe(512 + 10_240)
      const a = yield* send(server, "GET", "/instances/a")
      const { network } = Schema.decodeUnknownSync(Instance)(a.json)
      expect(both.instances[0]).toMatchObject({
        instance_id: "a",
        state: "Running",
        vcpus: 3,
        ip: network.ip
      })
      expect(both.instances[1]).toMatchObject({ instance_id: "b", ip: null })
      // In standby it holds its address and its disk, neither CPUs nor memory.
      expect((yield* verb(server, "a", "standby")).status).toBe(200)
      const asleep = yield* ask
      expect([asleep.cpus.allocated, asleep.memory_mb.allocated, asleep.addresses.allocated]).toEqual([
        1, 256, 1
      ])
      yield* send(server, "DELETE", "/instances/a")
      yield* send(server, "DELETE", "/instances/b")
      expect(yield* ask).toEqual(empty)
    }).pipe(Effect.scoped)
  )
})
