/**
 * The service killed, drained, and tampered with behind its back, over guests that run on: they are disturbed by nothing,
 * and what was told of them has neither a gap nor a repetition.
 */
import { existsSync } from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import type { InstanceEvent } from "../../src/domain/Event.ts"
import { InstanceId } from "../../src/domain/Ids.ts"
import { createInstance, fetchPage, importImage } from "../support/guests.ts"
import { expectNoLeaks, ledger, surplus } from "../support/leaks.ts"
import { shared } from "../support/live.ts"
import {
  allLines,
  guestImage,
  instanceEvents,
  logLines,
  order,
  refused,
  untilLine,
  untilReady,
  untilState
} from "../support/liveGuest.ts"
import { type Service, startService } from "../support/Service.ts"

const ground = Effect.gen(function* () {
  const service = yield* startService({ env: { QEMU_ACCEL: "tcg" } })
  const image = yield* importImage(service, "img-guest", guestImage)
  const before = yield* ledger(service)
  const make = (name: string) =>
    createInstance(service, { id: name, name, image: image.id, memory_mb: 128, env: { COUNT: "1" } })
  const [instance, other] = yield* Effect.all([make("counter"), make("other")], { concurrency: 2 })
  yield* untilReady(service, instance)
  yield* untilReady(service, other)
  return { service, image, before, instance, other }
})

const id = InstanceId.make("counter")
/** Contract: SIGTERM drains within this time. */
const drainMaxMs = 5_000

const isCount = ({ line }: { readonly line: string }) => line.startsWith("count ")
const numberOf = (line: string) => Number(line.split(" ")[1])

/** Counted lines follow each other without a gap or a repetition. */
const expectUnbroken = (lines: ReadonlyArray<{ readonly line: string }>) => {
  const numbers = lines.filter(isCount).map(({ line }) => numberOf(line))
  assert.isAbove(numbers.length, 3)
  const [first = 0] = numbers
  assert.deepStrictEqual(
    numbers,
    numbers.map((_, at) => first + at)
  )
}

const newestEvent = (service: Service) =>
  Effect.map(collectEvents(service, 0), (events) => events.at(-1)?.id ?? 0)

/** All events behind a cursor until now: up to one that the test itself causes. */
const collectEvents = (service: Service, after: number) =>
  Effect.gen(function* () {
    const label = `${process.hrtime.bigint()}`
    const { generation } = yield* service.client.instances.patch({
      params: { id },
      payload: { labels: { marked: label } }
    })
    assert.isAbove(generation, 0)
    return yield* instanceEvents(service, after).pipe(
      Stream.interruptWhen(Effect.sleep(quietMs)),
      Stream.runCollect
    )
  })
const quietMs = 700

