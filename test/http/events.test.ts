import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { InstanceEvent } from "../../src/domain/Event.ts"
import { InstanceId } from "../../src/domain/Ids.ts"
import { epoch, fakeInstance } from "../support/fakeServices.ts"
import { send, serveFakes } from "../support/httpServer.ts"

const event = (id: number): InstanceEvent => ({
  id,
  time: epoch,
  type: "instance.changed",
  instance_id: InstanceId.make("a1"),
  generation: id,
  from: "Created",
  to: "Running",
  transition: null,
  ready: false,
  exit: null
})

describe("GET /events", () => {
  it.live(
    "sends each event with its own id as cursor, and resumes behind the one that the client names",
    () =>
      Effect.gen(function* () {
        const server = yield* serveFakes({})
        const asked: Array<number | null> = []
        server.world.events = (after) => {
          asked.push(Option.getOrNull(after))
          return Stream.fromIterable([event(7), event(8)])
        }
        const answer = yield* send(server, "GET", "/events?since=6")
        assert.strictEqual(answer.headers.get("content-type"), "text/event-stream")
        const ids = answer.text.match(/^id: \d+$/gmu)
        assert.deepStrictEqual(ids, ["id: 7", "id: 8"])
        yield* send(server, "GET", "/events?since=6", { headers: { "last-event-id": "7" } })
        yield* send(server, "GET", "/events")
        assert.deepStrictEqual(asked, [6, 7, null])
      }).pipe(Effect.scoped)
  )

  it.live("refuses a cursor that is none", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes({})
      assert.strictEqual((yield* send(server, "GET", "/events?since=-1")).status, 400)
      assert.strictEqual((yield* send(server, "GET", "/events?since=x")).status, 400)
    }).pipe(Effect.scoped)
  )
})

describe("PATCH /instances/{id}", () => {
  it.live("changes what it names and nothing else, and shows the new generation", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes({})
      const before = fakeInstance("a1")
      server.world.instances.set("a1", before)
      const answer = yield* send(server, "PATCH", "/instances/a1", { json: { labels: { tier: "web" } } })
      assert.strictEqual(answer.status, 200)
      const after = JSON.parse(answer.text)
      assert.deepStrictEqual(after.labels, { tier: "web" })
      assert.strictEqual(after.name, before.name)
      assert.strictEqual(after.generation, before.generation + 1)
    }).pipe(Effect.scoped)
  )

  it.live("refuses what cannot be changed and what is no memory size", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes({})
      server.world.instances.set("a1", fakeInstance("a1"))
      for (const json of [
        { vcpus: 4 },
        { memory_mb: 1 },
        { memory_mb: 1.5 },
        { restart_policy: "often" },
        []
      ])
        assert.strictEqual((yield* send(server, "PATCH", "/instances/a1", { json })).status, 400)
      assert.strictEqual((yield* send(server, "PATCH", "/instances/b", { json: {} })).status, 404)
    }).pipe(Effect.scoped)
  )
})
