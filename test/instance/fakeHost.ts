/**
 * A host made of sets, for one instance: which VMMs live, what their guests do, which TAP, lease, run directory,
 * snapshots and record there are. Each piece of work is the list of its changes to the host, in the order of
 * `perform`; whoever is interrupted or killed in the middle leaves the first few of them done.
 */
import type { ProcessIdentity } from "../../src/domain/Process.ts"
import type { State, Work } from "../../src/instance/Lifecycle.ts"
import { vmmOf } from "../../src/instance/Lifecycle.ts"

export type Guest = "prelaunch" | "running" | "paused" | "off"

export interface FakeVmm {
  readonly identity: ProcessIdentity
  guest: Guest
  /** Its monitor answers nothing. */
  silent: boolean
  /** Somebody played with its guest over its monitor. */
  meddled: boolean
  /** The snapshot that its guest was loaded from. */
  readonly from: number | null
  /** Volumes whose disks it has open. */
  readonly disks: Set<string>
}

export interface FakeSnapshot {
  complete: boolean
  /** The guest ran on after it was taken: to restore it would be to go back in time on newer disks. */
  stale: boolean
}

export interface FakeHost {
  readonly vmms: Map<number, FakeVmm>
  tap: boolean
  lease: boolean
  run: boolean
  record: boolean
  readonly snapshots: Map<number, FakeSnapshot>
  readonly violations: Array<string>
  nextPid: number
}

export const makeHost = (): FakeHost => ({
  vmms: new Map(),
  tap: false,
  lease: true,
  run: false,
  record: true,
  snapshots: new Map(),
  violations: [],
  nextPid: 100
})

/** A step that cannot be done: the work fails there. */
export class StepFailed extends Error {}

export const identity = (pid: number): ProcessIdentity => ({ pid, start_time: `${pid}`, boot_id: "boot" })

/** A driver refuses a second VMM in one run directory; that somebody asked for one is a violation all the same. */
export const spawn = (host: FakeHost, guest: Guest, from: number | null, asked: boolean): FakeVmm => {
  if (host.vmms.size > 0) {
    if (!asked) host.violations.push("a second VMM was asked for")
    throw new StepFailed("its sockets are in use by another VMM")
  }
  const pid = host.nextPid++
  const vmm: FakeVmm = {
    identity: identity(pid),
    guest,
    silent: false,
    meddled: false,
    from,
    disks: new Set()
  }
  host.vmms.set(pid, vmm)
  return vmm
}

/** The guest runs from here on: no snapshot of it means anything any more. */
const runs = (host: FakeHost, vmm: FakeVmm): void => {
  vmm.guest = "running"
  for (const snapshot of host.snapshots.values()) snapshot.stale = true
}

const drop = (host: FakeHost, kept: number | null): void => {
  for (const number of host.snapshots.keys()) if (number !== kept) host.snapshots.delete(number)
}

export type Step = (host: FakeHost) => FakeVmm | null

const on =
  (state: State, body: (vmm: FakeVmm, host: FakeHost) => void): Step =>
  (host) => {
    const vmm = host.vmms.get(vmmOf(state)?.pid ?? 0)
    if (vmm === undefined || vmm.silent) throw new StepFailed("the VMM does not answer")
    body(vmm, host)
    return null
  }

const change =
  (body: (host: FakeHost) => void): Step =>
  (host) => {
    body(host)
    return null
  }

const off = (vmm: FakeVmm): void => {
  if (vmm.guest === "running" || vmm.guest === "paused") vmm.guest = "off"
}

const pause = (state: State): Step =>
  on(state, (vmm) => {
    if (vmm.guest !== "running" && vmm.guest !== "paused") throw new StepFailed("the guest is off")
    vmm.guest = "paused"
  })

const snapshotSteps = (state: State, number: number): ReadonlyArray<Step> => [
  pause(state),
  on(state, (vmm, host) => {
    if (host.snapshots.has(number)) host.violations.push(`snapshot ${number} was taken twice`)
    if (vmm.guest !== "paused" && vmm.meddled) throw new StepFailed("the guest is not paused")
    if (vmm.guest !== "paused") host.violations.push(`a snapshot was taken of a guest that is ${vmm.guest}`)
    host.snapshots.set(number, { complete: false, stale: false })
  }),
  change((host) => {
    const snapshot = host.snapshots.get(number)
    if (snapshot !== undefined) snapshot.complete = true
  })
]

