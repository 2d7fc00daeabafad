/**
 * What a user of the contract expects, as a handful of flags: which of the six states shows, what the instance is busy
 * with, and how each verb is answered. Written from contract §1; shares no code, and no state names beyond the six,
 * with the rules.
 */
import type { InstanceState, RestartPolicy, Transition } from "../../src/domain/Instance.ts"

export type Ask =
  | "start"
  | "pause"
  | "resume"
  | "shutdown"
  | "stop"
  | "stop+discard"
  | "standby"
  | "restore"
  | "restore,stay"
  | "delete"
export type Answer = "accepted" | "ignored" | "joined" | "denied"

export interface Model {
  readonly policy: RestartPolicy
  gone: boolean
  /** There is a VMM that the instance works with. */
  vmm: boolean
  /** What the guest in it, or in the snapshot, is like. */
  guest: "unbooted" | "running" | "paused" | "off"
  /** The guest is in a snapshot that can be restored. */
  frozen: boolean
  /** It was paused when it was frozen, or is about to be. */
  wasPaused: boolean
  busy: Transition | null
  /** The VMM is on its way out, whatever happens; nothing that was asked before can still be had. */
  leaving: boolean
  /** Leaves because of `stop`, or because it ended by itself: a stop is what happens anyway. */
  stopping: boolean
  /** The guest goes on by itself after a while. */
  backoff: boolean
  /** A standby that is given up, or a restore that is. */
  undoing: boolean
  /** The VMM is there, and its guest is not yet what the verb wants. */
  stage: "launch" | "boot" | null
  boots: boolean
  /** A standby is over and its restore follows. */
  next: boolean
  staysPaused: boolean
}

export const begin = (policy: RestartPolicy, boots: boolean): Model => ({
  policy,
  gone: false,
  vmm: false,
  guest: "unbooted",
  frozen: false,
  wasPaused: false,
  busy: "create",
  leaving: false,
  stopping: false,
  backoff: false,
  undoing: false,
  stage: "launch",
  boots,
  next: false,
  staysPaused: false
})

/** The state that a user sees now. */
export const shown = (it: Model): InstanceState => {
  if (it.leaving) return it.frozen ? (it.undoing ? "Standby" : "Paused") : "Shutdown"
  if (it.frozen) return "Standby"
  if (!it.vmm) return "Stopped"
  if (it.busy === "standby") return it.wasPaused ? "Paused" : "Running"
  if (it.busy === "restore" || it.busy === "resume") return "Paused"
  if (it.busy !== null && it.stage === "boot") return "Created"
  if (it.busy !== null) return "Running"
  return ({ unbooted: "Created", running: "Running", paused: "Paused", off: "Shutdown" } as const)[it.guest]
}

const isUp = (it: Model): boolean => it.vmm && (it.guest === "running" || it.guest === "paused")

/** Where a state rests: the contract's table, row by row. */
const atRest = (it: Model, ask: Ask): Answer => {
  const state = shown(it)
  switch (ask) {
    case "start":
      return state === "Running"
        ? "ignored"
        : state === "Paused" || state === "Standby"
          ? "denied"
          : "accepted"
    case "pause":
      return state === "Running" ? "accepted" : state === "Paused" ? "ignored" : "denied"
    case "resume":
      return state === "Paused" ? "accepted" : state === "Running" ? "ignored" : "denied"
    case "shutdown":
      return isUp(it) ? "accepted" : state === "Shutdown" ? "ignored" : "denied"
    case "stop":
      return state === "Standby" ? "denied" : state === "Stopped" ? "ignored" : "accepted"
    case "stop+discard":
      return state === "Stopped" ? "ignored" : "accepted"
    case "standby":
      return isUp(it) ? "accepted" : state === "Standby" ? "ignored" : "denied"
    case "restore":
    case "restore,stay":
      return state === "Standby" ? "accepted" : state === "Running" ? "ignored" : "denied"
    case "delete":
      return "accepted"
  }
}

/** A stop never waits: it cancels, or it is what happens already. */
const stopWhileBusy = (it: Model, discards: boolean): Answer => {
  if (it.stopping) return "joined"
  if (it.busy === "stop" && !it.frozen) return "joined"
  // A restore that is being given up for an earlier stop comes to the same; to give the snapshot up does not.
  if (it.leaving && it.undoing && it.next && !discards) return "joined"
  return "accepted"
}

const whileBusy = (it: Model, ask: Ask): Answer => {
  const deleting = it.leaving && (it.busy === "delete" || it.busy === "create")
  switch (ask) {
    case "delete":
      return deleting ? "joined" : "accepted"
    case "stop":
    case "stop+discard":
      return deleting ? "denied" : stopWhileBusy(it, ask === "stop+discard")
    case "start":
      if (it.backoff) return "accepted"
      return it.stage !== null && !it.leaving && it.boots ? "joined" : "denied"
    case "restore":
    case "restore,stay":
      if (it.busy === "standby") return it.undoing && !it.leaving ? "joined" : "accepted"
      return it.busy === "restore" && !(it.leaving && it.undoing) ? "joined" : "denied"
    default:
      // The same verb again waits for the first; one that is being undone is not the same any more.
      if (ask === "standby" && it.undoing) return "denied"
      if (it.leaving && ask === "shutdown") return "denied"
      return it.busy === ask ? "joined" : "denied"
  }
}

export const answer = (it: Model, ask: Ask): Answer => {
  if (it.gone) return ask === "delete" ? "ignored" : "denied"
  return it.busy === null ? atRest(it, ask) : whileBusy(it, ask)
}

