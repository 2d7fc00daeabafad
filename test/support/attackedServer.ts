/**
 * The whole service on a simulated host in a process of its own, there to be attacked: the attackers' memory is not its own.
 * Tells its port first, then answers each question: `memory` (after a collection of garbage), `peak` (the most that was
 * seen since the last time, looked at every few milliseconds), `connections` (open sockets), `defects`.
 *
 *   fork("attackedServer.ts", [JSON of bounds])
 */
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { serveSimulated } from "./simulatedServer.ts"

setFlagsFromString("--expose-gc")
const collect: unknown = runInNewContext("gc")

/** What the service itself holds: its heap, and buffers outside of it. */
const heldBytes = (): number => {
  const { heapUsed, arrayBuffers } = process.memoryUsage()
  return heapUsed + arrayBuffers
}

const lookEveryMs = 5

const Bounds = Schema.Record(Schema.String, Schema.Finite)

const program = Effect.gen(function* () {
  const bounds = yield* Schema.decodeUnknownEffect(Schema.fromJsonString(Bounds))(process.argv[2] ?? "{}")
  const server = yield* serveSimulated({ bounds })
  let peak = 0
  setInterval(() => (peak = Math.max(peak, process.memoryUsage().arrayBuffers)), lookEveryMs)
  const answer = (question: unknown): number => {
    switch (question) {
      case "memory":
        if (typeof collect === "function") collect()
        return heldBytes()
      case "peak": {
        const seen = peak
        peak = 0
        return seen
      }
      case "connections":
        return process.getActiveResourcesInfo().filter((name) => name === "TCPSocketWrap").length
      default:
        return server.events.filter((it) => it["event"] === "defect").length
    }
  }
  process.on("message", (question) => process.send?.(answer(question)))
  process.on("disconnect", () => process.exit(0))
  process.send?.(server.port)
  return yield* Effect.never
})

Effect.runFork(Effect.scoped(program))
