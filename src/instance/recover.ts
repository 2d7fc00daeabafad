/**
 * From what the disk and the kernel hold to actors that own all of it, once, before the first request is served.
 *
 *   records ─┐
 *            ├─► probe each ─► leases back into the pool ─► leftovers gone ─► one actor for each record
 *   VMMs ────┘
 *
 * A leftover is what no record owns: a VMM, a TAP, a rule, a run directory, an instance directory without a record. The
 * kernel is asked what there is; nothing is guessed from names in memory. A running VM is never disturbed.
 */
import * as path from "node:path"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { InstanceId } from "../domain/Ids.ts"
import type { Lease } from "../domain/Network.ts"
import { isSameProcess } from "../domain/Process.ts"
import { volumeSerial, volumeSerialPrefix } from "../host/volumeSerial.ts"
import type { GuestReport } from "../guest/GuestConfig.ts"
import { readReport } from "../guest/configDisk.ts"
import { Files } from "../host/Files.ts"
import { type InstancePaths, Paths } from "../host/Paths.ts"
import { Network } from "../network/Network.ts"
import { countLeftovers } from "../telemetry/counters.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { Vmm, VmmProcesses, type VmmRef, type VmmSession, type VmmStatus } from "../vmm/Vmm.ts"
import type { Probe, State } from "./Lifecycle.ts"
import { snapshotOf, vmmOf } from "./Lifecycle.ts"
import { dropSnapshots, manifestName, readManifest, snapshotDirectory } from "./perform/snapshot.ts"
import type { Record } from "./Record.ts"
import { Store } from "./Store.ts"
import { exitFrom } from "./exit.ts"

/** Probes at once: each is a connection to a VMM. */
const probeConcurrency = 16
/** A VMM that does not answer in this time is left as its record says. */
const statusTimeoutMs = 5_000

export interface Recovered {
  readonly record: Record
  readonly probe: Probe
}

const statusNames: { readonly [Tag in VmmStatus["_tag"]]: Probe["status"] } = {
  Prelaunch: "prelaunch",
  Running: "running",
  Paused: "paused",
  Off: "off",
  Panicked: "off",
  // The VMM stopped the guest by itself, for want of disk space for instance: a resume is the operator's.
  Broken: "paused"
}

/** A volume's disk that the record knows nothing of: whoever brought it, it must not keep its file open. */
const dropStrayDisks = Effect.fnUntraced(function* (record: Record, session: VmmSession) {
  const own = new Set(record.lifecycle.volumes.map((it) => volumeSerial(it.volume_id)))
  const strays = (yield* session.disks).filter(
    (serial) => serial.startsWith(volumeSerialPrefix) && !own.has(serial)
  )
  for (const serial of strays) {
    const removed = yield* Effect.exit(session.removeDisk(serial))
    const { id } = record.spec
    const message = `${id}: a disk that it does not hold ${Exit.isSuccess(removed) ? "is removed" : "stays"}`
    yield* logEvent(
      "host.reconciled",
      message,
      { instance_id: id, serial },
      Exit.isSuccess(removed) ? "Info" : "Error"
    )
  }
})

const askStatus = (ref: VmmRef, record: Record) =>
  Effect.gen(function* () {
    const vmm = yield* Vmm
    const session = yield* vmm.attach(ref)
    const status = yield* session.status
    yield* Effect.ignore(dropStrayDisks(record, session))
    return status
  }).pipe(
    Effect.scoped,
    Effect.timeoutOption(statusTimeoutMs),
    Effect.orElseSucceed(() => Option.none<VmmStatus>())
  )

/**
 * Whether the snapshot that the state names is complete. A new one must be read to be believed; one that was believed
 * before is given up only where its manifest is not there, whatever else is wrong with it.
 */
const isComplete = Effect.fnUntraced(function* (paths: InstancePaths, state: State) {
  const files = yield* Files
  const snapshot = snapshotOf(state)
  if (snapshot === null) return false
  return state._tag === "Snapshotting"
    ? yield* readManifest(paths, snapshot.number).pipe(
        Effect.map(Option.isSome),
        Effect.orElseSucceed(() => false)
      )
    : yield* files
        .exists(path.join(snapshotDirectory(paths, snapshot.number), manifestName))
        .pipe(Effect.orElseSucceed(() => true))
})

/** What the host shows of one instance now. */
export const probe = Effect.fnUntraced(function* (record: Record) {
  const processes = yield* VmmProcesses
  const paths = (yield* Paths).instance(record.spec.id)
  const { state } = record.lifecycle
  const recorded = vmmOf(state)
  const alive = recorded !== null && (yield* processes.isAlive(recorded))
  const status: Option.Option<VmmStatus> = alive
    ? yield* askStatus({ id: record.spec.id, process: recorded, runDirectory: paths.run }, record)
    : Option.none()
  const report = yield* readReport(paths.config).pipe(Effect.orElseSucceed(() => Option.none<GuestReport>()))
  const snapshotComplete = yield* isComplete(paths, state)
  const now = yield* Clock.currentTimeMillis
  const panicked = Option.exists(status, (it) => it._tag === "Panicked")
  const seen = panicked
    ? ({ _tag: "GuestPanicked" } as const)
    : alive
      ? ({ _tag: "GuestOff", cause: "poweroff" } as const)
      : ({ _tag: "VmmExited", exit: { code: null, signal: null } } as const)
  return {
    vmm: alive ? recorded : null,
    status: Option.match(status, { onNone: () => "none" as const, onSome: (it) => statusNames[it._tag] }),
    snapshotComplete,
    exit: exitFrom(seen, report, now)
  } satisfies Probe
})

