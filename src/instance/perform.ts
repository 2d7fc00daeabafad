/** From a piece of work, which is data, to the action that does it: dispatch only, one line for each kind. */
import * as Effect from "effect/Effect"
import type { ProcessIdentity } from "../domain/Process.ts"
import { step } from "../host/Boundary.ts"
import type { Work } from "./Lifecycle.ts"
import { boot, launch } from "./perform/launch.ts"
import { load, revive } from "./perform/restore.ts"
import { snapshot, unfreeze } from "./perform/snapshot.ts"
import { awaken, inStep, pauseGuest, resumeGuest, session, type Subject } from "./perform/subject.ts"
import { end, powerOff, quiet } from "./perform/teardown.ts"
import { attachVolume, detachVolume } from "./perform/volumes.ts"

/** The result of a piece of work: the VMM that it started, or null where it started none. */
export const perform = Effect.fnUntraced(function* (work: Work, subject: Subject) {
  const control = session(subject).pipe(inStep("attach", "The VMM does not answer."))
  const none: ProcessIdentity | null = null
  switch (work._tag) {
    case "Launch":
      return yield* launch(subject)
    case "Load":
      return yield* load(subject, work.snapshot, work.mode)
    case "Boot":
      return yield* Effect.as(boot(subject), none)
    case "Pause": {
      return yield* pauseGuest(yield* control).pipe(
        inStep("pause", "The guest could not be paused."),
        step("pause"),
        Effect.as(none)
      )
    }
    case "Resume": {
      yield* resumeGuest(yield* control).pipe(
        inStep("resume", "The guest could not be resumed."),
        step("resume")
      )
      return yield* Effect.as(awaken(subject), none)
    }
    case "PowerOff":
      return yield* Effect.as(powerOff(subject), none)
    case "Quiet":
      return yield* Effect.as(quiet(subject), none)
    case "Snapshot":
      return yield* Effect.as(snapshot(subject, work.snapshot), none)
    case "Unfreeze":
      return yield* Effect.as(unfreeze(subject, work.snapshot), none)
    case "Revive":
      return yield* Effect.as(revive(subject, work.resume), none)
    case "Attach":
      return yield* Effect.as(attachVolume(subject, work.volume, work.rest), none)
    case "Detach":
      return yield* Effect.as(detachVolume(subject, work.volume, work.rest, work.force), none)
    case "End":
      return yield* Effect.sleep(work.delayMs).pipe(
        Effect.andThen(end(subject, work.destination)),
        Effect.as(none)
      )
    case "Wait":
      return yield* Effect.as(Effect.sleep(work.delayMs), none)
  }
})