describe("a service that dies over its guests", { timeout: 180_000 }, () => {
  const common = shared(ground)

  it.live("killed, it finds them again; console and events go on without gap or repetition", () =>
    Effect.gen(function* () {
      const { service, instance, other } = yield* common
      const event = yield* newestEvent(service)
      const follower = yield* logLines(service, id, { follow: true, tail: 3 }).pipe(
        // The connection ends with the service, and everything that was read until then counts.
        Stream.catchCause(() => Stream.empty),
        Stream.runCollect,
        Effect.forkChild
      )
      yield* untilLine(service, id, isCount, { tail: 0 })
      assert.strictEqual(yield* service.stop("SIGKILL"), "SIGKILL")
      const read = yield* Fiber.join(follower)
      assert.isNotEmpty(read.filter(isCount))
      yield* service.start()

      const adopted = yield* service.client.instances.get({ params: { id } })
      assert.deepInclude(adopted, { state: "Running", transition: null, exit: null, restarts: 0 })
      assert.deepStrictEqual(adopted.vmm, instance.vmm)
      assert.deepStrictEqual(adopted.network, instance.network)
      yield* untilReady(service, instance)
      const cursor = read.at(-1)?.cursor ?? 0
      const behind = numberOf(read.filter(isCount).at(-1)?.line ?? "")
      const rest = yield* untilLine(service, id, (it) => isCount(it) && numberOf(it.line) > behind + 10, {
        after: cursor
      })
      expectUnbroken([...read, ...rest])
      expectUnbroken(yield* allLines(service, id))
      assert.strictEqual(yield* fetchPage(service, instance), "a page\n")
      assert.strictEqual(
        (yield* service.client.instances.get({ params: { id: other.id } })).vmm.pid,
        other.vmm.pid
      )

      yield* service.client.instances.pause({ params: { id } })
      yield* service.client.instances.resume({ params: { id } })
      const events = yield* collectEvents(service, event)
      assert.deepStrictEqual(
        events.map((it) => it.id),
        events.map((_, at) => event + 1 + at)
      )
      const states = events
        .filter((it: InstanceEvent) => it.instance_id === id && it.from !== it.to)
        .map((it: InstanceEvent) => `${it.from} to ${it.to}`)
      assert.deepStrictEqual(states, ["Running to Paused", "Paused to Running"])
    })
  )

  it.live("drained, it leaves them running within five seconds", () =>
    Effect.gen(function* () {
      const { service, instance } = yield* common
      const follower = yield* logLines(service, id, { follow: true, tail: 0 }).pipe(
        Stream.catchCause(() => Stream.empty),
        Stream.runCollect,
        Effect.forkChild
      )
      yield* untilLine(service, id, isCount, { tail: 0 })
      const begun = performance.now()
      assert.strictEqual(yield* service.stop("SIGTERM"), 0)
      assert.isBelow(performance.now() - begun, drainMaxMs)
      const read = yield* Fiber.join(follower)
      assert.isNotEmpty(read.filter(isCount))
      assert.isTrue(existsSync(`/proc/${instance.vmm.pid}`))
      yield* service.start()
      const behind = numberOf(read.filter(isCount).at(-1)?.line ?? "")
      const rest = yield* untilLine(service, id, (it) => isCount(it) && numberOf(it.line) > behind + 10, {
        after: read.at(-1)?.cursor ?? 0
      })
      expectUnbroken([...read, ...rest])
      assert.strictEqual((yield* service.client.instances.get({ params: { id } })).vmm.pid, instance.vmm.pid)
    })
  )

  it.live("what was changed behind its back while it was away is put right at its start", () =>
    Effect.gen(function* () {
      const { service, instance, image } = yield* common
      const before = yield* ledger(service)
      const gone = yield* createInstance(service, {
        id: "gone",
        name: "Gone",
        image: image.id,
        memory_mb: 128
      })
      const orphan = surplus(before, yield* ledger(service))
      assert.isTrue(orphan.some((line) => line.startsWith("processes: ")))
      yield* service.stop("SIGKILL")
      // As if the record had been lost: its VMM, TAP, pins and run directory have no owner any more.
      yield* service.namespace.run("rm", ["-r", `${service.dataDir}/instances/${gone.id}`])
      yield* service.namespace.run("ip", ["tuntap", "add", "dev", "stray0", "mode", "tap"])
      yield* service.namespace.run("ip", [
        "link",
        "set",
        "stray0",
        "alias",
        aliasOf(yield* aliases(service), gone.id)
      ])
      yield* service.namespace.run("nft", ["flush", "ruleset"])
      yield* service.start()
      yield* expectNoLeaks(service, before, (line) => /^files: events\/|^descriptors: /u.test(line))
      assert.strictEqual((yield* refused(service, "GET", `/instances/${gone.id}`)).name, "instance-not-found")
      const rules = yield* service.namespace.run("nft", ["list", "ruleset"])
      assert.include(rules, instance.network.ip ?? "")
      assert.strictEqual(yield* fetchPage(service, instance), "a page\n")
      yield* service.logged((line) => line["event"] === "host.reconciled")
    })
  )

  const aliases = (service: Service) => service.namespace.run("ip", ["-details", "link", "show"])
  /** The mark of our TAPs, made for another name. */
  const aliasOf = (shown: string, of: string): string =>
    (/alias (\S+):counter/u.exec(shown)?.[1] ?? "none") + `:${of}`

  it.live("a TAP that is gone does not keep its instance from being stopped and started", () =>
    Effect.gen(function* () {
      const { service, other } = yield* common
      yield* service.namespace.run("ip", ["link", "del", other.network.tap ?? ""])
      yield* service.restart("SIGKILL")
      const found = yield* service.client.instances.get({ params: { id: other.id } })
      assert.deepStrictEqual([found.state, found.vmm.pid], ["Running", other.vmm.pid])
      const stopped = yield* service.client.instances.stop({ params: { id: other.id }, query: {} })
      assert.strictEqual(stopped.state, "Stopped")
      yield* service.client.instances.start({ params: { id: other.id } })
      assert.strictEqual(yield* fetchPage(service, other), "a page\n")
    })
  )

  it.live("the end of an adopted VMM is seen, and so is that of a guest while nobody looked", () =>
    Effect.gen(function* () {
      const { service, instance, other } = yield* common
      // The guest ends itself a moment after the service is gone; its VMM stays and knows.
      yield* order(service, other, '(sleep 2; echo "exit 7" > /tmp/orders) &')
      yield* service.stop("SIGKILL")
      yield* Effect.sleep(afterTheEndMs)
      yield* service.start()
      const ended = yield* untilState(service, other, "Stopped")
      assert.deepStrictEqual([ended.exit?.reason, ended.exit?.code], ["exited", 7])
      assert.isNull(ended.vmm.pid)

      process.kill(instance.vmm.pid ?? 0, "SIGKILL")
      const died = yield* untilState(service, instance, "Stopped")
      assert.strictEqual(died.exit?.reason, "vmm-died")
    })
  )
  const afterTheEndMs = 5_000

  it.live("a VMM that died while nobody looked is found dead, and everything of it goes", () =>
    Effect.gen(function* () {
      const { service, before } = yield* common
      const again = yield* service.client.instances.start({ params: { id } })
      yield* service.stop("SIGKILL")
      process.kill(again.vmm.pid ?? 0, "SIGKILL")
      yield* service.start()
      const died = yield* untilState(service, again, "Stopped")
      assert.strictEqual(died.exit?.reason, "vmm-died")
      for (const it of yield* service.client.instances.list({ query: {} }))
        yield* service.client.instances.remove({ params: { id: it.id } })
      yield* expectNoLeaks(service, before, (line) => /^files: events\/|^descriptors: /u.test(line))
    })
  )
})
