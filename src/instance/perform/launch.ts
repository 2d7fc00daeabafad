/**
 * From nothing to a VMM with a configured VM, and from there to a running guest.
 *
 *   config disk │ volumes │ TAP  ──►  VMM │ file system of the overlay │ pin of the TAP  ──►  boot        (│: side by side)
 *
 * Each step leaves what is already right alone, so that the same launch can be done again after a crash.
 */
import * as Effect from "effect/Effect"
import type { BootImage } from "../../domain/Image.ts"
import { step } from "../../host/Boundary.ts"
import { Files } from "../../host/Files.ts"
import { BootFiles } from "../../guest/BootFiles.ts"
import { nextRun } from "../../guest/Console.ts"
import { rewriteConfig, writeConfig } from "../../guest/configDisk.ts"
import { guestCmdline } from "../../guest/kernel.ts"
import { Overlay } from "../../guest/Overlay.ts"
import { Images } from "../../image/Images.ts"
import { Network } from "../../network/Network.ts"
import { type VmConfig, Vmm } from "../../vmm/Vmm.ts"
import type { Record } from "../Record.ts"
import { guestConfig } from "./guestConfig.ts"
import { inStep, session, type Subject, workFailed } from "./subject.ts"
import { prepareVolumes, volumeDisks } from "./volumes.ts"

/** The image that the instance was created from, whatever its tag means by now. */
export const bootImage = Effect.fnUntraced(function* (record: Record) {
  const images = yield* Images
  return yield* images
    .pinned(record.spec.image, record.spec.image_digest)
    .pipe(inStep("image", "The image that the instance was created from is gone."))
})

/** All that the VMM needs to know; the console and log files are this run's own. */
export const vmConfig = Effect.fnUntraced(function* (subject: Subject, image: BootImage) {
  const { kernel, initrd } = yield* BootFiles
  const { record, paths } = subject
  const consoleRun = yield* nextRun(paths.console)
  const logRun = yield* nextRun(paths.vmm)
  const config: VmConfig = {
    id: record.spec.id,
    vcpus: record.spec.vcpus,
    memoryMb: record.spec.memory_mb,
    memoryMaxMb: record.spec.memory_max_mb,
    kernel,
    initrd,
    cmdline: guestCmdline,
    disks: [
      { serial: "config", path: paths.config, readonly: false },
      { serial: "overlay", path: paths.overlay, readonly: false },
      ...image.layers.map((layer, index) => ({ serial: `layer-${index}`, path: layer.path, readonly: true })),
      ...(yield* volumeDisks(record))
    ],
    nic: record.lease === null ? null : { tap: record.lease.tap, mac: record.lease.mac },
    consolePath: consoleRun.path,
    logPath: logRun.path,
    runDirectory: paths.run
  }
  return config
})

/** Whether its guest has ever run: then its disk holds what it wrote, and nobody makes a new one. */
const hasRun = (record: Record): boolean => record.started_at !== null

const allotOverlay = Effect.fnUntraced(function* ({ record, paths }: Subject) {
  const overlay = yield* Overlay
  const files = yield* Files
  const failed = inStep("overlay", "The writable disk could not be made; is the host's disk full?")
  if (!hasRun(record)) return yield* overlay.allot(paths.overlay, record.spec.overlay_mb).pipe(failed)
  if (!(yield* files.exists(paths.overlay).pipe(failed)))
    return yield* workFailed("overlay", "The guest's writable disk is gone from the host.", undefined)
})

const formatOverlay = Effect.fnUntraced(function* ({ record, paths }: Subject) {
  const overlay = yield* Overlay
  if (hasRun(record)) return
  yield* overlay
    .format(paths.overlay)
    .pipe(inStep("overlay", "The writable disk could not be made; is the host's disk full?"), step("overlay"))
})

const makeConfig = Effect.fnUntraced(function* (subject: Subject, image: BootImage) {
  const { subnet } = yield* Network
  yield* writeConfig(subject.paths.config, guestConfig(subject.record, image, subnet)).pipe(
    inStep("config", "The guest's configuration could not be written."),
    step("config")
  )
})

export const attachTap = Effect.fnUntraced(function* (record: Record) {
  const network = yield* Network
  if (record.lease === null) return
  yield* network
    .attach(record.spec.id, record.lease)
    .pipe(inStep("tap", "The TAP device could not be made."), step("tap"))
})

/** Pins the TAP to the lease. It may be done while a VMM opens it, and must be before a guest runs on it. */
export const pinTap = Effect.fnUntraced(function* (record: Record) {
  const network = yield* Network
  if (record.lease === null) return
  yield* network
    .pin(record.lease)
    .pipe(inStep("tap", "The TAP device could not be tied to its address."), step("pin"))
})

/** Launch: ends with the identity of a VMM whose guest has not started. */
export const launch = Effect.fnUntraced(function* (subject: Subject) {
  const vmm = yield* Vmm
  const files = yield* Files
  const image = yield* bootImage(subject.record)
  yield* Effect.all(
    [
      allotOverlay(subject),
      makeConfig(subject, image),
      attachTap(subject.record),
      prepareVolumes(subject.record)
    ],
    { concurrency: "unbounded", discard: true }
  )
  const config = yield* vmConfig(subject, image).pipe(
    inStep("files", "The instance's files could not be made.")
  )
  yield* files
    .makeDirectory(config.runDirectory)
    .pipe(inStep("files", "The instance's run directory could not be made."))
  const spawned = vmm.spawn(config).pipe(inStep("spawn", "The VMM could not be started."), step("spawn"))
  const [identity] = yield* Effect.all([spawned, formatOverlay(subject), pinTap(subject.record)], {
    concurrency: "unbounded"
  })
  return identity
})

/** Boot: from a VMM that stands before its guest's first instruction, or whose guest went off. */
export const boot = Effect.fnUntraced(function* (subject: Subject) {
  const control = yield* session(subject).pipe(inStep("attach", "The VMM does not answer."))
  const image = yield* bootImage(subject.record)
  const { subnet } = yield* Network
  // Volumes may have come and gone since the launch; and a report of the run before would be taken for this one's.
  yield* rewriteConfig(subject.paths.config, guestConfig(subject.record, image, subnet)).pipe(
    inStep("config", "The guest's configuration could not be written.")
  )
  yield* control.boot.pipe(inStep("boot", "The guest could not be started."), step("boot"))
})
