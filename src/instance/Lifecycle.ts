/**
 * The states of an instance as the rules know them, the inputs that move it and the work that each state does.
 *
 *                     ┌──────── Waiting ◄──────────┐ restart policy
 *   create ──► Launching ──► Booting ──► Running ──┴─► Ending ──► Stopped ──start──► Launching
 *                  │            ▲        │  ▲ │ │        ▲  └──► Gone
 *                  └─► Created ─┘ Pausing│  │ │ └Quieting┘
 *                   (start:false)   ▼   Resuming │
 *                                  Paused ───┘   └─► PoweringOff ──► Shutdown ──start──► Booting
 *
 *   Running or Paused ──standby──► Snapshotting ──► Ending ──► Standby ──restore──► Loading ──► Reviving ──► Running
 *                                       └─ failed, cancelled ──► Unfreezing ──► Running or Paused
 *
 *   Created, Running, Paused or Shutdown ──attach──► Attaching ──► back
 *                                        ──detach──► Detaching ──► back        (also what undoes an attach that failed)
 *
 * Resting: Created Running Paused Shutdown Stopped Standby Gone. Every other state has exactly one piece of work in
 * flight (`work`), with a deadline. A state is persisted before its work begins, so the record is the intent; work is
 * idempotent and checks kernel truth, so after a crash the same state does the same work again. `epoch` grows with each
 * piece of work; a result of another epoch is stale and ignored.
 *
 * Ending is the only way down: VMM dead and proven so, then the TAP, then whatever else its `ending` says.
 */
import * as Schema from "effect/Schema"
import { Timestamp, VolumeId } from "../domain/Ids.ts"
import { InstanceExit, RestartPolicy, RestoreMode, Transition, Verb } from "../domain/Instance.ts"
import { ProcessIdentity } from "../domain/Process.ts"
import { HeldVolumes, MountHolder, VolumeMount } from "../domain/Volume.ts"

/** The step of a restore that only looks: a failure there changed nothing and says that the snapshot does not fit here. */
export const checkStep = "check"

/** Why a piece of work failed: the step, and a sentence that may be shown to a client. */
export const Failure = Schema.Struct({
  step: Schema.String,
  reason: Schema.String,
  /** Of an unmount that was refused: who keeps the mount in use. */
  holders: Schema.optionalKey(Schema.Array(MountHolder))
})
export type Failure = typeof Failure.Type

/** A snapshot by its number, with what the guest was doing when it was taken. */
export const SnapshotRef = Schema.Struct({ number: Schema.Int, paused: Schema.Boolean })
export type SnapshotRef = typeof SnapshotRef.Type

/** The resting states whose VMM is there: where volumes come and go by work. */
export const VmmRest = Schema.Literals(["Created", "Running", "Paused", "Shutdown"])
export type VmmRest = typeof VmmRest.Type

/** Where a launch comes from. */
export const LaunchVerb = Schema.Literals(["create", "start", "restart"])
export type LaunchVerb = typeof LaunchVerb.Type

/** What an Ending leads to, once the VMM is dead and the TAP is gone. */
export const Destination = Schema.TaggedUnion({
  /** `verb` is null where nobody asked: the guest went off or the VMM died. `failure` goes to the verb's clients. */
  Stopped: { verb: Schema.NullOr(Transition), exit: InstanceExit, failure: Schema.NullOr(Failure) },
  /** The restart policy wants it up again. */
  Waiting: { exit: InstanceExit },
  Standby: { snapshot: SnapshotRef, restoreNext: Schema.Boolean },
  /** A restore that did not succeed, or was cancelled by `by`: the snapshot is as good as before. */
  BackToStandby: { snapshot: SnapshotRef, failure: Schema.NullOr(Failure), by: Schema.NullOr(Verb) },
  /** Nothing is left; a create that failed ends here as well, with its failure. */
  Gone: { failure: Schema.NullOr(Failure) }
})
export type Destination = typeof Destination.Type

const vmm = ProcessIdentity
const attempt = Schema.Int

