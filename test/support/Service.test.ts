/** The service's own support is tried against the real service, without guests. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { existsSync, writeFileSync } from "node:fs"
import { expectNoLeaks, inDataDir, ledger, surplus } from "./leaks.ts"
import { skipWhere } from "./liveHost.ts"
import { namespacesMissing } from "./netns.ts"
import { startService } from "./Service.ts"

describe("the service under test", () => {
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
})
