/**
 * Disks that come and go while the VM stands or runs. A VM that has not booted has its configuration changed; a running one
 * has a PCI device plugged in or pulled, and a guest that is asked to let go says so in an event, or never.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type Disk, VmmFault } from "../Vmm.ts"
import { asVmmFault, says } from "./Client.ts"
import { diskConfig, diskId, disksProblem } from "./config.ts"
import type { Machine } from "./machine.ts"

/** The guest's kernel lets go in 100 ms; one that is paused or hangs does not. */
const removeBoundMs = 10_000

/** What a VMM says of a device that it does not have: with a guest, and without one. */
const absences = ["Failed to find device", "Missing device", "No device with id"]

const fault = (operation: string, reason: string) => new VmmFault({ operation, reason, cause: undefined })

/** Opens the file, locks it and plugs it in; where one of these fails, none was done. */
export const addDisk = ({ client }: Machine, disk: Disk): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const problem = disksProblem([disk])
    if (problem !== null) return yield* fault("add-disk", problem)
    yield* client.order("vm.add-disk", diskConfig(disk))
  }).pipe(
    Effect.uninterruptible,
    Effect.catchTag("ClientFault", (cause) => Effect.fail(asVmmFault("add-disk")(cause)))
  )

/**
 * Takes a disk out; one that is not there is what was asked for. Fails where the guest does not let go within 10 s, as
 * when it is paused. The lock on the file is given back at once, the file is closed when the guest has let go.
 */
export const removeDisk = ({ client, log }: Machine, serial: string): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const id = diskId(serial)
    const gone = yield* log.first(
      ({ event, properties }) => event === "device-removed" && properties?.["id"] === id
    )
    const { state } = yield* client.info
    const there = yield* client.order("vm.remove-device", { id }).pipe(
      Effect.as(true),
      Effect.catchIf(
        (cause) => absences.some((text) => says(cause, text)),
        () => Effect.succeed(false)
      )
    )
    if (!there) return
    // Without a guest there is nobody to ask.
    if (state === "Created" || state === "Shutdown") return
    const answer = yield* gone.pipe(Effect.timeoutOption(removeBoundMs))
    if (Option.isNone(answer))
      return yield* fault(
        "remove-disk",
        `the guest has not let go of disk '${serial}' in ${removeBoundMs} ms`
      )
  }).pipe(
    Effect.scoped,
    Effect.catchTag("ClientFault", (cause) => Effect.fail(asVmmFault("remove-disk")(cause)))
  )

/** The guest's driver is told of the new size (`vm.resize-disk`, since v50); a guest that has not booted reads it then. */
export const resizeDisk = (
  { client }: Machine,
  serial: string,
  bytes: number
): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const { state } = yield* client.info
    if (state === "Created" || state === "Shutdown") return
    yield* client.order("vm.resize-disk", { id: diskId(serial), desired_size: bytes })
  }).pipe(Effect.catchTag("ClientFault", (cause) => Effect.fail(asVmmFault("resize-disk")(cause))))

/** Serials of the disks that the VM has now: each of them can be taken out. */
export const disks = ({ client }: Machine): Effect.Effect<ReadonlyArray<string>, VmmFault> =>
  client.info.pipe(
    Effect.map(({ config }) =>
      (config.disks ?? []).flatMap(({ serial }) => (typeof serial === "string" ? [serial] : []))
    ),
    Effect.mapError(asVmmFault("disks"))
  )
