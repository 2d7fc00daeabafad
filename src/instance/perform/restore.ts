/**
 * Out of standby: first the proof that all that the snapshot needs is there and the same, with nothing touched; then the
 * TAP and a VMM with the guest standing in it, whose memory was proven to be the one that was saved while it was loaded;
 * then, once the record owns that VMM, the guest goes on. Where one of these fails, the snapshot stays as it is.
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { RestoreMode } from "../../domain/Instance.ts"
import type { SnapshotManifest } from "../../domain/Snapshot.ts"
import { step } from "../../host/Boundary.ts"
import { Files } from "../../host/Files.ts"
import { type RestoreWish, Vmm } from "../../vmm/Vmm.ts"
import { checkStep, type SnapshotRef } from "../Lifecycle.ts"
import { attachTap, pinTap } from "./launch.ts"
import { dependencies, forgetSnapshots, readManifest, snapshotDirectory } from "./snapshot.ts"
import { inStep, resumeGuest, session, type Subject, workFailed } from "./subject.ts"

type Dependencies = Effect.Success<ReturnType<typeof dependencies>>

const same = (left: unknown, right: unknown): boolean => JSON.stringify(left) === JSON.stringify(right)

/** The first thing that differs between what the snapshot needs and what is there, as a sentence; null where all agree. */
export const mismatch = (manifest: SnapshotManifest, now: Omit<Dependencies, "config">): string | null => {
  if (manifest.vmm.kind !== now.vmm.kind)
    return `The snapshot was taken with ${manifest.vmm.kind}, this service runs ${now.vmm.kind}.`
  if (!now.versions.includes(manifest.vmm.version))
    return `The snapshot needs ${manifest.vmm.kind} ${manifest.vmm.version}; ${now.versions.join(", ")} is installed.`
  if (manifest.vmm.fingerprint !== now.vmm.fingerprint)
    return "The snapshot was taken with another machine layout, CPU or accelerator than this host gives."
  if (manifest.image_digest !== now.image_digest || !same(manifest.layers, now.layers))
    return "The image's layers are not the ones that the guest was running on."
  if (manifest.kernel_sha256 !== now.kernel_sha256) return "The guest kernel was replaced since the snapshot."
  if (manifest.initrd_sha256 !== now.initrd_sha256) return "The guest initrd was replaced since the snapshot."
  if (!same(manifest.lease, now.lease)) return "The instance's address is not the one that the guest has."
  if (!same(manifest.volumes, now.volumes))
    return "The instance does not hold the volumes that the guest has."
  const changed = manifest.disks.find((disk) => !now.disks.some((it) => same(it, disk)))
  if (changed === undefined) return null
  const volume = manifest.volumes.find((it) => it.serial === changed.serial)
  return volume === undefined
    ? `The disk '${changed.serial}' was changed or is gone since the snapshot.`
    : `The volume '${volume.volume_id}' was changed or is gone since the snapshot.`
}

/** All there and as long as they were; their content is the driver's to prove, while it reads them anyway. */
const areWhole = Effect.fnUntraced(function* (directory: string, manifest: SnapshotManifest) {
  const files = yield* Files
  for (const file of manifest.files) {
    const stat = yield* files.stat(path.join(directory, file.name))
    if (Option.isNone(stat) || stat.value.size !== file.bytes) return false
  }
  return true
})

/** Whether the snapshot can be restored here and now; reads only. Fails with the reason where it cannot. */
export const check = Effect.fnUntraced(function* (
  subject: Subject,
  ref: SnapshotRef,
  mode: RestoreMode = "auto"
) {
  const vmm = yield* Vmm
  const unreadable = (cause: unknown) => workFailed(checkStep, "The snapshot cannot be read.", cause, true)
  const manifest = yield* readManifest(subject.paths, ref.number).pipe(Effect.mapError(unreadable))
  if (Option.isNone(manifest))
    return yield* workFailed(checkStep, "The snapshot is not complete.", undefined, true)
  const now = yield* dependencies(subject).pipe(
    Effect.mapError((cause) =>
      workFailed(checkStep, "What the snapshot needs is not all there.", cause, true)
    )
  )
  const wish: RestoreWish = { version: manifest.value.vmm.version, mode }
  const reason = mismatch(manifest.value, now) ?? vmm.restoreObstacle(wish)
  if (reason !== null) return yield* workFailed(checkStep, reason, undefined, true)
  const whole = yield* areWhole(snapshotDirectory(subject.paths, ref.number), manifest.value).pipe(
    Effect.mapError(unreadable)
  )
  if (!whole) return yield* workFailed(checkStep, "The snapshot's files are damaged.", undefined, true)
  return { config: now.config, files: manifest.value.files, wish }
})

/** Load: ends with the identity of a VMM in which the guest stands paused where it was. */
export const load = Effect.fnUntraced(function* (subject: Subject, ref: SnapshotRef, mode: RestoreMode) {
  const vmm = yield* Vmm
  const files = yield* Files
  const { config, files: written, wish } = yield* check(subject, ref, mode).pipe(step(checkStep))
  yield* attachTap(subject.record)
  yield* files
    .makeDirectory(config.runDirectory)
    .pipe(inStep("files", "The instance's run directory could not be made."))
  const spawned = vmm
    .spawnRestoring(config, snapshotDirectory(subject.paths, ref.number), written, wish)
    .pipe(inStep("spawn", "The VMM could not load the snapshot."), step("spawn"))
  const [identity] = yield* Effect.all([spawned, pinTap(subject.record)], { concurrency: 2 })
  return identity
})

/**
 * Revive: the guest goes on, or stays paused. Its clock and entropy are set by its agent before it counts as ready. The
 * record says since before this work that the guest may have run on: however it ends, its snapshot is of no use to anyone.
 */
export const revive = (subject: Subject, resume: boolean) =>
  session(subject).pipe(
    inStep("attach", "The VMM does not answer."),
    Effect.flatMap((control) =>
      resume
        ? resumeGuest(control).pipe(inStep("resume", "The guest could not be resumed."), step("resume"))
        : Effect.void
    ),
    Effect.ensuring(forgetSnapshots(subject.paths).pipe(Effect.ignore, step("snapshots-remove")))
  )
