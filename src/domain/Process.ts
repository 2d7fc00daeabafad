/**
 * The identity of a process. A pid alone is not one: pids are used again. A process is signalled only when pid, start
 * time (proc(5), field 22 of /proc/PID/stat, in clock ticks since boot) and boot id agree (contract §6.3).
 */
import * as Schema from "effect/Schema"

export const ProcessIdentity = Schema.Struct({
  pid: Schema.Int.check(Schema.isGreaterThanOrEqualTo(2)),
  start_time: Schema.String,
  boot_id: Schema.String
})
export type ProcessIdentity = typeof ProcessIdentity.Type

/** One process, and not another that got its number. */
export const isSameProcess = (left: ProcessIdentity, right: ProcessIdentity): boolean =>
  left.pid === right.pid && left.start_time === right.start_time && left.boot_id === right.boot_id

/** How a process ended; both are null when nobody was there to wait for it. */
export const ProcessExit = Schema.Struct({
  code: Schema.NullOr(Schema.Int),
  signal: Schema.NullOr(Schema.String)
})
export type ProcessExit = typeof ProcessExit.Type