export const State = Schema.TaggedUnion({
  Created: { vmm },
  Running: { vmm },
  Paused: { vmm },
  Shutdown: { vmm },
  Stopped: {},
  Standby: { snapshot: SnapshotRef },
  Gone: {},
  /** Between a guest that went off and its restart by policy; users see Stopped. */
  Waiting: {},
  Launching: { verb: LaunchVerb, boot: Schema.Boolean },
  Booting: { verb: LaunchVerb, vmm },
  Pausing: { vmm },
  Resuming: { vmm },
  /** `exit` is what the record will say once the guest is off. */
  PoweringOff: { vmm, exit: InstanceExit },
  Quieting: { vmm, exit: InstanceExit },
  Snapshotting: { vmm, snapshot: SnapshotRef },
  /** Back to what the guest was before a standby that failed (`failure`) or was cancelled (`by`). */
  Unfreezing: { vmm, snapshot: SnapshotRef, failure: Schema.NullOr(Failure), by: Schema.NullOr(Verb) },
  /** Without a mode, the driver chooses. */
  Loading: { snapshot: SnapshotRef, resume: Schema.Boolean, mode: Schema.optionalKey(RestoreMode) },
  /** The guest may have run from here on, so its snapshot is void. */
  Reviving: { vmm, resume: Schema.Boolean },
  /** The volume is `attaching` in `volumes`; `rest` is where the instance came from, and goes back to. */
  Attaching: { vmm, volume: VolumeId, rest: VmmRest },
  /** `undoes` is the failure of the attach that this takes back; null where a client asked for it, or a pause put it off. */
  Detaching: {
    vmm,
    volume: VolumeId,
    force: Schema.Boolean,
    rest: VmmRest,
    undoes: Schema.NullOr(Failure)
  },
  Ending: { destination: Destination, attempt }
})
export type State = typeof State.Type
export type StateOf<Tag extends State["_tag"]> = Extract<State, { readonly _tag: Tag }>

export const Lifecycle = Schema.Struct({
  epoch: Schema.Int,
  policy: RestartPolicy,
  /** Restarts by policy in a row; a healthy minute resets it. */
  attempt,
  /** The number of the newest snapshot that was begun: numbers are never used twice. */
  snapshots: Schema.Int,
  volumes: HeldVolumes,
  state: State
})
export type Lifecycle = typeof Lifecycle.Type

/** What clients ask. */
export const Command = Schema.TaggedUnion({
  Start: {},
  Pause: {},
  Resume: {},
  Shutdown: { at: Timestamp },
  Stop: { discardSnapshot: Schema.Boolean, at: Timestamp },
  Standby: {},
  Restore: { resume: Schema.Boolean, mode: Schema.optionalKey(RestoreMode) },
  Delete: {},
  /** That nobody else holds it in a way that this one excludes was seen to before. */
  Attach: { volume: VolumeMount },
  /** `force`: also where the guest's processes use it. */
  Detach: { volume: VolumeId, force: Schema.Boolean }
})
export type Command = typeof Command.Type

/** What the VMM of an instance does now, asked after a restart of the service or of the actor. */
export const Probe = Schema.Struct({
  /** The live VMM, if any, the recorded one or one found by its command line. */
  vmm: Schema.NullOr(ProcessIdentity),
  status: Schema.Literals(["none", "prelaunch", "running", "paused", "off"]),
  /** The snapshot that the state names is there, and complete. */
  snapshotComplete: Schema.Boolean,
  /** How the guest ended, for where it did. */
  exit: InstanceExit
})
export type Probe = typeof Probe.Type

/** What happens. Results carry the epoch of their work; the VMM's own events carry its identity. */
export const Event = Schema.TaggedUnion({
  Done: { epoch: Schema.Int },
  /** The result of Launch and Load: a VMM. */
  Spawned: { epoch: Schema.Int, vmm: ProcessIdentity },
  /** `untouched`: nothing on the host was changed before it failed. */
  Failed: { epoch: Schema.Int, failure: Failure, untouched: Schema.Boolean, exit: InstanceExit },
  /** The guest went off, or its VMM ended (`gone`), unasked. `healthy`: it had run for a minute. */
  GuestEnded: { vmm: ProcessIdentity, exit: InstanceExit, healthy: Schema.Boolean, gone: Schema.Boolean },
  Observed: { probe: Probe }
})
export type Event = typeof Event.Type

export type Input = Command | Event

/** The verb that a command is; contract §1. Attach and Detach are none of its table, and what they keep the instance busy with. */
export const verbOf = (command: Command): Verb | "attach" | "detach" => {
  switch (command._tag) {
    case "Start":
      return "start"
    case "Pause":
      return "pause"
    case "Resume":
      return "resume"
    case "Shutdown":
      return "shutdown"
    case "Stop":
      return "stop"
    case "Standby":
      return "standby"
    case "Restore":
      return "restore"
    case "Delete":
      return "delete"
    case "Attach":
      return "attach"
    case "Detach":
      return "detach"
  }
}

/** What the clients who wait for a verb are told. */
export type Settlement =
  | { readonly verb: Transition; readonly outcome: "reached" }
  | { readonly verb: Transition; readonly outcome: "failed"; readonly failure: Failure }
  | { readonly verb: Transition; readonly outcome: "cancelled"; readonly by: Verb }

