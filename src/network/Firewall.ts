/**
 * Two nftables tables of our own per bridge, both named `chd_<bridge>`. Nobody else's table is touched, and no other
 * table's verdict is overruled: a packet passes where every table lets it.
 *
 *   table bridge   before bridging, per TAP: the frame is IPv4 or ARP of the lease's MAC and address, or it is dropped
 *                  (IPv6, VLAN tags, spanning tree, DHCP, probes). Nothing is bridged from or to a TAP of ours.
 *   table inet     at the bridge: nothing for the host itself but ICMP echo to the gateway, also not by way of a port
 *                  that the host publishes (the check stands before destination NAT); nothing for other guests; nothing
 *                  for link-local addresses, where clouds serve the host's own credentials; the rest leaves by NAT.
 *                  What comes in is an answer, or is forwarded by a rule of the operator's (ct status dnat).
 *
 * The sets `taps` and `pins` hold one element per instance. Every change is one transaction, so there is no moment with
 * half a rule set.
 */
import type * as Effect from "effect/Effect"
import type { Lease, Subnet } from "../domain/Network.ts"
import type { CommandFault } from "../host/Fault.ts"
import { nft } from "./iproute.ts"

/** Ample for every monitor; a flood of echo requests costs the host its answers. */
const echoPerSecond = 50

/** Bridge names hold no underscore (InterfaceName), so two bridges never share a table. */
export const tableName = (subnet: Subnet): string => `chd_${subnet.bridge.replaceAll("-", "_")}`

const frames = (subnet: Subnet): string => `
table bridge ${tableName(subnet)} {
  set taps { type ifname; }
  set pins { type ifname . ether_addr . ipv4_addr; }
  counter spoofed { comment "frames that are not the lease's own" }
  counter bridged { comment "frames from or to another port" }

  chain prerouting {
    type filter hook prerouting priority dstnat; policy accept;
    iifname @taps goto guest
  }
  chain guest {
    ether type { 8021q, 8021ad } counter name spoofed drop
    ether type ip iifname . ether saddr . ip saddr @pins udp dport { 67, 68 } counter name spoofed drop
    ether type ip iifname . ether saddr . ip saddr @pins accept
    ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation { request, reply } \\
      arp daddr ip ${subnet.gateway} \\
      iifname . ether saddr . arp saddr ip @pins iifname . arp saddr ether . arp saddr ip @pins accept
    counter name spoofed drop
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname @taps counter name bridged drop
    oifname @taps counter name bridged drop
  }
}`

const packets = (subnet: Subnet): string => `
table inet ${tableName(subnet)} {
  counter to_host { comment "packets from guests for the host itself" }
  counter to_guests { comment "packets from guests, or from outside, for guests" }

  chain prerouting {
    type filter hook prerouting priority mangle; policy accept;
    iifname "${subnet.bridge}" goto guest
  }
  chain guest {
    meta nfproto != ipv4 drop
    ct state established,related accept
    ct state invalid drop
    ip daddr ${subnet.gateway} icmp type echo-request limit rate ${echoPerSecond}/second accept
    fib daddr type { local, broadcast, multicast, anycast } counter name to_host drop
    ip daddr 169.254.0.0/16 counter name to_host drop
    ip daddr ${subnet.cidr} counter name to_guests drop
  }
  chain forward {
    type filter hook forward priority filter; policy accept;
    oifname "${subnet.bridge}" ct state established,related accept
    oifname "${subnet.bridge}" ct status dnat iifname != "${subnet.bridge}" accept
    oifname "${subnet.bridge}" counter name to_guests drop
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ${subnet.cidr} oifname != "${subnet.bridge}" masquerade
  }
}`

const families = ["bridge", "inet"] as const

const lines = (subnet: Subnet, verb: string): ReadonlyArray<string> =>
  families.map((family) => `${verb} table ${family} ${tableName(subnet)}`)

/**
 * The rules as one transaction. `flush table` takes the rules and leaves the sets' elements, so that running guests stay
 * pinned while the rules are renewed.
 */
export const ruleset = (subnet: Subnet): ReadonlyArray<string> => [
  ...lines(subnet, "add"),
  ...lines(subnet, "flush"),
  frames(subnet),
  packets(subnet)
]

/** Puts the rules in place, whatever of them is there. Idempotent. */
export const ensureFirewall = (subnet: Subnet): Effect.Effect<void, CommandFault> => nft(ruleset(subnet))

/** Removes both tables. Ignored where there are none. */
export const removeFirewall = (subnet: Subnet): Effect.Effect<void, CommandFault> =>
  nft([...lines(subnet, "add"), ...lines(subnet, "delete")])

const elements = (subnet: Subnet, verb: string, leases: ReadonlyArray<Lease>): ReadonlyArray<string> => {
  if (leases.length === 0) return []
  const table = `bridge ${tableName(subnet)}`
  const taps = leases.map(({ tap }) => `"${tap}"`)
  const pins = leases.map(({ tap, mac, ip }) => `"${tap}" . ${mac} . ${ip}`)
  return [
    `${verb} element ${table} taps { ${taps.join(", ")} }`,
    `${verb} element ${table} pins { ${pins.join(", ")} }`
  ]
}

/** Pins the lease's TAP to its MAC and address. Idempotent. */
export const pin = (subnet: Subnet, lease: Lease): Effect.Effect<void, CommandFault> =>
  nft(elements(subnet, "add", [lease]))

/** Takes the pin away. Ignored where there is none: what is added first can be deleted. */
export const unpin = (subnet: Subnet, lease: Lease): Effect.Effect<void, CommandFault> =>
  nft([...elements(subnet, "add", [lease]), ...elements(subnet, "delete", [lease])])

/** Exactly these leases are pinned, from one packet to the next. */
export const pinOnly = (subnet: Subnet, leases: ReadonlyArray<Lease>): Effect.Effect<void, CommandFault> => {
  const table = `bridge ${tableName(subnet)}`
  return nft([`flush set ${table} taps`, `flush set ${table} pins`, ...elements(subnet, "add", leases)])
}
