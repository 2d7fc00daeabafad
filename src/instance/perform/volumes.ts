/**
 * Volumes that come and go while there is a VMM.
 *
 *   attach:  disk can be opened ──► device ──► mounted in the guest, where it runs
 *   detach:  flushed and out of the guest's tree, where it runs ──► device gone, file closed
 *
 * Each step looks first at what is there, so that the same work can be done again after a crash. Whoever fails says
 * whether anything may have been changed (`untouched`): the rules take back what may have been.
 */
import * as Effect from "effect/Effect"
import type { VolumeId } from "../../domain/Ids.ts"
import type { HeldVolume } from "../../domain/Volume.ts"
import { volumeSerial } from "../../host/volumeSerial.ts"
import { type AgentSession, VolumeBusy } from "../../guest/AgentSession.ts"
import { step } from "../../host/Boundary.ts"
import { Volumes } from "../../volume/Volumes.ts"
import type { Disk, VmmFault, VmmSession } from "../../vmm/Vmm.ts"
import type { VmmRest } from "../Lifecycle.ts"
import type { Record } from "../Record.ts"
import { inStep, sayable, session, type Subject, type WorkFailed, workFailed } from "./subject.ts"

/** A guest under software emulation that is still booting answers so late. */
const agentWaitMs = 120_000
/** Where the volume is to be taken from it anyway. */
const forcedWaitMs = 10_000

const diskOf = (volumes: Volumes["Service"], held: HeldVolume): Disk => ({
  serial: volumeSerial(held.volume_id),
  path: volumes.disk(held.volume_id),
  readonly: held.readonly,
  removable: true
})

/** The disks of all volumes that the instance holds, in the order in which they came. */
export const volumeDisks = Effect.fnUntraced(function* (record: Record) {
  const volumes = yield* Volumes
  return record.lifecycle.volumes.map((held) => diskOf(volumes, held))
})

/** Before a launch: every disk is there and can be opened. */
export const prepareVolumes = Effect.fnUntraced(function* (record: Record) {
  const volumes = yield* Volumes
  yield* Effect.forEach(
    record.lifecycle.volumes,
    (held) =>
      volumes
        .prepare(held.volume_id, held.readonly)
        .pipe(Effect.mapError((fault) => workFailed("volumes", fault.reason, fault.cause))),
    { discard: true }
  )
})

const heldOf = ({ record }: Subject, id: VolumeId): HeldVolume | undefined =>
  record.lifecycle.volumes.find((it) => it.volume_id === id)

/** The guest's agent, once it answers. */
const agentOf = (subject: Subject, boundMs: number): Effect.Effect<AgentSession, WorkFailed> => {
  const silent = workFailed(
    "agent",
    "The guest's agent does not answer; the guest may be booting, or hang.",
    undefined,
    true
  )
  return subject.wire === null
    ? Effect.fail(silent)
    : subject.wire.awaitAgent.pipe(
        Effect.timeoutOrElse({ duration: boundMs, orElse: () => Effect.fail(silent) })
      )
}

const reasonOf = (fault: VmmFault): string => sayable(fault.reason)

/** The device is there, whether it came now or was there before. */
const bring = Effect.fnUntraced(function* (control: VmmSession, disk: Disk) {
  const there = control.disks.pipe(Effect.map((serials) => serials.includes(disk.serial)))
  const present = yield* there.pipe(inStep("device", "The VMM does not say which disks it has."))
  if (present) return
  yield* control.addDisk(disk).pipe(
    Effect.catch((fault) =>
      there.pipe(
        Effect.map((it) => !it),
        Effect.orElseSucceed(() => false),
        Effect.flatMap((absent) =>
          Effect.fail(
            workFailed("device", `The VMM does not take the disk. ${reasonOf(fault)}`, fault, absent)
          )
        )
      )
    ),
    step("volume-add")
  )
})

