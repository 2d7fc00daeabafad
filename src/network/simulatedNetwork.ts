/**
 * The network of a simulated host: leases come from the real allocator, TAPs are entries of the world. A TAP exists
 * before its rules do and after they went, so that a service that is killed in between leaves one that reconcile must
 * find.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { InstanceId } from "../domain/Ids.ts"
import type { InterfaceName, Lease } from "../domain/Network.ts"
import { Settings } from "../host/Settings.ts"
import type { Operation } from "../host/simulated/FaultPlan.ts"
import { operate } from "../host/simulated/operate.ts"
import { tapHolder } from "../host/simulated/processes.ts"
import { dropTap, pinTap, putTap, removeTap } from "../host/simulated/taps.ts"
import { ServiceProcess, type ServiceRun, SimulatedWorld, type World } from "../host/simulated/World.ts"
import { Allocator } from "./Allocator.ts"
import { Network, NetworkFault } from "./Network.ts"

const fault = (operation: Operation) => (reason: string) =>
  new NetworkFault({ operation, reason, cause: undefined })

/** Draws of a reconciliation go by this name: it belongs to no instance. */
const allInstances = "all"

const attach = (world: World, run: ServiceRun, id: InstanceId, lease: Lease) =>
  operate(world, run, {
    operation: "tapAttach",
    id,
    fault: fault("tapAttach"),
    begin: Effect.suspend(() => {
      if (tapHolder(world, lease.tap) !== undefined) {
        return Effect.fail(fault("tapAttach")(`TAP ${lease.tap}: device or resource busy`))
      }
      putTap(world, { name: lease.tap, owner: id, ip: lease.ip, mac: lease.mac, pinned: false })
      return Effect.void
    }),
    finish: () => Effect.void,
    undo: () => dropTap(world, lease.tap)
  })

const pin = (world: World, run: ServiceRun, lease: Lease) =>
  operate(world, run, {
    operation: "tapPin",
    id: world.taps.get(lease.tap)?.owner ?? lease.tap,
    fault: fault("tapPin"),
    begin: Effect.suspend(() =>
      world.taps.has(lease.tap) ? Effect.void : Effect.fail(fault("tapPin")(`TAP ${lease.tap} is not there`))
    ),
    finish: () => Effect.sync(() => pinTap(world, lease.tap, true))
  })

const detach = (world: World, run: ServiceRun, lease: Lease) =>
  operate(world, run, {
    operation: "tapDetach",
    id: world.taps.get(lease.tap)?.owner ?? lease.tap,
    fault: fault("tapDetach"),
    begin: Effect.sync(() => pinTap(world, lease.tap, false)),
    finish: () =>
      Effect.sync(() => {
        if (world.taps.has(lease.tap)) removeTap(world, lease.tap)
      })
  })

const reconcile = (world: World, run: ServiceRun, live: ReadonlyMap<InstanceId, Lease>) =>
  operate(world, run, {
    operation: "tapReconcile",
    id: allInstances,
    fault: fault("tapReconcile"),
    begin: Effect.sync((): ReadonlyArray<InterfaceName> => {
      const held = new Set([...live.values()].map((lease) => lease.tap))
      const leftover = [...world.taps.keys()].filter((tap) => !held.has(tap))
      for (const tap of leftover.slice(0, leftover.length / 2)) removeTap(world, tap)
      return leftover
    }),
    finish: (leftover) =>
      Effect.sync(() => {
        for (const tap of leftover) if (world.taps.has(tap)) removeTap(world, tap)
        for (const lease of live.values()) pinTap(world, lease.tap, true)
        return leftover
      })
  })

/** The simulated network; its leases are those of the real pool. */
export const layer: Layer.Layer<Network, never, Settings | SimulatedWorld | ServiceProcess> = Layer.effect(
  Network,
  Effect.gen(function* () {
    const { subnet } = yield* Settings
    const { lease, adopt, release, usage } = yield* Allocator
    const world = yield* SimulatedWorld
    const run = yield* ServiceProcess
    return Network.of({
      subnet,
      lease,
      adopt,
      release,
      usage,
      attach: (id, lease) => attach(world, run, id, lease),
      pin: (lease) => Effect.suspend(() => pin(world, run, lease)),
      detach: (lease) => Effect.suspend(() => detach(world, run, lease)),
      reconcile: (live) => reconcile(world, run, live)
    })
  })
).pipe(Layer.provide(Allocator.layer))
