/**
 * Loaded into the service before its own code (NODE_OPTIONS=--import), to look into it without changing it. Says on
 * standard error, one JSON object a line:
 *
 *   bench.memory   on SIGUSR2: what is left after a collection of garbage
 *   bench.records  when the first record is read
 *   bench.step     at each seam between the steps of a verb, where BENCH_STEPS is set
 */
import fs from "node:fs/promises"
import { syncBuiltinESMExports } from "node:module"
import * as v8 from "node:v8"
import * as vm from "node:vm"
import * as Effect from "effect/Effect"
import { Boundary } from "../../src/host/Boundary.ts"

const epochNow = () => performance.timeOrigin + performance.now()
const say = (event: string, fields: object) =>
  void process.stderr.write(`${JSON.stringify({ event, at: epochNow(), ...fields })}\n`)

v8.setFlagsFromString("--expose-gc")
const collect: () => void = vm.runInNewContext("gc")
/** What a finalizer lets go of is free at the next collection. */
const collections = 3

process.on("SIGUSR2", () => {
  for (let times = 0; times < collections; times++) collect()
  const { rss, heapUsed, external, arrayBuffers } = process.memoryUsage()
  say("bench.memory", { rss, heapUsed, external, arrayBuffers })
})

const { readFile } = fs
fs.readFile = new Proxy(readFile, {
  apply: (target, self, args) => {
    if (String(args[0]).endsWith("/instance.json")) {
      fs.readFile = readFile
      syncBuiltinESMExports()
      say("bench.records", {})
    }
    return Reflect.apply(target, self, args)
  }
})
syncBuiltinESMExports()

if (process.env["BENCH_STEPS"] !== undefined)
  Reflect.set(
    Boundary,
    "defaultValue",
    () => (name: string) => Effect.sync(() => say("bench.step", { name }))
  )
