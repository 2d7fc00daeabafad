/** Whatever a client sends: a clear problem, the right status, and a server that goes on. */
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { jsonBodyMaxBytes } from "../../src/api/Validation.ts"
import { problemBase } from "../../src/domain/problems.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { type Answer, send, type Sending, serveFakes } from "../support/httpServer.ts"
import { bodyOf, exchange } from "../support/rawHttp.ts"

const valid = { name: "n", image: "img-nginx" }

const expectProblem = (answer: Answer, status: number, name: string) => {
  expect(answer.json).toMatchObject({ type: `${problemBase}${name}`, status })
  expect(answer.headers.get("content-type")).toBe("application/problem+json")
  expect(answer.status).toBe(status)
}

const asJson = (body: Sending["body"]): Sending => ({
  headers: { "content-type": "application/json" },
  ...(body === undefined ? {} : { body })
})

/** POST /instances with this body: refused with 400 at this path. */
const badBodies: ReadonlyArray<readonly [string, unknown, ReadonlyArray<string | number>]> = [
  ["no name", { image: "i" }, ["name"]],
  ["no image", { name: "n" }, ["image"]],
  ["an empty name", { ...valid, name: "" }, ["name"]],
  ["a name of 101 characters", { ...valid, name: "n".repeat(101) }, ["name"]],
  ["an unknown field", { ...valid, memory: 1 }, ["memory"]],
  [
    "an unknown field deep inside",
    { ...valid, network: { enabled: true, ip: "1.2.3.4" } },
    ["network", "ip"]
  ],
  ["text for a number", { ...valid, memory_mb: "1024" }, ["memory_mb"]],
  ["a broken number", { ...valid, memory_mb: 128.5 }, ["memory_mb"]],
  ["too little memory", { ...valid, memory_mb: 127 }, ["memory_mb"]],
  ["far too much memory", { ...valid, memory_mb: 1e15 }, ["memory_mb"]],
  ["no vcpus", { ...valid, vcpus: 0 }, ["vcpus"]],
  ["null for a number", { ...valid, vcpus: null }, ["vcpus"]],
  ["an id with capitals", { ...valid, id: "My-Instance" }, ["id"]],
  ["an id that climbs", { ...valid, id: "../etc" }, ["id"]],
  ["an id of 64 characters", { ...valid, id: "a".repeat(64) }, ["id"]],
  ["an id that ends with a dash", { ...valid, id: "a-" }, ["id"]],
  ["an environment value that is no text", { ...valid, env: { A: 1 } }, ["env", "A"]],
  ["an environment name with =", { ...valid, env: { "A=B": "1" } }, ["env", "A=B"]],
  ["NUL in an environment value", { ...valid, env: { A: "a\0b" } }, ["env", "A"]],
  ["a list for an object", { ...valid, labels: [] }, ["labels"]],
  [
    "a relative mount path",
    { ...valid, volumes: [{ volume_id: "v", mount_path: "data" }] },
    ["volumes", 0, "mount_path"]
  ],
  [
    "a mount path that climbs",
    { ...valid, volumes: [{ volume_id: "v", mount_path: "/a/../b" }] },
    ["volumes", 0, "mount_path"]
  ],
  ["an unknown restart policy", { ...valid, restart_policy: "sometimes" }, ["restart_policy"]],
  ["an unknown VMM", { ...valid, vmm: "xen" }, ["vmm"]],
  ["text for a flag", { ...valid, start: "false" }, ["start"]],
  ["a list", [valid], []],
  ["null", null, []],
  ["a number", 7, []]
]

describe("bodies", () => {
  for (const [name, json, path] of badBodies)
    it.live(`refuses ${name}`, () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        const answer = yield* send(server, "POST", "/instances", { json })
        expectProblem(answer, 400, "invalid-request")
        expect(answer.json).toMatchObject({
          errors: expect.arrayContaining([expect.objectContaining({ path: ["payload", ...path] })])
        })
        expect(server.world.calls).toEqual([])
      }).pipe(Effect.scoped)
    )

  it.live("tells every mistake at once, and never repeats a value", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const answer = yield* send(server, "POST", "/instances", {
        json: { name: "", env: { SECRET: "hunter2\0" }, vcpus: -1, extra: "hunter2" }
      })
      expectProblem(answer, 400, "invalid-request")
      expect(answer.json).toMatchObject({ errors: { length: 5 } })
      expect(answer.text).not.toContain("hunter2")
    }).pipe(Effect.scoped)
  )

  it.live("a body that is wrong in a hundred thousand places gets a short answer", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const many = Object.fromEntries(Array.from({ length: 60_000 }, (_, index) => [`f${index}`, 1]))
      const answer = yield* send(server, "POST", "/instances", { json: { ...valid, ...many } })
      expectProblem(answer, 400, "invalid-request")
      expect(answer.text.length).toBeLessThan(8_192)
      const name = "k".repeat(500_000)
      const long = yield* send(server, "POST", "/instances", { json: { ...valid, [name]: 1 } })
      expect(long.text.length).toBeLessThan(2_048)
    }).pipe(Effect.scoped)
  )
})

