/**
 * From a record and a probe of the host to a legal state, after the service or the actor was restarted. What was half
 * done is finished where the host allows it, and undone where it does not; a running VM is never disturbed.
 */
import type { Decision, Lifecycle, Probe, State } from "../Lifecycle.ts"
import { onDone, onGuestEnded } from "./event.ts"
import { afterExit, end, enter, ignored, rests } from "./step.ts"
import { resumeVolume, settleIn } from "./volumes.ts"

const interrupted = { step: "service", reason: "The service was restarted in the middle of it." }

/** The same state again, with a new epoch: its work is done anew. */
const again = (lifecycle: Lifecycle): Decision => enter(lifecycle, lifecycle.state)

export const onObserved = (lifecycle: Lifecycle, probe: Probe): Decision => {
  const { state } = lifecycle
  if (isFrozen(state) && !probe.snapshotComplete) return givenUp(lifecycle, probe)
  switch (state._tag) {
    case "Stopped":
    case "Standby":
      // A VMM without a state that owns it is a leftover: Ending removes it and comes back here.
      return probe.vmm === null ? ignored : leftover(lifecycle, probe)
    case "Gone":
      return ignored
    case "Waiting":
    case "Launching":
    case "Loading":
    case "Ending":
      return again(lifecycle)
    default:
      return probe.vmm === null ||
        probe.vmm.pid !== state.vmm.pid ||
        probe.vmm.start_time !== state.vmm.start_time
        ? dead(lifecycle, probe)
        : alive(lifecycle, probe)
  }
}

/** All that there is of the guest is its snapshot. */
const isFrozen = (state: State): boolean =>
  state._tag === "Standby" ||
  state._tag === "Loading" ||
  (state._tag === "Ending" &&
    (state.destination._tag === "Standby" || state.destination._tag === "BackToStandby"))

/** The snapshot is gone: a stop or a delete took it and could not be recorded, or somebody else did. The guest is off. */
const givenUp = (lifecycle: Lifecycle, { exit: { at } }: Probe): Decision =>
  end(lifecycle, {
    _tag: "Stopped",
    verb: null,
    exit: { reason: "stopped", message: "The snapshot that held the guest is gone.", at },
    failure: null
  })

const leftover = (lifecycle: Lifecycle, probe: Probe): Decision => {
  const { state } = lifecycle
  return state._tag === "Standby"
    ? end(lifecycle, { _tag: "Standby", snapshot: state.snapshot, restoreNext: false })
    : end(lifecycle, { _tag: "Stopped", verb: null, exit: probe.exit, failure: null })
}

/** The recorded VMM is gone. */
const dead = (lifecycle: Lifecycle, { exit, snapshotComplete }: Probe): Decision => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Snapshotting":
      // The guest stood still since before the snapshot was begun, so a complete one holds all of it.
      return snapshotComplete
        ? end(lifecycle, { _tag: "Standby", snapshot: state.snapshot, restoreNext: false })
        : afterExit(lifecycle, exit, false)
    default: {
      const vmm = "vmm" in state ? state.vmm : null
      return vmm === null
        ? again(lifecycle)
        : onGuestEnded(lifecycle, { vmm, exit, healthy: false, gone: true })
    }
  }
}

/** The recorded VMM lives. Where it does not answer ("none"), what rests is left alone and what was begun is tried again. */
const alive = (lifecycle: Lifecycle, { status, exit, snapshotComplete }: Probe): Decision => {
  const { state } = lifecycle
  if (status === "none" && rests(lifecycle)) return ignored
  switch (state._tag) {
    case "Created":
      return status === "running" ? settleIn(lifecycle, "Running", state.vmm) : ignored
    case "Running":
      if (status === "off")
        return onGuestEnded(lifecycle, { vmm: state.vmm, exit, healthy: false, gone: false })
      // Nobody asked for a pause that the record does not know of: the guest goes on.
      return status === "running" ? ignored : enter(lifecycle, { ...state, _tag: "Resuming" })
    case "Paused":
      if (status === "off")
        return onGuestEnded(lifecycle, { vmm: state.vmm, exit, healthy: false, gone: false })
      return status === "running" ? settleIn(lifecycle, "Running", state.vmm) : ignored
    case "Attaching":
    case "Detaching":
      return status === "off" && (state.rest === "Running" || state.rest === "Paused")
        ? onGuestEnded(lifecycle, { vmm: state.vmm, exit, healthy: false, gone: false })
        : resumeVolume(lifecycle, state, status)
    case "Shutdown":
      return ignored
    case "Booting":
      if (status === "running") return onDone(lifecycle)
      return again(lifecycle)
    case "Pausing":
      if (status === "off")
        return onGuestEnded(lifecycle, { vmm: state.vmm, exit, healthy: false, gone: false })
      return status === "paused" ? onDone(lifecycle) : again(lifecycle)
    case "Resuming":
      if (status === "off")
        return onGuestEnded(lifecycle, { vmm: state.vmm, exit, healthy: false, gone: false })
      return status === "running" ? onDone(lifecycle) : again(lifecycle)
    case "PoweringOff":
    case "Quieting":
      return status === "off" ? onDone(lifecycle) : again(lifecycle)
    case "Snapshotting":
      if (status === "off")
        return onGuestEnded(lifecycle, { vmm: state.vmm, exit, healthy: false, gone: false })
      return snapshotComplete && status === "paused"
        ? onDone(lifecycle)
        : enter(lifecycle, {
            _tag: "Unfreezing",
            vmm: state.vmm,
            snapshot: state.snapshot,
            failure: interrupted,
            by: null
          })
    case "Unfreezing":
      if (status === "off")
        return onGuestEnded(lifecycle, { vmm: state.vmm, exit, healthy: false, gone: false })
      return again(lifecycle)
    case "Reviving":
      if (status === "off")
        return onGuestEnded(lifecycle, { vmm: state.vmm, exit, healthy: false, gone: false })
      return status === "running"
        ? onDone({ ...lifecycle, state: { ...state, resume: true } })
        : again(lifecycle)
    default:
      return again(lifecycle)
  }
}
