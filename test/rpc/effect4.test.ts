/** A client with Effect 4 gets over HTTP and over a WebSocket what a client of REST gets: values, streams and problems. */
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Stream from "effect/Stream"
import { ImageId, InstanceId } from "../../src/domain/Ids.ts"
import { InstanceNotFound, InvalidState, InternalError } from "../../src/domain/problems.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { serveFakes } from "../support/httpServer.ts"
import { connect, transports } from "./effect4.ts"

const a1 = InstanceId.make("a1")

for (const [name, protocol] of transports)
  describe(`over ${name}`, () => {
    const served = Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      return { server, world: server.world, client: yield* connect(protocol(server.url)) }
    })

    it.live("answers with the value, the defaults filled in", () =>
      Effect.gen(function* () {
        const { client, world } = yield* served
        expect(yield* client["instances.get"]({ id: a1 })).toEqual(world.instances.get("a1"))
        const made = yield* client["instances.create"]({
          name: "one",
          image: "img-nginx",
          id: InstanceId.make("b1")
        })
        expect(made).toMatchObject({ id: "b1", memory_mb: 1024, state: "Running" })
        expect((yield* client["instances.list"]({ state: "Running" })).map(({ id }) => id)).toEqual([
          "a1",
          "b1"
        ])
        expect(yield* client["images.list"]()).toHaveLength(1)
        expect(yield* client["instances.remove"]({ id: a1 })).toBeUndefined()
      }).pipe(Effect.scoped)
    )

    it.live("fails with the problem that REST would send", () =>
      Effect.gen(function* () {
        const { client } = yield* served
        const missing = yield* Effect.flip(client["instances.get"]({ id: InstanceId.make("nope") }))
        expect(missing).toBeInstanceOf(InstanceNotFound)
        expect(missing).toMatchObject({ status: 404, instance_id: "nope" })
        yield* client["instances.stop"]({ id: a1 })
        const illegal = yield* Effect.flip(client["instances.pause"]({ id: a1 }))
        expect(illegal).toBeInstanceOf(InvalidState)
        expect(illegal).toMatchObject({ state: "Stopped", allowed: ["delete"] })
        const inUse = yield* Effect.flip(client["images.remove"]({ id: ImageId.make("img-nginx") }))
        expect(inUse).toMatchObject({ status: 409, instances: ["a1"] })
      }).pipe(Effect.scoped)
    )

    it.live("streams", () =>
      Effect.gen(function* () {
        const { client, world } = yield* served
        world.logs = () =>
          Stream.range(1, 3).pipe(
            Stream.map((n) => ({ cursor: n, time: "2026-01-31T12:00:00.000Z", line: `${n}` }))
          )
        const lines = yield* Stream.runCollect(client["instances.logs"]({ id: a1 }))
        expect(lines.map(({ line }) => line)).toEqual(["1", "2", "3"])
        const missing = yield* Effect.flip(
          Stream.runDrain(client["instances.logs"]({ id: InstanceId.make("nope") }))
        )
        expect(missing).toBeInstanceOf(InstanceNotFound)
      }).pipe(Effect.scoped)
    )

    it.live("a defect is a problem without its cause, and the log has it", () =>
      Effect.gen(function* () {
        const { client, server, world } = yield* served
        world.failures.get = Effect.die(new Error("secret /var/lib/somewhere"))
        const exit = yield* Effect.exit(client["instances.get"]({ id: a1 }))
        expect(Exit.isFailure(exit)).toBe(true)
        const problem = yield* Effect.flip(client["instances.get"]({ id: a1 }))
        expect(problem).toBeInstanceOf(InternalError)
        expect(JSON.stringify(problem)).not.toContain("secret")
        expect(JSON.stringify(server.events)).toContain("secret /var/lib/somewhere")
      }).pipe(Effect.scoped)
    )
  })
