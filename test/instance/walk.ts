/**
 * A random walk through the rules over a host made of sets. Every input is drawn from what can come in the present
 * state: commands, the next step of the work in flight, its failure, the guest's end, the end of the actor or of the
 * whole service, records that the disk does not take. What no correct service does is written down by the host.
 */
import type { InstanceExit, RestartPolicy } from "../../src/domain/Instance.ts"
import { decide } from "../../src/instance/decide.ts"
import type { Decision, Input, Lifecycle, Probe } from "../../src/instance/Lifecycle.ts"
import { snapshotOf, vmmOf, work } from "../../src/instance/Lifecycle.ts"
import { mustBeDurable } from "../../src/instance/Record.ts"
import type { Random } from "../simulation/random.ts"
import { allCommands, at, initial, label } from "./exploration.ts"
import {
  type FakeHost,
  type FakeVmm,
  dropUseless,
  type Guest,
  makeHost,
  reconcile,
  spawn,
  type Step,
  StepFailed,
  stepsOf
} from "./fakeHost.ts"

export interface Walk {
  readonly random: Random
  readonly host: FakeHost
  readonly visited: Set<string>
  /** The inputs so far, for the message of a walk that went wrong. */
  readonly story: Array<string>
  lifecycle: Lifecycle
  /** What is on disk; behind where the disk did not take a record. */
  saved: Lifecycle
  /** Steps of the work in flight that are still to be done, and the VMM that it started. */
  todo: Array<Step>
  done: number
  spawned: FakeVmm | null
  /** Somebody else started a VMM in this instance's run directory. */
  disturbed: boolean
  /** How often the disk does not take a record. */
  readonly lossy: number
  /** How often each kind of trouble comes: failures, guests that end, restarts. */
  readonly unrest: number
}

const exit = (reason: InstanceExit["reason"], code?: number): InstanceExit =>
  code === undefined ? { reason, at } : { reason, code, at }

const beginWork = (walk: Walk): void => {
  const task = work(walk.lifecycle)
  walk.todo = task === null ? [] : [...stepsOf(walk.lifecycle.state, task, walk.disturbed)]
  walk.done = 0
  walk.spawned = null
}

export const begin = (random: Random, policy: RestartPolicy, boot: boolean, visited: Set<string>): Walk => {
  const lifecycle = initial(policy, boot)
  const walk: Walk = {
    random,
    host: makeHost(),
    visited,
    story: [],
    lifecycle,
    saved: lifecycle,
    todo: [],
    done: 0,
    spawned: null,
    disturbed: false,
    lossy: random.next() < 0.2 ? 0.3 : 0.02,
    unrest: random.pick([0.01, 0.03, 0.08])
  }
  beginWork(walk)
  return walk
}

const asFailure = (lifecycle: Lifecycle): Input => ({
  _tag: "Failed",
  epoch: lifecycle.epoch,
  failure: { step: "record", reason: "not recorded" },
  untouched: false,
  exit: exit("boot-failed")
})

/** Decides, and makes the change as the actor does: record first, then the state's work. */
const feed = (walk: Walk, name: string, input: Input, durable = true): Decision => {
  const { lifecycle } = walk
  walk.visited.add(`${label(lifecycle.state)} ${name}`)
  const decision = decide(lifecycle, input)
  walk.story.push(`${label(lifecycle.state)} + ${name}${durable ? "" : " (not recorded)"}`)
  if (decision._tag !== "Accepted") return decision
  if (!durable && mustBeDurable(lifecycle.state, decision.next.state)) {
    if (input._tag === "Done" || input._tag === "Spawned") return feed(walk, "failed", asFailure(lifecycle))
    return decision
  }
  walk.lifecycle = decision.next
  if (durable) walk.saved = decision.next
  beginWork(walk)
  return decision
}

const own = (walk: Walk): FakeVmm | undefined => walk.host.vmms.get(vmmOf(walk.lifecycle.state)?.pid ?? 0)

