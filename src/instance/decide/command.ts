/** What a client's verb does in each state: contract §1's table, and the rule that stop and delete never wait. */
import type { InstanceExit } from "../../domain/Instance.ts"
import type { Command, Decision, Lifecycle, State, StateOf } from "../Lifecycle.ts"
import { verbOf } from "../Lifecycle.ts"
import {
  cancelled,
  denied,
  end,
  enter,
  ignored,
  interrupting,
  joined,
  reached,
  transitionOf
} from "./step.ts"
import { attach, detach } from "./volumes.ts"

type CommandOf<Tag extends Command["_tag"]> = Extract<Command, { readonly _tag: Tag }>

export const onCommand = (lifecycle: Lifecycle, command: Command): Decision => {
  switch (command._tag) {
    case "Start":
      return start(lifecycle, command)
    case "Pause":
      return pause(lifecycle, command)
    case "Resume":
      return resume(lifecycle, command)
    case "Shutdown":
      return shutdown(lifecycle, command)
    case "Stop":
      return stop(lifecycle, command)
    case "Standby":
      return standby(lifecycle, command)
    case "Restore":
      return restore(lifecycle, command)
    case "Delete":
      return remove(lifecycle)
    case "Attach":
      return attach(lifecycle, command)
    case "Detach":
      return detach(lifecycle, command)
  }
}

const refuse = (state: State, command: Command): Decision => {
  const busy = transitionOf(state)
  return busy === null
    ? denied(`A ${state._tag} instance cannot ${verbOf(command)}.`)
    : denied(`The instance is busy with ${busy}; ${verbOf(command)} has to wait for it.`)
}

const start = (lifecycle: Lifecycle, command: CommandOf<"Start">): Decision => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Created":
    case "Shutdown":
      return enter(lifecycle, { _tag: "Booting", verb: "start", vmm: state.vmm }, [], { attempt: 0 })
    case "Stopped":
    case "Waiting":
      return enter(lifecycle, { _tag: "Launching", verb: "start", boot: true }, [], { attempt: 0 })
    case "Running":
      return ignored
    case "Launching":
      return state.boot ? joined(state.verb) : refuse(state, command)
    case "Booting":
      return joined(state.verb)
    default:
      return refuse(state, command)
  }
}

const pause = (lifecycle: Lifecycle, command: CommandOf<"Pause">): Decision => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Running":
      return enter(lifecycle, { _tag: "Pausing", vmm: state.vmm })
    case "Paused":
      return ignored
    case "Pausing":
      return joined("pause")
    default:
      return refuse(state, command)
  }
}

const resume = (lifecycle: Lifecycle, command: CommandOf<"Resume">): Decision => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Paused":
      return enter(lifecycle, { _tag: "Resuming", vmm: state.vmm })
    case "Running":
      return ignored
    case "Resuming":
      return joined("resume")
    default:
      return refuse(state, command)
  }
}

const shutdown = (lifecycle: Lifecycle, command: CommandOf<"Shutdown">): Decision => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Running":
    case "Paused":
      return enter(lifecycle, {
        _tag: "PoweringOff",
        vmm: state.vmm,
        exit: { reason: "shutdown", at: command.at }
      })
    case "Shutdown":
      return ignored
    case "PoweringOff":
      return joined("shutdown")
    default:
      return refuse(state, command)
  }
}

