/** A client with Effect 3 and definitions of its own is served on /rpc/v3 as one with Effect 4 is on /rpc. */
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Redacted from "effect/Redacted"
import { signToken } from "../../src/api/Token.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { serveFakes } from "../support/httpServer.ts"
import { type Call, run, transports } from "./effect3/client.ts"

const secret = "a secret that is long enough to be one"
const time = "2026-01-31T12:00:00.000Z"

for (const [name, transport] of transports)
  describe(`over ${name}`, () => {
    const served = Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      const call = (which: Call) => Effect.promise(() => run(transport, server.url, which))
      return { server, world: server.world, call }
    })

    it.live("unary calls, with and without payload, with and without answer", () =>
      Effect.gen(function* () {
        const { call, world } = yield* served
        expect(yield* call("unary")).toMatchObject({ value: { id: "a1", state: "Running", memory_mb: 1024 } })
        expect(yield* call("create")).toMatchObject({ value: { id: "b1", memory_mb: 1024 } })
        expect(yield* call("noPayload")).toEqual({ value: [{ id: "img-nginx" }] })
        expect(yield* call("noAnswer")).toEqual({ value: null })
        expect([...world.instances.keys()]).toEqual(["b1"])
      }).pipe(Effect.scoped)
    )

    it.live("streams, to their end or as far as the client reads", () =>
      Effect.gen(function* () {
        const { call, world } = yield* served
        const ended = yield* Deferred.make<void>()
        const lines = Stream.fromIterable(["å", "本", "🙂"]).pipe(
          Stream.map((line, cursor) => ({ cursor, time, line }))
        )
        world.logs = (_id, { follow }) =>
          follow
            ? Stream.concat(lines, Stream.never).pipe(Stream.ensuring(Deferred.succeed(ended, undefined)))
            : lines
        expect(yield* call("stream")).toMatchObject({
          value: [{ line: "å" }, { line: "本" }, { line: "🙂" }]
        })
        expect(yield* call("firstTwo")).toMatchObject({ value: [{ cursor: 0 }, { cursor: 1 }] })
        yield* Deferred.await(ended)
      }).pipe(Effect.scoped)
    )

    it.live("problems are typed errors, of a call and of a stream", () =>
      Effect.gen(function* () {
        const { call } = yield* served
        const problem = { status: 404, type: expect.stringContaining("/instance-not-found") }
        expect(yield* call("typedError")).toMatchObject({ problem })
        expect(yield* call("streamError")).toMatchObject({ problem })
      }).pipe(Effect.scoped)
    )

    it.live("what no definition allows is a defect, and one of the service a problem", () =>
      Effect.gen(function* () {
        const { call, world } = yield* served
        expect(yield* call("malformed")).toMatchObject({ defect: expect.stringContaining("1 to 63") })
        expect(yield* call("unknown")).toMatchObject({ defect: expect.stringContaining("nowhere.known") })
        world.failures.get = Effect.die(new Error("secret"))
        const outcome = yield* call("unary")
        expect(outcome).toMatchObject({ problem: { status: 500 } })
        expect(JSON.stringify(outcome)).not.toContain("secret")
      }).pipe(Effect.scoped)
    )

    it.live("a token comes with each call", () =>
      Effect.gen(function* () {
        const server = yield* serveFakes({ env: { JWT_SECRET: secret, HOST: "127.0.0.1" } })
        server.world.instances.set("a1", fakeInstance("a1"))
        const token = yield* signToken({ secret: Redacted.make(secret), scope: "read", expiresInS: 60 })
        const call = (which: Call, headers = {}) =>
          Effect.promise(() => run(transport, server.url, which, headers))
        const authorization = { authorization: `Bearer ${token}` }
        expect(yield* call("unary")).toMatchObject({ problem: { status: 401 } })
        expect(yield* call("unary", authorization)).toMatchObject({ value: { id: "a1" } })
        expect(yield* call("noAnswer", authorization)).toMatchObject({ problem: { status: 403 } })
      }).pipe(Effect.scoped)
    )
  })
