/**
 * Processes and files through the whole service on a simulated host: which states let them in, what they become when the
 * instance moves on, and that no verb ever waits for them.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId } from "../../src/domain/Ids.ts"
import { makePlace, request, type SimulatedService } from "../support/simulatedService.ts"

const id = InstanceId.make("a")

/** Lets virtual time pass until the effect is done. */
const through = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    for (let at = 0; at < 5_000 && fiber.pollUnsafe() === undefined; at += 1) yield* TestClock.adjust(20)
    return yield* Fiber.join(fiber)
  })

const running = Effect.gen(function* () {
  const place = yield* makePlace()
  const service = yield* place.start
  yield* through(service.instances.create(request("a")))
  yield* through(service.instances.wait(id, { ready: true, timeoutMs: 60_000 }))
  return { place, service }
})

const exec = (service: SimulatedService, ...command: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const process = yield* service.instances.exec(id, { command })
    const output = yield* Stream.runCollect(process.output)
    return output.map((it) =>
      it._tag === "Exit" ? JSON.stringify(it.exit) : Buffer.from(it.bytes).toString()
    )
  }).pipe(Effect.scoped)

it.effect("a process runs in a Running instance, and leaves its generation alone", () =>
  Effect.gen(function* () {
    const { service } = yield* running
    const before = yield* service.instances.get(id)
    assert.deepStrictEqual(yield* through(exec(service, "echo", "hello", "world")), [
      "hello world\n",
      '{"code":0}'
    ])
    assert.deepStrictEqual(yield* through(exec(service, "exit", "3")), ['{"code":3}'])
    const after = yield* service.instances.get(id)
    assert.strictEqual(after.generation, before.generation)
    yield* service.stop
  })
)

it.effect("every other state refuses it, and says what is legal there", () =>
  Effect.gen(function* () {
    const { service } = yield* running
    const verbs = [
      ["pause", "Paused"],
      ["shutdown", "Shutdown"],
      ["stop", "Stopped"]
    ] as const
    for (const [verb, state] of verbs) {
      yield* through(service.instances.command(id, verb))
      const archive = Stream.make(new Uint8Array(1))
      const problems = [
        yield* Effect.flip(Effect.scoped(service.instances.exec(id, { command: ["true"] }))),
        yield* Effect.flip(Effect.scoped(service.instances.readFiles(id, "/etc"))),
        yield* Effect.flip(service.instances.writeFiles(id, "/etc", archive))
      ]
      for (const problem of problems) {
        assert.strictEqual(problem._tag, "InvalidState")
        if (problem._tag !== "InvalidState") return
        assert.strictEqual(problem.state, state)
        assert.include(problem.allowed, "delete")
        assert.include(problem.detail, state)
      }
    }
    const nobody = InstanceId.make("nobody")
    const missing = yield* Effect.flip(Effect.scoped(service.instances.exec(nobody, { command: ["true"] })))
    assert.strictEqual(missing._tag, "InstanceNotFound")
    yield* service.stop
  })
)

it.effect("a guest that has not answered yet is no place to run anything, and says what to wait for", () =>
  Effect.gen(function* () {
    const place = yield* makePlace()
    const service = yield* place.start
    place.world.plan.hangNext("agentReady", { id: "a" })
    yield* through(service.instances.create(request("a")))
    const problem = yield* Effect.flip(Effect.scoped(service.instances.exec(id, { command: ["true"] })))
    assert.strictEqual(problem._tag, "GuestNotReady")
    assert.include(problem.detail, "wait?ready=true")
    yield* service.stop
  })
)

it.effect(
  "standby and stop do not wait for a process: they end it, and it is told where the instance is",
  () =>
    Effect.gen(function* () {
      const { service } = yield* running
      for (const [verb, back] of [
        ["standby", "restore"],
        ["stop", "start"]
      ] as const) {
        const process = yield* service.instances.exec(id, { command: ["sleep", "100000"] })
        const waiting = yield* Effect.forkChild(Effect.flip(Stream.runDrain(process.output)))
        yield* through(service.instances.command(id, verb))
        const problem = yield* through(Fiber.join(waiting))
        assert.strictEqual(problem._tag, "GuestLost")
        assert.match(problem.detail, /^The guest of 'a' went away before it was done\. The instance is /u)
        yield* through(service.instances.command(id, back))
        yield* through(service.instances.wait(id, { ready: true, timeoutMs: 60_000 }))
        assert.deepStrictEqual(yield* through(exec(service, "echo", "again")), ["again\n", '{"code":0}'])
      }
      yield* service.stop
    })
)

it.effect("a service that restarts runs processes in the guests that it adopts", () =>
  Effect.gen(function* () {
    const { place, service } = yield* running
    const process = yield* service.instances.exec(id, { command: ["sleep", "100000"] })
    const waiting = yield* Effect.forkChild(Effect.exit(Stream.runDrain(process.output)))
    yield* service.kill
    yield* through(Fiber.join(waiting))
    const next = yield* through(place.start)
    yield* through(next.instances.wait(id, { ready: true, timeoutMs: 60_000 }))
    assert.deepStrictEqual(yield* through(exec(next, "echo", "again")), ["again\n", '{"code":0}'])
    yield* next.stop
  })
)

it.effect("what the guest refuses is the client's to read, what the channel says is not", () =>
  Effect.gen(function* () {
    const { place, service } = yield* running
    const refused = yield* Effect.flip(through(Effect.scoped(service.instances.readFiles(id, "/nowhere"))))
    assert.deepStrictEqual(
      [refused._tag, refused.detail],
      ["GuestRefused", "The guest of 'a' refuses: /nowhere: no such file"]
    )
    place.world.plan.failNext("agentExec", { reason: "/run/secret/agent.sock: EPIPE" })
    const lost = yield* Effect.flip(through(exec(service, "true")))
    assert.strictEqual(lost._tag, "GuestLost")
    assert.notInclude(JSON.stringify(lost), "secret")
    yield* through(service.instances.writeFiles(id, "/srv", Stream.make(new Uint8Array([1, 2]))))
    const archive = yield* through(
      Effect.scoped(Effect.flatMap(service.instances.readFiles(id, "/srv"), (it) => Stream.runCollect(it)))
    )
    assert.deepStrictEqual(archive, [new Uint8Array([1, 2])])
    yield* service.stop
  })
)
