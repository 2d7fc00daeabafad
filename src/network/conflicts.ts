/** What on this host stands in the way of the guests' network, as sentences for an operator; for `dataplane doctor`. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { Subnet } from "../domain/Network.ts"
import { run } from "../host/Command.ts"
import type { NetworkFault } from "./NetworkFault.ts"
import { tableName } from "./Firewall.ts"
import { networkFault, routes } from "./iproute.ts"
import { overlap } from "./pool.ts"

/** Routes of other interfaces that share addresses with the subnet: one of the two would be cut off. */
export const conflicts = (subnet: Subnet): Effect.Effect<ReadonlyArray<string>, NetworkFault> =>
  routes.pipe(
    Effect.map((all) =>
      all
        .filter((route) => /^[\d./]+$/u.test(route.dst) && route.dev !== subnet.bridge)
        .filter((route) => overlap(route.dst, subnet.cidr))
        .map(
          (route) =>
            `SUBNET_CIDR ${subnet.cidr} overlaps the route ${route.dst}` +
            `${route.dev === undefined ? "" : ` of ${route.dev}`}: set it to a network that this host does not use`
        )
    ),
    Effect.mapError(networkFault("read the routes"))
  )

const Chains = Schema.Struct({
  nftables: Schema.Array(
    Schema.Struct({
      chain: Schema.optionalKey(
        Schema.Struct({
          family: Schema.String,
          table: Schema.String,
          name: Schema.String,
          hook: Schema.optionalKey(Schema.String),
          policy: Schema.optionalKey(Schema.String)
        })
      )
    })
  )
})

/**
 * Chains of other tables that drop what they do not know (Docker and many firewalls have some). A drop anywhere is final
 * in nftables, so their owner has to let the bridge through; rules of ours cannot.
 */
export const foreignDrops = (subnet: Subnet): Effect.Effect<ReadonlyArray<string>, NetworkFault> =>
  run("nft", ["-j", "list", "chains"]).pipe(
    Effect.mapError(networkFault("read the firewall")),
    Effect.flatMap((text) =>
      Schema.decodeEffect(Schema.fromJsonString(Chains))(text).pipe(
        Effect.catchTag("SchemaError", (error) => Effect.die(error))
      )
    ),
    Effect.map(({ nftables }) =>
      nftables
        .flatMap(({ chain }) => (chain === undefined ? [] : [chain]))
        .filter(({ table, policy, hook }) => {
          const hinders = hook === "forward" || hook === "input"
          return policy === "drop" && hinders && table !== tableName(subnet)
        })
        .map(({ family, table, name, hook }) => {
          const side =
            hook === "input" ? `iifname "${subnet.bridge}"` : `{ iifname, oifname } "${subnet.bridge}"`
          return (
            `the chain ${family} ${table} ${name} drops what it does not know at ${hook}: ` +
            `let its owner accept ${side}, or guests cannot reach ${hook === "input" ? "the gateway" : "the network"}`
          )
        })
    )
  )