const fail = (walk: Walk, untouched: boolean): void => {
  const task = work(walk.lifecycle)
  if (task === null) return
  // A driver ends the process of a spawn that fails.
  if (walk.spawned !== null) walk.host.vmms.delete(walk.spawned.identity.pid)
  const partial = task._tag === "Load" || task._tag === "Attach" || task._tag === "Detach"
  // An earlier try may have brought the device.
  const there = task._tag === "Attach" && own(walk)?.disks.has(task.volume) === true
  const nothing = untouched && partial && !there
  feed(walk, nothing ? "failed,untouched" : "failed", {
    _tag: "Failed",
    epoch: walk.lifecycle.epoch,
    failure: { step: "step", reason: "reason" },
    untouched: nothing,
    exit: exit("boot-failed")
  })
}

/** The next step of the work, or its result. */
const work1 = (walk: Walk, durable: boolean): void => {
  const task = work(walk.lifecycle)
  if (task === null) return
  const { epoch } = walk.lifecycle
  const [next] = walk.todo.splice(0, 1)
  if (next !== undefined) {
    try {
      walk.spawned = next(walk.host) ?? walk.spawned
      walk.done++
    } catch (cause) {
      if (!(cause instanceof StepFailed)) throw cause
      return fail(walk, walk.done === 0)
    }
    return
  }
  if (walk.spawned !== null)
    feed(walk, "spawned", { _tag: "Spawned", epoch, vmm: walk.spawned.identity }, durable)
  else feed(walk, "done", { _tag: "Done", epoch }, durable)
}

/** The guest goes off, or its VMM dies, and the actor hears of it. */
const guestEnds = (walk: Walk, kind: number): void => {
  const vmm = own(walk)
  if (vmm === undefined) return
  const unbooted = vmm.guest === "prelaunch"
  if (kind === 2) walk.host.vmms.delete(vmm.identity.pid)
  // A boot in the same VMM has new wires: what the old guest still says does not reach it.
  else if (unbooted && walk.lifecycle.state._tag === "Booting") return
  else if (!unbooted) vmm.guest = "off"
  const [name, reason, code] = (
    [
      ["exits 0", "exited", 0],
      ["exits 1", "exited", 1],
      ["vmm dies", "vmm-died", undefined]
    ] as const
  )[kind] ?? ["exits 0", "exited", 0]
  feed(walk, name, {
    _tag: "GuestEnded",
    vmm: vmm.identity,
    exit: exit(reason, code),
    healthy: kind === 0,
    gone: kind === 2
  })
}

const probeOf = (walk: Walk): readonly [string, Probe] => {
  const { host, lifecycle } = walk
  const { state } = lifecycle
  const vmm = own(walk) ?? [...host.vmms.values()][0]
  const ref = snapshotOf(state)
  // Only a state that names a snapshot asks; whatever a probe says of it in another one must change nothing.
  const snapshotComplete =
    ref === null ? walk.random.next() < 0.3 : host.snapshots.get(ref.number)?.complete === true
  const found = vmm === undefined ? "gone" : vmm.silent ? "silent" : vmm.guest
  const withSnapshot = snapshotComplete && (found === "gone" || found === "paused")
  return [
    `found ${found}${withSnapshot ? ",snapshot" : ""}`,
    {
      vmm: vmm?.identity ?? null,
      status: vmm === undefined || vmm.silent ? "none" : vmm.guest,
      snapshotComplete,
      exit: exit(vmm === undefined ? "vmm-died" : "guest-poweroff")
    }
  ]
}

const found = ["gone", "silent", "running", "paused", "off", "prelaunch"] as const
type Found = (typeof found)[number]
const guestOf = (wish: Found): Guest => (wish === "gone" || wish === "silent" ? "running" : wish)

/** What befalls the host while nobody looks: a VMM dies, hangs, or is played with by hand over its monitor. */
const disturb = (walk: Walk, wish: Found): void => {
  const { host } = walk
  if (walk.lifecycle.state._tag === "Gone") return
  const vmm = own(walk) ?? [...host.vmms.values()][0]
  if (wish === "gone") return host.vmms.clear()
  if (vmm === undefined) {
    if (vmmOf(walk.lifecycle.state) !== null) return
    walk.disturbed = true
    spawn(host, guestOf(wish), null, true).silent = wish === "silent"
    return
  }
  vmm.silent = wish === "silent"
  if (vmm.silent || vmm.guest === wish) return
  vmm.guest = guestOf(wish)
  vmm.meddled = true
  if (vmm.guest === "running") for (const snapshot of host.snapshots.values()) snapshot.stale = true
}

