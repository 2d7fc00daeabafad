/**
 * The command behind scripts/build-initrd.sh: makes the guest's kernel and initrd under a data directory.
 *
 *   node src/guest/buildInitrd.ts --data-dir DIR
 *
 * KERNEL_PATH and INITRD_PATH count here as they do for the service.
 */
import * as path from "node:path"
import { parseArgs } from "node:util"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { Files } from "../host/Files.ts"
import { layout } from "../host/Paths.ts"
import { ensureInitrd } from "./initrd.ts"

const { values } = parseArgs({ options: { "data-dir": { type: "string" } } })
const paths = layout(values["data-dir"] ?? process.env["DATA_DIR"] ?? "/var/lib/cloud-hypervisor-dataplane")

ensureInitrd({
  system: paths.system,
  kernelPath: path.resolve(process.env["KERNEL_PATH"] ?? paths.kernel),
  initrdPath: path.resolve(process.env["INITRD_PATH"] ?? paths.initrd),
  say: (line) => Console.error(line)
}).pipe(
  Effect.flatMap(({ kernel, initrd }) => Console.log(`kernel ${kernel.vmlinuz}\ninitrd ${initrd}`)),
  Effect.catch((fault) =>
    Console.error(fault.message).pipe(Effect.andThen(Effect.sync(() => (process.exitCode = 1))))
  ),
  Effect.provide(Files.layer),
  NodeRuntime.runMain
)
