/** A client that does not read, sends too much, has no token or goes away costs the service a bounded little. */
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { signToken } from "../../src/api/Token.ts"
import { jsonBodyMaxBytes } from "../../src/api/Validation.ts"
import { InstanceId } from "../../src/domain/Ids.ts"
import { callsMax } from "../../src/rpc/wire.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { send, serveFakes } from "../support/httpServer.ts"
import { bodyOf, exchange, openSocket } from "../support/rawHttp.ts"
import { connect, transports } from "./effect4.ts"

const a1 = InstanceId.make("a1")
const secret = "a secret that is long enough to be one"
const line = { cursor: 1, time: "2026-01-31T12:00:00.000Z", line: "x".repeat(1000) }
const ndjson = { "content-type": "application/x-ndjson" }
const request = (id: number, tag: string, payload: unknown) =>
  `${JSON.stringify({ _tag: "Request", id: String(id), tag, payload, headers: [] })}\n`

/** A stream without an end that counts what was taken from it and says when nobody wants more. */
const endless = Effect.gen(function* () {
  const ended = yield* Deferred.make<void>()
  const taken = { lines: 0 }
  const stream = Stream.forever(Stream.succeed(line)).pipe(
    Stream.tap(() => Effect.sync(() => void (taken.lines += 1))),
    Stream.ensuring(Deferred.succeed(ended, undefined))
  )
  return { stream, taken, ended: Deferred.await(ended) }
})

describe("streams", () => {
  for (const [name, protocol] of transports)
    it.live(`over ${name} end with their client`, () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        server.world.instances.set("a1", fakeInstance("a1"))
        const { stream, ended } = yield* endless
        server.world.logs = () => stream
        yield* Effect.scoped(
          Effect.flatMap(connect(protocol(server.url)), (client) =>
            Stream.runDrain(Stream.take(client["instances.logs"]({ id: a1 }), 1))
          )
        )
        yield* ended
      }).pipe(Effect.scoped)
    )

  it.live("are not pulled for a client that does not read, who is cut off", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes({ bounds: { stalledClientMs: 300 } })
      server.world.instances.set("a1", fakeInstance("a1"))
      const { stream, taken, ended } = yield* endless
      server.world.logs = () => stream
      const body = request(1, "instances.logs", { id: "a1" })
      const socket = yield* openSocket(server.port)
      socket.pause()
      socket.write(
        `POST /rpc HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\ncontent-length: ${body.length}\r\n\r\n${body}`
      )
      yield* ended
      // What the kernel's buffers of both ends hold, and not what could have been made meanwhile.
      expect(taken.lines).toBeLessThan(20_000)
    }).pipe(Effect.scoped)
  )

  it.live("over a WebSocket wait for each chunk to be acknowledged", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      const { stream, taken, ended } = yield* endless
      server.world.logs = () => stream
      const socket = new WebSocket(`${server.url.replace(/^http/u, "ws")}/rpc/ws`)
      const first = Effect.callback<void>((resume) => {
        socket.addEventListener("open", () => socket.send(request(1, "instances.logs", { id: "a1" })))
        socket.addEventListener("message", () => resume(Effect.void), { once: true })
      })
      yield* first
      // A round trip later no more was made than the chunk that was sent and one ahead of it.
      yield* send(server, "GET", "/instances/a1")
      expect(taken.lines).toBeLessThanOrEqual(2)
      socket.close()
      yield* ended
    }).pipe(Effect.scoped)
  )
})

