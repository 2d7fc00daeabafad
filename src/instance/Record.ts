/**
 * What is durable of an instance: `instances/<id>/instance.json`, replaced whole with every change. The record has one
 * writer, its actor. `evolve` is the one place where a change of state changes what is remembered about it.
 */
import * as Schema from "effect/Schema"
import { Generation, Timestamp } from "../domain/Ids.ts"
import { InstanceExit, InstanceSpec } from "../domain/Instance.ts"
import { Lease } from "../domain/Network.ts"
import type { VolumeMount } from "../domain/Volume.ts"
import { Lifecycle, type State } from "./Lifecycle.ts"

export const Record = Schema.Struct({
  version: Schema.Literal(1),
  generation: Generation,
  spec: InstanceSpec,
  /** Held from create to delete; null where the instance has no network. */
  lease: Schema.NullOr(Lease),
  lifecycle: Lifecycle,
  vmm_version: Schema.String,
  /** What was asked for last; `spec.memory_mb` is what the guest booted with. */
  memory_mb: Schema.Int,
  exit: Schema.NullOr(InstanceExit),
  restarts: Schema.Int,
  created_at: Timestamp,
  started_at: Schema.NullOr(Timestamp),
  stopped_at: Schema.NullOr(Timestamp),
  standby_at: Schema.NullOr(Timestamp)
})
export type Record = typeof Record.Type

/** The record of an instance that is about to be created. */
export const begin = (
  spec: InstanceSpec,
  lease: Lease | null,
  volumes: ReadonlyArray<VolumeMount>,
  boot: boolean,
  vmmVersion: string,
  at: Timestamp
): Record => ({
  version: 1,
  generation: 1,
  spec,
  lease,
  lifecycle: {
    epoch: 1,
    policy: spec.restart_policy,
    attempt: 0,
    snapshots: 0,
    volumes: volumes.map((volume) => ({ ...volume, phase: "held" })),
    state: { _tag: "Launching", verb: "create", boot }
  },
  vmm_version: vmmVersion,
  memory_mb: spec.memory_mb,
  exit: null,
  restarts: 0,
  created_at: at,
  started_at: null,
  stopped_at: null,
  standby_at: null
})

/** How the guest ended, where leaving this state says so. */
const exitOf = (left: State): InstanceExit | null => {
  switch (left._tag) {
    case "PoweringOff":
      return left.exit
    case "Ending":
      return "exit" in left.destination ? left.destination.exit : null
    default:
      return null
  }
}

/** The record after its lifecycle moved on at the given time. */
export const evolve = (record: Record, next: Lifecycle, at: Timestamp): Record => {
  const left = record.lifecycle.state
  const { state } = next
  const moved: Record = { ...record, generation: record.generation + 1, lifecycle: next }
  switch (state._tag) {
    case "Running":
      return {
        ...moved,
        started_at: left._tag === "Booting" ? at : record.started_at,
        exit: left._tag === "Booting" && left.verb !== "restart" ? null : record.exit,
        standby_at: null
      }
    case "Paused":
      return { ...moved, standby_at: null }
    case "Stopped":
    case "Waiting":
    case "Shutdown":
      // Off it was already, and a volume came or went.
      if (left._tag === state._tag || left._tag === "Attaching" || left._tag === "Detaching") return moved
      return { ...moved, stopped_at: at, standby_at: null, exit: exitOf(left) ?? record.exit }
    case "Standby":
      return { ...moved, standby_at: record.standby_at ?? at }
    case "Launching":
      // The guest boots with what was asked for last; what it can still grow to stays.
      return {
        ...moved,
        spec: { ...record.spec, memory_mb: record.memory_mb },
        restarts: state.verb === "restart" ? record.restarts + 1 : record.restarts
      }
    default:
      return moved
  }
}

/**
 * Whether the work of `next` must not begin, and its end must not be told, before the record of it is durable. An Ending
 * that is tried again is recorded already.
 */
export const mustBeDurable = (before: State, next: State): boolean => {
  switch (next._tag) {
    case "Reviving":
    case "Standby":
    case "Snapshotting":
      return true
    case "Attaching":
      // A device that no record knows of is never there. One that waited for the guest is recorded already.
      return (
        before._tag === "Created" ||
        before._tag === "Running" ||
        before._tag === "Paused" ||
        before._tag === "Shutdown"
      )
    case "Stopped":
      // What was attached, or detached, for the next boot.
      return before._tag === "Stopped"
    case "Ending":
      return next.destination._tag === "Standby" && before._tag !== "Ending"
    default:
      return false
  }
}
