import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { connect, type QmpEvent } from "../../../src/vmm/qemu/Qmp.ts"
import { parseExact } from "../../../src/vmm/exactJson.ts"
import { type Command, fakeQmp, greeting, reply } from "../../support/vmmFakeQmp.ts"

const Status = Schema.Struct({ status: Schema.String, running: Schema.Boolean })

/** Capabilities as QEMU negotiates them; everything else by the test. */
const after = (answer: (command: Command, client: Parameters<Parameters<typeof fakeQmp>[0]>[1]) => void) =>
  fakeQmp((command, client) => {
    if (command.execute === "qmp_capabilities") reply(client, command.id)
    else answer(command, client)
  })

/** Recorded from QEMU 7.2.22: `cont` in prelaunch, then a guest that powers off. */
const recorded =
  '{"timestamp": {"seconds": 1795528555, "microseconds": 100}, "event": "RESUME"}\r\n' +
  '{"return": {}, "id": 2}\r\n' +
  '{"timestamp": {"seconds": 1795528558, "microseconds": 9}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}\r\n' +
  '{"timestamp": {"seconds": 1795528558, "microseconds": 12}, "event": "STOP"}\r\n'

describe("a conversation with QEMU", () => {
  it.live("negotiates, matches answers to commands by id, and tells events in order", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const server = yield* after((_, client) => client.write(recorded))
        const qmp = yield* connect(server.path)
        const events: Array<QmpEvent> = []
        yield* qmp.listen((event) => events.push(event))
        const stopped = yield* qmp.first((event) =>
          event.name === "STOP" ? Option.some(event) : Option.none()
        )
        yield* qmp.order("cont")
        yield* stopped
        assert.deepStrictEqual(
          events.map((it) => it.name),
          ["RESUME", "SHUTDOWN", "STOP"]
        )
        assert.deepStrictEqual(events[1]?.data, { guest: true, reason: "guest-shutdown" })
        assert.deepStrictEqual(
          server.heard.map((it) => it.execute),
          ["qmp_capabilities", "cont"]
        )
      })
    )
  )

  it.live("takes answers out of order and split at any byte", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const waiting: Array<Command> = []
        const server = yield* after((command, client) => {
          waiting.push(command)
          if (waiting.length < 2) return
          const [first, second] = waiting
          const text =
            `${JSON.stringify({ return: { status: "b", running: true }, id: second?.id })}\n` +
            `${JSON.stringify({ return: { status: "a", running: false }, id: first?.id })}\n`
          client.setNoDelay(true)
          for (const character of text) client.write(character)
        })
        const qmp = yield* connect(server.path)
        const both = yield* Effect.all([qmp.execute("one", {}, Status), qmp.execute("two", {}, Status)], {
          concurrency: 2
        })
        assert.deepStrictEqual(
          both.map((it) => it.status),
          ["a", "b"]
        )
      })
    )
  )

  it.live("keeps every digit of a 64-bit number", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const server = yield* after((command, client) =>
          client.write(`{"return": {"max": 18446744073709551615}, "id": ${command.id}}\n`)
        )
        const qmp = yield* connect(server.path)
        const answer = yield* qmp.execute("query", {}, Schema.Struct({ max: Schema.BigInt }))
        assert.strictEqual(answer.max, 18446744073709551615n)
        assert.deepStrictEqual(
          parseExact('[9007199254740991, -9007199254740993, 1e300, 1.5, "12345678901234567890"]'),
          [9007199254740991, -9007199254740993n, 1e300, 1.5, "12345678901234567890"]
        )
      })
    )
  )

  it.live("gives QEMU's own refusal with its class, and goes on", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const server = yield* after((command, client) =>
          command.execute === "device_del"
            ? client.write(
                `{"id": ${command.id}, "error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}\n`
              )
            : reply(client, command.id)
        )
        const qmp = yield* connect(server.path)
        const refusal = yield* Effect.flip(qmp.order("device_del", { id: "x" }))
        assert.strictEqual(refusal.kind, "refused")
        assert.strictEqual(refusal.errorClass, "DeviceNotFound")
        assert.strictEqual(refusal.message, "device_del: Device 'x' not found")
        yield* qmp.order("stop")
      })
    )
  )
})

const failure = (kind: string, effect: Effect.Effect<unknown, { readonly kind: string }>) =>
  Effect.map(Effect.flip(effect), (fault) => assert.strictEqual(fault.kind, kind))

