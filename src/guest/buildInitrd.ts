/**
 * The command behind scripts/build-initrd.sh: makes the guest's kernel and initrd under a data directory.
 *
 *   node src/guest/buildInitrd.ts --data-dir DIR
 *
 * KERNEL_PATH and INITRD_PATH count here as they do for the service.
 */
import { parseArgs } from "node:util"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { Files } from "../host/Files.ts"
import { layout } from "../host/Paths.ts"
import { decodeSettings } from "../host/Settings.ts"
import { ensureInitrd } from "./initrd.ts"

const build = Effect.gen(function* () {
  const { values } = parseArgs({ options: { "data-dir": { type: "string" } } })
  const chosen = values["data-dir"]
  const environment = chosen === undefined ? process.env : { ...process.env, DATA_DIR: chosen }
  const settings = yield* Effect.fromResult(decodeSettings(environment, false))
  const { kernel, initrd } = yield* ensureInitrd({
    system: layout(settings.dataDir).system,
    kernelPath: settings.kernelPath,
    initrdPath: settings.initrdPath,
    say: (line) => Console.error(line)
  })
  yield* Console.log(`kernel ${kernel.vmlinuz}\ninitrd ${initrd}`)
})

build.pipe(
  Effect.catch((fault) =>
    Console.error(fault.message).pipe(Effect.andThen(Effect.sync(() => (process.exitCode = 1))))
  ),
  Effect.provide(Files.layer),
  NodeRuntime.runMain
)
