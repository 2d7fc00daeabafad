/** The README's examples for clients, run as they stand against a server: written for the package's own name. */
import { execFile } from "node:child_process"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { promisify } from "node:util"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { rolldown } from "rolldown"
import { repository } from "../../scripts/sources.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { serveFakes } from "../support/httpServer.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const run = promisify(execFile)
const marker = "<!-- test/rpc/readme.test.ts runs this block -->"

const readme = await fs.readFile(path.join(repository, "README.md"), "utf8")
const blocks = readme
  .split(marker)
  .slice(1)
  .flatMap((text) => /^\s*```ts\n(.*?)```/su.exec(text)?.[1] ?? [])

/** As a user's bundler resolves it, with the entry points that package.json exports. */
const built = async (directory: string, source: string): Promise<string> => {
  const file = path.join(directory, "example.ts")
  await fs.writeFile(file, source)
  const bundle = await rolldown({
    input: file,
    platform: "node",
    logLevel: "silent",
    resolve: {
      alias: {
        "cloud-hypervisor-dataplane/api": path.join(repository, "src/api/Api.ts"),
        "cloud-hypervisor-dataplane/rpc": path.join(repository, "src/rpc/Rpcs.ts")
      },
      modules: [path.join(repository, "node_modules")]
    }
  })
  const to = path.join(directory, "example.mjs")
  await bundle.write({ file: to, format: "esm", codeSplitting: false })
  await bundle.close()
  return to
}

describe("the README's examples for clients", () => {
  if (blocks.length === 0) it.skip(`are not there: README.md has no block after ${marker}`, () => undefined)
  for (const [index, source] of blocks.entries())
    it.live(`example ${index + 1} prints the instance`, () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        server.world.instances.set("my-instance", fakeInstance("my-instance"))
        const directory = yield* temporaryDirectory("example")
        const program = yield* Effect.promise(() => built(directory, source))
        const { stdout } = yield* Effect.promise(() =>
          run(process.execPath, [program], { env: { ...process.env, DATAPLANE_URL: server.url } })
        )
        expect(stdout).toContain("my-instance")
      }).pipe(Effect.scoped)
    )
})
