import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import {
  bodyMaxBytes,
  type Client,
  ClientFault,
  connect,
  says
} from "../../../src/vmm/cloud-hypervisor/Client.ts"
import { answer, conversation, type Exchange, rawServer, replay } from "../../support/recordedConversation.ts"

const versions = ["53.0", "52.0", "51.2"]

/** The call of an exchange, as a session makes it. */
const repeat = (client: Client, { method, call, body }: Exchange) => {
  if (method !== "GET") return client.order(call, body === "" ? undefined : JSON.parse(body))
  switch (call) {
    case "vmm.ping":
      return client.ping
    case "vm.counters":
      return client.counters
    default:
      return client.info
  }
}

/** The one request of the record that no client of this schema can send. */
const isBroken = (exchange: Exchange) => exchange.body === '{"cpus":'

describe.each(versions)("a conversation with %s", (version) => {
  it.live("is repeated to the byte, and every answer and every error is understood", () =>
    Effect.gen(function* () {
      const exchanges = conversation(version).filter((it) => !isBroken(it))
      assert.isAbove(exchanges.length, 25)
      const server = yield* replay(exchanges)
      const client = yield* connect(server.socket)
      for (const exchange of exchanges) {
        const result = yield* Effect.result(repeat(client, exchange))
        assert.strictEqual(Result.isSuccess(result), exchange.status < 300, exchange.call)
        if (Result.isSuccess(result)) continue
        assert.strictEqual(result.failure.kind, "refused")
        assert.isNotEmpty(result.failure.said)
        assert.isTrue(result.failure.said.every((it) => !it.includes("\n")))
        assert.match(result.failure.reason, /^\S.{3,}/u)
      }
      assert.strictEqual(server.heard.length, exchanges.length)
      assert.strictEqual(server.connections(), 1)
    }).pipe(Effect.scoped)
  )

  it.live("says what is wrong where the status says nothing", () =>
    Effect.gen(function* () {
      const refusals = conversation(version).filter((it) => it.status >= 300 && !isBroken(it))
      const server = yield* replay(refusals)
      const client = yield* connect(server.socket)
      const said: Array<string> = []
      for (const exchange of refusals) {
        const fault = yield* Effect.flip(repeat(client, exchange))
        said.push(
          `${exchange.call}: ${["VM is not created", "VM is not running", "VM is already created", "VM config is missing", "Failed to find device", "No device with id"].find((it) => says(fault, it)) ?? "other"}`
        )
      }
      for (const wanted of [
        "vm.info: VM is not created",
        "vm.boot: VM config is missing",
        "vm.create: VM is already created",
        "vm.pause: VM is not running",
        "vm.restore: VM is already created",
        "vm.shutdown: VM is not running",
        "vm.remove-device: Failed to find device",
        "vm.remove-device: No device with id"
      ])
        assert.include(said, wanted)
    }).pipe(Effect.scoped)
  )

  it.live("keeps every digit of a 64-bit counter", () =>
    Effect.gen(function* () {
      const server = yield* replay(conversation(version).filter((it) => it.call === "vm.counters"))
      const client = yield* connect(server.socket)
      const counters = yield* client.counters
      assert.strictEqual(counters["disk-data"]?.["read_latency_min"], 18_446_744_073_709_551_615n)
      assert.strictEqual(counters["disk-data"]?.["read_bytes"], 0n)
    }).pipe(Effect.scoped)
  )
})

const ping = answer(200, '{"build_version":"v53.0","version":"53.0.0","pid":7,"features":[]}')