const leave = (it: Model, busy: Transition, stopping: boolean): void => {
  Object.assign(it, { vmm: false, leaving: true, busy, stopping, backoff: false, stage: null, frozen: false })
  Object.assign(it, { undoing: false, next: false })
}

const stop = (it: Model, discards: boolean): void => {
  if (it.backoff) {
    Object.assign(it, { backoff: false, busy: null })
    return
  }
  // The way back into the snapshot, unless that is given up.
  if (
    it.frozen &&
    !discards &&
    it.busy === "restore" &&
    (!it.leaving || it.undoing) &&
    !(it.leaving && !it.undoing)
  ) {
    Object.assign(it, { leaving: true, undoing: true, next: true, vmm: false, busy: "restore" })
    return
  }
  const quiet = it.vmm && !it.leaving && it.stage === null && it.guest !== "off" && it.guest !== "unbooted"
  if (quiet) Object.assign(it, { busy: "stop", undoing: false })
  else leave(it, "stop", true)
}

/** An accepted verb begins. */
export const accept = (it: Model, ask: Ask): void => {
  switch (ask) {
    case "start":
      Object.assign(it, { busy: "start", boots: true, backoff: false, stage: it.vmm ? "boot" : "launch" })
      return
    case "pause":
    case "resume":
    case "shutdown":
      it.busy = ask
      return
    case "standby":
      Object.assign(it, { busy: "standby", wasPaused: it.guest === "paused", undoing: false })
      return
    case "restore":
    case "restore,stay":
      if (it.busy === null) {
        const staysPaused = ask === "restore,stay" && it.wasPaused
        Object.assign(it, { busy: "restore", staysPaused, undoing: false, next: false })
      } else if (it.leaving) Object.assign(it, { busy: "restore", next: true, staysPaused: false })
      else it.undoing = true
      return
    case "stop":
    case "stop+discard":
      return stop(it, ask === "stop+discard")
    case "delete":
      return leave(it, "delete", false)
  }
}

const up = (it: Model, guest: Model["guest"]): void => {
  Object.assign(it, { vmm: true, guest, busy: null, stage: null, undoing: false, frozen: false, next: false })
}

/** The guest ended, and nobody asked for it. */
export const ended = (it: Model, failed: boolean): void => {
  const again = it.policy === "always" || (it.policy === "on-failure" && failed)
  leave(it, again ? "restart" : "stop", !again)
  it.backoff = false
}

/** The guest went off, or its VMM died (`gone`), in the middle of whatever there was. */
export const guestEnded = (it: Model, how: { readonly failed: boolean; readonly gone: boolean }): void => {
  if (it.stage === "boot" && it.busy === "restart") return ended(it, how.failed)
  if (it.stage === "boot" && it.busy !== null) return failed(it, false)
  if (it.busy === "shutdown") return how.gone ? leave(it, "shutdown", true) : up(it, "off")
  if (it.busy === "stop") return leave(it, "stop", true)
  // A guest that is off already ends only with its VMM, and there is nothing to be started again.
  if (it.busy === null && (it.guest === "off" || it.guest === "unbooted")) return leave(it, "stop", true)
  ended(it, how.failed)
}

/** The work in flight is done. */
export const done = (it: Model): void => {
  if (it.backoff) {
    Object.assign(it, { backoff: false, stage: "launch", boots: true })
    return
  }
  if (it.leaving) return left(it)
  if (it.stage === "launch") {
    Object.assign(it, { vmm: true, guest: "unbooted", stage: "boot" })
    if (!it.boots) up(it, "unbooted")
    return
  }
  switch (it.busy) {
    case "pause":
      return up(it, "paused")
    case "shutdown":
      return up(it, "off")
    case "stop":
      return leave(it, "stop", true)
    case "standby":
      if (it.undoing) return up(it, it.wasPaused ? "paused" : "running")
      Object.assign(it, { vmm: false, leaving: true, frozen: true })
      return
    case "restore":
      if (it.frozen) Object.assign(it, { vmm: true, frozen: false, guest: "paused" })
      else up(it, it.staysPaused ? "paused" : "running")
      return
    default:
      return up(it, "running")
  }
}

/** The VMM is dead and what had to go is gone. */
const left = (it: Model): void => {
  const { busy } = it
  it.leaving = false
  it.stopping = false
  if (it.frozen) {
    const follows = it.next && !it.undoing
    Object.assign(it, { busy: follows ? "restore" : null, undoing: false, next: false, staysPaused: false })
  } else if (busy === "delete" || busy === "create") Object.assign(it, { gone: true, busy: null })
  else if (busy === "restart") it.backoff = true
  else it.busy = null
}

/** The work in flight failed. */
export const failed = (it: Model, untouched: boolean): void => {
  if (it.leaving) return
  if (it.backoff) return done(it)
  if (it.stage !== null) {
    if (it.busy === "restart") return ended(it, true)
    return leave(it, it.busy ?? "start", it.busy !== "create")
  }
  switch (it.busy) {
    case "pause":
      it.busy = "resume"
      return
    case "resume":
      return up(it, "paused")
    case "standby":
      if (it.undoing) return up(it, "paused")
      it.undoing = true
      return
    case "restore":
      if (!it.frozen) return up(it, "paused")
      if (untouched) it.busy = null
      else Object.assign(it, { leaving: true, undoing: true, next: false, vmm: false })
      return
    case "shutdown":
      return leave(it, "shutdown", true)
    default:
      return leave(it, "stop", true)
  }
}
