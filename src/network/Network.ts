/**
 * The network of all instances: one bridge, one TAP per instance, one nftables table, one pool of addresses. Leases are
 * values that instances keep in their records; the pool is rebuilt from them, and what the kernel holds beyond them is
 * a leftover.
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { InstanceId } from "../domain/Ids.ts"
import type { InterfaceName, Lease, Subnet } from "../domain/Network.ts"
import type { NoAddressLeft } from "../domain/problems.ts"

export class NetworkFault extends Schema.TaggedError<NetworkFault>()("NetworkFault", {
  operation: Schema.String,
  reason: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.operation}: ${this.reason}`
  }
}

/** Two records hold one address, MAC or TAP: an error to be shown, never a guess. */
export class LeaseClash extends Schema.TaggedError<LeaseClash>()("LeaseClash", {
  instance_id: Schema.String,
  holder: Schema.String,
  ip: Schema.String
}) {}

export class Network extends Context.Service<
  Network,
  {
    readonly subnet: Subnet
    /** A lease for this instance, the one it already has where it has one. */
    readonly lease: (id: InstanceId) => Effect.Effect<Lease, NoAddressLeft>
    /** Puts a lease that a record holds back into the pool. Idempotent. */
    readonly adopt: (id: InstanceId, lease: Lease) => Effect.Effect<void, LeaseClash>
    /** Gives the address back. Ignored where there is none. */
    readonly release: (id: InstanceId) => Effect.Effect<void>
    /** Makes the TAP on the bridge, pinned to the lease's MAC and address. Replaces a leftover of the same name. */
    readonly attach: (id: InstanceId, lease: Lease) => Effect.Effect<void, NetworkFault>
    /** Removes the TAP and its rules. Ignored where there is none. */
    readonly detach: (lease: Lease) => Effect.Effect<void, NetworkFault>
    /** Makes kernel state equal to the given leases that hold a TAP: removes every other TAP and rule of ours. */
    readonly reconcile: (
      live: ReadonlyMap<InstanceId, Lease>
    ) => Effect.Effect<ReadonlyArray<InterfaceName>, NetworkFault>
    readonly usage: Effect.Effect<{ readonly total: number; readonly leased: number }>
  }
>()("dataplane/network/Network") {}
