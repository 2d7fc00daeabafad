/**
 * The rules: what an input does to an instance. Total and pure: no clock, no randomness, no I/O; times and identities
 * arrive inside the input. Three answers: accepted with the next state (whose work is `Lifecycle.work`), ignored or
 * joined, denied with a sentence. The table of all edges is committed in test/instance.
 */
import type { Timestamp } from "../domain/Ids.ts"
import type { Verb } from "../domain/Instance.ts"
import type { Command, Decision, Input, Lifecycle } from "./Lifecycle.ts"
import { onCommand } from "./decide/command.ts"
import { onDone, onFailed, onGuestEnded, onSpawned } from "./decide/event.ts"
import { onObserved } from "./decide/observe.ts"
import { ignored } from "./decide/step.ts"

export const decide = (lifecycle: Lifecycle, input: Input): Decision => {
  switch (input._tag) {
    case "Done":
      return input.epoch === lifecycle.epoch ? onDone(lifecycle) : ignored
    case "Spawned":
      return input.epoch === lifecycle.epoch ? onSpawned(lifecycle, input) : ignored
    case "Failed":
      return input.epoch === lifecycle.epoch ? onFailed(lifecycle, input) : ignored
    case "GuestEnded":
      return onGuestEnded(lifecycle, input)
    case "Observed":
      return onObserved(lifecycle, input.probe)
    default:
      return onCommand(lifecycle, input)
  }
}

const commands = (at: Timestamp): ReadonlyArray<readonly [Verb, Command]> => [
  ["start", { _tag: "Start" }],
  ["pause", { _tag: "Pause" }],
  ["resume", { _tag: "Resume" }],
  ["shutdown", { _tag: "Shutdown", at }],
  ["stop", { _tag: "Stop", discardSnapshot: false, at }],
  ["standby", { _tag: "Standby" }],
  ["restore", { _tag: "Restore", resume: true }],
  ["delete", { _tag: "Delete" }]
]

/** The verbs that would not be denied now. `at` only fills in the inputs; it decides nothing. */
export const allowed = (lifecycle: Lifecycle, at: Timestamp): ReadonlyArray<Verb> =>
  commands(at)
    .filter(([, command]) => decide(lifecycle, command)._tag !== "Denied")
    .map(([verb]) => verb)
