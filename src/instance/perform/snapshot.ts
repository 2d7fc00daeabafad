/**
 * Into standby: the guest paused, its memory and devices on disk, the manifest last, then the final name.
 *
 *   pause ──► <n>.tmp/ ──► memory, devices, with their checksums ──► manifest ──► fsync ──► rename <n>.tmp → <n>
 *
 * The VMM is not touched here beyond the pause: it dies only after the record says that the snapshot is complete. An
 * earlier snapshot stays until then.
 */
import * as path from "node:path"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { timestamp } from "../../domain/Ids.ts"
import { volumeSerial } from "../../host/volumeSerial.ts"
import { type SnapshotDisk, type SnapshotFile, SnapshotManifest } from "../../domain/Snapshot.ts"
import { step } from "../../host/Boundary.ts"
import { Files } from "../../host/Files.ts"
import type { InstancePaths } from "../../host/Paths.ts"
import { BootFiles } from "../../guest/BootFiles.ts"
import { Vmm } from "../../vmm/Vmm.ts"
import type { SnapshotRef } from "../Lifecycle.ts"
import { bootImage, vmConfig } from "./launch.ts"
import type { Record } from "../Record.ts"
import { volumeDisks } from "./volumes.ts"
import { awaken, inStep, pauseGuest, resumeGuest, session, type Subject } from "./subject.ts"

export const manifestName = "manifest.json"
const ManifestJson = Schema.fromJsonString(SnapshotManifest)
const encodeManifest = Schema.encodeSync(ManifestJson)
const decodeManifest = Schema.decodeUnknownOption(ManifestJson)
/** Resuming a guest whose standby failed: the one thing that must not be given up at the first error. */
const resumeAttempts = 5
const resumeRetryMs = 200

export const snapshotDirectory = (paths: InstancePaths, number: number) =>
  path.join(paths.snapshots, `${number}`)
const temporaryDirectory = (paths: InstancePaths, number: number) => `${snapshotDirectory(paths, number)}.tmp`

/** Removes a snapshot, its manifest first: one that is cut off in the middle leaves nothing that looks complete. */
const dropSnapshot = Effect.fnUntraced(function* (directory: string) {
  const files = yield* Files
  yield* files.remove(path.join(directory, manifestName))
  yield* files.remove(directory)
})

/** Does it with every snapshot, whole or half, but the kept one. */
const eachSnapshot = <E, R>(
  paths: InstancePaths,
  kept: number | null,
  drop: (directory: string) => Effect.Effect<void, E, R>
) =>
  Effect.gen(function* () {
    const files = yield* Files
    const names = (yield* files.list(paths.snapshots)).filter((name) => name !== `${kept}`)
    yield* Effect.forEach(names, (name) => drop(path.join(paths.snapshots, name)), { discard: true })
  })

/** Removes every snapshot, whole or half, but the kept one. */
export const dropSnapshots = (paths: InstancePaths, kept: number | null) =>
  eachSnapshot(paths, kept, dropSnapshot)

/**
 * No snapshot is complete any more when it ends; their data goes in the background, since a guest's memory takes the
 * file system a while to give back. What is cut off there is removed at the next start of the service.
 */
export const forgetSnapshots = Effect.fnUntraced(function* (paths: InstancePaths) {
  const files = yield* Files
  yield* eachSnapshot(paths, null, (directory) => files.remove(path.join(directory, manifestName)))
  yield* Effect.forkScoped(Effect.ignore(dropSnapshots(paths, null)))
})

/** The manifest of a complete snapshot; none where there is no complete one of that number. */
export const readManifest = Effect.fnUntraced(function* (paths: InstancePaths, number: number) {
  const files = yield* Files
  const text = yield* files.readText(path.join(snapshotDirectory(paths, number), manifestName))
  return Option.flatMap(text, decodeManifest)
})

/**
 * Size and time of last write of the disks that the guest writes to, and of all its volumes: one that it only reads must
 * be what it was as well.
 */
