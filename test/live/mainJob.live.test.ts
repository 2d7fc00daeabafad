/**
 * The main job, on real guests and against a real registry: an image is pulled by reference, boots, serves, remembers,
 * tells its console and its end, and comes back as its restart policy says.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { InstanceId } from "../../src/domain/Ids.ts"
import type { Instance } from "../../src/domain/Instance.ts"
import { consoleText, createInstance, fetchPage } from "../support/guests.ts"
import { expectNoLeaks, ledger, surplus } from "../support/leaks.ts"
import { shared } from "../support/live.ts"
import {
  allLines,
  ask,
  guestImage,
  inGuest,
  untilImage,
  untilLine,
  untilState
} from "../support/liveGuest.ts"
import { makeNamespace } from "../support/Namespace.ts"
import { registryTools, startNamespaceRegistry } from "../support/netnsRegistry.ts"
import { startService } from "../support/Service.ts"

/** The registry in the service's own namespace, and the image pulled from it. */
const ground = Effect.gen(function* () {
  const namespace = yield* makeNamespace
  const registry = yield* startNamespaceRegistry(namespace)
  const service = yield* startService({ namespace })
  const before = yield* ledger(service)
  const reference = yield* registry.push("tools/guest", guestImage)
  const asked = yield* service.client.images.create({ payload: { name: reference } })
  const image = yield* untilImage(service, asked.id)
  return { service, before, reference, image }
})

const web = InstanceId.make("web")
const shell = (line: string) => ({ entrypoint: ["/bin/sh", "-c", line], network: { enabled: false } })

