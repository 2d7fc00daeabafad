/** Files over HTTP: archives that pass straight through, bounds, and what a client sees when something breaks. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { GuestLost, GuestRefused } from "../../src/domain/guestProblems.ts"
import { InstanceId } from "../../src/domain/Ids.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { send, serveFakes, type TestServer, type TestServerOptions } from "../support/httpServer.ts"
import { exchange, openSocket } from "../support/rawHttp.ts"

const id = InstanceId.make("a1")
const path = "/instances/a1/files?path=/srv/web"
const tarType = { "content-type": "application/x-tar" }

const serve = (options: TestServerOptions = {}) =>
  Effect.tap(serveFakes(options), ({ world }) => Effect.sync(() => world.instances.set(id, fakeInstance(id))))

const lost = new GuestLost({ detail: "The guest went away.", instance_id: id })
const refused = new GuestRefused({ detail: "The guest refuses: no such file", instance_id: id })

/** The guest gives these pieces for the path. */
const holding = (server: TestServer, archive: Stream.Stream<Uint8Array, GuestLost | GuestRefused>) => {
  server.world.readFiles = (_, asked) => {
    assert.strictEqual(asked, "/srv/web")
    return Effect.succeed(archive)
  }
}

describe("GET /instances/{id}/files", () => {
  it.live("is the archive, as the guest gives it", () =>
    Effect.gen(function* () {
      const server = yield* serve()
      holding(server, Stream.make(Buffer.from("one "), Buffer.from("two")))
      const answer = yield* send(server, "GET", path)
      assert.deepStrictEqual([answer.status, answer.text], [200, "one two"])
      assert.strictEqual(answer.headers.get("content-type"), "application/x-tar")
    })
  )

  it.live("takes an absolute path and nothing else", () =>
    Effect.gen(function* () {
      const server = yield* serve()
      for (const query of [
        "",
        "?path=",
        "?path=etc",
        "?path=/a%00b",
        "?path=/a&other=1",
        `?path=/${"x".repeat(5_000)}`
      ])
        assert.strictEqual((yield* send(server, "GET", `/instances/a1/files${query}`)).status, 400, query)
    })
  )

  it.live("is a problem where the guest refuses, and a broken connection where it fails in the middle", () =>
    Effect.gen(function* () {
      const server = yield* serve()
      server.world.readFiles = () => Effect.fail(refused)
      const answer = yield* send(server, "GET", path)
      assert.strictEqual(answer.status, 422)
      assert.propertyVal(answer.json, "detail", refused.detail)
      holding(server, Stream.concat(Stream.make(Buffer.from("some")), Stream.fail(lost)))
      const cut = yield* exchange(server.port, `GET ${path} HTTP/1.1\r\nhost: localhost\r\n\r\n`)
      assert.include(cut, "200 OK")
      // Without its last chunk, the body is visibly not whole.
      assert.notMatch(cut, /\r\n0\r\n\r\n$/u)
      assert.isFalse(server.events.some((it) => it["event"] === "defect"))
    })
  )

  it.live("ends in the guest when the client goes away", () =>
    Effect.gen(function* () {
      const server = yield* serve()
      const ended = yield* Deferred.make<void>()
      holding(
        server,
        Stream.concat(Stream.make(Buffer.from("some")), Stream.never).pipe(
          Stream.ensuring(Deferred.succeed(ended, undefined))
        )
      )
      const socket = yield* openSocket(server.port)
      socket.once("data", () => socket.destroy())
      socket.write(`GET ${path} HTTP/1.1\r\nhost: localhost\r\n\r\n`)
      yield* Deferred.await(ended)
    })
  )

  it.live("an archive without end is cut off at the bound, and held nowhere", () =>
    Effect.gen(function* () {
      const server = yield* serve({ bounds: { archiveMaxBytes: 1_000_000 } })
      holding(server, Stream.forever(Stream.make(new Uint8Array(65_536))))
      const cut = yield* exchange(server.port, `GET ${path} HTTP/1.1\r\nhost: localhost\r\n\r\n`)
      assert.isBelow(cut.length, 1_100_000)
      assert.notMatch(cut, /\r\n0\r\n\r\n$/u)
    })
  )
})

describe("PUT /instances/{id}/files", () => {
  /** A guest that takes everything, and what it got. */
  const taking = (server: TestServer) => {
    const got = { bytes: 0, pieces: 0 }
    server.world.writeFiles = (_id, _path, archive) =>
      Stream.runForEach(archive, (piece) =>
        Effect.sync(() => {
          got.bytes += piece.length
          got.pieces += 1
        })
      )
    return got
  }

  it.live("hands the archive on as it comes, whatever its length", () =>
    Effect.gen(function* () {
      const server = yield* serve()
      const got = taking(server)
      const body = new Uint8Array(5_000_000)
      const answer = yield* send(server, "PUT", path, { body, headers: tarType })
      assert.deepStrictEqual([answer.status, answer.text], [204, ""])
      assert.strictEqual(got.bytes, body.length)
      assert.isAbove(got.pieces, 10)
    })
  )

  it.live("takes a tar, and no more than the bound", () =>
    Effect.gen(function* () {
      const server = yield* serve({ bounds: { archiveMaxBytes: 1_000_000 } })
      taking(server)
      const json = yield* send(server, "PUT", path, { json: {} })
      assert.strictEqual(json.status, 415)
      const large = yield* send(server, "PUT", path, { body: new Uint8Array(1_000_001), headers: tarType })
      assert.strictEqual(large.status, 413)
      const exact = yield* send(server, "PUT", path, { body: new Uint8Array(1_000_000), headers: tarType })
      assert.strictEqual(exact.status, 204)
    })
  )

  it.live("tells a client that is silent, and the guest's refusal in the middle", () =>
    Effect.gen(function* () {
      const server = yield* serve({ bounds: { uploadIdleMs: 100 } })
      taking(server)
      const head = `PUT ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-tar\r\ncontent-length: 9000000\r\n\r\n`
      assert.include(yield* exchange(server.port, `${head}some`), "408 Request Timeout")
      server.world.writeFiles = () => Effect.fail(refused)
      const answer = yield* exchange(server.port, `${head}some`)
      assert.include(answer, "422")
      assert.include(answer, "connection: close")
    })
  )
})
