/** The pieces that the rules are put together from: entering a state, naming what it is busy with, the restart policy. */
import type { InstanceExit, RestartPolicy, Transition, Verb } from "../../domain/Instance.ts"
import type { Decision, Destination, Failure, Lifecycle, Settlement, State } from "../Lifecycle.ts"
import { work } from "../Lifecycle.ts"

export const ignored: Decision = { _tag: "Ignored" }
export const joined = (until: Transition): Decision => ({ _tag: "Joined", until })
export const denied = (reason: string): Decision => ({ _tag: "Denied", reason })

/** A new state with a new epoch, so that the results of whatever was in flight are stale. */
export const enter = (
  lifecycle: Lifecycle,
  state: State,
  settle: ReadonlyArray<Settlement> = [],
  changes: Partial<Pick<Lifecycle, "attempt" | "snapshots">> = {}
): Decision => ({
  _tag: "Accepted",
  next: { ...lifecycle, ...changes, epoch: lifecycle.epoch + 1, state },
  settle
})

export const end = (
  lifecycle: Lifecycle,
  destination: Destination,
  settle: ReadonlyArray<Settlement> = [],
  changes: Partial<Pick<Lifecycle, "attempt">> = {}
): Decision => enter(lifecycle, { _tag: "Ending", destination, attempt: 0 }, settle, changes)

export const reached = (verb: Transition): Settlement => ({ verb, outcome: "reached" })
export const failed = (verb: Transition, failure: Failure): Settlement => ({
  verb,
  outcome: "failed",
  failure
})
export const cancelled = (verb: Transition, by: Verb): Settlement => ({ verb, outcome: "cancelled", by })

/** What an instance in this state is busy with; null where it rests. */
export const transitionOf = (state: State): Transition | null => {
  switch (state._tag) {
    case "Launching":
    case "Booting":
      return state.verb
    case "Pausing":
      return "pause"
    case "Resuming":
      return "resume"
    case "PoweringOff":
      return "shutdown"
    case "Quieting":
      return "stop"
    case "Snapshotting":
    case "Unfreezing":
      return "standby"
    case "Loading":
    case "Reviving":
      return "restore"
    case "Waiting":
      return "restart"
    case "Attaching":
      return "attach"
    case "Detaching":
      return state.undoes === null ? "detach" : "attach"
    case "Ending":
      return endingTransition(state.destination)
    default:
      return null
  }
}

const endingTransition = (destination: Destination): Transition => {
  switch (destination._tag) {
    case "Stopped":
      return destination.verb ?? "stop"
    case "Waiting":
      return "restart"
    case "Standby":
      return destination.restoreNext ? "restore" : "standby"
    case "BackToStandby":
      return "restore"
    case "Gone":
      return destination.failure === null ? "delete" : "create"
  }
}

/** The transitions that clients may be waiting for in this state. */
export const waitedFor = (state: State): ReadonlyArray<Transition> => {
  const busy = transitionOf(state)
  if (busy === null) return []
  if (state._tag === "Unfreezing") return ["standby", "restore"]
  if (state._tag === "Detaching") return [busy, "detach"]
  if (state._tag !== "Ending") return [busy]
  switch (state.destination._tag) {
    case "Stopped":
    case "BackToStandby":
      return [busy, "stop"]
    case "Gone":
      return [busy, "delete"]
    default:
      return [busy]
  }
}

/** What the clients of the interrupted verbs are told when `by` takes over. */
export const interrupting = (state: State, by: Verb): ReadonlyArray<Settlement> =>
  [...new Set(waitedFor(state))].filter((verb) => verb !== by).map((verb) => cancelled(verb, by))

export const rests = (lifecycle: Lifecycle): boolean => work(lifecycle) === null

/** True where the guest did not end of its own accord or ended badly; what `on-failure` restarts. */
export const isFailure = (exit: InstanceExit): boolean => {
  switch (exit.reason) {
    case "exited":
      return exit.signal !== undefined || (exit.code ?? 0) !== 0
    case "guest-panic":
    case "boot-failed":
    case "vmm-died":
      return true
    default:
      return false
  }
}

export const wantsRestart = (policy: RestartPolicy, exit: InstanceExit): boolean =>
  policy === "always" || (policy === "on-failure" && isFailure(exit))

/** Where an end that nobody asked for leads, by policy. */
export const afterExit = (
  lifecycle: Lifecycle,
  exit: InstanceExit,
  healthy: boolean,
  settle: ReadonlyArray<Settlement> = []
): Decision =>
  wantsRestart(lifecycle.policy, exit)
    ? end(lifecycle, { _tag: "Waiting", exit }, settle, { attempt: healthy ? 1 : lifecycle.attempt + 1 })
    : end(lifecycle, { _tag: "Stopped", verb: null, exit, failure: null }, settle)

/** A launch that did not come up, at whatever point. */
export const launchFailed = (
  lifecycle: Lifecycle,
  verb: "create" | "start" | "restart",
  failure: Failure,
  exit: InstanceExit
): Decision => {
  switch (verb) {
    case "create":
      return end(lifecycle, { _tag: "Gone", failure })
    case "start":
      return end(lifecycle, { _tag: "Stopped", verb: "start", exit, failure })
    case "restart":
      return afterExit(lifecycle, exit, false, [failed("restart", failure)])
  }
}

/** An end that came unasked, as the failure of the verb that it hit. */
export const unasked = (exit: InstanceExit): Failure => ({
  step: "guest",
  reason: exit.message ?? `the guest ended (${exit.reason})`
})
