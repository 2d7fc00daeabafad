/**
 * A service on a simulated host that is there to be killed: it keeps one VM running and starts and kills others without
 * end, and says so once. Usage: node simulatedVictim.ts DATA_DIR
 */
import * as fs from "node:fs"
import * as path from "node:path"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { InstanceId } from "../../src/domain/Ids.ts"
import { Files } from "../../src/host/Files.ts"
import { layout, Paths } from "../../src/host/Paths.ts"
import { layerDurable, layerService } from "../../src/host/simulated/SimulatedHost.ts"
import * as SimulatedVmm from "../../src/vmm/simulated/SimulatedVmm.ts"
import { type VmConfig, Vmm, VmmProcesses } from "../../src/vmm/Vmm.ts"

/** Rounds before it says that it is busy. */
const roundsBefore = 20

const root = process.argv[2] ?? "."

const vm = (name: string): VmConfig => {
  const directory = path.join(root, name)
  fs.mkdirSync(directory, { recursive: true })
  return {
    id: InstanceId.make(name),
    vcpus: 1,
    memoryMb: 128,
    memoryMaxMb: 128,
    kernel: "/vmlinuz",
    initrd: "/initrd",
    cmdline: "",
    disks: [],
    nic: null,
    consolePath: path.join(directory, "console.log"),
    logPath: path.join(directory, "vmm.log"),
    runDirectory: directory
  }
}

const run = (config: VmConfig) =>
  Effect.gen(function* () {
    const vmm = yield* Vmm
    const ref = { id: config.id, process: yield* vmm.spawn(config), runDirectory: config.runDirectory }
    yield* Effect.scoped(Effect.flatMap(vmm.attach(ref), (session) => session.boot))
    return ref
  })

const program = Effect.gen(function* () {
  const processes = yield* VmmProcesses
  const kept = yield* run(vm("kept"))
  const [one, two] = [vm("one"), vm("two")]
  for (let round = 0; ; round += 1) {
    if (round === roundsBefore) {
      yield* Effect.sync(() => process.stdout.write(`${JSON.stringify(kept.process)}\n`))
    }
    yield* Effect.forEach([one, two], (config) => Effect.flatMap(run(config), processes.kill), {
      concurrency: 2
    })
  }
})

const services = SimulatedVmm.layer.pipe(
  Layer.provide(layerService),
  Layer.provide(layerDurable({ seed: 1 })),
  Layer.provide(Layer.succeed(Paths, layout(root))),
  Layer.provide(Files.layer)
)

NodeRuntime.runMain(Effect.provide(program, services))
