/**
 * QEMU as a driver (Vmm.ts): a q35 machine of the newest versioned type that the installed binary has, with KVM or
 * software emulation, controlled over QMP.
 *
 *   spawn            process ──► QMP answers ──► identity
 *   spawnRestoring   state file whole? ──► process, waiting ──► stream ──► paused ──► identity
 *   attach           the one long QMP connection of the service, in the caller's scope: the spawn's, where it is still
 *                    there, since QEMU serves one client at a time and a second connection costs milliseconds
 *
 * Sockets live in the VM's run directory: qmp.sock, agent.sock, and migrate.sock while a snapshot is taken or loaded.
 * The directory is the caller's; where a spawn fails, what it put there is gone again.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { isSameProcess, type ProcessIdentity } from "../../domain/Process.ts"
import type { SnapshotFile } from "../../domain/Snapshot.ts"
import { Files } from "../../host/Files.ts"
import { Settings } from "../../host/Settings.ts"
import {
  type VmConfig,
  Vmm,
  type VmmEvent,
  VmmFault,
  VmmProcesses,
  type VmmRef,
  type VmmSession
} from "../Vmm.ts"
import { appears } from "../appears.ts"
import { exitFifoName, VmmLauncher } from "../VmmProcess.ts"
import {
  agentSocket,
  args,
  type ArgsOptions,
  fingerprint,
  migrationSocket,
  type QemuHost,
  qmpSocket
} from "./args.ts"
import { copyOnly } from "../restoring.ts"
import { discover } from "./discovery.ts"
import { addDisk, occupiedPorts, removeDisk, resizeDisk } from "./disks.ts"
import { coldPorts, placementProblem } from "./layout.ts"
import {
  asVmmFault,
  boot,
  type OwnResets,
  pause,
  powerOff,
  rawStatus,
  resume,
  statusOf,
  stopAtReset,
  vmmEventOf
} from "./machine.ts"
import { memoryMb, resizeMemory } from "./memory.ts"
import { connect, type Qmp } from "./Qmp.ts"
import { load, snapshot } from "./snapshot.ts"
import { portsOf, readStateFile, sizeOf, stateName } from "./stateFile.ts"

/** 50 to 300 ms on a quiet host; 150 disks and a busy one take seconds. */
const spawnBoundMs = 30_000
/** Between binding its socket and listening on it QEMU does nothing else. */
const listenPollMs = 1
const listenPolls = 1_000
/** The guest goes off once a run; more events than this have nobody who reads them, and the oldest are dropped. */
const eventsKept = 64

/** A connection that its spawn has made and nobody has attached to yet. */
interface Fresh {
  readonly process: ProcessIdentity
  readonly qmp: Qmp
  readonly scope: Scope.Closeable
}

interface Host {
  readonly qemu: QemuHost
  /** By run directory. The driver's scope closes what is left. */
  readonly fresh: Map<string, Fresh>
  readonly launcher: VmmLauncher["Service"]
  readonly processes: VmmProcesses["Service"]
  readonly files: Files["Service"]
}

const fault = (operation: string, reason: string) => new VmmFault({ operation, reason, cause: undefined })

const closeFresh = (host: Pick<Host, "fresh">, runDirectory: string) =>
  Effect.suspend(() => {
    const fresh = host.fresh.get(runDirectory)
    host.fresh.delete(runDirectory)
    return fresh === undefined ? Effect.void : Scope.close(fresh.scope, Exit.void)
  })

/** What a QEMU leaves in its run directory when it is killed. */
const clearRunDirectory = (runDirectory: string) =>
  Effect.promise(() =>
    Promise.all(
      [
        qmpSocket(runDirectory),
        agentSocket(runDirectory),
        migrationSocket(runDirectory),
        path.join(runDirectory, exitFifoName)
      ].map((file) => fs.rm(file, { force: true }))
    )
  )

