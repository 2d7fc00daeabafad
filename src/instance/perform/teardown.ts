/**
 * The way down. Quiet and PowerOff ask the guest to end and stop waiting after a grace; End makes sure: the VMM dead by
 * the kernel's word first, then its TAP, its run directory and, by destination, its snapshots, its lease and its files.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { step } from "../../host/Boundary.ts"
import { Files } from "../../host/Files.ts"
import { Network } from "../../network/Network.ts"
import { VmmProcesses, type VmmSession } from "../../vmm/Vmm.ts"
import type { Destination } from "../Lifecycle.ts"
import { Store } from "../Store.ts"
import { dropSnapshots } from "./snapshot.ts"
import { inStep, session, type Subject } from "./subject.ts"

/** How long a guest may take to end its processes and go off. */
export const stopGraceMs = 10_000
/** How long a VMM may take to obey `quit` before it is signalled. */
const quitGraceMs = 2_000

type Asked = "nobody" | "button" | "agent"

/** Asks by the agent where it answers, by the power button where it does not. A paused guest hears neither. */
const askGuest = Effect.fnUntraced(function* (subject: Subject, control: VmmSession) {
  const status = yield* control.status
  if (status._tag === "Off" || status._tag === "Panicked" || status._tag === "Prelaunch")
    return "nobody" satisfies Asked
  if (status._tag === "Paused") yield* control.resume
  const agent = subject.wire === null ? Option.none() : subject.wire.agent()
  const heard = Option.isSome(agent)
    ? yield* agent.value.shutdown(stopGraceMs).pipe(
        Effect.as(true),
        Effect.orElseSucceed(() => false)
      )
    : false
  if (heard) return "agent" satisfies Asked
  yield* control.powerButton
  return "button" satisfies Asked
})

/** Waits for the guest's end, as long as its grace is. One that still boots hears of it when its agent comes up. */
const awaitOff = (subject: Subject, asked: Asked) => {
  if (subject.wire === null || asked === "nobody") return Effect.void
  const { awaitAgent, guestOff } = subject.wire
  const askLater = awaitAgent.pipe(
    Effect.flatMap((agent) => agent.shutdown(stopGraceMs)),
    Effect.ignore,
    Effect.andThen(Effect.never)
  )
  return (asked === "agent" ? guestOff : Effect.raceFirst(guestOff, askLater)).pipe(
    Effect.timeoutOption(stopGraceMs),
    Effect.asVoid
  )
}

/** Quiet: the guest is off, or had its chance. Never fails for the guest's sake: End follows in any case. */
export const quiet = Effect.fnUntraced(function* (subject: Subject) {
  const control = yield* session(subject).pipe(inStep("attach", "The VMM does not answer."))
  const asked = yield* askGuest(subject, control).pipe(
    inStep("shutdown", "The guest could not be asked to end."),
    step("ask")
  )
  yield* awaitOff(subject, asked)
})

/** PowerOff: the guest is off, by its own will or at once after the grace; the VMM stays. */
export const powerOff = Effect.fnUntraced(function* (subject: Subject) {
  const control = yield* session(subject).pipe(inStep("attach", "The VMM does not answer."))
  const asked = yield* askGuest(subject, control).pipe(
    inStep("shutdown", "The guest could not be asked to end."),
    step("ask")
  )
  yield* awaitOff(subject, asked)
  const status = yield* control.status.pipe(inStep("power-off", "The VMM does not answer."))
  if (status._tag !== "Off" && status._tag !== "Panicked")
    yield* control.powerOff.pipe(
      inStep("power-off", "The guest could not be switched off."),
      step("power-off")
    )
})

/** Every VMM of this instance, dead by the kernel's word: the one on the wire, and any that no record knows of. */
const endVmm = Effect.fnUntraced(function* (subject: Subject) {
  const processes = yield* VmmProcesses
  if (subject.wire !== null) {
    const { ref } = subject.wire
    yield* subject.wire.session.pipe(
      Effect.flatMap((control) => control.quit),
      Effect.andThen(processes.exit(ref)),
      Effect.timeoutOption(quitGraceMs),
      Effect.ignore
    )
    yield* processes.kill(ref)
  }
  const left = (yield* processes.scan).filter((it) => it.id === subject.record.spec.id)
  yield* Effect.forEach(left, processes.kill, { discard: true })
})

/** End, by destination. Idempotent; a failure leaves everything behind it in place for the next try. */
export const end = Effect.fnUntraced(function* (subject: Subject, destination: Destination) {
  const files = yield* Files
  const network = yield* Network
  const store = yield* Store
  const { record, paths } = subject
  yield* endVmm(subject).pipe(inStep("kill", "The VMM does not end."), step("kill"))
  if (record.lease !== null)
    yield* network
      .detach(record.lease)
      .pipe(inStep("tap", "The TAP could not be removed."), step("tap-remove"))
  yield* files
    .remove(paths.run)
    .pipe(inStep("files", "The run directory could not be removed."), step("run-remove"))
  switch (destination._tag) {
    case "Stopped":
    case "Waiting":
      return yield* dropSnapshots(paths, null).pipe(
        inStep("snapshot", "Old snapshots could not be removed."),
        step("snapshots-remove")
      )
    case "Standby":
    case "BackToStandby":
      return yield* dropSnapshots(paths, destination.snapshot.number).pipe(
        inStep("snapshot", "Old snapshots could not be removed."),
        step("snapshots-remove")
      )
    case "Gone":
      yield* network.release(record.spec.id)
      return yield* store
        .remove(record.spec.id)
        .pipe(inStep("files", "The instance's files could not be removed."), step("files-remove"))
  }
})