export const namedDisks = Effect.fnUntraced(function* (record: Record, paths: InstancePaths) {
  const files = yield* Files
  const volumes = yield* volumeDisks(record)
  const disks: ReadonlyArray<readonly [string, string]> = [
    ["config", paths.config],
    ["overlay", paths.overlay],
    ...volumes.map((disk) => [disk.serial, disk.path] as const)
  ]
  return yield* Effect.forEach(disks, ([serial, file]) =>
    files.stat(file).pipe(
      Effect.map((stat): SnapshotDisk => ({
        serial,
        bytes: Option.match(stat, { onNone: () => 0, onSome: (it) => it.size }),
        modified_ns: Option.match(stat, { onNone: () => "0", onSome: (it) => it.modifiedNs.toString() })
      }))
    )
  )
})

/** What a snapshot of this instance taken, or restored, now depends on. */
export const dependencies = Effect.fnUntraced(function* (subject: Subject) {
  const vmm = yield* Vmm
  const { checksums } = yield* BootFiles
  const image = yield* bootImage(subject.record)
  const config = yield* vmConfig(subject, image)
  return {
    config,
    versions: vmm.versions,
    vmm: { kind: vmm.kind, version: vmm.version, fingerprint: vmm.fingerprint(config) },
    image_digest: image.digest,
    layers: image.layers.map((layer) => layer.diffId),
    ...(yield* checksums),
    lease: subject.record.lease,
    disks: yield* namedDisks(subject.record, subject.paths),
    volumes: subject.record.lifecycle.volumes.map(({ volume_id, readonly }) => ({
      volume_id,
      serial: volumeSerial(volume_id),
      readonly
    }))
  }
})

const writeManifest = Effect.fnUntraced(function* (
  subject: Subject,
  snapshot: SnapshotRef,
  directory: string,
  written: ReadonlyArray<SnapshotFile>
) {
  const files = yield* Files
  const { config: _config, versions: _versions, ...needs } = yield* dependencies(subject)
  const manifest: SnapshotManifest = {
    version: 1,
    number: snapshot.number,
    created_at: timestamp(yield* Clock.currentTimeMillis),
    paused: snapshot.paused,
    memory_mb: subject.record.memory_mb,
    ...needs,
    // The process that holds the guest may be of another version than the one that is installed by now.
    vmm: { ...needs.vmm, version: subject.record.vmm_version },
    files: written
  }
  yield* files.write(path.join(directory, manifestName), encodeManifest(manifest))
})

/** Snapshot: ends when a complete snapshot of the paused guest has its final name. */
export const snapshot = Effect.fnUntraced(function* (subject: Subject, ref: SnapshotRef) {
  const files = yield* Files
  const { paths } = subject
  const control = yield* session(subject).pipe(inStep("attach", "The VMM does not answer."))
  // Also where it is paused by the record: a resume that failed for the service may have moved the guest all the same.
  yield* pauseGuest(control).pipe(inStep("pause", "The guest could not be paused."), step("pause"))
  const directory = temporaryDirectory(paths, ref.number)
  yield* files.remove(directory).pipe(inStep("snapshot", "The snapshot's directory could not be made."))
  yield* files
    .makeDirectory(directory)
    .pipe(inStep("snapshot", "The snapshot's directory could not be made."))
  const written = yield* control
    .snapshot(directory)
    .pipe(inStep("snapshot", "The guest's memory could not be saved."), step("snapshot"))
  yield* writeManifest(subject, ref, directory, written).pipe(
    inStep("manifest", "The snapshot could not be completed."),
    step("manifest")
  )
  yield* files
    .rename(directory, snapshotDirectory(paths, ref.number))
    .pipe(inStep("commit", "The snapshot could not be completed."), step("commit"))
})

/** Unfreeze: the snapshot that is not wanted is gone, and the guest is what it was before the standby. */
export const unfreeze = Effect.fnUntraced(function* (subject: Subject, ref: SnapshotRef) {
  const { paths } = subject
  yield* Effect.forEach(
    [temporaryDirectory(paths, ref.number), snapshotDirectory(paths, ref.number)],
    dropSnapshot,
    { discard: true }
  ).pipe(inStep("snapshot", "The unfinished snapshot could not be removed."), step("discard"))
  if (ref.paused) return
  const control = yield* session(subject).pipe(inStep("attach", "The VMM does not answer."))
  yield* resumeGuest(control).pipe(
    Effect.retry({ schedule: Schedule.spaced(resumeRetryMs), times: resumeAttempts }),
    inStep("resume", "The guest could not be resumed."),
    step("resume")
  )
  yield* awaken(subject)
})
