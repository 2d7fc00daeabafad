/** How much there is, as gauges: set whenever somebody is about to read them, from the same report as GET /resources. */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { InstanceState } from "../domain/Instance.ts"
import type { Resources, ResourceShare } from "../domain/Resources.ts"
import { family } from "../host/Measure.ts"

const gauge = (name: string, description: string) => family(Metric.gauge(name, { description }))

const instances = gauge("dataplane_instances", "Instances by state.")
const cpus = gauge("dataplane_cpus", "Cores of the host and vCPUs of instances.")
const memory = gauge("dataplane_memory_bytes", "Memory of the host and of instances.")
const disk = gauge("dataplane_disk_bytes", "The file system of DATA_DIR and the writable disks on it.")
const addresses = gauge("dataplane_addresses", "Addresses of the subnet for instances.")
const process_ = gauge("dataplane_process_bytes", "Memory of the service itself.")

const bytesPerMb = 1024 * 1024

const share = (metric: ReturnType<typeof gauge>, { capacity, allocated, free }: ResourceShare, unit = 1) =>
  Effect.all(
    Object.entries({ capacity, allocated, free }).map(([kind, value]) =>
      Metric.update(metric({ kind }), value * unit)
    ),
    { discard: true }
  )

/** Instances of each state, also of those that none is in. */
export const countByState = (resources: Resources): ReadonlyMap<InstanceState, number> => {
  const counts = new Map(InstanceState.literals.map((state): [InstanceState, number] => [state, 0]))
  for (const { state } of resources.instances) counts.set(state, (counts.get(state) ?? 0) + 1)
  return counts
}

export const setGauges = (resources: Resources): Effect.Effect<void> =>
  Effect.gen(function* () {
    yield* Effect.forEach(
      countByState(resources),
      ([state, count]) => Metric.update(instances({ state }), count),
      { discard: true }
    )
    yield* share(cpus, resources.cpus)
    yield* share(memory, resources.memory_mb, bytesPerMb)
    yield* share(disk, resources.disk_mb, bytesPerMb)
    yield* share(addresses, resources.addresses)
    const { rss, heapUsed, arrayBuffers } = process.memoryUsage()
    yield* Metric.update(process_({ kind: "resident" }), rss)
    yield* Metric.update(process_({ kind: "heap" }), heapUsed)
    yield* Metric.update(process_({ kind: "buffers" }), arrayBuffers)
  })
