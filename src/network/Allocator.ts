/**
 * The one writer of the pool: every change is one atomic step over `pool.ts`. It holds nothing durable; after a restart
 * the leases come back from the instances' records through `adopt`.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import * as Result from "effect/Result"
import type { InstanceId } from "../domain/Ids.ts"
import type { Lease } from "../domain/Network.ts"
import { NoAddressLeft } from "../domain/problems.ts"
import { Settings } from "../host/Settings.ts"
import { LeaseClash } from "./NetworkFault.ts"
import * as pool from "./pool.ts"

const noAddressLeft = ({ cidr, leased }: pool.Exhausted): NoAddressLeft =>
  new NoAddressLeft({
    detail: `All ${leased} addresses of ${cidr} are leased. Delete an instance, or give the host a larger SUBNET_CIDR.`,
    cidr,
    leased
  })

export class Allocator extends Context.Service<
  Allocator,
  {
    readonly lease: (id: InstanceId) => Effect.Effect<Lease, NoAddressLeft>
    readonly adopt: (id: InstanceId, lease: Lease) => Effect.Effect<void, LeaseClash>
    readonly release: (id: InstanceId) => Effect.Effect<void>
    readonly usage: Effect.Effect<{ readonly total: number; readonly leased: number }>
  }
>()("dataplane/network/Allocator") {
  static readonly layer: Layer.Layer<Allocator, never, Settings> = Layer.effect(
    Allocator,
    Effect.gen(function* () {
      const { subnet } = yield* Settings
      const state = yield* Ref.make(pool.make(subnet))
      return {
        lease: (id) =>
          Ref.modify(state, (now): readonly [Result.Result<Lease, NoAddressLeft>, pool.Pool] =>
            Result.match(pool.lease(now, id), {
              onFailure: (exhausted) => [Result.fail(noAddressLeft(exhausted)), now],
              onSuccess: (made) => [Result.succeed(made.lease), made.pool]
            })
          ).pipe(Effect.flatMap(Effect.fromResult)),
        adopt: (id, lease) =>
          Ref.modify(state, (now): readonly [Result.Result<void, LeaseClash>, pool.Pool] =>
            Result.match(pool.adopt(now, id, lease), {
              onFailure: ({ holder }) => [
                Result.fail(new LeaseClash({ instance_id: id, holder, ip: lease.ip })),
                now
              ],
              onSuccess: (next) => [Result.succeed(undefined), next]
            })
          ).pipe(Effect.flatMap(Effect.fromResult)),
        release: (id) => Ref.update(state, (now) => pool.release(now, id)),
        usage: Effect.map(Ref.get(state), pool.usage)
      }
    })
  )
}
