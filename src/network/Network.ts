/**
 * The network of all instances: one bridge, one TAP per instance, two nftables tables, one pool of addresses. Leases are
 * values that instances keep in their records; the pool is rebuilt from them, and what the kernel holds beyond them is
 * a leftover.
 *
 *   lease ──► attach ──► (the VMM opens the TAP) ──► pin ──► (the guest runs) ──► detach ──► attach ... ──► release
 *
 * The pin is there before the guest runs and stays until it is dead, so no frame of a guest ever passes unchecked; it is
 * made while the VMM starts, which costs the start of a VM nothing. TAPs, bridge and rules outlive the service as VMs do; `removeAll` is for who wants the host as it was. All of it acts on the network
 * namespace that the service runs in.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import * as Semaphore from "effect/Semaphore"
import type { InstanceId } from "../domain/Ids.ts"
import { InterfaceName, type Lease, type Subnet } from "../domain/Network.ts"
import type { NoAddressLeft } from "../domain/problems.ts"
import { CommandPrefix } from "../host/Command.ts"
import type { CommandFault } from "../host/Fault.ts"
import { Settings } from "../host/Settings.ts"
import { Allocator } from "./Allocator.ts"
import { ensureBridge, removeBridge } from "./Bridge.ts"
import { ensureFirewall, pin, pinOnly, removeFirewall, unpin } from "./Firewall.ts"
import { bridge, ip, type Link, links, networkFault, permanentNeighbours } from "./iproute.ts"
import type { LeaseClash, NetworkFault } from "./NetworkFault.ts"
import { contains } from "./pool.ts"
import { forwardingLine, isOurs, makeTap, portLines, removed, removeTap, removeTaps } from "./Tap.ts"

export { LeaseClash, NetworkFault } from "./NetworkFault.ts"

const isAbsence = (fault: CommandFault): boolean =>
  /Cannot find device|does not exist|No such (file|device)/u.test(fault.stderr)

const prepare = (subnet: Subnet): Effect.Effect<void, NetworkFault> =>
  Effect.andThen(
    ensureBridge(subnet),
    ensureFirewall(subnet).pipe(Effect.mapError(networkFault("set up the firewall")))
  )

/** What a TAP needs before frames of a guest may pass: both at once, since each costs the start of a process. */
const pinTo = (subnet: Subnet, lease: Lease): Effect.Effect<void, CommandFault> =>
  Effect.all([pin(subnet, lease), bridge([forwardingLine(lease)])], { concurrency: 2, discard: true }).pipe(
    Effect.uninterruptible
  )

/** TAP and pin at once: no process has the TAP open any more. Without a table there is no pin. */
const detachFrom = (subnet: Subnet, lease: Lease): Effect.Effect<void, CommandFault> =>
  Effect.all(
    [removeTap(subnet, lease), unpin(subnet, lease).pipe(Effect.catchIf(isAbsence, () => Effect.void))],
    { concurrency: 2, discard: true }
  ).pipe(Effect.uninterruptible)

const tapsOf = (subnet: Subnet, all: ReadonlyArray<Link>): ReadonlyArray<string> =>
  all.filter((link) => isOurs(subnet, link)).map((link) => link.ifname)

/** Neighbours of guests that are no more. Those of an operator's own, with another MAC or network, stay. */
const staleNeighbours = (subnet: Subnet, live: ReadonlyArray<Lease>) => {
  const held = new Set<string>(live.map((lease) => lease.ip))
  return Effect.map(permanentNeighbours(subnet.bridge), (all) =>
    all
      .filter(({ dst, lladdr }) => contains(subnet.cidr, dst) && lladdr?.startsWith("52:54:00:") === true)
      .filter(({ dst }) => !held.has(dst))
      .map(({ dst }) => `neigh del ${dst} dev ${subnet.bridge}`)
  )
}

const converge = (
  subnet: Subnet,
  live: ReadonlyMap<InstanceId, Lease>
): Effect.Effect<ReadonlyArray<InterfaceName>, CommandFault> =>
  Effect.gen(function* () {
    const all = yield* links
    const taps = new Set(tapsOf(subnet, all))
    const leases = [...live.values()]
    const wanted = new Set<string>(leases.map((lease) => lease.tap))
    const kept = [...live].filter(([, lease]) => taps.has(lease.tap))
    const leftover = [...taps].filter((tap) => !wanted.has(tap))
    yield* removeTaps(leftover, all)
    yield* pinOnly(subnet, leases)
    yield* removed(yield* staleNeighbours(subnet, leases))
    // A bridge that was made anew has lost its ports, and whoever touched a port may have changed it.
    yield* ip(kept.flatMap(([id, lease]) => portLines(subnet, id, lease)))
    yield* bridge(kept.map(([, lease]) => forwardingLine(lease)))
    return leftover.map((tap) => InterfaceName.make(tap))
  })