describe("what a client sends", () => {
  it.live("is bounded in size and number, and must be lines of JSON", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      const post = (body: string, headers = {}) =>
        send(server, "POST", "/rpc", { body, headers: { ...ndjson, ...headers } })
      expect((yield* post("x".repeat(jsonBodyMaxBytes + 1))).status).toBe(413)
      expect((yield* post("", { "content-type": "text/plain" })).status).toBe(415)
      const calls = (count: number) =>
        Array.from({ length: count }, (_, id) => request(id, "instances.get", { id: "a1" })).join("")
      const fits = yield* post(calls(callsMax))
      expect(fits.text.trim().split("\n")).toHaveLength(callsMax)
      server.world.calls.length = 0
      expect((yield* post(calls(callsMax + 1))).text).toContain(`At most ${callsMax} calls`)
      expect((yield* post("{not json}\n")).text).toContain("Defect")
      expect((yield* post(request(1, "instances.get", { id: "a1", extra: 1 }))).text).toContain("Die")
      expect(server.world.calls).toEqual([])
      expect((yield* send(server, "GET", "/rpc")).status).toBe(405)
      expect((yield* post(calls(1), { origin: "https://evil.example" })).status).toBe(403)
    }).pipe(Effect.scoped)
  )
})

describe("tokens", () => {
  const served = serveFakes({ env: { JWT_SECRET: secret, HOST: "127.0.0.1" } })
  const token = (scope: "read" | "write") =>
    Effect.map(signToken({ secret: Redacted.make(secret), scope, expiresInS: 60 }), (value) => ({
      authorization: `Bearer ${value}`
    }))

  for (const [name, protocol] of transports)
    it.live(`over ${name} each call is checked for its scope`, () =>
      Effect.gen(function* () {
        const server = yield* served
        server.world.instances.set("a1", fakeInstance("a1"))
        const client = yield* connect(protocol(server.url))
        expect((yield* client["system.health"]()).status).toBe("ok")
        expect(yield* Effect.flip(client["instances.get"]({ id: a1 }))).toMatchObject({ status: 401 })
        expect(yield* Effect.flip(Stream.runDrain(client["events.read"]({})))).toMatchObject({ status: 401 })
        const read = { headers: yield* token("read") }
        expect((yield* client["instances.get"]({ id: a1 }, read)).id).toBe("a1")
        expect(yield* Effect.flip(client["instances.remove"]({ id: a1 }, read))).toMatchObject({
          status: 403,
          scope: "write"
        })
        yield* client["instances.remove"]({ id: a1 }, { headers: yield* token("write") })
        expect(server.world.instances.size).toBe(0)
      }).pipe(Effect.scoped)
    )

  it.live("a bad one in the handshake is refused before the upgrade; one in the URL is none", () =>
    Effect.gen(function* () {
      const server = yield* served
      const { authorization } = yield* token("write")
      const handshake = (path: string, header: string) =>
        exchange(
          server.port,
          `GET ${path} HTTP/1.1\r\nhost: 127.0.0.1:${server.port}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n${header}\r\n`
        )
      const refused = yield* handshake("/rpc/ws", "authorization: Bearer nonsense\r\n")
      expect(refused).toContain("HTTP/1.1 401 ")
      expect(JSON.parse(bodyOf(refused))).toMatchObject({ status: 401 })
      const foreign = yield* handshake(
        "/rpc/ws",
        `authorization: ${authorization}\r\norigin: https://evil.example\r\n`
      )
      expect(foreign).toContain("HTTP/1.1 403 ")
      const inUrl = yield* send(server, "POST", `/rpc?access_token=${authorization.slice(7)}`, {
        body: request(1, "instances.list", {}),
        headers: ndjson
      })
      expect(inUrl.text).toContain("unauthorized")
    }).pipe(Effect.scoped)
  )
})

describe("If-Match", () => {
  for (const [name, protocol] of transports)
    it.live(`over ${name} comes with the call`, () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        server.world.instances.set("a1", fakeInstance("a1"))
        const client = yield* connect(protocol(server.url))
        yield* client["instances.pause"]({ id: a1 }, { headers: { "if-match": '"3"' } })
        expect(server.world.calls.at(-1)).toEqual(["command", "a1", "pause", { ifMatch: [3] }])
        const bad = client["instances.remove"]({ id: a1 }, { headers: { "if-match": "three" } })
        expect(yield* Effect.flip(bad)).toMatchObject({ status: 400 })
      }).pipe(Effect.scoped)
    )
})
