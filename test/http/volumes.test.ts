/** The volumes' routes: what they answer, and what they hand to the service. */
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Instance } from "../../src/domain/Instance.ts"
import { Volume } from "../../src/domain/Volume.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { fakeVolume } from "../support/fakeVolumes.ts"
import { send, serveFakes } from "../support/httpServer.ts"

const decodeVolume = Schema.decodeUnknownSync(Volume, { onExcessProperty: "error" })
const decodeInstance = Schema.decodeUnknownSync(Instance, { onExcessProperty: "error" })

describe("volumes", () => {
  it.live("are created, listed with who holds them, grown and deleted", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const made = yield* send(server, "POST", "/volumes", { json: { id: "data", name: "Data", size_gb: 2 } })
      expect(made.status).toBe(201)
      expect(decodeVolume(made.json)).toMatchObject({ id: "data", name: "Data", size_gb: 2, attachments: [] })
      const again = yield* send(server, "POST", "/volumes", { json: { id: "data", name: "x", size_gb: 1 } })
      expect([again.status, again.json]).toMatchObject([409, { volume_id: "data" }])
      server.world.instances.set("a1", fakeInstance("a1"))
      yield* send(server, "POST", "/instances/a1/volumes/data", { json: { mount_path: "/data" } })
      const list = yield* send(server, "GET", "/volumes")
      expect(list.json).toMatchObject([
        { id: "data", attachments: [{ instance_id: "a1", mount_path: "/data", readonly: false }] }
      ])
      expect((yield* send(server, "DELETE", "/volumes/data")).status).toBe(409)
      const grown = yield* send(server, "PATCH", "/volumes/data", { json: { size_gb: 3 } })
      expect(decodeVolume(grown.json).size_gb).toBe(3)
      yield* send(server, "DELETE", "/instances/a1/volumes/data")
      expect((yield* send(server, "DELETE", "/volumes/data")).status).toBe(204)
      expect((yield* send(server, "GET", "/volumes/data")).status).toBe(404)
    }).pipe(Effect.scoped)
  )

  it.live("attach and detach answer with the instance, its generation as ETag, and pass what was asked", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      server.world.volumes.set("data", fakeVolume("data"))
      const attached = yield* send(server, "POST", "/instances/a1/volumes/data", {
        json: { mount_path: "/srv/data", readonly: true }
      })
      expect(attached.status).toBe(200)
      const view = decodeInstance(attached.json)
      expect(view.volumes).toEqual([
        { volume_id: "data", mount_path: "/srv/data", readonly: true, status: "mounted" }
      ])
      expect(attached.headers.get("etag")).toBe(`"${view.generation}"`)
      yield* send(server, "DELETE", "/instances/a1/volumes/data?force=true")
      yield* send(server, "DELETE", "/instances/a1/volumes/data")
      expect(server.world.calls.filter(([name]) => name === "detach")).toEqual([
        ["detach", "a1", "data", true],
        ["detach", "a1", "data", false]
      ])
    }).pipe(Effect.scoped)
  )

  it.live("an archive is passed on as it comes, under the name and size of the query", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const body = new Uint8Array(300_000)
      const made = yield* send(server, "POST", "/volumes/import?name=Seed&size_gb=2&id=seed", {
        body,
        headers: { "content-type": "application/x-tar" }
      })
      expect([made.status, made.json]).toMatchObject([201, { id: "seed", name: "Seed", size_gb: 2 }])
      expect(server.world.imported.bytes).toBe(body.length)
      const other = yield* send(server, "POST", "/volumes/import?name=x&size_gb=1", {
        body,
        headers: { "content-type": "application/gzip" }
      })
      expect(other.status).toBe(415)
    }).pipe(Effect.scoped)
  )

  it.live("what is not valid is refused with its place", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      server.world.volumes.set("data", fakeVolume("data"))
      const bad: ReadonlyArray<readonly [string, string, unknown]> = [
        ["POST", "/volumes", { name: "x", size_gb: 0 }],
        ["POST", "/volumes", { name: "x", size_gb: 1.5 }],
        ["POST", "/volumes", { name: "", size_gb: 1 }],
        ["POST", "/volumes", { name: "x", size_gb: 20_000 }],
        ["POST", "/volumes", { name: "x", size_gb: 1, id: "Not-An-Id" }],
        ["POST", "/volumes", { name: "x", size_gb: 1, more: 1 }],
        ["PATCH", "/volumes/data", { size_gb: "3" }],
        ["POST", "/instances/a1/volumes/data", { mount_path: "/" }],
        ["POST", "/instances/a1/volumes/data", { mount_path: "/a/../b" }],
        ["POST", "/instances/a1/volumes/data", { mount_path: "relative" }],
        ["POST", "/instances/a1/volumes/data", {}]
      ]
      for (const [method, path, json] of bad) {
        const answer = yield* send(server, method, path, { json })
        expect([JSON.stringify(json), answer.status]).toEqual([JSON.stringify(json), 400])
        expect(answer.headers.get("content-type")).toBe("application/problem+json")
      }
      for (const query of [
        "name=x",
        "size_gb=1",
        "name=x&size_gb=0",
        "name=x&size_gb=1&id=BAD",
        "name=x&size_gb=1&x=1"
      ])
        expect([query, (yield* send(server, "POST", `/volumes/import?${query}`)).status]).toEqual([
          query,
          400
        ])
      expect((yield* send(server, "DELETE", "/instances/a1/volumes/data?force=perhaps")).status).toBe(400)
      expect(
        (yield* send(server, "POST", "/instances/none/volumes/data", { json: { mount_path: "/d" } })).status
      ).toBe(404)
      expect(
        (yield* send(server, "POST", "/instances/a1/volumes/none", { json: { mount_path: "/d" } })).status
      ).toBe(404)
    }).pipe(Effect.scoped)
  )
})