/** Attach, by where the instance stands: only a guest that runs mounts now. */
export const attachVolume = Effect.fnUntraced(function* (subject: Subject, id: VolumeId, rest: VmmRest) {
  const volumes = yield* Volumes
  const held = heldOf(subject, id)
  if (held === undefined) return
  const control = yield* session(subject).pipe(inStep("attach", "The VMM does not answer."))
  yield* volumes
    .prepare(id, held.readonly)
    .pipe(Effect.mapError((fault) => workFailed("volume", fault.reason, fault.cause)))
  const disk = diskOf(volumes, held)
  yield* bring(control, disk)
  if (rest !== "Running") return
  const agent = yield* agentOf(subject, agentWaitMs).pipe(Effect.mapError(touched))
  yield* agent.mount({ serial: disk.serial, path: held.mount_path, readonly: held.readonly }).pipe(
    Effect.mapError((fault) =>
      workFailed("mount", `The guest could not mount it: ${sayable(fault.reason)}`, fault)
    ),
    step("volume-mount")
  )
})

/** The device is there by now. */
const touched = ({ failure, cause }: WorkFailed): WorkFailed =>
  workFailed(failure.step, failure.reason, cause)

/** Refused by the guest, it is as it was. */
const refusal = (held: HeldVolume, fault: { readonly reason: string }): WorkFailed => {
  if (!(fault instanceof VolumeBusy))
    return workFailed("unmount", `The guest could not unmount it: ${sayable(fault.reason)}`, fault, true)
  const reason = `${held.mount_path} is in use in the guest: end the processes that hold it, or detach with force=true.`
  return workFailed("unmount", reason, fault, true, fault.holders)
}

const leave = (subject: Subject, held: HeldVolume, force: boolean) => {
  const { mount_path: path } = held
  if (!force)
    return agentOf(subject, agentWaitMs).pipe(
      Effect.flatMap((agent) => agent.unmount(path, { lazy: false })),
      Effect.mapError((fault) => ("failure" in fault ? fault : refusal(held, fault)))
    )
  // Whatever the guest says to it: what can be flushed is, and the device goes.
  return agentOf(subject, forcedWaitMs).pipe(
    Effect.flatMap((agent) =>
      Effect.andThen(Effect.ignore(agent.sync), Effect.ignore(agent.unmount(path, { lazy: true })))
    ),
    Effect.ignore
  )
}

/** Detach, by where the instance stands: only a guest that runs has something to unmount. */
export const detachVolume = Effect.fnUntraced(function* (
  subject: Subject,
  id: VolumeId,
  rest: VmmRest,
  force: boolean
) {
  const held = heldOf(subject, id)
  if (held === undefined) return
  const control = yield* session(subject).pipe(
    Effect.mapError((fault) => workFailed("attach", "The VMM does not answer.", fault, true))
  )
  const serial = volumeSerial(id)
  const serials = yield* control.disks.pipe(
    Effect.mapError((fault) => workFailed("device", "The VMM does not say which disks it has.", fault, true))
  )
  // Without a device there is nothing that could be mounted any more.
  if (serials.includes(serial)) {
    if (rest === "Running") yield* leave(subject, held, force).pipe(step("volume-unmount"))
    yield* control
      .removeDisk(serial)
      .pipe(inStep("device", "The guest does not let go of the disk."), step("volume-remove"))
  }
  if (rest !== "Shutdown") return
  // A machine that was reset to let the disk go, by a service that was then killed, stands before its first instruction.
  const status = yield* control.status.pipe(inStep("device", "The VMM does not answer."))
  if (status._tag === "Prelaunch")
    yield* control.powerOff.pipe(inStep("device", "The guest could not be switched off."))
})

/** Online growth: the file is long enough; the VMM is told, then the guest. Of a volume that the guest has mounted. */
export const growVolume = Effect.fnUntraced(function* (
  session: Effect.Effect<VmmSession, VmmFault>,
  agent: Effect.Effect<AgentSession>,
  held: HeldVolume,
  bytes: number
) {
  const control = yield* session.pipe(inStep("attach", "The VMM does not answer."))
  yield* control
    .resizeDisk(volumeSerial(held.volume_id), bytes)
    .pipe(inStep("device", "The VMM does not take the disk's new size."), step("volume-resize"))
  const guest = yield* agent.pipe(
    Effect.timeoutOrElse({
      duration: agentWaitMs,
      orElse: () => Effect.fail(workFailed("agent", "The guest's agent does not answer.", undefined))
    })
  )
  yield* guest.grow(held.mount_path, bytes).pipe(
    Effect.mapError((fault) =>
      workFailed("grow", `The guest could not grow its file system: ${sayable(fault.reason)}`, fault)
    ),
    step("volume-grow-guest")
  )
})
