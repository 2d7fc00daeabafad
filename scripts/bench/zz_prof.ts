import * as Effect from "effect/Effect"
import * as fs from "node:fs"
import { sha256 } from "../../src/host/Checksum.ts"
import { vmmHost, startVm } from "../../test/support/vmmHost.ts"
import { untilConsole } from "../../test/support/vmmGuest.ts"
await Effect.runPromise(Effect.scoped(Effect.gen(function*(){
  const host = yield* vmmHost
  const config = host.configure("prof")
  const { ref, session } = yield* startVm(host, config)
  yield* session.boot
  yield* untilConsole(config.consolePath, "r", t => t.includes("tick 5"))
  yield* session.pause
  let dir = ""
  for (let i=0;i<4;i++){
    dir = host.directory("s"+i)
    let t = performance.now()
    if(i==3)console.time("x");yield* session.snapshot(dir)
    const a = performance.now()-t
    t = performance.now()
    const size = fs.statSync(dir+"/state").size
    yield* sha256(dir+"/state")
    console.log("snapshot", a.toFixed(0), "sha", (performance.now()-t).toFixed(0), (size/1e6).toFixed(1), "MB")
  }
  yield* host.processes.kill(ref)
  for (let i=0;i<3;i++){
    let t = performance.now()
    const r = host.ref(config, yield* host.vmm.spawnRestoring(config, dir))
    console.log("load", (performance.now()-t).toFixed(0))
    yield* host.processes.kill(r)
  }
})))
