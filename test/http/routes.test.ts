/** Every served route does what the contract says of it, and hands the service exactly what was asked. */
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Image } from "../../src/domain/Image.ts"
import { Instance } from "../../src/domain/Instance.ts"
import { version } from "../../src/domain/Version.ts"
import { specJson, specYaml } from "../../src/http/specification.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { send, serveFakes } from "../support/httpServer.ts"
import { exchange } from "../support/rawHttp.ts"

const decodeInstance = Schema.decodeUnknownSync(Instance, { onExcessProperty: "error" })
const decodeImage = Schema.decodeUnknownSync(Image, { onExcessProperty: "error" })

setFlagsFromString("--expose-gc")
const collect: unknown = runInNewContext("gc")

/** Buffers that something still holds: what is garbage by now does not count. */
const heldBytes = (): number => {
  if (typeof collect === "function") collect()
  return process.memoryUsage().arrayBuffers
}

describe("the service itself", () => {
  it.live("health says the version, the VMM and the uptime", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const answer = yield* send(server, "GET", "/health")
      expect(answer.status).toBe(200)
      expect(answer.json).toEqual({
        status: "ok",
        version,
        vmm: { kind: "simulated", version: "1", accelerator: "none" },
        uptime_s: expect.any(Number)
      })
    }).pipe(Effect.scoped)
  )

  it.live("serves the specification as YAML and JSON, and metrics as text", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const yaml = yield* send(server, "GET", "/spec.yaml")
      expect([yaml.headers.get("content-type"), yaml.text]).toEqual(["application/yaml", specYaml])
      const json = yield* send(server, "GET", "/spec.json")
      expect([json.headers.get("content-type"), json.text]).toEqual(["application/json", specJson])
      const metrics = yield* send(server, "GET", "/metrics")
      expect(metrics.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8")
    }).pipe(Effect.scoped)
  )

  it.live(
    "the page holds our own document and nothing from outside, and its policy forbids asking for it",
    () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        const page = yield* send(server, "GET", "/docs")
        expect(page.headers.get("content-type")).toBe("text/html; charset=utf-8")
        const policy = page.headers.get("content-security-policy") ?? ""
        expect(policy).toContain("default-src 'none'")
        expect(policy).toContain("connect-src 'self'")
        expect(policy).not.toMatch(/https?:|\*/u)
        expect(page.text).not.toMatch(/<(?:script|link|img|iframe)[^>]*\s(?:src|href)=/iu)
        expect(page.text).toContain("validatorUrl: null")
        const inlined = /<script id="swagger-spec" type="application\/json">([\s\S]*?)<\/script>/u.exec(
          page.text
        )
        expect(JSON.parse(inlined?.[1] ?? "null")).toEqual(JSON.parse(specJson))
      }).pipe(Effect.scoped)
  )
})

describe("methods", () => {
  it.live(
    "OPTIONS tells the methods, HEAD is GET without a body, wrong methods are told the right ones",
    () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        server.world.instances.set("a1", fakeInstance("a1"))
        const allowed: ReadonlyArray<readonly [string, string]> = [
          ["/health", "GET, HEAD, OPTIONS"],
          ["/instances", "GET, HEAD, OPTIONS, POST"],
          ["/instances/a1", "DELETE, GET, HEAD, OPTIONS, PATCH"],
          ["/instances/a1/start", "OPTIONS, POST"],
          ["/instances/a1/logs", "GET, HEAD, OPTIONS"],
          ["/images/import", "OPTIONS, POST"]
        ]
        for (const [path, allow] of allowed) {
          const options = yield* send(server, "OPTIONS", path)
          expect([path, options.status, options.headers.get("allow"), options.text]).toEqual([
            path,
            204,
            allow,
            ""
          ])
          const wrong = yield* send(server, "PUT", path)
          expect([path, wrong.status, wrong.headers.get("allow")]).toEqual([path, 405, allow])
        }
        const whole = yield* send(server, "GET", "/instances/a1")
        const head = yield* send(server, "HEAD", "/instances/a1")
        expect([head.status, head.text]).toEqual([200, ""])
        expect(head.headers.get("content-length")).toBe(`${whole.text.length}`)
        expect(head.headers.get("etag")).toBe(whole.headers.get("etag"))
        expect((yield* send(server, "HEAD", "/instances/nope")).status).toBe(404)
        const odd = yield* exchange(
          server.port,
          "PROPFIND /instances HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
        )
        expect(odd).toMatch(/^HTTP\/1\.1 405 /u)
      }).pipe(Effect.scoped)
  )
})