/** The first connection to a QEMU that is starting. */
const connectFirst = (runDirectory: string) => {
  const socket = qmpSocket(runDirectory)
  return appears(socket).pipe(
    Effect.andThen(
      connect(socket, spawnBoundMs).pipe(
        Effect.retry({
          schedule: Schedule.spaced(listenPollMs),
          times: listenPolls,
          while: (refusal) => refusal.kind === "closed"
        })
      )
    ),
    Effect.mapError(asVmmFault("spawn"))
  )
}

/**
 * Starts QEMU and runs `prepare` on its first connection. Nothing is left where that fails or is interrupted; a QEMU
 * that ends meanwhile fails it at once, with the last words of its log.
 */
const spawnWith = (
  host: Host,
  config: VmConfig,
  operation: string,
  options: ArgsOptions,
  prepare: (qmp: Qmp) => Effect.Effect<void, VmmFault>
): Effect.Effect<ProcessIdentity, VmmFault> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      yield* clearRunDirectory(config.runDirectory)
      const identity = yield* host.launcher.launch({
        id: config.id,
        program: host.qemu.program,
        args: args(host.qemu, config, options),
        logPath: config.logPath,
        runDirectory: config.runDirectory
      })
      const vmm: VmmRef = { id: config.id, process: identity, runDirectory: config.runDirectory }
      const scope = yield* Scope.make()
      const prepared = connectFirst(config.runDirectory).pipe(Scope.provide(scope), Effect.tap(prepare))
      const qmp = yield* restore(
        Effect.raceFirst(prepared, host.launcher.untilDeath(vmm, config.logPath, operation))
      ).pipe(
        Effect.onError(() =>
          Effect.andThen(Scope.close(scope, Exit.void), Effect.ignore(host.processes.kill(vmm)))
        )
      )
      yield* closeFresh(host, config.runDirectory)
      host.fresh.set(config.runDirectory, { process: identity, qmp, scope })
      return identity
    }).pipe(Effect.onError(() => clearRunDirectory(config.runDirectory)))
  )

const checked = (config: VmConfig, operation: string, ports = coldPorts(config.disks)) => {
  const problem = placementProblem(config.disks, ports)
  return problem === null ? Effect.void : Effect.fail(fault(operation, problem))
}

const spawn = (host: Host) => (config: VmConfig) =>
  checked(config, "spawn").pipe(Effect.andThen(spawnWith(host, config, "spawn", {}, () => Effect.void)))

const spawnRestoring = (host: Host) =>
  Effect.fnUntraced(function* (config: VmConfig, directory: string, files: ReadonlyArray<SnapshotFile>) {
    const state = yield* readStateFile(directory)
    if (files.length !== 1 || files[0]?.name !== stateName || files[0].bytes !== sizeOf(state))
      return yield* fault("restore", "the snapshot's state is not the file that was written")
    if (state.head.machine !== host.qemu.machine)
      return yield* fault(
        "restore",
        `the snapshot is of machine type ${state.head.machine}, this QEMU's is ${host.qemu.machine}`
      )
    const ports = portsOf(state.head)
    const missing = [...ports.keys()].find((serial) => !config.disks.some((disk) => disk.serial === serial))
    if (missing !== undefined)
      return yield* fault("restore", `the snapshot holds disk '${missing}', which the VM no longer has`)
    yield* checked(config, "restore", ports)
    return yield* spawnWith(host, config, "restore", { restoring: ports }, (qmp) =>
      load(qmp, config.runDirectory, state, files)
    )
  })

/** The guest's own doings, from now on; ends with the connection. */
const guestEvents = Effect.fnUntraced(function* (qmp: Qmp, own: OwnResets) {
  const queue = yield* Queue.sliding<VmmEvent, Cause.Done>(eventsKept)
  yield* qmp.listen((event) => {
    const told = vmmEventOf(event)
    if (Option.isSome(told) && !own.muted) Queue.offerUnsafe(queue, told.value)
  })
  yield* Effect.forkScoped(Effect.andThen(qmp.closed, Queue.end(queue)))
  return Stream.fromQueue(queue)
})