const endSteps = (work: Extract<Work, { readonly _tag: "End" }>): ReadonlyArray<Step> => {
  const { destination } = work
  const kept =
    destination._tag === "Standby" || destination._tag === "BackToStandby"
      ? destination.snapshot.number
      : null
  return [
    change((host) => host.vmms.clear()),
    change((host) => {
      if (host.vmms.size > 0) host.violations.push("the TAP was removed from under a VMM")
      host.tap = false
    }),
    change((host) => void (host.run = false)),
    change((host) => drop(host, kept)),
    ...(destination._tag === "Gone"
      ? [
          change((host) => void (host.lease = false)),
          change((host) => {
            if (host.vmms.size > 0) host.violations.push("the record was deleted before its VMM was dead")
            host.record = false
          })
        ]
      : [])
  ]
}

const launchSteps = (asked: boolean): ReadonlyArray<Step> => [
  change((host) => {
    if (!host.lease) host.violations.push("a TAP was made without a lease")
    host.tap = true
  }),
  change((host) => void (host.run = true)),
  (host) => spawn(host, "prelaunch", null, asked)
]

const loadSteps = (number: number, asked: boolean): ReadonlyArray<Step> => [
  change((host) => {
    const snapshot = host.snapshots.get(number)
    if (snapshot === undefined || !snapshot.complete) throw new StepFailed("the snapshot is not complete")
    if (snapshot.stale) host.violations.push(`snapshot ${number} is restored although its guest ran on`)
  }),
  change((host) => void (host.tap = true)),
  change((host) => void (host.run = true)),
  (host) => spawn(host, "paused", number, asked)
]

/** `disturbed`: somebody else started a VMM in the run directory, so that a refused spawn is nobody's mistake. */
export const stepsOf = (state: State, work: Work, disturbed: boolean): ReadonlyArray<Step> => {
  switch (work._tag) {
    case "Launch":
      return launchSteps(disturbed)
    case "Load":
      return loadSteps(work.snapshot.number, disturbed)
    case "Boot":
      return [on(state, (vmm, host) => runs(host, vmm))]
    case "Pause":
      return [pause(state)]
    case "Resume":
      return [
        on(state, (vmm, host) => {
          if (vmm.guest !== "running" && vmm.guest !== "paused") throw new StepFailed("the guest is off")
          runs(host, vmm)
        })
      ]
    case "PowerOff":
    case "Quiet":
      return [
        on(state, (vmm, host) => {
          if (vmm.guest === "paused") runs(host, vmm)
        }),
        on(state, off)
      ]
    case "Snapshot":
      return snapshotSteps(state, work.snapshot.number)
    case "Unfreeze":
      return [
        change((host) => void host.snapshots.delete(work.snapshot.number)),
        ...(work.snapshot.paused
          ? []
          : [
              on(state, (vmm, host) => {
                if (vmm.guest === "off") throw new StepFailed("the guest is off")
                runs(host, vmm)
              })
            ])
      ]
    case "Revive":
      return [
        ...(work.resume
          ? [
              on(state, (vmm, host) => {
                if (vmm.guest === "off") throw new StepFailed("the guest is off")
                runs(host, vmm)
              })
            ]
          : []),
        change((host) => drop(host, null))
      ]
    case "Attach":
      return [on(state, (vmm) => void vmm.disks.add(work.volume))]
    case "Detach":
      return [
        on(state, (vmm) => {
          if (vmm.guest === "paused") throw new StepFailed("the guest does not let go")
          vmm.disks.delete(work.volume)
        })
      ]
    case "End":
      return endSteps(work)
    case "Wait":
      return []
  }
}

/** What a new actor finds: VMMs that the record does not own are ended, what was half made is removed. */
export const reconcile = (host: FakeHost, state: State): void => {
  const own = vmmOf(state)
  for (const pid of host.vmms.keys()) if (pid !== own?.pid) host.vmms.delete(pid)
  if (own === null && state._tag !== "Ending") {
    host.tap = false
    host.run = false
  }
  if (state._tag === "Gone") drop(host, null)
}

/** What the start of a service does besides: snapshots of guests that run on are of no use to anyone. */
export const dropUseless = (host: FakeHost, state: State): void => {
  if (vmmOf(state) !== null && !("snapshot" in state)) drop(host, null)
}
