/**
 * What Cloud Hypervisor answers, as far as the driver reads it: decoded, never trusted. Releases add fields and write
 * absent ones as null or not at all, so both are taken.
 */
import * as Schema from "effect/Schema"

const absent = <S extends Schema.Top>(schema: S) => Schema.optionalKey(Schema.NullOr(schema))

export const Ping = Schema.Struct({ build_version: Schema.String, pid: Schema.Int })

/** A 64-bit counter: a number where a double holds it, else a bigint (exactJson.ts); always a bigint here. */
const Counter = Schema.Union([Schema.Int, Schema.BigInt])
export const Counters = Schema.Record(Schema.String, Schema.Record(Schema.String, Counter))

const Memory = Schema.Struct({
  size: Schema.Int,
  hotplug_method: absent(Schema.String),
  hotplug_size: absent(Schema.Int)
})

const Disk = Schema.Struct({
  id: absent(Schema.String),
  path: absent(Schema.String),
  readonly: absent(Schema.Boolean),
  serial: absent(Schema.String)
})

const Net = Schema.Struct({ tap: absent(Schema.String), mac: absent(Schema.String) })

/** The configuration that a VMM holds, and that a snapshot's `config.json` is. */
export const Machine = Schema.Struct({
  cpus: Schema.Struct({ boot_vcpus: Schema.Int, max_vcpus: Schema.Int }),
  memory: Memory,
  payload: absent(Schema.Struct({ kernel: absent(Schema.String), initramfs: absent(Schema.String) })),
  disks: absent(Schema.Array(Disk)),
  net: absent(Schema.Array(Net)),
  vsock: absent(Schema.Struct({ socket: Schema.String })),
  serial: Schema.Struct({ mode: Schema.String }),
  landlock_enable: absent(Schema.Boolean)
})
export type Machine = typeof Machine.Type

/** `Shutdown` is in the API's enumeration and is not told by any release: a guest that is off shows as Created. */
export const VmInfo = Schema.Struct({ config: Machine, state: Schema.String, memory_actual_size: Schema.Int })
export type VmInfo = typeof VmInfo.Type

/** An error: sentences, the outermost first. Its last one can carry a stack trace behind its first line. */
export const Refusal = Schema.NonEmptyArray(Schema.String)

/** What says that there are too many connections, and nothing else. */
export const Overload = Schema.Struct({ error: Schema.String })

/** One record of the event monitor. */
export const EventRecord = Schema.Struct({
  source: Schema.String,
  event: Schema.String,
  properties: Schema.optionalKey(Schema.NullOr(Schema.Record(Schema.String, Schema.String)))
})
export type EventRecord = typeof EventRecord.Type
