/** A change that names the generation it expects happens to that generation or not at all. */
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { InstanceId } from "../../src/domain/Ids.ts"
import { PreconditionFailed } from "../../src/domain/problems.ts"
import { specJson } from "../../src/http/specification.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { send, serveFakes } from "../support/httpServer.ts"
import { makePlace, request } from "../support/simulatedService.ts"

const forms: ReadonlyArray<readonly [string, ReadonlyArray<number> | undefined]> = [
  ['"3"', [3]],
  ["3", [3]],
  ['"2", "3"', [2, 3]],
  ["2,3", [2, 3]],
  ["*", undefined],
  ['W/"3"', []],
  ['"abc"', []]
]
const changes: ReadonlyArray<readonly [string, string, object?]> = [
  ["POST", "/instances/a1/pause"],
  ["POST", "/instances/a1/stop?discard_snapshot=false"],
  ["PATCH", "/instances/a1", { name: "other" }],
  ["DELETE", "/instances/a1"]
]

describe("If-Match", () => {
  it.live("is read in every form, and reaches the instance with the change", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      for (const [method, path, json] of changes)
        for (const [header, generations] of forms) {
          server.world.instances.set("a1", fakeInstance("a1"))
          server.world.calls.length = 0
          const answer = yield* send(server, method, path, { json, headers: { "if-match": header } })
          expect([method, header, answer.status]).toEqual([method, header, method === "DELETE" ? 204 : 200])
          const [, ...args] = server.world.calls.at(-1) ?? []
          const options: unknown = args.at(-1)
          if (generations === undefined) expect(options).not.toHaveProperty("ifMatch")
          else expect(options).toMatchObject({ ifMatch: generations })
        }
    }).pipe(Effect.scoped)
  )

  it.live("what is no ETag is refused before anything happens", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      for (const header of ["", "three", '"3', "-1", "3;4", '"3" "4"', "3,,4"]) {
        const answer = yield* send(server, "POST", "/instances/a1/pause", { headers: { "if-match": header } })
        expect([header, answer.status]).toEqual([header, 400])
        expect(answer.json).toMatchObject({ errors: [{ path: ["headers", "if-match"] }] })
      }
      expect(server.world.calls).toEqual([])
    }).pipe(Effect.scoped)
  )

  it("is in the document wherever an instance is changed, with its 412", () => {
    const document = JSON.parse(specJson)
    for (const [method, path] of changes) {
      const template = path.replace("a1", "{id}").split("?")[0] ?? ""
      const operation = document.paths[template][method.toLowerCase()]
      expect(operation.parameters.map(({ name }: { name: string }) => name)).toContain("if-match")
      expect(Object.keys(operation.responses)).toContain("412")
    }
  })
})

describe("the actor's decision", () => {
  const a1 = InstanceId.make("a1")

  it.effect(
    "one of two changes that saw the same generation happens, and the other is told of the new one",
    () =>
      Effect.gen(function* () {
        const place = yield* makePlace()
        const { instances } = yield* place.start
        const { generation } = yield* instances.create(request("a1"))
        const options = { ifMatch: [generation] }
        const both = yield* Effect.all(
          [
            Effect.result(instances.patch(a1, { name: "first" }, options)),
            Effect.result(instances.patch(a1, { name: "second" }, options))
          ],
          { concurrency: "unbounded" }
        )
        expect(both.map(({ _tag: tag }) => tag).toSorted()).toEqual(["Failure", "Success"])
        const now = yield* instances.get(a1)
        const lost = both.flatMap((it) => (it._tag === "Failure" ? [it.failure] : []))
        expect(lost[0]).toBeInstanceOf(PreconditionFailed)
        expect(lost[0]).toMatchObject({ status: 412, instance_id: "a1", generation: now.generation })
        expect(now.generation).toBe(generation + 1)
      }).pipe(Effect.scoped)
  )

  it.effect("no verb, not even a delete, touches an instance that moved on", () =>
    Effect.gen(function* () {
      const place = yield* makePlace()
      const { instances } = yield* place.start
      const { generation } = yield* instances.create(request("a1"))
      yield* instances.patch(a1, { name: "other" })
      const before = yield* instances.get(a1)
      const stale = { ifMatch: [generation] }
      for (const verb of ["pause", "stop", "standby", "start"] as const)
        expect(yield* Effect.flip(instances.command(a1, verb, stale))).toBeInstanceOf(PreconditionFailed)
      expect(yield* Effect.flip(instances.remove(a1, stale))).toBeInstanceOf(PreconditionFailed)
      expect(yield* Effect.flip(instances.remove(a1, { ifMatch: [] }))).toBeInstanceOf(PreconditionFailed)
      expect(yield* instances.get(a1)).toEqual(before)
      expect((yield* instances.command(a1, "pause", { ifMatch: [before.generation] })).state).toBe("Paused")
    }).pipe(Effect.scoped)
  )
})