/** The actor ends, or the service with it, in the middle of whatever it did; the next one asks the host. */
export const restart = (walk: Walk, how: "actor" | "service", wish: Found | null): void => {
  if (how === "service") {
    // The record went last, so what is found without one is removed, and nobody knows of it any more.
    walk.lifecycle = walk.host.record ? walk.saved : { ...walk.saved, state: { _tag: "Gone" } }
    walk.host.lease = walk.host.record
  }
  reconcile(walk.host, walk.lifecycle.state)
  if (how === "service") dropUseless(walk.host, walk.lifecycle.state)
  if (wish !== null) disturb(walk, wish)
  if (!walk.host.record) return beginWork(walk)
  const [name, probe] = probeOf(walk)
  const decision = feed(walk, name, { _tag: "Observed", probe })
  // Nothing to be changed: the same work begins again.
  if (decision._tag !== "Accepted") beginWork(walk)
  const vmm = own(walk)
  if (vmm !== undefined) vmm.silent = false
}

const command = (walk: Walk, durable: boolean): void => {
  // What is denied changes nothing: it comes less often than its share, or few walks would get anywhere.
  const open = allCommands.filter(([, input]) => decide(walk.lifecycle, input)._tag === "Accepted")
  const [one, ...more] = walk.random.next() < 0.8 && open.length > 0 ? open : allCommands
  if (one === undefined) return
  const [name, input] = walk.random.pick([one, ...more])
  // A delete ends the walk, and a stop most of what is going on: both come less often than their share.
  const ends = name === "delete" || name.startsWith("stop")
  if (ends && walk.random.next() < 0.9) return
  feed(walk, name, input, durable)
}

/** One random input. */
export const stroll = (walk: Walk): void => {
  const { random } = walk
  const durable = random.next() >= walk.lossy
  const dice = random.next()
  if (dice < 0.15) command(walk, durable)
  else if (dice < 1 - 3 * walk.unrest) work1(walk, durable)
  else if (dice < 1 - 2 * walk.unrest) fail(walk, walk.done === 0)
  else if (dice < 1 - walk.unrest) guestEnds(walk, random.below(3))
  else
    restart(walk, random.next() < 0.3 ? "actor" : "service", random.next() < 0.5 ? random.pick(found) : null)
}

/** Makes this very input come, where the host can bring it about. */
export const seek = (walk: Walk, input: string): void => {
  const asked = allCommands.find(([name]) => name === input)
  if (asked !== undefined) return void feed(walk, input, asked[1])
  const foundAs = found.find((it) => input.startsWith(`found ${it}`))
  if (foundAs !== undefined) {
    // Where all that there is of the guest is its snapshot, somebody may remove that as well.
    if (!input.endsWith(",snapshot") && work(walk.lifecycle)?._tag !== "Snapshot") walk.host.snapshots.clear()
    return restart(walk, "actor", foundAs)
  }
  if (input === "failed,untouched") return walk.done === 0 ? fail(walk, true) : undefined
  if (input === "failed") {
    if (walk.todo.length > 0 && walk.random.next() < 0.5) work1(walk, true)
    return fail(walk, false)
  }
  const kind = ["exits 0", "exits 1", "vmm dies"].indexOf(input)
  if (kind === -1) return work1(walk, true)
  // A guest that has not begun cannot end.
  if (walk.lifecycle.state._tag === "Booting" && walk.todo.length > 0) work1(walk, true)
  guestEnds(walk, kind)
}

/** All work succeeds from here on. False where the instance does not come to rest. */
export const rest = (walk: Walk, stepsMax: number): boolean => {
  for (let step = 0; step < stepsMax; step++) {
    if (work(walk.lifecycle) === null) return true
    work1(walk, true)
  }
  return false
}