/** One piece of work, as data; `perform.ts` does it. */
export type Work =
  | { readonly _tag: "Launch" }
  | { readonly _tag: "Boot" }
  | { readonly _tag: "Pause" }
  | { readonly _tag: "Resume" }
  | { readonly _tag: "PowerOff" }
  | { readonly _tag: "Quiet" }
  | { readonly _tag: "Snapshot"; readonly snapshot: SnapshotRef }
  | { readonly _tag: "Unfreeze"; readonly snapshot: SnapshotRef }
  | { readonly _tag: "Load"; readonly snapshot: SnapshotRef; readonly mode: RestoreMode }
  | { readonly _tag: "Revive"; readonly resume: boolean }
  | { readonly _tag: "Attach"; readonly volume: VolumeId; readonly rest: VmmRest }
  | { readonly _tag: "Detach"; readonly volume: VolumeId; readonly rest: VmmRest; readonly force: boolean }
  | { readonly _tag: "End"; readonly destination: Destination; readonly delayMs: number }
  | { readonly _tag: "Wait"; readonly delayMs: number }

export type Decision =
  | { readonly _tag: "Accepted"; readonly next: Lifecycle; readonly settle: ReadonlyArray<Settlement> }
  /** Already so, or stale. */
  | { readonly _tag: "Ignored" }
  /** The same end is already being worked on: wait for it. `until` is the verb whose settlement answers. */
  | { readonly _tag: "Joined"; readonly until: Transition }
  | { readonly _tag: "Denied"; readonly reason: string }

/** Backoff between restarts by policy: 1 s, doubled each time, 60 s at most. */
export const restartDelayMs = (attempts: number): number =>
  Math.min(1_000 * 2 ** Math.max(0, attempts - 1), 60_000)
/** A run this long makes the next restart the first one again. */
export const healthyRunMs = 60_000
/** Between tries to end a VMM that the kernel does not let go of. */
export const endRetryDelayMs = (attempts: number): number =>
  attempts === 0 ? 0 : Math.min(500 * 2 ** attempts, 30_000)

/** Tries of an Ending after which whoever waits for it is told that it is still being tried; the last after 3 s. */
export const endTriesUntold = 3

/** The work that a state does; null where it rests. */
export const work = (lifecycle: Lifecycle): Work | null => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Launching":
      return { _tag: "Launch" }
    case "Booting":
      return { _tag: "Boot" }
    case "Pausing":
      return { _tag: "Pause" }
    case "Resuming":
      return { _tag: "Resume" }
    case "PoweringOff":
      return { _tag: "PowerOff" }
    case "Quieting":
      return { _tag: "Quiet" }
    case "Snapshotting":
      return { _tag: "Snapshot", snapshot: state.snapshot }
    case "Unfreezing":
      return { _tag: "Unfreeze", snapshot: state.snapshot }
    case "Loading":
      return { _tag: "Load", snapshot: state.snapshot, mode: state.mode ?? "auto" }
    case "Reviving":
      return { _tag: "Revive", resume: state.resume }
    case "Attaching":
      return { _tag: "Attach", volume: state.volume, rest: state.rest }
    case "Detaching":
      return { _tag: "Detach", volume: state.volume, rest: state.rest, force: state.force }
    case "Ending":
      return { _tag: "End", destination: state.destination, delayMs: endRetryDelayMs(state.attempt) }
    case "Waiting":
      return { _tag: "Wait", delayMs: restartDelayMs(lifecycle.attempt) }
    default:
      return null
  }
}

/** The VMM that a state owns. An Ending owns whatever the kernel still shows of it. */
export const vmmOf = (state: State): ProcessIdentity | null => ("vmm" in state ? state.vmm : null)

/** The snapshot that a state names, complete or on its way. */
export const snapshotOf = (state: State): SnapshotRef | null => {
  if ("snapshot" in state) return state.snapshot
  return state._tag === "Ending" && "snapshot" in state.destination ? state.destination.snapshot : null
}

/** Bound of each piece of work, in ms; past it the work is interrupted and counts as failed. */
export const deadlineMs: Readonly<Record<Work["_tag"], number>> = {
  Launch: 60_000,
  Boot: 30_000,
  Pause: 15_000,
  Resume: 15_000,
  PowerOff: 30_000,
  Quiet: 30_000,
  Snapshot: 600_000,
  Unfreeze: 60_000,
  Load: 600_000,
  Revive: 60_000,
  // The agent of a guest that is still booting answers late.
  Attach: 150_000,
  Detach: 150_000,
  End: 120_000,
  Wait: 120_000
}
