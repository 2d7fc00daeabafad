import { spawn } from "node:child_process"
import * as net from "node:net"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { connectAgent } from "../src/guest/Agent.ts"
process.chdir("/tmp/bt")
const G = "quiet panic=-1 reboot=t no_timer_check cryptomgr.notests 8250.nr_uarts=1"
const start = (x: string, log: string) => { for (const f of ["ag","qmp"]) fs.rmSync(f,{force:true}); return spawn("bash", ["-c", `sed 's/^rm -f.*//; s/path=log/path=${log}/' boot.sh > b2.sh; exec bash b2.sh`], { env: { ...process.env, APPEND: G, X: x }, stdio: "inherit" }) }
const qmp = (cmds: object[], until: string) => new Promise<string>((res) => { let s = ""; const c = net.connect("qmp"); c.on("data", d => { s += d; if (s.includes(until)) { c.destroy(); res(s) } }); c.write(JSON.stringify({ execute: "qmp_capabilities" })); for (const x of cmds) c.write(JSON.stringify(x)) })
const connect = connectAgent({ _tag: "UnixSocket", path: "ag" }).pipe(Effect.retry({ schedule: Schedule.spaced(50), times: 200 }))
const main = Effect.gen(function* () {
  let q = start("-rtc base=2001-01-01", "log1")
  const t0 = Date.now()
  yield* Effect.scoped(Effect.gen(function* () { const s = yield* connect; yield* s.ready; console.log("ready", Date.now()-t0) }))
  yield* Effect.sleep(1500)
  yield* Effect.promise(() => qmp([{ execute: "stop" }], "STOP"))
  console.log("log1", JSON.stringify(fs.readFileSync("log1","utf8")))
  yield* Effect.promise(() => qmp([{ execute: "migrate-set-capabilities", arguments: { capabilities: [{ capability: "events", state: true }] } }, { execute: "migrate", arguments: { uri: "exec:cat > snap" } }], '"completed"'))
  yield* Effect.promise(() => qmp([{ execute: "quit" }], '"return": {}}'))
  yield* Effect.callback<void>((r) => { q.on("exit", () => r(Effect.void)) })
  q = start("-rtc base=2001-01-01 -S -incoming exec:cat<snap", "log2")
  yield* Effect.sleep(1500)
  yield* Effect.promise(() => qmp([{ execute: "cont" }], "RESUME"))
  yield* Effect.sleep(3000)
  console.log("log2", JSON.stringify(fs.readFileSync("log2","utf8")))
  const t1 = Date.now()
  yield* Effect.scoped(Effect.gen(function* () { const s = yield* connect; yield* s.ready; yield* s.awaken; yield* s.shutdown(5000); yield* s.closed }))
  if (q.exitCode === null) yield* Effect.callback<void>((r) => { q.on("exit", () => r(Effect.void)) })
  console.log("ended after", Date.now() - t1, JSON.stringify(fs.readFileSync("log2","utf8")), Date.now()/1000)
})
Effect.runPromise(Effect.scoped(main)).then(() => process.exit(0), (e) => { console.log(e); process.exit(1) })
