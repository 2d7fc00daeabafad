/** What results of work, and the guest's own end, do in each state. */
import type { Decision, Event, Failure, Lifecycle, StateOf } from "../Lifecycle.ts"
import { endTriesUntold, vmmOf } from "../Lifecycle.ts"
import {
  afterExit,
  end,
  enter,
  failed,
  ignored,
  launchFailed,
  reached,
  transitionOf,
  unasked,
  waitedFor
} from "./step.ts"
import {
  afterChange,
  attached,
  attachFailed,
  detached,
  detachFailed,
  settleIn,
  withoutVmm
} from "./volumes.ts"

type EventOf<Tag extends Event["_tag"]> = Extract<Event, { readonly _tag: Tag }>

export const onDone = (lifecycle: Lifecycle): Decision => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Booting":
      return settleIn(lifecycle, "Running", state.vmm, [reached(state.verb)])
    case "Pausing":
      return enter(lifecycle, { _tag: "Paused", vmm: state.vmm }, [reached("pause")])
    case "Resuming":
      return settleIn(afterChange(lifecycle), "Running", state.vmm, [reached("resume")])
    case "PoweringOff":
      return settleIn(afterChange(lifecycle), "Shutdown", state.vmm, [reached("shutdown")])
    case "Quieting":
      return end(lifecycle, { _tag: "Stopped", verb: "stop", exit: state.exit, failure: null })
    case "Snapshotting":
      return end(lifecycle, { _tag: "Standby", snapshot: state.snapshot, restoreNext: false })
    case "Unfreezing":
      return settleIn(lifecycle, state.snapshot.paused ? "Paused" : "Running", state.vmm, [
        ...(state.failure === null ? [] : [failed("standby", state.failure)]),
        reached("restore")
      ])
    case "Reviving":
      return settleIn(afterChange(lifecycle), state.resume ? "Running" : "Paused", state.vmm, [
        reached("restore")
      ])
    case "Attaching":
      return attached(lifecycle, state)
    case "Detaching":
      return detached(lifecycle, state)
    case "Ending":
      return onEnded(lifecycle, state)
    case "Waiting":
      return enter(lifecycle, { _tag: "Launching", verb: "restart", boot: true })
    default:
      return ignored
  }
}

const onEnded = (before: Lifecycle, { destination }: StateOf<"Ending">): Decision => {
  // A guest that is frozen has its disks for as long as it is.
  const isFrozen = destination._tag === "Standby" || destination._tag === "BackToStandby"
  const lifecycle = isFrozen ? before : { ...before, volumes: withoutVmm(before.volumes) }
  switch (destination._tag) {
    case "Stopped": {
      const { verb, failure } = destination
      const own =
        verb === null || verb === "stop" ? [] : [failure === null ? reached(verb) : failed(verb, failure)]
      return enter(lifecycle, { _tag: "Stopped" }, [...own, reached("stop")], { attempt: 0 })
    }
    case "Waiting":
      return enter(lifecycle, { _tag: "Waiting" })
    case "Standby":
      return destination.restoreNext
        ? enter(lifecycle, { _tag: "Loading", snapshot: destination.snapshot, resume: true })
        : enter(lifecycle, { _tag: "Standby", snapshot: destination.snapshot }, [reached("standby")])
    case "BackToStandby":
      return enter(lifecycle, { _tag: "Standby", snapshot: destination.snapshot }, [
        ...(destination.failure === null ? [] : [failed("restore", destination.failure)]),
        ...(destination.by === "stop" ? [failed("stop", restoreCancelled)] : [])
      ])
    case "Gone":
      return enter(lifecycle, { _tag: "Gone" }, [
        ...(destination.failure === null ? [] : [failed("create", destination.failure)]),
        reached("delete")
      ])
  }
}

const restoreCancelled = {
  step: "stop",
  reason:
    "The restore was cancelled and the guest is frozen in its snapshot again; give the snapshot up with discard_snapshot=true."
}

export const onSpawned = (lifecycle: Lifecycle, { vmm }: EventOf<"Spawned">): Decision => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Launching":
      return state.boot
        ? enter(lifecycle, { _tag: "Booting", verb: state.verb, vmm })
        : enter(lifecycle, { _tag: "Created", vmm }, [reached(state.verb)])
    case "Loading":
      return enter(lifecycle, { _tag: "Reviving", vmm, resume: state.resume })
    default:
      return ignored
  }
}