describe("what is not a conversation", () => {
  it.live("a monitor that another client holds: connected, no greeting", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const server = yield* fakeQmp(
          () => undefined,
          () => undefined
        )
        yield* failure("silent", Effect.scoped(connect(server.path, 50)))
      })
    )
  )

  it.live("nobody listens", () => failure("closed", Effect.scoped(connect("/nowhere/qmp.sock"))))

  it.live("a server that greets as something else, with half a greeting, or not in JSON", () =>
    Effect.scoped(
      Effect.gen(function* () {
        for (const [text, kind] of [
          ['{"hello": "world"}\n', "garbage"],
          ["SSH-2.0-OpenSSH_9.2\n", "garbage"],
          [greeting.slice(0, 40), "closed"]
        ] as const) {
          const server = yield* fakeQmp(
            () => undefined,
            (client) => client.end(text)
          )
          yield* failure(kind, Effect.scoped(connect(server.path, 5_000)))
        }
      })
    )
  )

  it.live("a silent command ends at its bound; its late answer is nobody else's", () =>
    Effect.scoped(
      Effect.gen(function* () {
        let late: number | undefined
        const server = yield* after((command, client) => {
          if (command.execute === "stop") late = command.id
          else {
            reply(client, late ?? 0, { status: "late", running: true })
            reply(client, command.id, { status: "mine", running: true })
          }
        })
        const qmp = yield* connect(server.path)
        yield* failure("silent", qmp.order("stop", {}, 30))
        assert.strictEqual((yield* qmp.execute("query-status", {}, Status)).status, "mine")
      })
    )
  )

  it.live("an end in the middle of a command, and in the middle of a line", () =>
    Effect.scoped(
      Effect.gen(function* () {
        for (const text of ["", '{"return": {']) {
          const server = yield* after((_, client) => client.end(text))
          const qmp = yield* connect(server.path)
          const event = yield* qmp.first(() => Option.some(1))
          yield* failure("closed", qmp.order("cont"))
          yield* failure("closed", event)
          yield* qmp.closed
          yield* failure("closed", qmp.order("cont"))
        }
      })
    )
  )

  it.live("garbage, JSON that is not QMP, an error without id, an answer of another shape", () =>
    Effect.scoped(
      Effect.gen(function* () {
        for (const text of [
          "%%%\n",
          "[1, 2]\n",
          '{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n'
        ]) {
          const server = yield* after((_, client) => client.write(text))
          const qmp = yield* connect(server.path)
          yield* failure("garbage", qmp.order("cont"))
          yield* qmp.closed
        }
        const server = yield* after((command, client) => reply(client, command.id, { status: 7 }))
        const qmp = yield* connect(server.path)
        yield* failure("garbage", qmp.execute("query-status", {}, Status))
      })
    )
  )

  it.live("a line without an end is given up at 4 MiB", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const server = yield* after((_, client) => {
          const block = "x".repeat(1024 * 1024)
          for (let count = 0; count < 5; count++) client.write(block)
        })
        const qmp = yield* connect(server.path)
        yield* failure("garbage", qmp.order("cont"))
      })
    )
  )

  it.live("a flood of events blocks nothing", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const event = '{"event": "RTC_CHANGE", "data": {"offset": 1}}\n'
        const server = yield* after((command, client) => {
          client.write(event.repeat(20_000))
          reply(client, command.id)
        })
        const qmp = yield* connect(server.path)
        let seen = 0
        yield* qmp.listen(() => seen++)
        yield* qmp.order("stop")
        assert.strictEqual(seen, 20_000)
      })
    )
  )

  it.live("more commands than QEMU answers are refused, not queued", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const server = yield* after(() => undefined)
        const qmp = yield* connect(server.path)
        const stuck = yield* Effect.forEach(Array.from({ length: 64 }), () =>
          Effect.forkChild(qmp.order("stop"))
        )
        yield* Effect.yieldNow
        yield* failure("silent", qmp.order("stop"))
        yield* Fiber.interruptAll(stuck)
        yield* failure("silent", qmp.order("stop", {}, 10))
      })
    )
  )

  it.live("the end of the scope closes the connection and frees the monitor", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const server = yield* after(() => undefined)
        const scope = yield* Scope.make()
        const qmp = yield* Scope.provide(connect(server.path), scope)
        const waiting = yield* Effect.forkChild(Effect.flip(qmp.order("stop")))
        yield* Effect.yieldNow
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual((yield* Fiber.join(waiting)).kind, "closed")
        const next = yield* connect(server.path)
        assert.isFunction(next.execute)
      })
    )
  )
})