describe("instances", () => {
  it.live("are created by the contract's own example, to the letter", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const body =
        '{"id":"my-instance","name":"My Workload","image":"img-nginx","memory_mb":2048,"memory_max_mb":4096,"vcpus":2,"env":{"NODE_ENV":"production"}}'
      const answer = yield* send(server, "POST", "/instances", {
        headers: { "content-type": "application/json" },
        body
      })
      expect(answer.status).toBe(201)
      expect(answer.headers.get("location")).toBe("/instances/my-instance")
      expect(answer.headers.get("etag")).toBe('"1"')
      expect(decodeInstance(answer.json)).toMatchObject({
        id: "my-instance",
        state: "Running",
        memory_mb: 2048,
        memory_max_mb: 4096,
        env: { NODE_ENV: "production" }
      })
      const again = yield* send(server, "POST", "/instances", {
        headers: { "content-type": "application/json" },
        body
      })
      expect(again.status).toBe(409)
    }).pipe(Effect.scoped)
  )

  it.live("live their lives: each verb answers with the instance, its generation as ETag", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      yield* send(server, "POST", "/instances", {
        json: { id: "a1", name: "n", image: "img-nginx", start: false }
      })
      const story: ReadonlyArray<readonly [string, number, string]> = [
        ["start", 200, "Running"],
        ["start", 200, "Running"],
        ["pause", 200, "Paused"],
        ["resume", 200, "Running"],
        ["standby", 200, "Standby"],
        ["pause", 409, ""],
        ["stop", 409, ""],
        ["restore?resume=false", 200, "Running"],
        ["shutdown", 200, "Shutdown"],
        ["start", 200, "Running"],
        ["standby", 200, "Standby"],
        ["stop?discard_snapshot=true", 200, "Stopped"]
      ]
      for (const [verb, status, state] of story) {
        const answer = yield* send(server, "POST", `/instances/a1/${verb}`)
        expect([verb, answer.status]).toEqual([verb, status])
        if (status !== 200) continue
        const instance = decodeInstance(answer.json)
        expect(instance.state).toBe(state)
        expect(answer.headers.get("etag")).toBe(`"${instance.generation}"`)
      }
      const removed = yield* send(server, "DELETE", "/instances/a1")
      expect([removed.status, removed.text]).toEqual([204, ""])
      expect((yield* send(server, "DELETE", "/instances/a1")).status).toBe(404)
    }).pipe(Effect.scoped)
  )
})

