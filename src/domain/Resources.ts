/** What the host has for instances, what they were given of it, and what is left. */
import * as Schema from "effect/Schema"
import { InstanceId } from "./Ids.ts"
import { InstanceState } from "./Instance.ts"
import { Ipv4 } from "./Network.ts"

const Count = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))

/**
 * One kind of resource. `free` is what another instance could still get, never less than 0: CPUs and sparse disks may be
 * given out beyond the capacity.
 */
export const ResourceShare = Schema.Struct({ capacity: Count, allocated: Count, free: Count }).annotate({
  identifier: "ResourceShare",
  description:
    "`free` is what another instance could still get; CPUs and disks may be given out beyond the capacity."
})
export type ResourceShare = typeof ResourceShare.Type

export const InstanceResources = Schema.Struct({
  instance_id: InstanceId,
  state: InstanceState,
  vcpus: Count.annotate({ description: "Held of the host now: 0 while the guest has no VMM." }),
  memory_mb: Count.annotate({ description: "Held of the host now: 0 while the guest has no VMM." }),
  disk_mb: Count.annotate({ description: "Apparent size of its writable disk." }),
  disk_used_mb: Count.annotate({ description: "What its writable disk really takes." }),
  ip: Schema.NullOr(Ipv4)
}).annotate({ identifier: "InstanceResources" })
export type InstanceResources = typeof InstanceResources.Type

/**
 * GET /resources. CPUs and memory are allocated while an instance has a VMM; what the host keeps for itself is not free.
 * Disks are sparse: allocated is their apparent size, free what the file system of DATA_DIR still takes.
 */
export const Resources = Schema.Struct({
  cpus: ResourceShare,
  memory_mb: ResourceShare,
  disk_mb: ResourceShare,
  addresses: ResourceShare,
  instances: Schema.Array(InstanceResources)
}).annotate({
  identifier: "Resources",
  description:
    "CPUs and memory are allocated while an instance has a VMM; memory that the host keeps for itself is not free. Disks are sparse: allocated is their apparent size, free what the file system of DATA_DIR still takes."
})
export type Resources = typeof Resources.Type
