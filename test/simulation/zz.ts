import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as TestClock from "effect/testing/TestClock"
import * as m from "/work/main/test/simulation/faultMatrix.ts"
const faults: any = { dies: m.vmmDies, hangs: m.vmmHangs, full: m.diskFull, fsync: m.fsyncFails, tap: m.tapBusy }
const [f, only] = process.argv.slice(2)
for (const c of m.courses) { if (only && !c.name.startsWith(only)) continue
 const run = (e: any) => Effect.runPromise((Effect.scoped(e) as any).pipe(Effect.provide([TestClock.layer(), Logger.layer([])]))) as any
 const t = Date.now(); const b: string[] = await run(m.boundariesOf(c)); let bad = 0
 for (let i=0;i<b.length;i++){ const t2=Date.now(); const o:any = await run(m.live(c, faults[f!], i)).catch((e:any)=>({problems:[String(e)]})); if (o.problems.length || Date.now()-t2>3000) { bad++; console.log(c.name, b[i], Date.now()-t2, "ms", JSON.stringify(o)) } }
 console.log("==", c.name, b.length, "boundaries", bad, "bad", Date.now()-t, "ms") }
