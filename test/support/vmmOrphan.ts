/** A service that starts one VMM and ends: run by a test as `node vmmOrphan.ts <root> <id>`, so that there is an orphan. */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { InstanceId } from "../../src/domain/Ids.ts"
import { layout } from "../../src/host/Paths.ts"
import { Vmm } from "../../src/vmm/Vmm.ts"
import { driverLayer } from "./vmmHost.ts"

const [root = "", name = "", kernel = "", initrd = ""] = process.argv.slice(2)
const id = InstanceId.make(name)
const of = layout(path.join(root, "data"), path.join(root, "run"))
const runDirectory = of.instance(id).run
fs.mkdirSync(runDirectory, { recursive: true })

const program = Effect.gen(function* () {
  const vmm = yield* Vmm
  return yield* vmm.spawn({
    id,
    vcpus: 1,
    memoryMb: 128,
    memoryMaxMb: 128,
    kernel,
    initrd,
    cmdline: "",
    disks: [],
    nic: null,
    consolePath: path.join(root, "orphan-console.log"),
    logPath: path.join(root, "orphan.log"),
    runDirectory
  })
})

console.log(JSON.stringify(await Effect.runPromise(Effect.provide(program, driverLayer(of)))))
