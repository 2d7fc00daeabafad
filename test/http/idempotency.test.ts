/** A POST that is sent again with its key is answered as the first time and not done again, whatever came in between. */
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { Busy } from "../../src/domain/problems.ts"
import { specJson } from "../../src/http/specification.ts"
import { fakeInstance, fakeWorld } from "../support/fakeServices.ts"
import { send, serveFakes, type TestServerOptions } from "../support/httpServer.ts"
import { memoryFiles } from "../support/simulatedFiles.ts"

const key = (value: string) => ({ "idempotency-key": value })
const image = { name: "one", image: "img-nginx" }
const create = (server: { readonly url: string }, json: object, value: string) =>
  send(server, "POST", "/instances", { json, headers: key(value) })
const callsOf = (
  server: { readonly world: { readonly calls: ReadonlyArray<ReadonlyArray<unknown>> } },
  name: string
) => server.world.calls.filter(([called]) => called === name)
const problem = (name: string) => ({ type: expect.stringContaining(`/${name}`) })

/** The same service over the same disk, once after the other; each ends before the next begins. */
const runs = () => {
  const options: TestServerOptions = { world: fakeWorld(), files: memoryFiles() }
  return <A, E>(
    body: (server: Effect.Success<ReturnType<typeof serveFakes>>) => Effect.Effect<A, E, Scope.Scope>
  ) => Effect.scoped(Effect.flatMap(serveFakes(options), body))
}

describe("the same key", () => {
  it.live("with the same request answers as the first time", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const first = yield* create(server, image, "k1")
      const again = yield* create(server, image, '"k1"')
      expect([again.status, again.text]).toEqual([201, first.text])
      for (const header of ["etag", "location", "content-type"])
        expect(again.headers.get(header)).toBe(first.headers.get(header))
      expect([first, again].map(({ headers }) => headers.get("idempotency-replayed"))).toEqual([null, "true"])
      expect(callsOf(server, "create")).toHaveLength(1)
      expect((yield* create(server, image, "k2")).status).toBe(201)
      expect(server.world.instances.size).toBe(2)
    }).pipe(Effect.scoped)
  )

  it.live("with another body, path or precondition is refused", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      yield* create(server, image, "k1")
      const others = [
        create(server, { ...image, name: "two" }, "k1"),
        send(server, "POST", "/images", { json: image, headers: key("k1") }),
        send(server, "POST", "/instances/a1/pause", { headers: key("k1") }),
        send(server, "POST", "/instances", { json: image, headers: { ...key("k1"), "if-match": "3" } })
      ]
      for (const other of others)
        expect(yield* other).toMatchObject({ status: 422, json: problem("idempotency-key-reused") })
      expect(callsOf(server, "command")).toEqual([])
    }).pipe(Effect.scoped)
  )

  it.live("while the first is under way is told so; a client that went away finds the answer later", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const gate = yield* Deferred.make<void>()
      const begun = yield* Deferred.make<void>()
      server.world.instances.set("a1", fakeInstance("a1"))
      server.world.beforeCommand = Deferred.succeed(begun, undefined).pipe(
        Effect.andThen(Deferred.await(gate))
      )
      const pause = send(server, "POST", "/instances/a1/pause", { headers: key("k1") })
      const first = yield* Effect.forkChild(pause)
      yield* Deferred.await(begun)
      expect(yield* pause).toMatchObject({ status: 409, json: problem("idempotency-key-in-use") })
      yield* Fiber.interrupt(first)
      yield* Deferred.succeed(gate, undefined)
      const answers = Effect.repeat(pause, { until: ({ status }) => status !== 409, times: 1000 })
      expect(yield* answers).toMatchObject({ status: 200, json: { state: "Paused" } })
      expect(callsOf(server, "command")).toHaveLength(1)
    }).pipe(Effect.scoped)
  )

  it.live("keeps problems, but not refusals before anything was done, nor what may work in a moment", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1", 0, { state: "Stopped" }))
      const pause = send(server, "POST", "/instances/a1/pause", { headers: key("k1") })
      expect((yield* pause).status).toBe(409)
      server.world.instances.set("a1", fakeInstance("a1"))
      expect(yield* pause).toMatchObject({ status: 409, json: problem("invalid-state") })
      expect((yield* create(server, { name: "x" }, "k2")).status).toBe(400)
      expect((yield* create(server, image, "k2")).status).toBe(201)
      server.world.failures.create = Effect.fail(new Busy({ detail: "Later." }))
      expect((yield* create(server, image, "k3")).status).toBe(503)
      delete server.world.failures.create
      expect((yield* create(server, image, "k3")).status).toBe(201)
    }).pipe(Effect.scoped)
  )

  it.live("for an archive compares the archive", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const post = (body: string) =>
        send(server, "POST", "/images/import?id=img-a", {
          body,
          headers: { ...key("k1"), "content-type": "application/x-tar" }
        })
      expect((yield* post("archive one")).status).toBe(202)
      expect((yield* post("archive one")).headers.get("idempotency-replayed")).toBe("true")
      expect(yield* post("archive two")).toMatchObject({
        status: 422,
        json: problem("idempotency-key-reused")
      })
      expect(callsOf(server, "importArchive")).toHaveLength(1)
    }).pipe(Effect.scoped)
  )

  it.live("that is none is refused", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      for (const bad of ["", '"', "a b", "x".repeat(256), '"open'])
        expect([bad, (yield* create(server, image, bad)).status]).toEqual([bad, 400])
      expect(server.world.calls).toEqual([])
    }).pipe(Effect.scoped)
  )
})

