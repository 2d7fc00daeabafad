/**
 * What a durable change of an instance means to those who watch from outside: lines of the structured log, counters, and
 * the instance's own journal. Everything is read off the two records; nothing here decides anything.
 */
import * as Effect from "effect/Effect"
import { timestamp } from "../domain/Ids.ts"
import { countRestart, countVmmExit, type VmmExitReason } from "../telemetry/counters.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { Journal } from "./Journal.ts"
import type { State } from "./Lifecycle.ts"
import { vmmOf } from "./Lifecycle.ts"
import { transitionOf } from "./decide/step.ts"
import type { Record } from "./Record.ts"
import { tellVolumes } from "./tellVolumes.ts"

/** Why the VMM that an Ending proved dead had to end. */
const vmmExitReason = (left: State, after: Record): VmmExitReason => {
  if (left._tag === "Ending") {
    const { destination } = left
    if (destination._tag === "Standby") return "standby"
    if (destination._tag === "Gone") return destination.failure === null ? "deleted" : "boot-failed"
    if (destination._tag === "BackToStandby") return "boot-failed"
    return destination.exit.reason
  }
  return after.exit?.reason ?? "vmm-died"
}

const tellVmm = Effect.fnUntraced(function* (before: Record, after: Record, wiredPid: number | null) {
  const { spec } = after
  const fields = { instance_id: spec.id, generation: after.generation }
  const left = before.lifecycle.state
  const now = vmmOf(after.lifecycle.state)
  if (now !== null && (left._tag === "Launching" || left._tag === "Loading")) {
    const vmm = { vmm: spec.vmm, version: after.vmm_version, pid: now.pid }
    yield* logEvent("vmm.spawned", `${spec.id}: ${spec.vmm} ${now.pid}`, { ...fields, ...vmm })
  }
  if (left._tag !== "Ending" || after.lifecycle.state._tag === "Ending" || wiredPid === null) return
  const reason = vmmExitReason(left, after)
  yield* countVmmExit(reason)
  yield* logEvent("vmm.exited", `${spec.id}: ${spec.vmm} ${wiredPid} is gone`, {
    ...fields,
    reason,
    pid: wiredPid
  })
})

const tellRestart = Effect.fnUntraced(function* (before: Record, after: Record) {
  if (after.restarts === before.restarts) return
  const { spec, restarts, lifecycle } = after
  yield* countRestart(spec.restart_policy)
  yield* logEvent("instance.restart", `${spec.id}: restart ${restarts} by policy ${spec.restart_policy}`, {
    instance_id: spec.id,
    generation: after.generation,
    restarts,
    attempt: lifecycle.attempt,
    reason: after.exit?.reason ?? "unknown"
  })
})

const tellSnapshot = Effect.fnUntraced(function* (before: Record, after: Record) {
  const { state } = after.lifecycle
  if (before.lifecycle.state._tag !== "Snapshotting") return
  if (state._tag !== "Ending" || state.destination._tag !== "Standby") return
  const { number, paused } = state.destination.snapshot
  yield* logEvent("snapshot.written", `${after.spec.id}: snapshot ${number} is complete`, {
    instance_id: after.spec.id,
    generation: after.generation,
    snapshot: number,
    paused,
    memory_mb: after.memory_mb
  })
})

/** Tells one change. `wiredPid` is the VMM that the instance was wired to before it. */
export const tell = Effect.fnUntraced(function* (
  before: Record,
  after: Record,
  at: string,
  wiredPid: number | null
) {
  const journal = yield* Journal
  const { spec, generation, exit, lifecycle } = after
  const [from, to] = [before.lifecycle.state._tag, lifecycle.state._tag]
  yield* tellVolumes(before, after, at)
  if (from === to) return
  const verb = transitionOf(lifecycle.state)
  const fields = { instance_id: spec.id, generation, from, to, ...(verb === null ? {} : { verb }) }
  yield* logEvent("instance.transition", `${spec.id}: ${from} to ${to}`, fields)
  const entry = { time: timestamp(Date.parse(at)), generation, from, to }
  yield* journal.tell(spec.id, { ...entry, event: "instance.transition", message: `${from} to ${to}` })
  yield* tellVmm(before, after, wiredPid)
  yield* tellRestart(before, after)
  yield* tellSnapshot(before, after)
  if (exit === null || exit === before.exit) return
  const reason = exit.message ?? exit.reason
  const result = exit.code ?? exit.signal ?? null
  yield* logEvent("instance.exit", `${spec.id}: ${exit.reason}`, { ...fields, reason, exit: result })
  yield* journal.tell(spec.id, { ...entry, event: "instance.exit", message: exit.reason, reason })
})
