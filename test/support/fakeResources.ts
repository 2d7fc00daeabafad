/** What a host has, for tests of HTTP: the fake instances on a host that never changes. */
import * as Effect from "effect/Effect"
import type { Resources } from "../../src/domain/Resources.ts"
import type { HostResources } from "../../src/http/HostResources.ts"
import type { FakeWorld } from "./fakeServices.ts"

/** A host of 8 cores and 16 GiB with the fake instances on it. */
export const fakeResources = (world: FakeWorld): HostResources["Service"] => {
  const resources = Effect.sync((): Resources => {
    const all = [...world.instances.values()]
    const memory = all.reduce((sum, it) => sum + it.memory_mb, 0)
    const cpus = all.reduce((sum, it) => sum + it.vcpus, 0)
    return {
      cpus: { capacity: 8, allocated: cpus, free: Math.max(0, 8 - cpus) },
      memory_mb: { capacity: 16_384, allocated: memory, free: Math.max(0, 15_872 - memory) },
      disk_mb: { capacity: 100_000, allocated: 10_240 * all.length, free: 50_000 },
      addresses: { capacity: 253, allocated: all.length, free: 253 - all.length },
      instances: all.map((it) => ({
        instance_id: it.id,
        state: it.state,
        vcpus: it.vcpus,
        memory_mb: it.memory_mb,
        disk_mb: it.overlay_mb,
        disk_used_mb: 0,
        ip: it.network.ip
      }))
    }
  })
  return { report: resources, totals: resources }
}
