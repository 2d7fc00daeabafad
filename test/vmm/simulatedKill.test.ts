/** A real service process on a simulated host, killed with SIGKILL while it is busy: the next one finds a sound world. */
import { execaNode } from "execa"
import { once } from "node:events"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { InstanceId } from "../../src/domain/Ids.ts"
import { ProcessIdentity } from "../../src/domain/Process.ts"
import { layout, Paths } from "../../src/host/Paths.ts"
import { ledger, look } from "../../src/host/simulated/ledger.ts"
import { layerDurable } from "../../src/host/simulated/SimulatedHost.ts"
import { SimulatedWorld } from "../../src/host/simulated/World.ts"

const victim = fileURLToPath(new URL("../support/simulatedVictim.ts", import.meta.url))
const kills = 3

const temporary = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "simulated-"))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true, force: true }))
)

/** Starts the victim, waits until it says that it is busy, kills it, and gives what it said. */
const killOne = (root: string) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const service = execaNode(victim, [root], { reject: false, buffer: false, stdin: "ignore" })
      return { service, said: once(service.stdout, "data") }
    }),
    ({ said }) => Effect.promise(() => said.then(([bytes]) => String(bytes).trim())),
    ({ service }) =>
      Effect.promise(() => {
        service.kill("SIGKILL")
        return service
      })
  )

it.live("a service that was killed leaves its VM running, and records that are whole", () =>
  Effect.gen(function* () {
    for (let kill = 0; kill < kills; kill += 1) {
      const root = yield* temporary
      const said = yield* killOne(root)
      const kept = yield* Schema.decodeEffect(Schema.fromJsonString(ProcessIdentity))(said)
      const before = fs.readdirSync(path.join(root, "simulated")).filter((it) => /^vmm-\d+\.json$/u.test(it))
      const world = yield* Effect.provide(
        SimulatedWorld,
        layerDurable({}).pipe(Layer.provide(Layer.succeed(Paths, layout(root)))),
        { local: true }
      )
      const found = ledger(world).processes
      assert.strictEqual(found.length, before.length, "a record was not whole")
      assert.deepStrictEqual(
        found.find((it) => it.id === "kept"),
        { id: InstanceId.make("kept"), process: kept }
      )
      assert.strictEqual(look(world, InstanceId.make("kept"))?.state, "Running")
      assert.isAtMost(found.length, 3)
    }
  }).pipe(Effect.scoped)
)
