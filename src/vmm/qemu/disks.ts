/**
 * Disks that come and go while the VM stands or runs: a block node over the file, and a virtio-blk device in a root port
 * of its own. Which ports are taken is asked of QEMU each time: this service may have been another when a disk came.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Disk } from "../Vmm.ts"
import { VmmFault } from "../Vmm.ts"
import { diskDevice, diskNode } from "./args.ts"
import { diskId, hotPorts, nodeName, portId, type Ports, serialPattern } from "./layout.ts"
import { asVmmFault, type OwnResets, powerOff, rawStatus, resetToPrelaunch, statusOf } from "./machine.ts"
import type { Qmp, QmpFault } from "./Qmp.ts"

/** The guest's kernel lets go in 100 ms; one that is paused or hangs does not. */
const removeBoundMs = 10_000

const Properties = Schema.Array(Schema.Struct({ name: Schema.String, type: Schema.String }))

const fault = (operation: string, reason: string) => new VmmFault({ operation, reason, cause: undefined })

/** The id of the device in a port; none where the port is free. A port's bus has the port's own name. */
const occupant = (qmp: Qmp, port: number) =>
  Effect.gen(function* () {
    const bus = `/machine/peripheral/${portId(port)}/${portId(port)}`
    const properties = yield* qmp.execute("qom-list", { path: bus }, Properties)
    const child = properties.find((it) => it.name.startsWith("child["))
    if (child === undefined) return Option.none<string>()
    const path = yield* qmp.execute("qom-get", { path: bus, property: child.name }, Schema.String)
    return Option.fromUndefinedOr(path.split("/").at(-1))
  })

/** Port numbers of the disks that are in root ports now, by serial. */
export const occupiedPorts = (qmp: Qmp): Effect.Effect<Ports, QmpFault> =>
  Effect.forEach(
    Array.from({ length: hotPorts }, (_, port) => port),
    (port) =>
      occupant(qmp, port).pipe(
        Effect.map((id) =>
          Option.match(id, {
            onNone: () => [],
            onSome: (name) => [[name.slice(diskId("").length), port] as const]
          })
        )
      ),
    { concurrency: hotPorts }
  ).pipe(Effect.map((found) => new Map(found.flat())))

/** Opens the file and puts the disk into the first free port. Where the second step fails, the first is undone. */
export const addDisk = (qmp: Qmp, disk: Disk): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    if (!serialPattern.test(disk.serial))
      return yield* fault("add-disk", `the serial '${disk.serial}' cannot name a disk`)
    const taken = yield* occupiedPorts(qmp)
    const used = new Set(taken.values())
    const free = Array.from({ length: hotPorts }, (_, port) => port).find((port) => !used.has(port))
    if (free === undefined)
      return yield* fault("add-disk", `all ${hotPorts} ports for removable disks are taken`)
    yield* qmp.order("blockdev-add", diskNode(disk))
    yield* qmp
      .order("device_add", { ...diskDevice(disk), bus: portId(free), addr: "00.0" })
      .pipe(
        Effect.onError(() => Effect.ignore(qmp.order("blockdev-del", { "node-name": nodeName(disk.serial) })))
      )
  }).pipe(
    Effect.uninterruptible,
    Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("add-disk")(cause)))
  )

type Unplugged = "gone" | "refused"

/**
 * Asks the guest to let go and waits for its answer. A device that is gone already is what was asked for. Where no guest
 * runs, nobody answers before the machine is reset: `push` does that, and takes place once the device is asked for.
 */
const unplug = Effect.fnUntraced(function* (
  qmp: Qmp,
  serial: string,
  push: Effect.Effect<void, QmpFault | VmmFault>
) {
  const device = diskId(serial)
  const answered = yield* qmp.first<Unplugged>((event) => {
    // One event names the virtio device by path only; the one with the id is of the PCI device, when all is released.
    if (event.data["device"] !== device) return Option.none()
    if (event.name === "DEVICE_DELETED") return Option.some("gone")
    return event.name === "DEVICE_UNPLUG_GUEST_ERROR" ? Option.some("refused") : Option.none()
  })
  const asked = yield* qmp.order("device_del", { id: device }).pipe(
    Effect.as("asked"),
    Effect.catchIf(
      (refusal) => refusal.errorClass === "DeviceNotFound",
      () => Effect.succeed("absent")
    ),
    // An earlier try was given up, and the guest still has the request.
    Effect.catchIf(
      (refusal) => refusal.reason.includes("already in the process of unplug"),
      () => Effect.succeed("asked")
    )
  )
  if (asked === "absent") return Option.some<Unplugged>("gone")
  yield* push
  return yield* answered.pipe(Effect.timeoutOption(removeBoundMs))
}, Effect.scoped)

/** QEMU (hw/acpi/pcihp.c) does at a reset what no guest was there to do: the machine is off before and after. */
const pushWhereOff = (qmp: Qmp, own: OwnResets) =>
  Effect.gen(function* () {
    const status = statusOf(yield* rawStatus(qmp))._tag
    if (status !== "Prelaunch" && status !== "Off" && status !== "Panicked") return
    own.muted = true
    yield* resetToPrelaunch(qmp, "remove-disk").pipe(
      Effect.ensuring(
        Effect.sync(() => {
          own.muted = false
        })
      )
    )
    if (status !== "Prelaunch") yield* powerOff(qmp, own)
  })

/**
 * Takes a disk out and closes its file. Fails where the guest does not let go within 10 s, as when it is paused, where
 * the disk has no port of its own, and where there is no such disk.
 */
export const removeDisk = (qmp: Qmp, own: OwnResets, serial: string): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const answer = yield* unplug(qmp, serial, pushWhereOff(qmp, own))
    if (Option.isNone(answer))
      return yield* fault(
        "remove-disk",
        `the guest has not let go of disk '${serial}' in ${removeBoundMs} ms`
      )
    if (answer.value === "refused") return yield* fault("remove-disk", `the guest keeps disk '${serial}'`)
    yield* qmp.order("blockdev-del", { "node-name": nodeName(serial) })
  }).pipe(Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("remove-disk")(cause))))

/** The block node takes the new size, and the guest's driver is told of it (virtio, 5.2.5: configuration change). */
export const resizeDisk = (qmp: Qmp, serial: string, bytes: number): Effect.Effect<void, VmmFault> =>
  qmp
    .order("block_resize", { "node-name": nodeName(serial), size: bytes })
    .pipe(Effect.mapError(asVmmFault("resize-disk")))
