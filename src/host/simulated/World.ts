/**
 * The world behind a simulated host: its process table, guests, disk locks, TAPs and sockets. It is what the kernel, the
 * hypervisor and the hardware are to a real service, so it outlives the service: its state is a value in tests, and files
 * under DATA_DIR/simulated in a real run. Three thin adapters stand on it: `vmm/simulated`, `guest/simulatedAgent.ts` and
 * `network/simulatedNetwork.ts`.
 *
 *   World (kernel truth) ◄── ServiceProcess (one run of the service) ◄── Vmm, VmmProcesses, Agent, Network
 *
 * Every change is one synchronous step: memory, then storage. `processes.ts` owns the table, `operate.ts` the timing and
 * faults of operations, `incidents.ts` what befalls a host unasked, `ledger.ts` what is left on it.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { InstanceId } from "../../domain/Ids.ts"
import { InterfaceName, Ipv4, Mac } from "../../domain/Network.ts"
import { type ProcessExit, ProcessIdentity } from "../../domain/Process.ts"
import { type Disk, hostDisk } from "./disk.ts"
import { type FaultPlan, makeFaultPlan } from "./FaultPlan.ts"
import { Guest } from "./guest.ts"
import { GuestInit } from "./GuestInit.ts"
import { noStorage, type Storage } from "./storage.ts"

/** Above every pid that Linux gives (pid_max is at most 2^22): a stray signal meets no real process. */
const allPids = { first: 10_000_000, last: 2_000_000_000 }
/** The newest exits whose code is still known to who asks late. */
const exitsKept = 1024
const historyKept = 2_000
const violationsKept = 100

export const MachineDisk = Schema.Struct({
  serial: Schema.String,
  path: Schema.String,
  readonly: Schema.Boolean,
  removable: Schema.optionalKey(Schema.Boolean)
})
export type MachineDisk = typeof MachineDisk.Type

/** A VMM and its machine, as the world keeps it. */
export const ProcessRecord = Schema.Struct({
  identity: ProcessIdentity,
  id: InstanceId,
  /** The run of the service that started it: only that one learns its exit code. */
  parent: Schema.Int,
  runDirectory: Schema.String,
  vcpus: Schema.Int,
  bootMemoryMb: Schema.Int,
  memoryMb: Schema.Int,
  memoryMaxMb: Schema.Int,
  disks: Schema.Array(MachineDisk),
  /** It has its disks open; one that still loads a snapshot has not. */
  holdsDisks: Schema.Boolean,
  nic: Schema.NullOr(Schema.Struct({ tap: InterfaceName, mac: Mac })),
  consolePath: Schema.String,
  logPath: Schema.String,
  guest: Guest,
  /** It was told to end and will, at that time (epoch). */
  ending: Schema.NullOr(Schema.Struct({ atMs: Schema.Finite })),
  /** It answers nothing any more and ignores SIGTERM. */
  frozen: Schema.Boolean
})
export type ProcessRecord = typeof ProcessRecord.Type

export const TapRecord = Schema.Struct({
  name: InterfaceName,
  owner: InstanceId,
  ip: Ipv4,
  mac: Mac,
  /** Its rules are there: a TAP that is only half made lets no packet pass. */
  pinned: Schema.Boolean
})
export type TapRecord = typeof TapRecord.Type

export type GuestEvent =
  | { readonly _tag: "GuestOff"; readonly cause: "poweroff" | "reset" }
  | { readonly _tag: "GuestPanicked" }

/** One open connection of a service to a VMM or its agent. */
export interface Wire {
  readonly closed: Deferred.Deferred<void>
  readonly tell: (event: GuestEvent) => void
}

export interface VmmProcess {
  record: ProcessRecord
  readonly death: Deferred.Deferred<ProcessExit>
  /** The one client of its monitor, and of its agent's channel. */
  session: Wire | null
  channel: Wire | null
  /** Completed at the next change of its guest; made where somebody waits for one. */
  changed: Deferred.Deferred<void> | null
  timer: Fiber.Fiber<void> | null
}

interface Lock {
  writer: number | null
  readonly readers: Set<number>
}

export interface World {
  readonly clock: Clock.Clock
  readonly storage: Storage
  readonly disk: Disk
  readonly init: typeof GuestInit.Service
  readonly plan: FaultPlan
  /** Every so many guest milliseconds a guest prints its counter; 0: never. */
  readonly tickMs: number
  readonly fork: (timer: Effect.Effect<void>) => Fiber.Fiber<void>
  readonly processes: Map<number, VmmProcess>
  /** Live VMMs by run directory: a socket has one owner. */
  readonly byDirectory: Map<string, VmmProcess>
  readonly byId: Map<InstanceId, VmmProcess>
  readonly locks: Map<string, Lock>
  readonly taps: Map<InterfaceName, TapRecord>
  /** Which pid holds a TAP open. */
  readonly tapHolders: Map<InterfaceName, number>
  /** Sockets that VMMs made, live ones and those that a death left behind, with the pid of their maker. */
  readonly sockets: Map<string, number>
  readonly exits: Map<string, { readonly parent: number; readonly exit: ProcessExit }>
  /** What happened, oldest first, bounded. `digest` covers all of it: same seed, same digest. */
  readonly history: Array<string>
  readonly violations: Array<string>
  digest: number
  bootId: string
  nextPid: number
  readonly pids: { readonly first: number; readonly last: number }
  lastStart: number
  service: ServiceRun | null
  services: number
}

