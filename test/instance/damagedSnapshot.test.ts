/**
 * A snapshot whose content was changed, though not its size, is found out while it is loaded: no instruction of the guest
 * runs, the instance stays in standby with its snapshot, and once the content is right again it goes on where it was.
 */
import { createHash } from "node:crypto"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId } from "../../src/domain/Ids.ts"
import { noLatency } from "../../src/host/simulated/FaultPlan.ts"
import { look } from "../../src/host/simulated/ledger.ts"
import { makePlace, request } from "../support/simulatedService.ts"

const id = InstanceId.make("a")
const stepMs = 50
const stepsMax = 200

/** Lets virtual time pass until the effect ends. */
const inTime = <A, E>(effect: Effect.Effect<A, E>) =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    for (let step = 0; step < stepsMax && fiber.pollUnsafe() === undefined; step++)
      yield* TestClock.adjust(stepMs)
    return yield* Fiber.join(fiber)
  })

it.effect("a damaged snapshot is refused before the guest runs, and kept", () =>
  Effect.gen(function* () {
    const { files, start, world } = yield* makePlace({ latencies: noLatency })
    const { instances } = yield* start
    yield* inTime(instances.create(request("a")))
    yield* TestClock.adjust("5 seconds")
    yield* inTime(instances.command(id, "standby"))
    const [state] = files.names("/data/instances/a/snapshot").filter((name) => name.endsWith("/state"))
    assert.isDefined(state)
    const whole = files.text(state)
    // Right by its own word: only what the manifest says of it tells that it is another.
    const [body = ""] = whole.split("\n")
    const other = body.replace(/\d/u, (digit) => `${(Number(digit) + 1) % 10}`)
    const changed = `${other}\n${createHash("sha256").update(other).digest("hex")}\n`
    assert.strictEqual(changed.length, whole.length)
    const replace = (content: string) => {
      files.disk.remove(state)
      files.disk.append(state, content)
    }
    replace(changed)
    const refusal = yield* Effect.flip(inTime(instances.command(id, "restore")))
    assert.include(refusal.message, "damaged")
    const after = yield* instances.get(id)
    assert.deepInclude(after, { state: "Standby", transition: null, has_snapshot: true })
    assert.isNull(look(world, id))
    assert.strictEqual(files.text(state), changed)

    replace(whole)
    assert.strictEqual((yield* inTime(instances.command(id, "restore"))).state, "Running")
  }).pipe(Effect.scoped)
)
