/**
 * The parts of a live actor, and the four things it does with them: record, show, wire, work. Only the actor's own loop
 * calls them, one at a time.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { timestamp } from "../domain/Ids.ts"
import type { Instance } from "../domain/Instance.ts"
import type { Subnet } from "../domain/Network.ts"
import { isSameProcess, type ProcessIdentity } from "../domain/Process.ts"
import { step } from "../host/Boundary.ts"
import type { FileFault } from "../host/Fault.ts"
import type { InstancePaths } from "../host/Paths.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { partOf } from "../telemetry/VerbRun.ts"
import type { Event } from "./Lifecycle.ts"
import { deadlineMs, healthyRunMs, vmmOf, work } from "./Lifecycle.ts"
import type { Mailbox } from "./Mailbox.ts"
import type { Record } from "./Record.ts"
import type { VerbRuns } from "./VerbRuns.ts"
import type { Waiters } from "./Waiters.ts"
import { perform } from "./perform.ts"
import { workFailed, WorkFailed } from "./perform/subject.ts"
import { project } from "./project.ts"
import type { Store } from "./Store.ts"
import { connect, type Wire } from "./Wire.ts"

export const notRecorded =
  "The change cannot be recorded: the host's disk does not take it. Make room and try again."

export type WorkServices =
  | Effect.Services<ReturnType<typeof perform>>
  | Exclude<Effect.Services<ReturnType<typeof connect>>, Scope.Scope>

export interface Cell {
  readonly store: Store["Service"]
  readonly subnet: Subnet
  readonly paths: InstancePaths
  readonly services: Context.Context<WorkServices | Scope.Scope>
  /** The actor's: closing it cuts wires and interrupts work, and leaves the VMM alone. */
  readonly scope: Scope.Scope
  readonly mailbox: Mailbox
  readonly waiters: Waiters
  readonly verbs: VerbRuns
  readonly published: (view: Instance, from: Instance) => Effect.Effect<void>
  record: Record
  view: Instance
  ready: boolean
  /** What the guest has now, in MiB; null where nobody asked since the VMM came up. */
  memoryMb: number | null
  wire: Wire | null
  working: Fiber.Fiber<void> | null
  /** The record on disk is this one. */
  saved: boolean
}

/** With the actor's services, in place of what is there: nothing is copied for each instance. */
const within =
  (cell: Cell) =>
  <A, E>(effect: Effect.Effect<A, E, WorkServices | Scope.Scope>): Effect.Effect<A, E> =>
    Effect.updateContext(effect, (_: Context.Context<never>) => cell.services)

const post = (cell: Cell, event: Event): void => void cell.mailbox.offer({ _tag: "Event", event })

/** Shows the record as it is now; of an instance that is gone there is nothing to be shown. */
export const publish = (cell: Cell): Effect.Effect<void> => {
  if (cell.record.lifecycle.state._tag === "Gone") return Effect.void
  const from = cell.view
  cell.view = project(cell.record, { ready: cell.ready, memoryMb: cell.memoryMb }, cell.subnet)
  return cell.published(cell.view, from)
}

/** Writes the record, unless the instance is gone: its record went with its files, and nothing is left to be saved. */
export const persist = (cell: Cell, record: Record): Effect.Effect<void, FileFault> => {
  const { state } = record.lifecycle
  const save =
    state._tag === "Gone" ? Effect.void : cell.store.save(record).pipe(step(`persist-${state._tag}`))
  return Effect.andThen(
    save,
    Effect.sync(() => void (cell.saved = true))
  )
}

const failedEvent = Effect.fnUntraced(function* (cell: Cell, epoch: number, cause: Cause.Cause<WorkFailed>) {
  const fault = Cause.squash(cause)
  const known = fault instanceof WorkFailed
  const failed = known ? fault : workFailed("internal", "The dataplane failed; its log says how.", fault)
  const { id } = cell.record.spec
  yield* logEvent(
    known ? "instance.transition" : "defect",
    `${id}: ${failed.message}`,
    { instance_id: id, generation: cell.record.generation, reason: Cause.pretty(Cause.fail(failed.cause)) },
    known ? "Warn" : "Error"
  )
  const at = timestamp(yield* Clock.currentTimeMillis)
  const { failure, untouched } = failed
  return {
    _tag: "Failed",
    epoch,
    failure,
    untouched,
    exit: { reason: "boot-failed", message: failure.reason, at }
  } satisfies Event
})

const outcome = (cell: Cell, epoch: number, exit: Exit.Exit<ProcessIdentity | null, WorkFailed>) => {
  if (Exit.isFailure(exit)) {
    // An interrupted piece of work is one that another state replaced: nobody waits for its result.
    return Cause.hasInterruptsOnly(exit.cause)
      ? Effect.void
      : failedEvent(cell, epoch, exit.cause).pipe(Effect.map((event) => post(cell, event)))
  }
  return Effect.sync(() =>
    post(cell, exit.value === null ? { _tag: "Done", epoch } : { _tag: "Spawned", epoch, vmm: exit.value })
  )
}

/** Begins the work of the state, after the clean-up of the one before. */
export const begin = Effect.fnUntraced(function* (cell: Cell) {
  const before = cell.working
  const { lifecycle } = cell.record
  const task = work(lifecycle)
  if (task === null && before === null) return
  const subject = { record: cell.record, paths: cell.paths, wire: cell.wire }
  const body = Effect.gen(function* () {
    if (before !== null) yield* Fiber.interrupt(before)
    if (task === null) return
    const bound = deadlineMs[task._tag]
    const exit = yield* perform(task, subject).pipe(
      Effect.withSpan(`work ${task._tag}`, {}, { captureStackTrace: false }),
      partOf(cell.verbs.of(lifecycle.state)),
      Effect.timeoutOrElse({
        duration: bound,
        orElse: () =>
          Effect.fail(workFailed("deadline", `It was not done within ${bound / 1000} s.`, undefined))
      }),
      Effect.exit
    )
    yield* outcome(cell, lifecycle.epoch, exit)
  }).pipe(within(cell))
  cell.working = yield* Effect.forkIn(body, cell.scope)
})

/** Wires to the VMM that the state owns. An Ending keeps the old ones: it still has to say quit. */
export const rewire = Effect.fnUntraced(function* (cell: Cell) {
  const { state } = cell.record.lifecycle
  const own = vmmOf(state)
  if (state._tag === "Ending") return
  // A boot in the same VMM is another guest: what the old one still says must not be taken for it.
  if (
    own !== null &&
    cell.wire !== null &&
    isSameProcess(own, cell.wire.ref.process) &&
    state._tag !== "Booting"
  )
    return
  if (cell.wire !== null) yield* cell.wire.close
  cell.wire = null
  cell.ready = false
  cell.memoryMb = null
  if (own === null) return
  const fresh = state._tag === "Booting" || state._tag === "Created"
  const ref = { id: cell.record.spec.id, process: own, runDirectory: cell.paths.run }
  cell.wire = yield* connect(ref, cell.paths.config, !fresh, {
    guestEnded: (exit, gone) => {
      const started = cell.record.started_at
      const ranMs = started === null ? 0 : Date.parse(exit.at) - Date.parse(started)
      post(cell, { _tag: "GuestEnded", vmm: own, exit, healthy: ranMs >= healthyRunMs, gone })
    },
    ready: (ready) => void cell.mailbox.offer({ _tag: "Ready", ready })
  }).pipe(within(cell))
})
