/** The service's own support is tried against the real service, without guests. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { existsSync, writeFileSync } from "node:fs"
import { consoleText, createInstance, importImage } from "./guests.ts"
import { expectNoLeaks, inDataDir, ledger, surplus } from "./leaks.ts"
import { skipWhere } from "./liveHost.ts"
import { namespacesMissing } from "./netns.ts"
import { startService } from "./Service.ts"

describe("the service under test", { timeout: 90_000 }, () => {
  skipWhere(namespacesMissing)

  it.live("starts, answers, survives a restart and leaves nothing", () =>
    Effect.gen(function* () {
      const left = yield* Effect.scoped(
        Effect.gen(function* () {
          const service = yield* startService({ env: { VMM: "simulated" } })
          const before = yield* ledger(service)
          const health = yield* service.api.get("/health")
          assert.strictEqual(health.status, 200)
          const pid = service.pid()
          yield* service.restart("SIGKILL")
          assert.notStrictEqual(service.pid(), pid)
          assert.strictEqual((yield* service.api.get("/instances")).status, 200)
          yield* expectNoLeaks(service, before)
          assert.strictEqual(yield* service.stop("SIGTERM"), 0)
          return service
        })
      )
      assert.isFalse(existsSync(left.dataDir))
      assert.isFalse(existsSync(left.runDirectory))
    })
  )

  it.live("sees every kind of leftover", () =>
    Effect.gen(function* () {
      const service = yield* startService({ env: { VMM: "simulated" } })
      const before = yield* ledger(service)
      writeFileSync(inDataDir(service, "orphan"), "")
      yield* service.namespace.run("ip", ["tuntap", "add", "orphan0", "mode", "tap"])
      yield* service.namespace.run("nft", ["add", "table", "inet", "orphan"])
      yield* service.namespace.run("sh", ["-c", `sleep 300 >/dev/null 2>&1 & : ${service.dataDir}`])
      const found = surplus(before, yield* ledger(service))
      for (const kind of ["files: orphan", "links: orphan0", "nftables: table inet orphan", "processes: "]) {
        assert.isTrue(
          found.some((line) => line.startsWith(kind)),
          `${kind} in ${found.join("\n")}`
        )
      }
      const failure = yield* Effect.exit(expectNoLeaks(service, before))
      assert.strictEqual(failure._tag, "Failure")
    })
  )

  it.live("carries an image and an instance through their lives without a leak", () =>
    Effect.gen(function* () {
      const service = yield* startService({ env: { VMM: "simulated" } })
      const before = yield* ledger(service)
      const image = yield* importImage(service, "img-small", { env: { PATH: "/bin", GREETING: "hello" } })
      assert.deepInclude(image.env, { GREETING: "hello" })
      const instance = yield* createInstance(service, { id: "one", name: "One", image: "img-small" })
      assert.strictEqual(instance.state, "Running")
      yield* service.client.instances.wait({ params: { id: instance.id }, query: { ready: true } })
      assert.include(yield* consoleText(service, instance), "ready")
      const held = surplus(before, yield* ledger(service))
      assert.isTrue(held.some((line) => line.startsWith("files: instances/one")))
      yield* service.client.instances.remove({ params: { id: instance.id } })
      yield* service.client.images.remove({ params: { id: image.id } })
      // The log of events is the service's own.
      yield* expectNoLeaks(service, before, (line) => line.startsWith("files: events/"))
    })
  )
})
