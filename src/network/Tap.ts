/**
 * One TAP per instance, a port of the bridge that talks to the host and to nobody else:
 *
 *   isolated     no frames between guests, also where the firewall is flushed
 *   flooding off no guest sees a frame whose destination is not its own, broadcasts included
 *   learning off with a static forwarding entry: no guest can move another's MAC to its port, and frames still find it
 *   neighbour    permanent on the host, since a broadcast that asks for the guest would not reach it
 *
 * The three go together: flooding off without the entry cuts the guest off, learning off without flooding off sends
 * everything everywhere. The kernel's memory is the only one: `ours` finds every TAP of a bridge by its alias.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { InstanceId } from "../domain/Ids.ts"
import type { InterfaceName, Lease, Subnet } from "../domain/Network.ts"
import type { CommandFault } from "../host/Fault.ts"
import { bridgeAlias } from "./Bridge.ts"
import { ip, ipForced, type Link, links } from "./iproute.ts"

/** A VMM that was killed holds its TAP until the kernel has closed its files; there is no event to wait for. */
const busyPollMs = 25
const busyWaitMs = 2_000
/** Frames that wait for a guest; the kernel's own default for Ethernet. */
const queueFrames = 1000

/** "chd" in ASCII: an interface group (ip-link(8)) that exists only while TAPs are removed. */
const removalGroup = 0x63_68_64_00

const tapAlias = (subnet: Subnet, id: InstanceId): string => `${bridgeAlias(subnet.bridge)}:${id}`

/** Whether this interface is a TAP that we made for this bridge. */
export const isOurs = (subnet: Subnet, link: Link): boolean =>
  link.ifalias?.startsWith(`${bridgeAlias(subnet.bridge)}:`) === true

const createLine = (tap: InterfaceName): string => `tuntap add dev ${tap} mode tap vnet_hdr`

/** Marks an interface as ours and makes it a port of the bridge. The mark comes first: what has a port is findable. */
export const portLines = (subnet: Subnet, id: InstanceId, lease: Lease): ReadonlyArray<string> => [
  `link set dev ${lease.tap} alias ${tapAlias(subnet, id)} addrgenmode none txqueuelen ${queueFrames}`,
  `link set dev ${lease.tap} master ${subnet.bridge}`,
  `link set dev ${lease.tap} type bridge_slave isolated on learning off flood off mcast_flood off bcast_flood off`,
  `link set dev ${lease.tap} up`,
  `neigh replace ${lease.ip} lladdr ${lease.mac} dev ${subnet.bridge} nud permanent`
]

export const forwardingLine = (lease: Lease): string =>
  `fdb replace ${lease.mac} dev ${lease.tap} master static`

/**
 * Removes TAPs together: the kernel waits for its readers once (25 ms) and not once for each, so that a bridge full of
 * leftovers is clean at once. They are first put into a group of their own; one that somebody else uses is never
 * removed, then they go one by one. Ignored where they are gone already.
 */
export const removeTaps = (
  taps: ReadonlyArray<string>,
  all: ReadonlyArray<Link>
): Effect.Effect<void, CommandFault> => {
  if (taps.length === 0) return Effect.void
  const taken = all.some((link) => link.group === `${removalGroup}` && !taps.includes(link.ifname))
  return removed(
    taken
      ? taps.map((tap) => `link del dev ${tap}`)
      : [...taps.map((tap) => `link set dev ${tap} group ${removalGroup}`), `link del group ${removalGroup}`]
  )
}

/** There is an interface of this name, which `ip tuntap add` never takes over. */
export const isTaken = (fault: CommandFault): boolean =>
  /TUNSETIFF.*Device or resource busy/u.test(fault.stderr)

/** A TAP has a carrier exactly while a process has it open (drivers/net/tun.c). Ours are always up, so it shows. */
const isHeld = (link: Link): boolean => link.flags.includes("LOWER_UP")

/** Nothing was made: `ip` names the line of the batch that it could not do. */
const failedAtFirstLine = (fault: CommandFault): boolean => /Command failed -:1$/mu.test(fault.stderr)

const removeLines = (subnet: Subnet, lease: Lease): ReadonlyArray<string> => [
  `link del dev ${lease.tap}`,
  `neigh del ${lease.ip} dev ${subnet.bridge}`
]

const isAbsence = (line: string): boolean =>
  line.trim() === "" || /^(Cannot find device|RTNETLINK answers: No such|Command failed)/u.test(line)

/** Runs removals of things that may be gone already. */
export const removed = (lines: ReadonlyArray<string>): Effect.Effect<void, CommandFault> =>
  ipForced(lines).pipe(
    Effect.catchIf(
      (fault) => fault.outcome === "failed" && fault.stderr.split("\n").every(isAbsence),
      () => Effect.void
    )
  )

/** Removes the TAP and the neighbour behind it, also from under a VMM. Ignored where there is none. */
export const removeTap = (subnet: Subnet, lease: Lease): Effect.Effect<void, CommandFault> =>
  removed(removeLines(subnet, lease))

/** Ends when the name is free, or when it is a leftover that can be replaced; fails where it is held for 2 s, or not ours. */
const awaitLeftover = (
  subnet: Subnet,
  lease: Lease,
  taken: CommandFault
): Effect.Effect<void, CommandFault> =>
  links.pipe(
    Effect.map((all) => all.find((link) => link.ifname === lease.tap)),
    Effect.flatMap((link) =>
      link === undefined || (isOurs(subnet, link) && !isHeld(link)) ? Effect.void : Effect.fail(taken)
    ),
    Effect.retry({ schedule: Schedule.spaced(busyPollMs), times: busyWaitMs / busyPollMs })
  )

/**
 * Makes the TAP; replaces one of ours of the same name that nobody holds, and waits up to 2 s for a VMM that is just
 * ending. Nothing is left where it fails, except the interface that was there. Not interruptible: a batch that is half
 * done is worse than a wait that is bounded.
 */
export const makeTap = (subnet: Subnet, id: InstanceId, lease: Lease): Effect.Effect<void, CommandFault> => {
  const undo = () => Effect.ignore(removeTap(subnet, lease))
  const make = ip([createLine(lease.tap), ...portLines(subnet, id, lease)]).pipe(
    Effect.tapError((fault) => (failedAtFirstLine(fault) ? Effect.void : undo()))
  )
  return make.pipe(
    Effect.catchIf(isTaken, (taken) =>
      awaitLeftover(subnet, lease, taken).pipe(
        Effect.andThen(removed([`link del dev ${lease.tap}`])),
        Effect.andThen(make)
      )
    ),
    Effect.uninterruptible
  )
}
