/**
 * Keeps the gauges fresh for those who are sent them (OTLP), and says the most important figures once a minute in the
 * log, for those who have nothing but the log.
 */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { Resources } from "../domain/Resources.ts"
import { registerCounters } from "./counters.ts"
import { countByState, setGauges } from "./gauges.ts"
import { logEvent } from "./LogEvent.ts"
import { registerVerbs } from "./VerbRun.ts"

/** Contract §5: once a minute. */
export const snapshotEveryMs = 60_000
/** As often as OTLP sends metrics. */
export const refreshEveryMs = 10_000

/** Counters of one name, all labels together. */
const total = (name: string) => (snapshots: ReadonlyArray<Metric.Metric.Snapshot>) =>
  snapshots.reduce(
    (sum, it) => (it.id === name && it.type === "Counter" ? sum + Number(it.state.count) : sum),
    0
  )

const say = Effect.fnUntraced(function* (resources: Resources) {
  const snapshots = yield* Metric.snapshot
  const { rss, heapUsed } = process.memoryUsage()
  const states = [...countByState(resources)].map(([state, count]) => [state.toLowerCase(), count])
  yield* logEvent("metrics.snapshot", `${resources.instances.length} instances`, {
    instances: resources.instances.length,
    ...Object.fromEntries(states),
    cpus_allocated: resources.cpus.allocated,
    memory_allocated_mb: resources.memory_mb.allocated,
    memory_free_mb: resources.memory_mb.free,
    disk_free_mb: resources.disk_mb.free,
    addresses_allocated: resources.addresses.allocated,
    http_requests: total("dataplane_http_requests_total")(snapshots),
    restarts: total("dataplane_restarts_total")(snapshots),
    vmm_exits: total("dataplane_vmm_exits_total")(snapshots),
    rss_mb: Math.round(rss / 2 ** 20),
    heap_mb: Math.round(heapUsed / 2 ** 20)
  })
})

/** Runs until its scope closes. */
export const tellMetrics = (resources: Effect.Effect<Resources>): Effect.Effect<void, never, Scope.Scope> =>
  Effect.gen(function* () {
    yield* registerVerbs
    yield* registerCounters
    const refresh = Effect.flatMap(resources, setGauges)
    yield* Effect.forkScoped(Effect.repeat(refresh, Schedule.spaced(refreshEveryMs)))
    const speak = Effect.andThen(Effect.sleep(snapshotEveryMs), Effect.flatMap(resources, say))
    yield* Effect.forkScoped(Effect.forever(speak))
  })
