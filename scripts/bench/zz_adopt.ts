import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { CreateInstance } from "../../src/domain/Instance.ts"
import { startService } from "../../test/support/Service.ts"
import { importImage } from "../../test/support/guests.ts"
import { execSync } from "node:child_process"
const N = Number(process.argv[2] ?? 300)
const env = {
  VMM: "simulated",
  SIMULATED_LATENCY: "none",
  SUBNET_CIDR: "10.20.0.0/16",
  SUBNET_GATEWAY: "10.20.0.1",
  NODE_OPTIONS: `--import ${new URL("./probe.ts", import.meta.url).href}`
}
await Effect.runPromise(
  Effect.scoped(
    Effect.gen(function* () {
      const s = yield* startService({ env })
      yield* importImage(s, "bench")
      yield* Effect.forEach(
        Array.from({ length: N }, (_, i) => `vm-${i}`),
        (id) =>
          Effect.flatMap(
            Schema.decodeEffect(CreateInstance)({
              id,
              name: id,
              image: "bench",
              memory_mb: 128,
              vcpus: 1,
              overlay_mb: 64
            }),
            (payload) => s.client.instances.create({ payload })
          ),
        { concurrency: 16, discard: true }
      )
      yield* s.stop("SIGKILL")
      yield* s.start({
        NODE_OPTIONS:
          env.NODE_OPTIONS +
          (process.argv[3]
            ? " --heapsnapshot-signal=SIGWINCH --diagnostic-dir=/tmp/prof3"
            : " --cpu-prof --cpu-prof-dir=/tmp/prof2")
      })
      if (process.argv[3]) process.kill(s.pid(), "SIGWINCH")
      yield* Effect.sleep(4000)
      yield* s.stop("SIGTERM")
    })
  )
)