describe("after a restart", () => {
  it.live("the answer is the same", () =>
    Effect.gen(function* () {
      const run = runs()
      const first = yield* run((server) => create(server, image, "k1"))
      const again = yield* run((server) => create(server, image, "k1"))
      expect([again.status, again.text]).toEqual([201, first.text])
      const reused = yield* run((server) => create(server, { ...image, name: "two" }, "k1"))
      expect(reused.status).toBe(422)
    })
  )

  it.live("a verb that was cut off is not done again", () =>
    Effect.gen(function* () {
      const run = runs()
      const pause = (server: { readonly url: string }) =>
        send(server, "POST", "/instances/a1/pause", { headers: key("k1") })
      yield* run((server) =>
        Effect.gen(function* () {
          const begun = yield* Deferred.make<void>()
          server.world.instances.set("a1", fakeInstance("a1"))
          server.world.beforeCommand = Effect.andThen(Deferred.succeed(begun, undefined), Effect.never)
          yield* Effect.forkScoped(Effect.exit(pause(server)))
          yield* Deferred.await(begun)
        })
      )
      yield* run((server) =>
        Effect.gen(function* () {
          delete server.world.beforeCommand
          server.world.calls.length = 0
          expect(yield* pause(server)).toMatchObject({
            status: 409,
            json: problem("idempotency-outcome-unknown")
          })
          expect(yield* pause(server)).toMatchObject({
            status: 409,
            json: problem("idempotency-outcome-unknown")
          })
          expect(callsOf(server, "command")).toEqual([])
        })
      )
    })
  )

  /** Cuts a create off before or after it made its instance. */
  const cutOff = (run: ReturnType<typeof runs>, json: object, made: boolean) =>
    run((server) =>
      Effect.gen(function* () {
        const begun = yield* Deferred.make<void>()
        const pending = Effect.andThen(Deferred.succeed(begun, undefined), Effect.never)
        if (made) server.world.afterCreate = pending
        else server.world.failures.create = pending
        yield* Effect.forkScoped(Effect.exit(create(server, json, "k1")))
        yield* Deferred.await(begun)
        delete server.world.afterCreate
        delete server.world.failures.create
        server.world.calls.length = 0
      })
    )

  it.live("a create that had made its instance answers with it; one that had not makes it now", () =>
    Effect.gen(function* () {
      for (const made of [true, false]) {
        const run = runs()
        yield* cutOff(run, image, made)
        yield* run((server) =>
          Effect.gen(function* () {
            const again = yield* create(server, image, "k1")
            expect(again.status).toBe(201)
            expect(callsOf(server, "create")).toHaveLength(made ? 0 : 1)
            expect([...server.world.instances.keys()]).toEqual([expect.stringMatching(/^vm-[a-z0-9]{12}$/u)])
            expect((yield* create(server, image, "k1")).text).toBe(again.text)
          })
        )
      }
    })
  )

  it.live("of an id that the client chose nothing is guessed where the instance is there", () =>
    Effect.gen(function* () {
      for (const made of [true, false]) {
        const run = runs()
        const json = { ...image, id: "mine" }
        yield* cutOff(run, json, made)
        yield* run((server) =>
          Effect.gen(function* () {
            const again = yield* create(server, json, "k1")
            if (made)
              expect(again).toMatchObject({ status: 409, json: problem("idempotency-outcome-unknown") })
            else expect(again.status).toBe(201)
            expect([...server.world.instances.keys()]).toEqual(["mine"])
          })
        )
      }
    })
  )
})

describe("a defect", () => {
  it.live("leaves a key whose outcome is not known", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.failures.createImage = Effect.die(new Error("broken"))
      const post = send(server, "POST", "/images", { json: { name: "nginx" }, headers: key("k1") })
      expect((yield* post).status).toBe(500)
      delete server.world.failures.createImage
      expect(yield* post).toMatchObject({ status: 409, json: problem("idempotency-outcome-unknown") })
    }).pipe(Effect.scoped)
  )
})

it("every POST of the document but exec, whose answer is a stream, takes a key and says how it may refuse it", () => {
  const document = JSON.parse(specJson)
  for (const [path, item] of Object.entries<
    Record<string, { parameters: Array<{ name: string }>; responses: object }>
  >(document.paths)) {
    const operation = item["post"]
    if (operation === undefined || path.endsWith("/exec")) continue
    expect([path, operation.parameters.map(({ name }) => name)]).toEqual([
      path,
      expect.arrayContaining(["idempotency-key"])
    ])
    expect(Object.keys(operation.responses)).toEqual(expect.arrayContaining(["409", "422"]))
  }
})