describe("a request", () => {
  it.live("has a length and no chunks, and no body where there is none", () =>
    Effect.gen(function* () {
      const server = yield* rawServer(() => answer(204))
      const client = yield* connect(server.socket)
      yield* client.order("vm.boot")
      yield* client.order("vm.resize", { desired_ram: 1 })
      const [boot, resize] = server.heard.map((it) => it.headers.map((header) => header.toLowerCase()))
      assert.include(boot ?? [], "content-length: 0")
      assert.include(resize ?? [], "content-length: 17")
      for (const headers of [boot, resize]) {
        assert.isFalse(headers?.some((it) => it.startsWith("transfer-encoding")))
        assert.isFalse(headers?.some((it) => it.startsWith("traceparent") || it.startsWith("b3")))
        assert.isTrue(headers?.every((it) => Buffer.byteLength(it) < 1024))
      }
    }).pipe(Effect.scoped, Effect.withSpan("a span that stays at home"))
  )

  it.live("that is longer than the VMM takes is not sent", () =>
    Effect.gen(function* () {
      const server = yield* rawServer(() => answer(204))
      const client = yield* connect(server.socket)
      const fault = yield* Effect.flip(client.order("vm.create", { text: "x".repeat(bodyMaxBytes) }))
      assert.include(fault.reason, "51200 bytes")
      assert.isEmpty(server.heard)
    }).pipe(Effect.scoped)
  )

  it.live("waits for the answer of the one before, over one connection", () =>
    Effect.gen(function* () {
      const waiting: Array<() => void> = []
      const server = yield* rawServer((_, client) => {
        waiting.push(() => client.write(ping))
        return undefined
      })
      const client = yield* connect(server.socket)
      const all = yield* Effect.forkChild(
        Effect.all([client.ping, client.ping, client.ping], { concurrency: 3 })
      )
      for (const turn of [1, 2, 3]) {
        while (waiting.length === 0) yield* Effect.yieldNow
        assert.strictEqual(server.heard.length, turn)
        waiting.shift()?.()
      }
      yield* Fiber.join(all)
      assert.strictEqual(server.connections(), 1)
    }).pipe(Effect.scoped)
  )

  it.live("that is given up is not taken back once it is sent, and never sent before", () =>
    Effect.gen(function* () {
      const waiting: Array<() => void> = []
      const server = yield* rawServer((_, client) => {
        waiting.push(() => client.write(answer(204)))
        return undefined
      })
      const client = yield* connect(server.socket)
      const sent = yield* Effect.forkChild(
        client.order("vm.snapshot", { destination_url: "file:///s" }, null)
      )
      while (waiting.length === 0) yield* Effect.yieldNow
      const unsent = yield* Effect.forkChild(client.order("vm.pause"))
      yield* Effect.yieldNow
      yield* Fiber.interrupt(unsent)
      yield* Fiber.interrupt(sent)
      const next = yield* Effect.forkChild(client.order("vm.resume"))
      yield* Effect.yieldNow
      assert.strictEqual(server.heard.length, 1)
      waiting.shift()?.()
      while (waiting.length === 0) yield* Effect.yieldNow
      waiting.shift()?.()
      yield* Fiber.join(next)
      assert.deepStrictEqual(
        server.heard.map((it) => it.line.split(" ")[1]),
        ["/api/v1/vm.snapshot", "/api/v1/vm.resume"]
      )
    }).pipe(Effect.scoped)
  )

  it.live("that is not answered ends with its bound, and with the scope", () =>
    Effect.gen(function* () {
      const server = yield* rawServer(() => undefined)
      const scope = yield* Scope.make()
      const client = yield* Scope.provide(connect(server.socket), scope)
      const silent = yield* Effect.flip(client.order("vm.boot", undefined, 20))
      assert.strictEqual(silent.kind, "silent")
      const bound = yield* Effect.forkChild(Effect.flip(client.order("vm.pause", undefined, null)))
      yield* Effect.yieldNow
      yield* Scope.close(scope, Exit.void)
      assert.instanceOf(yield* Fiber.join(bound), ClientFault)
    }).pipe(Effect.scoped)
  )

  it.live("is refused where too many wait", () =>
    Effect.gen(function* () {
      const server = yield* rawServer(() => undefined)
      const client = yield* connect(server.socket)
      yield* Effect.forEach(Array.from({ length: 64 }), () => Effect.forkChild(Effect.exit(client.ping)))
      yield* Effect.yieldNow
      assert.include((yield* Effect.flip(client.ping)).reason, "owes 64 answers")
    }).pipe(Effect.scoped)
  )
})

describe("an answer", () => {
  const faultOf = (said: string | null) =>
    Effect.gen(function* () {
      const server = yield* rawServer(() => said)
      const client = yield* connect(server.socket)
      return yield* Effect.flip(client.info)
    }).pipe(Effect.scoped)

  it.live.each([
    ["no JSON", answer(200, "{"), "garbage"],
    ["another shape", answer(200, '{"config":{},"state":7}'), "garbage"],
    ["too many connections", answer(503, '{"error":"Too many open connections"}'), "refused"],
    ["an error that is no array", answer(500, '{"a":1}'), "refused"],
    ["an error without a body", answer(400, ""), "refused"],
    ["no HTTP", "SSH-2.0\r\n\r\n", "closed"],
    ["an end of the connection", null, "closed"],
    ["more than anyone would say", answer(200, `"${"x".repeat(5 * 1024 * 1024)}"`), "closed"]
  ] as const)("of %s is a fault of its own kind", ([, said, kind]) =>
    Effect.map(faultOf(said), (fault) => assert.strictEqual(fault.kind, kind))
  )

  it.live("of a VMM that is not there is a closed connection", () =>
    Effect.gen(function* () {
      const client = yield* connect("/nonexistent/api.sock")
      assert.strictEqual((yield* Effect.flip(client.ping)).kind, "closed")
    }).pipe(Effect.scoped)
  )
})