describe("bodies that are no JSON", () => {
  const malformed: ReadonlyArray<readonly [string, Sending["body"]]> = [
    ["nothing", undefined],
    ["an empty body", ""],
    ["half a body", '{"name":'],
    ["two bodies", "{}{}"],
    ["single quotes", "{'name':'n'}"],
    ["a hundred thousand brackets", "[".repeat(100_000)],
    ["bytes that are not UTF-8", new Uint8Array([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x31, 0x7d])]
  ]
  for (const [name, body] of malformed)
    it.live(`refuses ${name}`, () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        expectProblem(yield* send(server, "POST", "/instances", asJson(body)), 400, "invalid-request")
      }).pipe(Effect.scoped)
    )

  it.live("a field named __proto__ is an unknown field and changes nothing", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const body = '{"name":"n","image":"img-nginx","__proto__":{"start":false}}'
      expectProblem(yield* send(server, "POST", "/instances", asJson(body)), 400, "invalid-request")
      const label = '{"name":"n","image":"img-nginx","env":{"__proto__":"x"}}'
      const answer = yield* send(server, "POST", "/instances", asJson(label))
      expect([201, 400]).toContain(answer.status)
      expect(Object.hasOwn(Object.prototype, "start")).toBe(false)
    }).pipe(Effect.scoped)
  )
})

describe("sizes, types and times", () => {
  it.live("takes 1 MiB and refuses one byte more, told in advance or found on the way", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const sized = (bytes: number) => {
        const rest = JSON.stringify({ ...valid, env: { A: "" } }).length
        const values = Math.ceil((bytes - rest) / 32_000)
        const env = Object.fromEntries(Array.from({ length: values }, (_, index) => [`A${index}`, ""]))
        const frame = JSON.stringify({ ...valid, env }).length
        const each = Math.floor((bytes - frame) / values)
        const filled = Object.keys(env).map((key): [string, string] => [key, "x".repeat(each)])
        const last = bytes - frame - each * values
        filled[0] = ["A0", "x".repeat(each + last)]
        return JSON.stringify({ ...valid, env: Object.fromEntries(filled) })
      }
      const largest = sized(jsonBodyMaxBytes)
      expect(largest.length).toBe(jsonBodyMaxBytes)
      expect((yield* send(server, "POST", "/instances", asJson(largest))).status).toBe(201)
      const tooLarge = sized(jsonBodyMaxBytes + 1)
      expectProblem(yield* send(server, "POST", "/instances", asJson(tooLarge)), 413, "payload-too-large")
      const chunked = new Blob([tooLarge]).stream()
      expectProblem(yield* send(server, "POST", "/instances", asJson(chunked)), 413, "payload-too-large")
      expectProblem(yield* send(server, "POST", "/images", asJson(tooLarge)), 413, "payload-too-large")
      expect((yield* send(server, "GET", "/health")).status).toBe(200)
    }).pipe(Effect.scoped)
  )

  it.live("refuses other content types, and takes JSON with parameters", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const body = JSON.stringify(valid)
      for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/xml", "nonsense"]) {
        const answer = yield* send(server, "POST", "/instances", { headers: { "content-type": type }, body })
        expectProblem(answer, 415, "unsupported-media-type")
        expect(answer.json).toMatchObject({ supported: ["application/json"] })
      }
      const headers = { "content-type": "Application/JSON; charset=utf-8" }
      expect((yield* send(server, "POST", "/instances", { headers, body })).status).toBe(201)
    }).pipe(Effect.scoped)
  )

  it.live("a body that never comes to its end is 408, one that breaks off disturbs nobody", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes({ bounds: { bodyMs: 200 } })
      const head =
        "POST /instances HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n"
      const late = yield* exchange(server.port, `${head}{"name":`)
      expect(late).toMatch(/^HTTP\/1\.1 408 /u)
      expect(JSON.parse(bodyOf(late))).toMatchObject({ type: `${problemBase}request-timeout`, status: 408 })
      expect((yield* send(server, "GET", "/health")).status).toBe(200)
      expect(server.events.filter(({ event }) => event === "defect")).toEqual([])
    }).pipe(Effect.scoped)
  )
})

