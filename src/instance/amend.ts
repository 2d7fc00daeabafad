/**
 * Changes to an instance that is there: its name, labels and restart policy in any state; its memory live where the guest
 * runs, for the next start where it is stopped. The guest takes memory in its own time, beside the mailbox, so that a
 * stop never waits for it. The same goes for a volume that grows under a guest that has it mounted.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { VolumeId } from "../domain/Ids.ts"
import type { PatchInstance } from "../domain/Instance.ts"
import { VmmFault, type VmmSession } from "../vmm/Vmm.ts"
import { type Cell, notRecorded, persist, publish } from "./Cell.ts"
import { denial } from "./denial.ts"
import type { Record } from "./Record.ts"
import { growVolume } from "./perform/volumes.ts"
import type { Waiter } from "./Waiters.ts"

/** A guest that has not taken the memory by then is left with what it took. */
const resizeTimeoutMs = 30_000

const described = (record: Record, changes: PatchInstance): Record => ({
  ...record,
  generation: record.generation + 1,
  spec: {
    ...record.spec,
    name: changes.name ?? record.spec.name,
    labels: changes.labels ?? record.spec.labels,
    restart_policy: changes.restart_policy ?? record.spec.restart_policy
  },
  lifecycle: { ...record.lifecycle, policy: changes.restart_policy ?? record.lifecycle.policy }
})

/** Why the memory can never be what is asked for; null where it can. */
const memoryBeyond = (record: Record, memoryMb: number): string | null =>
  memoryMb > record.spec.memory_max_mb
    ? `memory_mb ${memoryMb} is more than memory_max_mb ${record.spec.memory_max_mb}, which is fixed at create.`
    : null

/** Why the memory cannot be changed now; null where it can. */
const memoryDenial = (record: Record, memoryMb: number): string | null => {
  const { state } = record.lifecycle
  if (state._tag === "Stopped") return null
  if (state._tag !== "Running") return "Memory can be changed while the instance is Running or Stopped."
  return memoryMb < record.spec.memory_mb
    ? `A running guest cannot go below the ${record.spec.memory_mb} MiB that it booted with: stop it first.`
    : null
}

const save = Effect.fnUntraced(function* (cell: Cell, record: Record) {
  const exit = yield* Effect.exit(persist(cell, record))
  if (Exit.isFailure(exit)) return false
  cell.record = record
  yield* publish(cell)
  return true
})

/** Asks the VMM beside the mailbox; the result comes back as mail. */
const resize = (cell: Cell, requestedMb: number, reply: Waiter) => {
  const { wire } = cell
  const silent = new VmmFault({ operation: "resize", reason: "The VMM does not answer.", cause: undefined })
  const session: Effect.Effect<VmmSession, VmmFault> = wire === null ? Effect.fail(silent) : wire.session
  const body = session.pipe(
    Effect.flatMap((control) => control.resizeMemory(requestedMb)),
    Effect.timeout(resizeTimeoutMs),
    Effect.matchEffect({
      onFailure: (fault) =>
        Deferred.succeed(reply, {
          _tag: "Failed",
          verb: "resize",
          failure: {
            step: "memory",
            reason: fault instanceof VmmFault ? fault.reason : "The guest did not take the memory in time."
          }
        }),
      onSuccess: (actualMb) =>
        Effect.sync(() => cell.mailbox.offer({ _tag: "Resized", requestedMb, actualMb, reply }))
    })
  )
  return Effect.forkIn(body, cell.scope)
}

export const amend = Effect.fnUntraced(function* (cell: Cell, changes: PatchInstance, reply: Waiter) {
  const { memory_mb: memoryMb } = changes
  const beyond = memoryMb === undefined ? null : memoryBeyond(cell.record, memoryMb)
  if (beyond !== null) return yield* Deferred.succeed(reply, { _tag: "Impossible", reason: beyond })
  const reason = memoryMb === undefined ? null : memoryDenial(cell.record, memoryMb)
  if (reason !== null) return yield* Deferred.succeed(reply, yield* denial(cell.record.lifecycle, reason))
  const changed = described(cell.record, changes)
  const live = memoryMb !== undefined && changed.lifecycle.state._tag === "Running"
  const next = memoryMb === undefined || live ? changed : { ...changed, memory_mb: memoryMb }
  if (!(yield* save(cell, next))) return yield* Deferred.succeed(reply, { _tag: "Busy", reason: notRecorded })
  if (live) return yield* resize(cell, memoryMb, reply)
  return yield* Deferred.succeed(reply, { _tag: "Reached" })
})

/** The guest took memory, all or some of it: the record says what was asked for, the view what is there. */
export const resized = Effect.fnUntraced(function* (
  cell: Cell,
  result: { readonly requestedMb: number; readonly actualMb: number; readonly reply: Waiter }
) {
  cell.memoryMb = result.actualMb
  const { record } = cell
  const next = { ...record, generation: record.generation + 1, memory_mb: result.requestedMb }
  const saved = yield* save(cell, next)
  yield* Deferred.succeed(result.reply, saved ? { _tag: "Reached" } : { _tag: "Busy", reason: notRecorded })
})

/** Only a guest that runs can grow the file system that it has mounted, and only where it writes to it. */
const growthDenial = (record: Record, volume: VolumeId): string | null => {
  const { state, volumes } = record.lifecycle
  const held = volumes.find((it) => it.volume_id === volume)
  if (held?.phase !== "held") return "The volume is being attached or detached; try again when it is."
  if (held.readonly) return "The guest has the volume read-only, and cannot grow it: detach it first."
  return state._tag === "Running"
    ? null
    : `The volume can be grown while its instance is Running or Stopped; it is ${state._tag}.`
}

/** Grows a volume beside the mailbox. Answers when the guest has grown its file system. */
export const grow = Effect.fnUntraced(function* (cell: Cell, volume: VolumeId, bytes: number, reply: Waiter) {
  const { record, wire } = cell
  const reason = growthDenial(record, volume)
  const held = record.lifecycle.volumes.find((it) => it.volume_id === volume)
  if (reason !== null || held === undefined || wire === null)
    return yield* Deferred.succeed(reply, yield* denial(record.lifecycle, reason ?? "The VMM is not there."))
  const body = growVolume(wire.session, wire.awaitAgent, held, bytes).pipe(
    Effect.matchEffect({
      onFailure: ({ failure }) => Deferred.succeed(reply, { _tag: "Failed", verb: "resize", failure }),
      onSuccess: () => Deferred.succeed(reply, { _tag: "Reached" })
    }),
    Effect.onInterrupt(() =>
      Deferred.succeed(reply, { _tag: "Busy", reason: "The service was interrupted; try again." })
    )
  )
  return yield* Effect.forkIn(body, cell.scope)
})