export const onFailed = (lifecycle: Lifecycle, event: EventOf<"Failed">): Decision => {
  const { failure, untouched, exit } = event
  const { state } = lifecycle
  switch (state._tag) {
    case "Launching":
    case "Booting":
      return launchFailed(lifecycle, state.verb, failure, exit)
    case "Pausing":
      return enter(lifecycle, { _tag: "Resuming", vmm: state.vmm }, [failed("pause", failure)])
    case "Resuming":
      return enter(lifecycle, { _tag: "Paused", vmm: state.vmm }, [failed("resume", failure)])
    case "PoweringOff":
      return end(lifecycle, { _tag: "Stopped", verb: "shutdown", exit: state.exit, failure })
    case "Quieting":
      return end(lifecycle, { _tag: "Stopped", verb: "stop", exit: state.exit, failure: null })
    case "Snapshotting":
      return enter(lifecycle, {
        _tag: "Unfreezing",
        vmm: state.vmm,
        snapshot: state.snapshot,
        failure,
        by: null
      })
    case "Unfreezing":
      return enter(lifecycle, { _tag: "Paused", vmm: state.vmm }, [
        failed("standby", state.failure ?? failure),
        failed("restore", failure)
      ])
    case "Loading":
      return untouched
        ? enter(lifecycle, { _tag: "Standby", snapshot: state.snapshot }, [failed("restore", failure)])
        : end(lifecycle, { _tag: "BackToStandby", snapshot: state.snapshot, failure, by: null })
    case "Reviving":
      return enter(lifecycle, { _tag: "Paused", vmm: state.vmm }, [failed("restore", failure)])
    case "Attaching":
      return attachFailed(lifecycle, state, event)
    case "Detaching":
      return detachFailed(lifecycle, state, event)
    case "Ending":
      return onEndFailed(lifecycle, state, failure)
    case "Waiting":
      return onDone(lifecycle)
    default:
      return ignored
  }
}

/**
 * The TAP, the lease and the record stay until the VMM is proven dead: it is tried again, however long it takes. Clients
 * are told after a few tries that it is not done yet.
 */
const onEndFailed = (lifecycle: Lifecycle, state: StateOf<"Ending">, failure: Failure): Decision => {
  const { destination } = state
  const attempt = state.attempt + 1
  const reason = ("failure" in destination ? destination.failure : null) ?? failure
  const told = attempt < endTriesUntold ? [] : waitedFor(state).map((verb) => failed(verb, reason))
  return enter(lifecycle, { ...state, attempt }, told)
}

export const onGuestEnded = (
  lifecycle: Lifecycle,
  { vmm, exit, healthy, gone }: Omit<EventOf<"GuestEnded">, "_tag">
): Decision => {
  const { state } = lifecycle
  const own = vmmOf(state)
  if (own === null || own.pid !== vmm.pid || own.start_time !== vmm.start_time) return ignored
  const busy = transitionOf(state)
  switch (state._tag) {
    case "Created":
    case "Shutdown":
      // A guest that is off already can be reported off once more, late; only its VMM's death is news.
      return gone ? end(lifecycle, { _tag: "Stopped", verb: null, exit, failure: null }) : ignored
    case "Attaching":
    case "Detaching":
      return volumeEnded(lifecycle, state, { exit, healthy, gone })
    case "Booting":
      return launchFailed(lifecycle, state.verb, unasked(exit), exit)
    case "PoweringOff":
      return gone
        ? end(lifecycle, { _tag: "Stopped", verb: "shutdown", exit, failure: unasked(exit) })
        : onDone(lifecycle)
    case "Quieting":
      return onDone(lifecycle)
    case "Unfreezing":
      return afterExit(lifecycle, exit, healthy, [
        failed("standby", state.failure ?? unasked(exit)),
        failed("restore", unasked(exit))
      ])
    default:
      return afterExit(lifecycle, exit, healthy, busy === null ? [] : [failed(busy, unasked(exit))])
  }
}

/** The guest, or the VMM, ended in the middle of an attach or detach; of a guest that was off before, only the VMM can. */
const volumeEnded = (
  lifecycle: Lifecycle,
  state: StateOf<"Attaching"> | StateOf<"Detaching">,
  { exit, healthy, gone }: Pick<EventOf<"GuestEnded">, "exit" | "healthy" | "gone">
): Decision => {
  const settle = waitedFor(state).map((verb) => failed(verb, unasked(exit)))
  if (state.rest === "Running" || state.rest === "Paused") return afterExit(lifecycle, exit, healthy, settle)
  return gone ? end(lifecycle, { _tag: "Stopped", verb: null, exit, failure: null }, settle) : ignored
}
