/** The server itself: what is not HTTP, many at once, slow ones, and how it stops. */
import { once } from "node:events"
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { LogEvent } from "../../src/telemetry/LogEvent.ts"
import { epoch, fakeInstance } from "../support/fakeServices.ts"
import { send, serveFakes, type TestServerOptions } from "../support/httpServer.ts"
import { bodyOf, exchange, openSocket } from "../support/rawHttp.ts"

describe("what is not HTTP", () => {
  const cases: ReadonlyArray<readonly [string, string, number]> = [
    ["nonsense", "hello\r\n\r\n", 400],
    ["TLS", "\u0016\u0003\u0001\u0002\u0000\u0001", 400],
    [
      "two lengths",
      "POST /images HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
      400
    ],
    [
      "a length and chunks",
      "POST /images HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
      400
    ],
    ["a header without end", `GET / HTTP/1.1\r\nhost: h\r\nx: ${"y".repeat(20_000)}\r\n\r\n`, 431],
    ["a request line without end", `GET /${"a".repeat(20_000)} HTTP/1.1\r\nhost: h\r\n\r\n`, 431]
  ]
  for (const [name, bytes, status] of cases)
    it.live(`${name} gets a problem and a closed connection`, () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        const answer = yield* exchange(server.port, bytes)
        expect(answer).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `, "u"))
        expect(answer).toContain("application/problem+json")
        expect(JSON.parse(bodyOf(answer))).toMatchObject({ status, detail: expect.any(String) })
        expect((yield* send(server, "GET", "/health")).status).toBe(200)
      }).pipe(Effect.scoped)
    )

  it.live("headers that never end are cut off in time", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes({ bounds: { headersMs: 100 } })
      const answer = yield* exchange(server.port, "GET /health HTTP/1.1\r\nhost: h\r\nx:")
      expect(answer).toMatch(/^HTTP\/1\.1 408 /u)
    }).pipe(Effect.scoped)
  )

  it.live("a name that was made to point here is refused, an address and localhost are not", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const status = (host: string) =>
        Effect.map(
          exchange(server.port, `GET /health HTTP/1.1\r\nhost: ${host}\r\nconnection: close\r\n\r\n`),
          (answer) => answer.slice(9, 12)
        )
      expect(yield* status("rebound.example:8080")).toBe("403")
      for (const host of ["localhost", "localhost:1", "127.0.0.1:8080", "[::1]:8080", "10.0.0.1"])
        expect([host, yield* status(host)]).toEqual([host, "200"])
      const tokens = yield* serveFakes({ env: { JWT_SECRET: "s".repeat(32) } })
      const named = yield* exchange(
        tokens.port,
        "GET /health HTTP/1.1\r\nhost: vms.example\r\nconnection: close\r\n\r\n"
      )
      expect(named).toMatch(/^HTTP\/1\.1 200 /u)
    }).pipe(Effect.scoped)
  )
})

describe("many at once", () => {
  it.live("two hundred requests of every kind are all answered, each with its own answer", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      for (let index = 0; index < 50; index++)
        server.world.instances.set(`i${index}`, fakeInstance(`i${index}`, index))
      const one = (index: number) => {
        const id = `i${index % 50}`
        switch (index % 4) {
          case 0:
            return Effect.map(send(server, "GET", `/instances/${id}`), ({ json }) =>
              expect(json).toMatchObject({ id })
            )
          case 1:
            return Effect.map(send(server, "GET", `/instances/nope-${index}`), ({ json }) =>
              expect(json).toMatchObject({ status: 404, instance_id: `nope-${index}` })
            )
          case 2:
            return Effect.map(
              send(server, "POST", "/instances", {
                json: { id: `new-${index}`, name: "n", image: "img-nginx" }
              }),
              ({ json }) => expect(json).toMatchObject({ id: `new-${index}`, state: "Running" })
            )
          default:
            return Effect.map(send(server, "POST", "/instances", { json: { name: index } }), ({ json }) =>
              expect(json).toMatchObject({ status: 400 })
            )
        }
      }
      yield* Effect.all(
        Array.from({ length: 200 }, (_, index) => one(index)),
        { concurrency: "unbounded", discard: true }
      )
      expect(server.world.instances.size).toBe(100)
      expect(server.events.filter(({ event }) => event === "defect")).toEqual([])
    }).pipe(Effect.scoped)
  )
})

describe("bounds and the request log", () => {
  it.live(
    "beyond the bound a waiting connection gives way; where all are at work the newcomer is refused",
    () =>
      Effect.gen(function* () {
        const server = yield* serveFakes({ bounds: { connectionsMax: 3 } })
        server.world.events = () => Stream.never
        const ask = "GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        const askOnce = ask.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")
        yield* Effect.gen(function* () {
          const sockets = yield* Effect.forEach([1, 2, 3], () => openSocket(server.port))
          for (const socket of sockets) {
            socket.write(ask)
            const [chunk] = yield* Effect.promise(() => once(socket, "data"))
            expect(String(chunk)).toMatch(/^HTTP\/1\.1 200 /u)
          }
          const [longest, ...others] = sockets
          const closed = Effect.promise(async () => longest !== undefined && once(longest, "close"))
          const [answer] = yield* Effect.all([exchange(server.port, askOnce), closed], { concurrency: 2 })
          expect(answer).toMatch(/^HTTP\/1\.1 200 /u)
          expect(others.map((socket) => socket.destroyed)).toEqual([false, false])
        }).pipe(Effect.scoped)
        yield* Effect.gen(function* () {
          const sockets = yield* Effect.forEach([1, 2, 3], () => openSocket(server.port))
          for (const socket of sockets) {
            socket.write("GET /events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            yield* Effect.promise(() => once(socket, "data"))
          }
          expect(yield* exchange(server.port, askOnce)).toBe("")
          expect(sockets.map((socket) => socket.destroyed)).toEqual([false, false, false])
        }).pipe(Effect.scoped)
        // The server notices the closed connections in its own time; each attempt is one round trip to it.
        const answer = yield* Effect.repeat(exchange(server.port, askOnce), {
          until: (text) => text !== "",
          times: 1_000
        })
        expect(answer).toMatch(/^HTTP\/1\.1 200 /u)
      }).pipe(Effect.scoped)
  )

  it.live("logs errors always and one of n successes, never a query or a body", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes({ bounds: { requestLogEvery: 10 } })
      for (let index = 0; index < 30; index++) yield* send(server, "GET", "/images")
      yield* send(server, "GET", "/instances?label=secret=hunter2")
      yield* send(server, "GET", "/instances/nope")
      yield* send(server, "POST", "/instances", {
        json: { name: "n", image: "i", env: { P: "hunter2" }, x: 1 }
      })
      const requests = server.events.filter(({ event }) => event === "http.request")
      expect(requests.map(({ status, route }) => [status, route])).toEqual([
        [200, "/images"],
        [200, "/images"],
        [200, "/images"],
        [404, "/instances/:id"],
        [400, "/instances"]
      ])
      expect(JSON.stringify(server.events)).not.toContain("hunter2")
      for (const event of server.events)
        expect(yield* Schema.decodeUnknownEffect(LogEvent)(event)).toEqual(event)
    }).pipe(Effect.scoped)
  )
})

describe("stopping", () => {
  /** A server whose scope the test closes itself. */
  const closable = (options: TestServerOptions) =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const server = yield* Scope.provide(serveFakes(options), scope)
      server.world.instances.set("a1", fakeInstance("a1"))
      return { server, close: Scope.close(scope, Exit.void) }
    })

  it.live("announces itself, ends streams at once and lets a request under way finish", () =>
    Effect.gen(function* () {
      const { server, close } = yield* closable({ bounds: { drainMs: 20_000 } })
      const { world } = server
      const inside = yield* Deferred.make<void>()
      const goOn = yield* Deferred.make<void>()
      world.logs = () => Stream.concat(Stream.make({ cursor: 1, time: epoch, line: "x" }), Stream.never)
      const slow = Effect.andThen(Deferred.succeed(inside, undefined), Deferred.await(goOn))
      world.failures.command = Effect.andThen(slow, Effect.die(new Error("the request went on")))
      const stream = yield* Effect.forkChild(send(server, "GET", "/instances/a1/logs?follow=true"))
      const verb = yield* Effect.forkChild(send(server, "POST", "/instances/a1/pause"))
      yield* Deferred.await(inside)
      const closing = yield* Effect.forkChild(close)
      // The stream ends because of the drain: nothing else would end it, and the verb is still under way.
      expect((yield* Fiber.join(stream)).text).toContain('"line":"x"')
      expect(server.events.map(({ event }) => event)).toEqual(
        expect.arrayContaining(["server.started", "server.draining"])
      )
      yield* Deferred.succeed(goOn, undefined)
      expect((yield* Fiber.join(verb)).status).toBe(500)
      yield* Fiber.join(closing)
      expect(yield* exchange(server.port, "GET /health HTTP/1.1\r\n\r\n")).toBe("")
    })
  )

  it.live("cuts off what does not end within the bound", () =>
    Effect.gen(function* () {
      const { server, close } = yield* closable({ bounds: { drainMs: 150 } })
      const inside = yield* Deferred.make<void>()
      const interrupted = yield* Deferred.make<void>()
      server.world.failures.command = Effect.andThen(
        Deferred.succeed(inside, undefined),
        Effect.onInterrupt(Effect.never, () => Deferred.succeed(interrupted, undefined))
      )
      const verb = yield* Effect.forkChild(Effect.exit(send(server, "POST", "/instances/a1/pause")))
      yield* Deferred.await(inside)
      const started = performance.now()
      yield* close
      expect(performance.now() - started).toBeLessThan(5_000)
      yield* Deferred.await(interrupted)
      yield* Fiber.join(verb)
    })
  )

  it.live("does not wait for connections that only sit there", () =>
    Effect.gen(function* () {
      const { server, close } = yield* closable({})
      const socket = yield* openSocket(server.port)
      socket.write("GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
      yield* Effect.promise(() => once(socket, "data"))
      const started = performance.now()
      yield* close
      expect(performance.now() - started).toBeLessThan(3_000)
    }).pipe(Effect.scoped)
  )
})