const powerButton = (qmp: Qmp) =>
  Effect.gen(function* () {
    const status = yield* rawStatus(qmp)
    // QEMU takes the button in every state, and forgets it where no guest runs.
    if (status !== "running") return yield* fault("power-button", `the guest is not running but ${status}`)
    yield* qmp.order("system_powerdown")
  }).pipe(Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("power-button")(cause))))

const quit = (qmp: Qmp) =>
  qmp.order("quit").pipe(
    // It may be gone before its answer is read.
    Effect.catchIf(
      (cause) => cause.kind === "closed",
      () => Effect.void
    ),
    Effect.mapError(asVmmFault("quit"))
  )

/** The spawn's own connection, once, where it is to this process; a new one otherwise. */
const connectionTo = Effect.fnUntraced(function* (host: Host, vmm: VmmRef) {
  const fresh = host.fresh.get(vmm.runDirectory)
  if (fresh !== undefined && isSameProcess(fresh.process, vmm.process)) {
    host.fresh.delete(vmm.runDirectory)
    yield* Effect.addFinalizer(() => Scope.close(fresh.scope, Exit.void))
    return fresh.qmp
  }
  yield* closeFresh(host, vmm.runDirectory)
  return yield* connect(qmpSocket(vmm.runDirectory)).pipe(Effect.mapError(asVmmFault("attach")))
})

const attach = (host: Host) =>
  Effect.fnUntraced(function* (vmm: VmmRef) {
    if (!(yield* host.processes.isAlive(vmm.process)))
      return yield* fault("attach", `process ${vmm.process.pid} is no more`)
    const qmp = yield* connectionTo(host, vmm)
    const own: OwnResets = { muted: false }
    const events = yield* guestEvents(qmp, own)
    yield* stopAtReset(qmp).pipe(Effect.mapError(asVmmFault("attach")))
    const session: VmmSession = {
      status: rawStatus(qmp).pipe(Effect.map(statusOf), Effect.mapError(asVmmFault("status"))),
      boot: boot(qmp, own),
      pause: pause(qmp),
      resume: resume(qmp),
      powerButton: powerButton(qmp),
      powerOff: powerOff(qmp, own),
      quit: quit(qmp),
      snapshot: (directory) => snapshot(host.qemu, host.files, qmp, vmm.runDirectory, directory),
      resizeMemory: (mb) => resizeMemory(qmp, mb),
      memoryMb: memoryMb(qmp),
      addDisk: (disk) => addDisk(qmp, disk),
      removeDisk: (serial) => removeDisk(qmp, own, serial),
      resizeDisk: (serial, bytes) => resizeDisk(qmp, serial, bytes),
      disks: occupiedPorts(qmp).pipe(
        Effect.map((ports) => [...ports.keys()]),
        Effect.mapError(asVmmFault("disks"))
      ),
      events,
      agent: { _tag: "UnixSocket", path: agentSocket(vmm.runDirectory) }
    }
    return session
  })

/** Fails where no usable QEMU is on this host, with a sentence that says what to do. */
export const qemuLayer: Layer.Layer<Vmm, VmmFault, Settings | Files | VmmLauncher | VmmProcesses> =
  Layer.effect(
    Vmm,
    Effect.gen(function* () {
      const settings = yield* Settings
      const fresh = new Map<string, Fresh>()
      yield* Effect.addFinalizer(() =>
        Effect.forEach([...fresh.keys()], (runDirectory) => closeFresh({ fresh }, runDirectory), {
          discard: true
        })
      )
      const host: Host = {
        fresh,
        qemu: yield* discover(settings.qemuBin, settings.qemuAccel),
        launcher: yield* VmmLauncher,
        processes: yield* VmmProcesses,
        files: yield* Files
      }
      return {
        kind: "qemu",
        version: host.qemu.version,
        versions: [host.qemu.version],
        accelerator: host.qemu.accelerator,
        capabilities: { snapshot: true, memoryGrowth: true, hotDisks: true },
        spawn: spawn(host),
        spawnRestoring: spawnRestoring(host),
        restoreObstacle: copyOnly("qemu", host.qemu.version),
        attach: attach(host),
        fingerprint: (config) => fingerprint(host.qemu, config)
      }
    })
  )