/**
 * Takes everything of ours from the host: TAPs (also from under a running VMM), tables, and the bridge where it is ours
 * and nobody else is on it. Forwarding stays as it is, since others may have come to need it.
 */
export const removeAll = (subnet: Subnet): Effect.Effect<void, NetworkFault> =>
  Effect.gen(function* () {
    const all = yield* links
    yield* removeTaps(tapsOf(subnet, all), all)
    yield* removeFirewall(subnet)
  }).pipe(
    Effect.mapError(networkFault("remove the network")),
    Effect.andThen(removeBridge(subnet)),
    Effect.asVoid
  )

/** Bridge, forwarding and rules, without an instance; for the setup of a host. Idempotent. */
export const setUp = prepare

/** More attaches at once than the kernel's one lock over interfaces can use. */
const changesMax = 64

const make = Effect.gen(function* () {
  const { subnet } = yield* Settings
  const allocator = yield* Allocator
  const prefix = yield* CommandPrefix
  const changes = yield* Semaphore.make(changesMax)
  const preparation = yield* Semaphore.make(1)
  const prepared = yield* Ref.make(false)
  /** One change of one TAP: beside others, but never beside a reconciliation. */
  const change = changes.withPermits(1)
  const alone = changes.withPermits(changesMax)
  const prepareOnce = preparation.withPermits(1)(
    Effect.gen(function* () {
      if (yield* Ref.get(prepared)) return
      yield* prepare(subnet)
      yield* Ref.set(prepared, true)
    })
  )
  const prepareAgain = Effect.andThen(Ref.set(prepared, false), prepareOnce)
  /** With bridge and rules in place, also where somebody removed them in the meantime. */
  const onBridge = (operation: string, body: Effect.Effect<void, CommandFault>) =>
    Effect.andThen(prepareOnce, body).pipe(
      Effect.catchIf(
        (fault) => fault._tag === "CommandFault" && isAbsence(fault),
        () => Effect.andThen(prepareAgain, body)
      ),
      Effect.mapError((fault) => (fault._tag === "CommandFault" ? networkFault(operation)(fault) : fault))
    )
  const inPlace = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
    Effect.provideService(effect, CommandPrefix, prefix)

  return Network.of({
    subnet,
    lease: allocator.lease,
    adopt: allocator.adopt,
    release: allocator.release,
    usage: allocator.usage,
    attach: (id, lease) => inPlace(change(onBridge("attach the TAP", makeTap(subnet, id, lease)))),
    pin: (lease) => inPlace(change(onBridge("pin the TAP", pinTo(subnet, lease)))),
    detach: (lease) =>
      inPlace(change(detachFrom(subnet, lease).pipe(Effect.mapError(networkFault("detach the TAP"))))),
    reconcile: (live) =>
      inPlace(
        alone(
          Effect.andThen(
            prepareAgain,
            converge(subnet, live).pipe(Effect.mapError(networkFault("reconcile the network")))
          )
        )
      )
  })
})

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
    /**
     * Makes the TAP, a port of the bridge, for a VMM to open. Takes over a leftover of the same name that nobody holds;
     * waits up to 2 s for a VMM that is just ending. Nothing is left where it fails. No guest may run on it before it
     * is pinned.
     */
    readonly attach: (id: InstanceId, lease: Lease) => Effect.Effect<void, NetworkFault>
    /** Ties the TAP to the lease's MAC and address: nothing else comes out of it, and nothing else finds it. */
    readonly pin: (lease: Lease) => Effect.Effect<void, NetworkFault>
    /**
     * Removes the TAP and its rules, both at the same time: the VMM that had it open must be dead. Ignored where there is
     * none.
     */
    readonly detach: (lease: Lease) => Effect.Effect<void, NetworkFault>
    /**
     * Makes kernel state equal to the given leases that hold a TAP: removes every other TAP and rule of ours, renews the
     * rest, and gives the names of the TAPs that it removed. Interfaces without our mark stay as they are.
     */
    readonly reconcile: (
      live: ReadonlyMap<InstanceId, Lease>
    ) => Effect.Effect<ReadonlyArray<InterfaceName>, NetworkFault>
    readonly usage: Effect.Effect<{ readonly total: number; readonly leased: number }>
  }
>()("dataplane/network/Network") {
  /** Touches the kernel at the first attach or reconcile, not before: a host that lacks something still serves. */
  static readonly layer: Layer.Layer<Network, never, Settings> = Layer.effect(Network, make).pipe(
    Layer.provide(Allocator.layer)
  )
}
