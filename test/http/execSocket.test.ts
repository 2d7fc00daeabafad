/** Exec over a WebSocket, with a process that the test plays. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import { SignJWT } from "jose"
import { execPath as path, lost, serveExec as serve } from "../support/fakeExec.ts"
import { send, type TestServerOptions } from "../support/httpServer.ts"
import { openSocket } from "../support/rawHttp.ts"
import { webSocket } from "../support/webSocket.ts"

describe("GET /instances/{id}/exec as a WebSocket", () => {
  const connect = (options: TestServerOptions = {}) =>
    Effect.gen(function* () {
      const { server, started } = yield* serve(options)
      const client = yield* webSocket(server.url + path)
      return { server, started, client }
    })

  it.live("is a terminal: input, signals, window sizes, output, and the end last", () =>
    Effect.gen(function* () {
      const { client, started } = yield* connect()
      client.send(JSON.stringify({ command: ["bash"], tty: { rows: 24, cols: 80 } }))
      const process = yield* Queue.take(started)
      assert.deepStrictEqual(process.request, { command: ["bash"], tty: { rows: 24, cols: 80 } })
      client.send(Buffer.from("ls\n"))
      client.send(JSON.stringify({ resize: { rows: 50, cols: 132 } }))
      client.send(JSON.stringify({ signal: "INT" }))
      client.send(JSON.stringify({ stdin_end: true }))
      const heard = [1, 2, 3, 4].map(() => Queue.take(process.heard))
      assert.deepStrictEqual(yield* Effect.all(heard), ["ls\n", "resize 50 132", "signal INT", "end"])
      yield* process.say("Stdout", "out")
      yield* process.say("Stderr", "err")
      yield* process.exit({ code: 0 })
      assert.deepStrictEqual(yield* Queue.take(client.heard), new Uint8Array([1, ...Buffer.from("out")]))
      assert.deepStrictEqual(yield* Queue.take(client.heard), new Uint8Array([2, ...Buffer.from("err")]))
      assert.strictEqual(yield* Queue.take(client.heard), '{"exit":{"code":0}}')
      assert.strictEqual(yield* client.closed, 1000)
      yield* process.ended
    })
  )

  const wrong: ReadonlyArray<readonly [string, string | Uint8Array<ArrayBuffer>]> = [
    ["no JSON", "{"],
    ["an unknown field", '{"command":["x"],"shell":true}'],
    ["no command", "{}"],
    ["stdin, which comes in messages", '{"command":["x"],"stdin":"y"}'],
    ["bytes", new Uint8Array(3)]
  ]
  it.live.each(wrong)("a first message that is %s is refused, and the connection closed", ([, message]) =>
    Effect.gen(function* () {
      const { client, started } = yield* connect()
      client.send(message)
      const said: unknown = JSON.parse(String(yield* Queue.take(client.heard)))
      assert.nestedPropertyVal(said, "error.status", 400)
      assert.strictEqual(yield* client.closed, 1011)
      assert.strictEqual(yield* Queue.size(started), 0)
    })
  )

  it.live("an order that means nothing ends the process", () =>
    Effect.gen(function* () {
      const { client, started } = yield* connect()
      client.send(JSON.stringify({ command: ["x"] }))
      const process = yield* Queue.take(started)
      client.send(JSON.stringify({ resize: { rows: -1, cols: 1 } }))
      const said: unknown = JSON.parse(String(yield* Queue.take(client.heard)))
      assert.nestedPropertyVal(said, "error.status", 400)
      yield* client.closed
      yield* process.ended
    })
  )

  it.live("a client that says nothing is sent away in time", () =>
    Effect.gen(function* () {
      const { client } = yield* connect({ bounds: { bodyMs: 50 } })
      const said: unknown = JSON.parse(String(yield* Queue.take(client.heard)))
      assert.nestedPropertyVal(said, "error.status", 408)
      yield* client.closed
    })
  )

  it.live("a client that goes away ends the process", () =>
    Effect.gen(function* () {
      const { client, started } = yield* connect()
      client.send(JSON.stringify({ command: ["x"] }))
      const process = yield* Queue.take(started)
      client.close()
      yield* process.ended
    })
  )

  it.live("a problem of the guest is the last message", () =>
    Effect.gen(function* () {
      const { client, started } = yield* connect()
      client.send(JSON.stringify({ command: ["x"] }))
      const process = yield* Queue.take(started)
      yield* process.fail(lost)
      const { type, title, status, detail } = lost
      assert.deepStrictEqual(JSON.parse(String(yield* Queue.take(client.heard))), {
        error: { type, title, status, detail }
      })
      assert.strictEqual(yield* client.closed, 1011)
    })
  )

  it.live("a message over the bound ends the connection", () =>
    Effect.gen(function* () {
      const { client, started } = yield* connect()
      client.send(JSON.stringify({ command: ["x"] }))
      const process = yield* Queue.take(started)
      client.send(new Uint8Array(1024 * 1024 + 1))
      yield* process.ended
      yield* client.closed
    })
  )

  it.live("a service that stops says so", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { server, started } = yield* serve().pipe(Scope.provide(scope))
      const client = yield* webSocket(server.url + path)
      client.send(JSON.stringify({ command: ["x"] }))
      const process = yield* Queue.take(started)
      yield* process.say("Stdout", "a")
      yield* Queue.take(client.heard)
      const stopping = yield* Effect.forkChild(Scope.close(scope, Exit.void))
      const said: unknown = JSON.parse(String(yield* Queue.take(client.heard)))
      assert.nestedPropertyVal(said, "error.status", 503)
      yield* client.closed
      yield* Fiber.join(stopping)
    })
  )

  it.live("holds little for a client that does not read, and cuts it off", () =>
    Effect.gen(function* () {
      const { server, started } = yield* serve({ bounds: { stalledClientMs: 300 } })
      const socket = yield* openSocket(server.port)
      socket.pause()
      socket.write(
        `GET ${path} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: ${Buffer.alloc(16).toString("base64")}\r\n\r\n`
      )
      // A masked text frame whose mask is zero.
      const request = Buffer.from(JSON.stringify({ command: ["yes"] }))
      socket.write(Buffer.concat([Buffer.from([0x81, 0x80 | request.length, 0, 0, 0, 0]), request]))
      const process = yield* Queue.take(started)
      let said = 0
      const flood = process
        .say("Stdout", "y".repeat(65_536))
        .pipe(Effect.andThen(Effect.sync(() => void (said += 65_536))), Effect.forever)
      yield* Effect.raceFirst(flood, process.ended)
      assert.isBelow(said, 32 * 1024 * 1024)
    })
  )

  it.live("without a handshake it is a bad request, of an unknown instance a 404", () =>
    Effect.gen(function* () {
      const { server } = yield* serve()
      assert.strictEqual((yield* send(server, "GET", path)).status, 400)
      assert.strictEqual((yield* send(server, "GET", "/instances/nobody/exec")).status, 404)
      const client = yield* webSocket(`${server.url}/instances/nobody/exec`)
      assert.notStrictEqual(yield* client.closed, 1000)
    })
  )

  it.live("takes the scope of a write", () =>
    Effect.gen(function* () {
      const secret = "s".repeat(32)
      const { server, started } = yield* serve({ env: { JWT_SECRET: secret } })
      const token = (scope: string) =>
        Effect.promise(() =>
          new SignJWT({ scope })
            .setProtectedHeader({ alg: "HS256" })
            .setExpirationTime("1h")
            .sign(Buffer.from(secret))
        )
      for (const [scope, status] of [
        ["read", 403],
        ["write", 400],
        ["admin", 400]
      ] as const) {
        const authorization = `Bearer ${yield* token(scope)}`
        assert.strictEqual((yield* send(server, "GET", path, { headers: { authorization } })).status, status)
      }
      const reader = yield* webSocket(server.url + path, { authorization: `Bearer ${yield* token("read")}` })
      assert.notStrictEqual(yield* reader.closed, 1000)
      const nobody = yield* webSocket(server.url + path)
      assert.notStrictEqual(yield* nobody.closed, 1000)
      const writer = yield* webSocket(server.url + path, { authorization: `Bearer ${yield* token("write")}` })
      writer.send(JSON.stringify({ command: ["x"] }))
      yield* Queue.take(started)
    })
  )

  it.live("a page of another site gets none", () =>
    Effect.gen(function* () {
      const { server } = yield* serve()
      const client = yield* webSocket(server.url + path, { origin: "https://evil.example" })
      assert.notStrictEqual(yield* client.closed, 1000)
      assert.strictEqual(yield* Queue.size(client.heard), 0)
    })
  )
})