/**
 * Whether an instance in this state has a TAP that must be left alone. What a Launching or Loading left half made is
 * removed: the work makes it anew, and where it finds that it cannot, it says that it touched nothing.
 */
const holdsTap = (state: State): boolean => vmmOf(state) !== null || state._tag === "Ending"

/** VMMs that no record owns: dead before anything else of theirs is touched. */
const endOrphans = Effect.fnUntraced(function* (records: ReadonlyArray<Record>) {
  const processes = yield* VmmProcesses
  const owned = new Map(records.map((record) => [record.spec.id, vmmOf(record.lifecycle.state)] as const))
  const orphans = (yield* processes.scan).filter((ref) => {
    const owner = owned.get(ref.id) ?? null
    return owner === null || !isSameProcess(owner, ref.process)
  })
  yield* Effect.forEach(
    orphans,
    (ref) =>
      processes.kill(ref).pipe(
        Effect.catch((fault) =>
          logEvent(
            "host.reconciled",
            `${ref.id}: a leftover VMM does not end`,
            {
              instance_id: ref.id,
              pid: ref.process.pid,
              reason: fault.reason
            },
            "Error"
          )
        )
      ),
    { discard: true }
  )
  return orphans.length
})

/** What the actor before left half made of one instance: the same as at the start of the service, for this one only. */
export const reconcileOne = Effect.fnUntraced(function* (record: Record) {
  const processes = yield* VmmProcesses
  const network = yield* Network
  const files = yield* Files
  const paths = (yield* Paths).instance(record.spec.id)
  const { state } = record.lifecycle
  const own = vmmOf(state)
  const strays = (yield* processes.scan).filter(
    (ref) => ref.id === record.spec.id && (own === null || !isSameProcess(own, ref.process))
  )
  yield* Effect.forEach(strays, processes.kill, { discard: true })
  if (holdsTap(state)) return
  if (record.lease !== null) yield* network.detach(record.lease)
  yield* files.remove(paths.run)
})

const adoptLeases = Effect.fnUntraced(function* (records: ReadonlyArray<Record>) {
  const network = yield* Network
  const live = new Map<InstanceId, Lease>()
  for (const record of records) {
    const { lease, spec } = record
    if (lease === null) continue
    yield* network.adopt(spec.id, lease).pipe(
      Effect.catch((clash) =>
        logEvent(
          "network.lease",
          `${spec.id}: its address ${clash.ip} is also ${clash.holder}'s`,
          {
            instance_id: spec.id,
            ip: clash.ip,
            reason: "two records hold one address"
          },
          "Error"
        )
      )
    )
    if (holdsTap(record.lifecycle.state)) live.set(spec.id, lease)
  }
  return live
})

/** Other names in the run directory are the VMM processes' own. */
const isInstanceId = Schema.is(InstanceId)

/** What `Files.write` and the config disk leave where they are cut off; nobody reads it. */
const unfinished = /\.tmp(-\d+)?$/u

/** Run directories, unfinished files, and snapshots of guests that run on, that no state owns. */
const removeFiles = Effect.fnUntraced(function* (
  records: ReadonlyArray<Record>,
  leftovers: ReadonlyArray<InstanceId>
) {
  const files = yield* Files
  const paths = yield* Paths
  const store = yield* Store
  yield* Effect.forEach(leftovers, store.remove, { discard: true })
  const running = new Set(
    records.filter((it) => holdsTap(it.lifecycle.state)).map((it): string => it.spec.id)
  )
  const runs = (yield* files.list(paths.run)).filter((name) => isInstanceId(name) && !running.has(name))
  yield* Effect.forEach(runs, (name) => files.remove(path.join(paths.run, name)), { discard: true })
  yield* Effect.forEach(
    records,
    ({ spec }) =>
      Effect.gen(function* () {
        const { directory } = paths.instance(spec.id)
        const names = (yield* files.list(directory)).filter((name) => unfinished.test(name))
        yield* Effect.forEach(names, (name) => files.remove(path.join(directory, name)), { discard: true })
      }),
    { concurrency: probeConcurrency, discard: true }
  )
  const snapshotless = records.filter(
    ({ lifecycle: { state } }) => vmmOf(state) !== null && !("snapshot" in state)
  )
  yield* Effect.forEach(snapshotless, (record) => dropSnapshots(paths.instance(record.spec.id), null), {
    discard: true
  })
  return leftovers.length + runs.length
})

/** Makes the host agree with the records, and says what each instance is. Fails only where the disk cannot be read. */
export const recover = Effect.gen(function* () {
  const store = yield* Store
  const network = yield* Network
  const { records, unreadable, leftovers } = yield* store.load
  yield* Effect.forEach(
    unreadable,
    ({ id, reason }) =>
      logEvent("host.reconciled", `${id}: left as it is: ${reason}`, { instance_id: id, reason }, "Error"),
    { discard: true }
  )
  const vmms = yield* endOrphans(records)
  const live = yield* adoptLeases(records)
  const taps = yield* network.reconcile(live)
  const removed = yield* removeFiles(records, leftovers)
  yield* countLeftovers("vmm", vmms)
  yield* countLeftovers("tap", taps.length)
  yield* countLeftovers("directory", removed)
  if (vmms + taps.length + removed > 0)
    yield* logEvent("host.reconciled", "leftovers removed", { vmms, taps: taps.length, directories: removed })
  return yield* Effect.forEach(
    records,
    (record) => Effect.map(probe(record), (it) => ({ record, probe: it })),
    {
      concurrency: probeConcurrency
    }
  )
})