describe("paths and queries", () => {
  const bad: ReadonlyArray<readonly [string, string]> = [
    ["GET", "/instances/Bad_Id"],
    ["GET", "/instances/-a"],
    ["GET", `/instances/${"a".repeat(64)}`],
    ["GET", "/instances/a%00b"],
    ["GET", "/instances/a%2Fb"],
    ["GET", "/images/..%2f..%2fetc"],
    ["GET", "/instances?state=running"],
    ["GET", "/instances?state=Running&state=Paused"],
    ["GET", "/instances?label=novalue"],
    ["GET", "/instances?limit=1"],
    ["POST", "/instances/a1/stop?discard_snapshot=maybe"],
    ["POST", "/instances/a1/stop?discard_snapshot=true&discard_snapshot=false"],
    ["POST", "/instances/a1/start?force=true"],
    ["GET", "/images?status=ready"],
    ["DELETE", "/instances/a1?force=true"],
    ["POST", "/instances/a1/restore?resume=2"],
    ["GET", "/instances/a1/wait"],
    ["GET", "/instances/a1/wait?ready=false"],
    ["GET", "/instances/a1/wait?state=Gone"],
    ["GET", "/instances/a1/wait?state=Running&timeout_ms=-1"],
    ["GET", "/instances/a1/wait?state=Running&timeout_ms=600001"],
    ["GET", "/instances/a1/wait?state=Running&timeout_ms=1e3"],
    ["GET", "/instances/a1/logs?tail=ten"],
    ["GET", "/instances/a1/logs?tail=100001"],
    ["GET", "/instances/a1/logs?source=guest"],
    ["GET", "/instances/a1/logs?follow=yes"],
    ["POST", "/images/import?id=Bad"]
  ]
  for (const [method, path] of bad)
    it.live(`${method} ${path.slice(0, 80)} is 400`, () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        server.world.instances.set("a1", fakeInstance("a1"))
        expectProblem(yield* send(server, method, path), 400, "invalid-request")
        expect(server.world.calls).toEqual([])
      }).pipe(Effect.scoped)
    )
})

describe("headers, encodings and filters", () => {
  it.live("a Last-Event-ID that is no cursor is 400", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1"))
      for (const id of ["x", "-1", "1.5", "99999999999999999999"]) {
        const answer = yield* send(server, "GET", "/instances/a1/logs", { headers: { "last-event-id": id } })
        expectProblem(answer, 400, "invalid-request")
      }
    }).pipe(Effect.scoped)
  )

  it.live("broken percent-encoding, odd paths and long ones are problems too", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      for (const path of [
        "/instances/%zz",
        "/%",
        "/instances/%2e%2e",
        "/instances/..%00",
        "/instances/%c3%28",
        `/${"a/".repeat(2_000)}`,
        "//..//",
        "/;/?"
      ]) {
        const answer = yield* exchange(
          server.port,
          `GET ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n`
        )
        expect(answer).toMatch(/^HTTP\/1\.1 40[04] /u)
        expect(bodyOf(answer)).toMatch(/^\{/u)
        expect(JSON.parse(bodyOf(answer))).toMatchObject({ detail: expect.any(String) })
      }
    }).pipe(Effect.scoped)
  )

  it.live("an encoded id is the same id, and filters reach the service as they were meant", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("a1", fakeInstance("a1", 0, { labels: { tier: "web", note: "a=b c" } }))
      server.world.instances.set("b1", fakeInstance("b1", 1, { labels: { tier: "db" }, state: "Stopped" }))
      expect((yield* send(server, "GET", "/instances/%61%31")).status).toBe(200)
      const ids = (answer: Answer) => JSON.stringify(answer.json).match(/"id":"[^"]+"/gu)
      expect(ids(yield* send(server, "GET", "/instances?label=tier=web"))).toEqual(['"id":"a1"'])
      expect(ids(yield* send(server, "GET", "/instances?label=tier=web&label=note=a%3Db%20c"))).toEqual([
        '"id":"a1"'
      ])
      expect(ids(yield* send(server, "GET", "/instances?state=Stopped"))).toEqual(['"id":"b1"'])
      expect(ids(yield* send(server, "GET", "/instances?state=Stopped&label=tier=web"))).toBeNull()
      expect(server.world.calls.slice(-1)).toEqual([
        ["listJson", { state: "Stopped", labels: { tier: "web" } }]
      ])
    }).pipe(Effect.scoped)
  )
})