describe("what the service is asked", () => {
  it.live("verbs hand their options on, with the contract's defaults", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      for (const verb of ["stop", "stop?discard_snapshot=1", "restore", "restore?resume=false", "pause"])
        yield* send(server, "POST", `/instances/a1/${verb}`)
      expect(server.world.calls).toEqual([
        ["command", "a1", "stop", { discardSnapshot: false }],
        ["command", "a1", "stop", { discardSnapshot: true }],
        ["command", "a1", "restore", { resume: true }],
        ["command", "a1", "restore", { resume: false }],
        ["command", "a1", "pause", {}]
      ])
    }).pipe(Effect.scoped)
  )

  it.live("wait asks for what the query says and answers 200 or 408", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      expect((yield* send(server, "GET", "/instances/a1/wait?state=Running")).status).toBe(200)
      expect((yield* send(server, "GET", "/instances/a1/wait?ready=true&timeout_ms=5")).status).toBe(200)
      const late = yield* send(server, "GET", "/instances/a1/wait?state=Stopped&timeout_ms=20")
      expect(late.status).toBe(408)
      expect(server.world.calls).toEqual([
        ["wait", "a1", { state: "Running", timeoutMs: 60_000 }],
        ["wait", "a1", { ready: true, timeoutMs: 5 }],
        ["wait", "a1", { state: "Stopped", timeoutMs: 20 }]
      ])
    }).pipe(Effect.scoped)
  )

  it.live("a list is never older than the service's, whatever it was before", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      for (const count of [0, 1, 2, 1, 0]) {
        server.world.instances.clear()
        for (let index = 0; index < count; index++) {
          const id = `i${index}`
          server.world.instances.set(id, fakeInstance(id, index, { generation: count }))
        }
        const answer = yield* send(server, "GET", "/instances")
        expect(answer.headers.get("content-type")).toBe("application/json")
        expect(answer.json).toEqual([...server.world.instances.values()])
      }
    }).pipe(Effect.scoped)
  )
})

describe("images", () => {
  it.live("are pulled, shown and removed", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const created = yield* send(server, "POST", "/images", { json: { name: "nginx:alpine", id: "img-2" } })
      expect(created.status).toBe(202)
      expect(decodeImage(created.json)).toMatchObject({ id: "img-2", status: "pending" })
      const list = yield* send(server, "GET", "/images")
      expect(list.json).toMatchObject([{ id: "img-nginx" }, { id: "img-2" }])
      expect((yield* send(server, "GET", "/images/img-2")).status).toBe(200)
      expect((yield* send(server, "DELETE", "/images/img-2")).status).toBe(204)
      expect((yield* send(server, "DELETE", "/images/img-2")).status).toBe(404)
      server.world.instances.set("a1", fakeInstance("a1"))
      const used = yield* send(server, "DELETE", "/images/img-nginx")
      expect(used.json).toMatchObject({ status: 409, instances: ["a1"] })
    }).pipe(Effect.scoped)
  )

  it.live("an archive of 50 MB passes through without being held", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const chunk = new Uint8Array(64 * 1024)
      const total = 50 * 1024 * 1024
      let sent = 0
      let peak = 0
      const body = new ReadableStream({
        pull: (controller) => {
          if (sent >= total) return controller.close()
          sent += chunk.length
          if (sent % (8 * 1024 * 1024) === 0) peak = Math.max(peak, heldBytes())
          controller.enqueue(chunk)
        }
      })
      const before = heldBytes()
      const answer = yield* send(server, "POST", "/images/import?id=img-big", {
        headers: { "content-type": "application/x-tar" },
        body
      })
      expect(answer.status).toBe(202)
      expect(answer.json).toMatchObject({ id: "img-big", status: "converting" })
      expect(server.world.imported.bytes).toBe(total)
      expect(server.world.imported.chunks).toBeGreaterThan(100)
      expect(peak - before).toBeLessThan(total / 2)
    }).pipe(Effect.scoped)
  )

  it.live("an archive must say that it is one; one that stops or breaks off is told so", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes({ bounds: { uploadIdleMs: 200 } })
      const wrong = yield* send(server, "POST", "/images/import", {
        headers: { "content-type": "application/zip" },
        body: "PK"
      })
      expect(wrong.json).toMatchObject({ status: 415, supported: ["application/x-tar"] })
      const head =
        "POST /images/import HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/x-tar\r\ncontent-length: 9000000\r\n\r\n"
      const silent = yield* exchange(server.port, `${head}some bytes`)
      expect(silent).toMatch(/^HTTP\/1\.1 408 /u)
      expect(silent).toContain("request-timeout")
      expect(server.events.filter(({ event }) => event === "defect")).toEqual([])
      expect((yield* send(server, "GET", "/health")).status).toBe(200)
    }).pipe(Effect.scoped)
  )
})
