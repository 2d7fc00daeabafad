/** The README's page of curl, run as it stands: a walk that rots is worse than none. */
import { execFile } from "node:child_process"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { promisify } from "node:util"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { needsLiveHost } from "../support/liveHost.ts"
import { startService } from "../support/Service.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const walkTimeoutMs = 120_000
const archive = path.join(root, "demo.tar")

const walk = Effect.promise(async () => {
  const text = await fs.readFile(path.join(root, "README.md"), "utf8")
  const [, block] = /readme\.live\.test\.ts runs this block[^\n]*\n```sh\n(.*?)\n```/s.exec(text) ?? []
  return block ?? ""
})

describe("the README", { timeout: 180_000 }, () => {
  needsLiveHost(["curl", "bash"])

  it.live("has a page of curl that works as written", () =>
    Effect.gen(function* () {
      const service = yield* startService({ env: { PORT: "8080" } })
      const block = yield* walk
      assert.include(block, "/instances/my-instance/standby")
      const inside = ["netns", "exec", service.namespace.name, "bash", "-euo", "pipefail", "-c", block]
      const { stdout } = yield* Effect.promise(() =>
        promisify(execFile)("ip", inside, { cwd: root, timeout: walkTimeoutMs, maxBuffer: 16 * 1024 * 1024 })
      ).pipe(Effect.ensuring(Effect.promise(() => fs.rm(archive, { force: true }))))
      assert.include(stdout, "Hello from a virtual machine")
      assert.include(stdout, '"memory_mb":512')
      assert.include(stdout, '"state":"Standby"')
      assert.include(stdout, '"type":"instance.created"')
      assert.deepStrictEqual(yield* service.client.instances.list({ query: {} }), [])
      assert.deepStrictEqual(yield* service.client.images.list(), [])
    }).pipe(Effect.scoped)
  )
})
