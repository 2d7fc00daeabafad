/**
 * The records on disk. A record is written whole and durably; it is the last thing of an instance to go, so whatever
 * else is found in an instance's directory without a record is a leftover.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { InstanceId } from "../domain/Ids.ts"
import type { FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import { Paths } from "../host/Paths.ts"
import { Record } from "./Record.ts"

const RecordJson = Schema.fromJsonString(Record)
const encode = Schema.encodeSync(RecordJson)
const decode = Schema.decodeUnknownExit(RecordJson)
/** Records read at once at the start: enough to hide latency, few enough for the file table. */
const loadConcurrency = 32

export interface Loaded {
  readonly records: ReadonlyArray<Record>
  /** Directories whose record cannot be read: left as they are, for an operator. */
  readonly unreadable: ReadonlyArray<{ readonly id: string; readonly reason: string }>
  /** Directories without a record: what a create or a delete left when it was cut off. */
  readonly leftovers: ReadonlyArray<InstanceId>
}

export class Store extends Context.Service<
  Store,
  {
    readonly save: (record: Record) => Effect.Effect<void, FileFault>
    /** Makes room for a new instance's files; its first `save` makes it exist. */
    readonly prepare: (id: InstanceId) => Effect.Effect<void, FileFault>
    /** Everything of an instance, its record last. */
    readonly remove: (id: InstanceId) => Effect.Effect<void, FileFault>
    readonly load: Effect.Effect<Loaded, FileFault>
  }
>()("dataplane/instance/Store") {
  static readonly layer = Layer.effect(
    Store,
    Effect.gen(function* () {
      const files = yield* Files
      const paths = yield* Paths
      yield* files.makeDirectory(paths.instances)

      const save = (record: Record) => files.write(paths.instance(record.spec.id).record, encode(record))

      const prepare = Effect.fnUntraced(function* (id: InstanceId) {
        const { directory, console, vmm, journal, snapshots } = paths.instance(id)
        yield* Effect.forEach([directory, console, vmm, journal, snapshots], files.makeDirectory, {
          discard: true
        })
      })

      const remove = Effect.fnUntraced(function* (id: InstanceId) {
        const { directory, record } = paths.instance(id)
        const names = yield* files.list(directory)
        yield* Effect.forEach(
          names.filter((name) => `${directory}/${name}` !== record),
          (name) => files.remove(`${directory}/${name}`),
          { discard: true }
        )
        yield* files.remove(directory)
        yield* files.sync(paths.instances)
      })

      const loadOne = Effect.fnUntraced(function* (name: string) {
        const id = Schema.decodeUnknownOption(InstanceId)(name)
        if (Option.isNone(id))
          return { _tag: "Unreadable", id: name, reason: "its name is no instance id" } as const
        const text = yield* files.readText(paths.instance(id.value).record)
        if (Option.isNone(text)) return { _tag: "Leftover", id: id.value } as const
        const record = decode(text.value)
        if (Exit.isFailure(record))
          return { _tag: "Unreadable", id: name, reason: "its record does not parse" } as const
        return record.value.spec.id === id.value
          ? ({ _tag: "Record", record: record.value } as const)
          : ({ _tag: "Unreadable", id: name, reason: "its record is another instance's" } as const)
      })

      const load = Effect.gen(function* () {
        const names = yield* files.list(paths.instances)
        const found = yield* Effect.forEach(names, loadOne, { concurrency: loadConcurrency })
        return {
          records: found.flatMap((it) => (it._tag === "Record" ? [it.record] : [])),
          unreadable: found.flatMap((it) =>
            it._tag === "Unreadable" ? [{ id: it.id, reason: it.reason }] : []
          ),
          leftovers: found.flatMap((it) => (it._tag === "Leftover" ? [it.id] : []))
        }
      })

      return Store.of({ save, prepare, remove, load })
    })
  )
}
