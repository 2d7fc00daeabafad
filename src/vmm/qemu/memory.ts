/**
 * Live growth of a guest's memory through virtio-mem: the host names a size, the guest's driver takes or gives back
 * blocks of 2 MiB until it is reached or it cannot (a block in use stays). What is there is what counts.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { VmmFault } from "../Vmm.ts"
import { memoryBlockMb, memoryDevice } from "./args.ts"
import { asVmmFault } from "./machine.ts"
import type { Qmp } from "./Qmp.ts"

const mib = 1024 * 1024
/** 256 MiB take 50 ms under software emulation; a guest that has not answered by then keeps what it took. */
const resizeBoundMs = 5_000
/** QEMU tells of a change of size at most once a second (rate limit of MEMORY_DEVICE_SIZE_CHANGE). */
const sizePollMs = 50
const devicePath = `/machine/peripheral/${memoryDevice}`

const Summary = Schema.Struct({
  "base-memory": Schema.Int,
  "plugged-memory": Schema.optionalKey(Schema.Int)
})

const summary = (qmp: Qmp) => qmp.execute("query-memory-size-summary", {}, Summary)

/** Memory that the guest has, in bytes: at boot and taken since. */
export const memoryBytes = (qmp: Qmp) =>
  summary(qmp).pipe(Effect.map((it) => it["base-memory"] + (it["plugged-memory"] ?? 0)))

export const memoryMb = (qmp: Qmp): Effect.Effect<number, VmmFault> =>
  memoryBytes(qmp).pipe(
    Effect.map((bytes) => Math.floor(bytes / mib)),
    Effect.mapError(asVmmFault("memory"))
  )

const fault = (reason: string) => new VmmFault({ operation: "resize", reason, cause: undefined })

/** Bytes of virtio-mem that the guest holds; none where this VM has no such device. */
const grownBytes = (qmp: Qmp) =>
  qmp.execute("qom-get", { path: devicePath, property: "size" }, Schema.Int).pipe(
    Effect.asSome,
    Effect.catchIf(
      (refusal) => refusal.errorClass === "DeviceNotFound",
      () => Effect.succeed(Option.none<number>())
    )
  )

/** One look at the size: again after a while, until it is what was asked for. */
const settled = (qmp: Qmp, wanted: number) =>
  grownBytes(qmp).pipe(
    Effect.flatMap((size) =>
      Option.contains(size, wanted) ? Effect.succeed(true) : Effect.delay(Effect.succeed(false), sizePollMs)
    ),
    Effect.repeat({ until: (done) => done }),
    Effect.timeoutOption(resizeBoundMs)
  )

/**
 * Asks the guest to have this much memory in all and gives what it has after at most 5 s, both in MiB; an odd MiB above
 * the memory at boot is not asked for. Fails below the memory at boot and above the VM's ceiling.
 */
export const resizeMemory = (qmp: Qmp, wantedMb: number): Effect.Effect<number, VmmFault> =>
  Effect.gen(function* () {
    const bootMb = Math.floor((yield* summary(qmp))["base-memory"] / mib)
    if (wantedMb < bootMb)
      return yield* fault(`the guest cannot go below the ${bootMb} MiB that it booted with`)
    const growth = Math.floor((wantedMb - bootMb) / memoryBlockMb) * memoryBlockMb * mib
    const grown = yield* grownBytes(qmp)
    if (Option.isNone(grown)) {
      if (growth === 0) return bootMb
      return yield* fault("this VM was started without room to grow: its ceiling is its memory at boot")
    }
    yield* qmp.order("qom-set", { path: devicePath, property: "requested-size", value: growth })
    yield* settled(qmp, growth)
    return Math.floor((yield* memoryBytes(qmp)) / mib)
  }).pipe(Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("resize")(cause))))