describe("the main job", { timeout: 180_000 }, () => {
  const common = shared(ground, registryTools)

  it.live("an image pulled by reference boots, serves, and finds what it wrote after stop and start", () =>
    Effect.gen(function* () {
      const { service, reference, image } = yield* common
      assert.strictEqual(image.id, "img-guest")
      assert.strictEqual(image.name, reference)
      assert.deepStrictEqual(image.entrypoint, ["/process1"])
      assert.strictEqual(image.progress.layers_done, 2)

      const instance = yield* createInstance(service, {
        id: web,
        name: "Web",
        image: reference,
        hostname: "web-1",
        env: { TOKEN: "from the request" }
      })
      assert.strictEqual(instance.image_digest, image.digest)
      assert.strictEqual(instance.state, "Running")
      assert.strictEqual(yield* fetchPage(service, instance), "a page\n")
      assert.include(
        yield* consoleText(service, instance),
        "guest: web-1 boots, greeting 'from the image', token 'from the request'"
      )
      const seen = yield* inGuest(
        service,
        instance,
        "hostname; id -u; pwd; ip -4 addr show eth0; ip route; nproc"
      )
      for (const expected of ["web-1", `inet ${instance.network.ip}/24`, `via ${instance.network.gateway}`])
        assert.include(seen, expected)

      yield* inGuest(service, instance, "echo precious > /tmp/kept; echo 'another page' > /www/index.html")
      const stopped = yield* service.client.instances.stop({ params: { id: instance.id }, query: {} })
      assert.strictEqual(stopped.state, "Stopped")
      assert.strictEqual(stopped.exit?.reason, "stopped")
      assert.isNull(stopped.vmm.pid)
      assert.strictEqual(stopped.network.ip, instance.network.ip)
      const started = yield* service.client.instances.start({ params: { id: instance.id } })
      assert.deepStrictEqual(started.network, instance.network)
      assert.isNull(started.exit)
      assert.strictEqual(yield* fetchPage(service, started), "another page\n")
      assert.include(yield* consoleText(service, started), "guest: kept precious")
    })
  )

  it.live("its console arrives: all, the newest, as it comes, as plain text, and behind a cursor", () =>
    Effect.gen(function* () {
      const { service } = yield* common
      const instance = yield* service.client.instances.get({ params: { id: web } })
      yield* inGuest(service, instance, "for i in 1 2 3 4 5; do echo line $i > /dev/console; done")
      yield* untilLine(service, instance.id, ({ line }) => line === "line 5")
      const lines = yield* allLines(service, instance.id)
      const ends = lines.filter(({ line }) => line.startsWith("line "))
      assert.deepStrictEqual(
        ends.map(({ line }) => line),
        ["line 1", "line 2", "line 3", "line 4", "line 5"]
      )
      // Both runs of the guest are in one log, one behind the other.
      assert.strictEqual(lines.filter(({ line }) => line === "guest: up").length, 2)
      assert.deepStrictEqual(
        lines.map(({ cursor }) => cursor),
        lines.map(({ cursor }) => cursor).toSorted((left, right) => left - right)
      )
      const newest = yield* allLines(service, instance.id, { tail: 2 })
      assert.deepStrictEqual(
        newest.map(({ cursor }) => cursor),
        lines.slice(-2).map(({ cursor }) => cursor)
      )
      const middle = ends[2]
      assert.isDefined(middle)
      const behind = yield* allLines(service, instance.id, { after: middle?.cursor ?? 0 })
      assert.deepStrictEqual(
        behind.map(({ line }) => line),
        ["line 4", "line 5"]
      )
      const text = yield* consoleText(service, instance)
      assert.strictEqual(text, lines.map(({ line }) => `${line}\n`).join(""))
      assert.notMatch(text, /panic|Oops|BUG:/u)
      const later = yield* Effect.forkChild(
        untilLine(service, instance.id, ({ line }) => line === "later", { after: ends[4]?.cursor ?? 0 })
      )
      yield* inGuest(service, instance, "echo later > /dev/console")
      assert.deepStrictEqual(
        (yield* Fiber.join(later)).map(({ line }) => line),
        ["later"]
      )
    })
  )

  it.live("the dataplane's own log tells the story of the VM in order", () =>
    Effect.gen(function* () {
      const { service } = yield* common
      const story = yield* allLines(service, web, { source: "dataplane" })
      const entries = story.map(({ line }): unknown => JSON.parse(line))
      const path = entries.flatMap((entry) =>
        typeof entry === "object" && entry !== null && "to" in entry && "event" in entry
          ? entry.event === "instance.transition"
            ? [entry.to]
            : []
          : []
      )
      assert.deepStrictEqual(path, [
        "Booting",
        "Running",
        "Quieting",
        "Ending",
        "Stopped",
        "Launching",
        "Booting",
        "Running"
      ])
      yield* service.client.instances.remove({ params: { id: web } })
    })
  )

  it.live("how its process ends is how the instance ends", () =>
    Effect.gen(function* () {
      const { service, image } = yield* common
      const ends = [
        { id: "code", line: "echo bye; exit 7", exit: ["exited", 7, undefined] },
        { id: "signal", line: "kill -9 $$", exit: ["exited", undefined, "SIGKILL"] },
        { id: "poweroff", line: "poweroff; sleep 60", exit: ["guest-poweroff", undefined, undefined] },
        { id: "hard-off", line: "poweroff -f", exit: ["guest-poweroff", undefined, undefined] },
        { id: "reset", line: "reboot -f", exit: ["guest-reset", undefined, undefined] },
        { id: "panic", line: "echo c > /proc/sysrq-trigger", exit: ["guest-panic", undefined, undefined] }
      ]
      yield* Effect.forEach(
        ends,
        ({ id, line, exit }) =>
          Effect.gen(function* () {
            const instance = yield* createInstance(service, { id, name: id, image: image.id, ...shell(line) })
            const ended = yield* untilState(service, instance, "Stopped")
            assert.deepStrictEqual([ended.exit?.reason, ended.exit?.code, ended.exit?.signal], exit, id)
            assert.isNull(ended.vmm.pid)
            assert.isFalse(ended.ready)
            assert.isNotNull(ended.stopped_at)
            yield* service.client.instances.remove({ params: { id: instance.id } })
          }),
        { concurrency: 2, discard: true }
      )
    })
  )

  it.live("an image process that is not there is a boot that failed, with a sentence", () =>
    Effect.gen(function* () {
      const { service, image } = yield* common
      const instance = yield* createInstance(service, {
        name: "Nothing to run",
        image: image.id,
        entrypoint: ["/opt/missing"],
        network: { enabled: false }
      })
      const ended = yield* untilState(service, instance, "Stopped")
      assert.strictEqual(ended.exit?.reason, "boot-failed")
      assert.match(ended.exit?.message ?? "", /\/opt\/missing/u)
      yield* service.client.instances.remove({ params: { id: instance.id } })
    })
  )

  it.live("restart policies bring it back, or leave it", () =>
    Effect.gen(function* () {
      const { service, image } = yield* common
      const thirdTime = "n=$(cat /n || echo 0); echo $((n + 1)) > /n; [ $n = 2 ] || exit 3"
      const untilItSucceeds = Effect.gen(function* () {
        const instance = yield* createInstance(service, {
          id: "third",
          name: "Third",
          image: image.id,
          restart_policy: "on-failure",
          ...shell(thirdTime)
        })
        const third = yield* Effect.filterOrFail(
          untilState(service, instance, "Stopped"),
          ({ exit }) => exit?.code === 0
        )
        assert.strictEqual(third.restarts, 2)
        return third
      })
      const untilStopped = Effect.gen(function* () {
        const instance = yield* createInstance(service, {
          id: "again",
          name: "Again",
          image: image.id,
          restart_policy: "always",
          ...shell("echo once more")
        })
        let runs = 0
        yield* untilLine(service, instance.id, ({ line }) => line === "once more" && ++runs === 2)
        const stopped = yield* service.client.instances.stop({ params: { id: instance.id }, query: {} })
        assert.strictEqual(stopped.state, "Stopped")
        assert.isAtLeast(stopped.restarts, 1)
        return stopped
      })
      const ended: ReadonlyArray<Instance> = yield* Effect.all([untilItSucceeds, untilStopped], {
        concurrency: 2
      })
      for (const { id } of ended) {
        const { state, transition } = yield* service.client.instances.get({ params: { id } })
        assert.deepStrictEqual({ state, transition }, { state: "Stopped", transition: null })
        yield* service.client.instances.remove({ params: { id } })
      }
    })
  )

  it.live("and nothing of all that is left", () =>
    Effect.gen(function* () {
      const { service, before, image } = yield* common
      assert.strictEqual((yield* ask(service, "GET", "/instances")).text, "[]")
      yield* service.client.images.remove({ params: { id: image.id } })
      assert.isNotEmpty(surplus(before, yield* ledger(service)), "the log of events at least")
      yield* expectNoLeaks(service, before, (line) => line.startsWith("files: events/"))
    })
  )
})
