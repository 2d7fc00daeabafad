/**
 * The bridge of all guests, with the gateway's address on it. Ours where we made it: its alias says so, and then it may
 * be changed and removed. One that was there before is used as it is and stays.
 *
 * Its MAC comes from its name. A bridge without a MAC of its own takes the lowest of its ports', so that the gateway's
 * MAC would change under running and frozen guests as others come and go.
 */
import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import type { InterfaceName, Subnet } from "../domain/Network.ts"
import { run } from "../host/Command.ts"
import type { CommandFault } from "../host/Fault.ts"
import { ip, type Link, links, networkFault } from "./iproute.ts"
import { NetworkFault } from "./NetworkFault.ts"
import { prefixLength } from "./pool.ts"

const forwardingSwitch = "/proc/sys/net/ipv4/ip_forward"

/** The mark of our interfaces: `chd:<bridge>` on the bridge, `chd:<bridge>:<instance id>` on its TAPs. */
export const bridgeAlias = (bridge: InterfaceName): string => `chd:${bridge}`

/** Not 52:54:00, so that it never is a guest's. */
const bridgeMac = (bridge: InterfaceName): string => {
  const digits = createHash("sha256").update(bridge).digest("hex")
  return `52:54:01:${digits.slice(0, 2)}:${digits.slice(2, 4)}:${digits.slice(4, 6)}`
}

const gatewayAddress = (subnet: Subnet): string => `${subnet.gateway}/${prefixLength(subnet.cidr)}`

/** Addresses are the gateway only; a MAC of our own; no IPv6, no spanning tree, no multicast snooping. */
const makeLines = (subnet: Subnet): ReadonlyArray<string> => [
  `link add dev ${subnet.bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
  `link set dev ${subnet.bridge} address ${bridgeMac(subnet.bridge)} alias ${bridgeAlias(subnet.bridge)} addrgenmode none`
]

const setLines = (subnet: Subnet): ReadonlyArray<string> => [
  `addr replace ${gatewayAddress(subnet)} dev ${subnet.bridge}`,
  `link set dev ${subnet.bridge} up`
]

/** Addresses that an earlier SUBNET_CIDR left on a bridge of ours. */
const staleLines = (subnet: Subnet, link: Link): ReadonlyArray<string> =>
  (link.addr_info ?? [])
    .filter((it) => it.family === "inet" && it.local !== undefined)
    .map((it) => `${it.local}/${it.prefixlen}`)
    .filter((address) => address !== gatewayAddress(subnet))
    .map((address) => `addr del ${address} dev ${subnet.bridge}`)

const isOurs = (link: Link): boolean => link.ifalias === `chd:${link.ifname}`

/** Routing between interfaces, as NAT needs it. Written only where it is off: the write resets other switches. */
const enableForwarding: Effect.Effect<void, CommandFault> = Effect.gen(function* () {
  const now = yield* run("cat", [forwardingSwitch])
  if (now.trim() !== "1") yield* run("tee", [forwardingSwitch], { input: "1\n" })
})

const notABridge = (subnet: Subnet, found: Link): NetworkFault =>
  new NetworkFault({
    operation: "set up the bridge",
    reason: `${subnet.bridge} exists and is no bridge: set BRIDGE_NAME to another name`,
    cause: found
  })

/** What it takes to have the bridge, from what there is under its name. */
const ensureLines = (
  subnet: Subnet,
  found: Link | undefined
): Effect.Effect<ReadonlyArray<string>, NetworkFault> => {
  if (found === undefined) return Effect.succeed([...makeLines(subnet), ...setLines(subnet)])
  if (found.linkinfo?.info_kind !== "bridge") return Effect.fail(notABridge(subnet, found))
  return Effect.succeed([...(isOurs(found) ? staleLines(subnet, found) : []), ...setLines(subnet)])
}

/** Makes the bridge where there is none, and sets it up where it is not. Idempotent. */
export const ensureBridge = (subnet: Subnet): Effect.Effect<void, NetworkFault> =>
  links.pipe(
    Effect.flatMap((all) =>
      ensureLines(
        subnet,
        all.find((link) => link.ifname === subnet.bridge)
      )
    ),
    Effect.flatMap(ip),
    Effect.andThen(enableForwarding),
    Effect.catchTag("CommandFault", (fault) => Effect.fail(networkFault("set up the bridge")(fault)))
  )

/** Removes the bridge where we made it and nothing is on it; says whether it did. */
export const removeBridge = (subnet: Subnet): Effect.Effect<boolean, NetworkFault> =>
  Effect.gen(function* () {
    const all = yield* links
    const found = all.find((link) => link.ifname === subnet.bridge)
    const used = all.some((link) => link.master === subnet.bridge)
    if (found === undefined || used || !isOurs(found)) return false
    yield* ip([`link del dev ${subnet.bridge}`])
    return true
  }).pipe(Effect.mapError(networkFault("remove the bridge")))