/** One run of the service, from the world's side. Once it is not alive, nothing that it still does has any effect. */
export interface ServiceRun {
  readonly epoch: number
  alive: boolean
  readonly killed: Deferred.Deferred<void>
}

export class SimulatedWorld extends Context.Service<SimulatedWorld, World>()(
  "dataplane/host/simulated/World"
) {}

export class ServiceProcess extends Context.Service<ServiceProcess, ServiceRun>()(
  "dataplane/host/simulated/ServiceProcess"
) {}

export interface WorldOptions {
  readonly storage?: Storage
  readonly disk?: Disk
  readonly plan?: FaultPlan
  readonly tickMs?: number
  readonly bootId?: string
  /** Pids are used again after the last one. */
  readonly pids?: { readonly first: number; readonly last: number }
}

export const now = (world: World): number => world.clock.currentTimeMillisUnsafe()

const bounded = (lines: Array<string>, line: string, max: number): void => {
  lines.push(line)
  if (lines.length > max) lines.splice(0, lines.length - max / 2)
}

/** Adds a line to the history. */
export const note = (world: World, line: string): void => {
  const entry = `${now(world)} ${line}`
  let digest = world.digest
  for (let at = 0; at < entry.length; at += 1) digest = Math.imul(digest ^ entry.charCodeAt(at), 0x01000193)
  world.digest = digest >>> 0
  bounded(world.history, entry, historyKept)
}

/** Something that no correct service does to its host. Kept for tests. */
export const violation = (world: World, text: string): void => {
  note(world, `violation ${text}`)
  bounded(world.violations, text, violationsKept)
}

/** Remembers how a process ended, bounded. */
export const keepExit = (world: World, record: ProcessRecord, exit: ProcessExit): void => {
  world.exits.set(exitKey(record.identity), { parent: record.parent, exit })
  if (world.exits.size <= exitsKept) return
  for (const oldest of world.exits.keys()) {
    world.exits.delete(oldest)
    return
  }
}

export const exitKey = (identity: ProcessIdentity): string => `${identity.pid}.${identity.start_time}`

/** An empty world. The scope owns its timers, never its state. */
export const makeWorld = (options: WorldOptions = {}): Effect.Effect<World, never, Scope.Scope> =>
  Effect.gen(function* () {
    const clock = yield* Clock.Clock
    const context = yield* Effect.context()
    const init = yield* GuestInit
    const pids = options.pids ?? allPids
    const world: World = {
      clock,
      init,
      storage: options.storage ?? noStorage,
      disk: options.disk ?? hostDisk,
      plan: options.plan ?? makeFaultPlan(),
      tickMs: options.tickMs ?? 0,
      fork: Effect.runForkWith(context),
      processes: new Map(),
      byDirectory: new Map(),
      byId: new Map(),
      locks: new Map(),
      taps: new Map(),
      tapHolders: new Map(),
      sockets: new Map(),
      exits: new Map(),
      history: [],
      violations: [],
      digest: 0x811c9dc5,
      bootId: options.bootId ?? "00000000-0000-4000-8000-000000000001",
      nextPid: pids.first,
      pids,
      lastStart: 0,
      service: null,
      services: 0
    }
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        for (const process of world.processes.values()) process.timer?.interruptUnsafe()
      })
    )
    return world
  })

/** Ends a run of the service: what it held open is closed, and what it still tries has no effect. */
export const sever = (world: World, run: ServiceRun): void => {
  if (!run.alive) return
  run.alive = false
  if (world.service === run) world.service = null
  Deferred.doneUnsafe(run.killed, Effect.void)
  for (const process of world.processes.values()) {
    for (const wire of [process.session, process.channel]) {
      if (wire !== null) Deferred.doneUnsafe(wire.closed, Effect.void)
    }
    process.session = null
    process.channel = null
  }
}

/** A new run of the service. A world has one at a time: the one before it is over. */
export const beginService = (world: World): ServiceRun => {
  if (world.service !== null) {
    violation(world, "a second service was started on one host")
    sever(world, world.service)
  }
  world.services += 1
  const run: ServiceRun = { epoch: world.services, alive: true, killed: Deferred.makeUnsafe() }
  world.service = run
  return run
}