const stop = (lifecycle: Lifecycle, command: CommandOf<"Stop">): Decision => {
  const { state } = lifecycle
  const exit: InstanceExit = { reason: "stopped", at: command.at }
  const toStopped = () =>
    end(lifecycle, { _tag: "Stopped", verb: "stop", exit, failure: null }, interrupting(state, "stop"))
  switch (state._tag) {
    case "Stopped":
      return ignored
    case "Waiting":
      return enter(lifecycle, { _tag: "Stopped" }, [cancelled("restart", "stop"), reached("stop")], {
        attempt: 0
      })
    case "Created":
    case "Shutdown":
    case "Launching":
    case "Booting":
      return toStopped()
    case "Attaching":
    case "Detaching":
      return state.rest === "Running" || state.rest === "Paused"
        ? enter(lifecycle, { _tag: "Quieting", vmm: state.vmm, exit }, interrupting(state, "stop"))
        : toStopped()
    case "Standby":
      return command.discardSnapshot
        ? toStopped()
        : denied(
            "The guest is frozen in a snapshot: restore it, or give the snapshot up with discard_snapshot=true."
          )
    case "Loading":
      return command.discardSnapshot
        ? toStopped()
        : end(
            lifecycle,
            { _tag: "BackToStandby", snapshot: state.snapshot, failure: null, by: "stop" },
            interrupting(state, "stop")
          )
    case "Running":
    case "Paused":
    case "Pausing":
    case "Resuming":
    case "PoweringOff":
    case "Snapshotting":
    case "Unfreezing":
    case "Reviving":
      return enter(lifecycle, { _tag: "Quieting", vmm: state.vmm, exit }, interrupting(state, "stop"))
    case "Quieting":
      return joined("stop")
    case "Ending":
      return stopEnding(lifecycle, state, command, exit)
    case "Gone":
      return refuse(state, command)
  }
}

const stopEnding = (
  lifecycle: Lifecycle,
  state: StateOf<"Ending">,
  command: CommandOf<"Stop">,
  exit: InstanceExit
): Decision => {
  const { destination } = state
  switch (destination._tag) {
    case "Stopped":
      return joined("stop")
    case "Waiting":
      return end(
        lifecycle,
        { _tag: "Stopped", verb: "stop", exit: destination.exit, failure: null },
        interrupting(state, "stop"),
        { attempt: 0 }
      )
    case "Standby":
      return end(
        lifecycle,
        { _tag: "Stopped", verb: "stop", exit, failure: null },
        interrupting(state, "stop")
      )
    case "BackToStandby":
      if (command.discardSnapshot)
        return end(
          lifecycle,
          { _tag: "Stopped", verb: "stop", exit, failure: null },
          interrupting(state, "stop")
        )
      return destination.by === "stop"
        ? joined("stop")
        : end(lifecycle, { ...destination, by: "stop" }, interrupting(state, "stop"))
    case "Gone":
      return refuse(state, command)
  }
}

const standby = (lifecycle: Lifecycle, command: CommandOf<"Standby">): Decision => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Running":
    case "Paused": {
      const number = lifecycle.snapshots + 1
      return enter(
        lifecycle,
        { _tag: "Snapshotting", vmm: state.vmm, snapshot: { number, paused: state._tag === "Paused" } },
        [],
        { snapshots: number }
      )
    }
    case "Standby":
      return ignored
    case "Snapshotting":
      return joined("standby")
    case "Ending":
      return state.destination._tag === "Standby" && !state.destination.restoreNext
        ? joined("standby")
        : refuse(state, command)
    default:
      return refuse(state, command)
  }
}

const restore = (lifecycle: Lifecycle, command: CommandOf<"Restore">): Decision => {
  const { state } = lifecycle
  switch (state._tag) {
    case "Standby":
      return enter(lifecycle, {
        _tag: "Loading",
        snapshot: state.snapshot,
        // Only a guest that was paused before its standby can be left so.
        resume: command.resume || !state.snapshot.paused,
        ...(command.mode === undefined ? {} : { mode: command.mode })
      })
    case "Running":
      return ignored
    case "Snapshotting":
      return enter(
        lifecycle,
        { _tag: "Unfreezing", vmm: state.vmm, snapshot: state.snapshot, failure: null, by: "restore" },
        interrupting(state, "restore")
      )
    case "Unfreezing":
    case "Loading":
    case "Reviving":
      return joined("restore")
    case "Ending":
      // One that is to follow has no mode of its own: whoever asks for one asks again once the instance is in Standby.
      if (state.destination._tag !== "Standby" || command.mode !== undefined) return refuse(state, command)
      return state.destination.restoreNext
        ? joined("restore")
        : end(lifecycle, { ...state.destination, restoreNext: true }, interrupting(state, "restore"))
    default:
      return refuse(state, command)
  }
}

const remove = (lifecycle: Lifecycle): Decision => {
  const { state } = lifecycle
  if (state._tag === "Gone") return ignored
  if (state._tag === "Ending" && state.destination._tag === "Gone") return joined("delete")
  return end(lifecycle, { _tag: "Gone", failure: null }, interrupting(state, "delete"))
}
