/**
 * Cloud Hypervisor as a driver (Vmm.ts): one process for each VM, controlled over its API socket, from any of the installed
 * releases.
 *
 *   spawn            process ──► ping ──► vm.create ──► identity
 *   spawnRestoring   snapshot whole, and this VM's? ──► process of its release ──► ping ──► vm.restore ──► identity
 *   attach           the one connection of the service and the reader of the VMM's events, in the caller's scope
 *
 * In the VM's run directory: api.sock, its lock, vsock.sock for the agent, `events`. The directory is the caller's; where a
 * spawn fails, what it put there is gone again.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import type * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import type { ProcessIdentity } from "../../domain/Process.ts"
import type { SnapshotFile } from "../../domain/Snapshot.ts"
import { Files } from "../../host/Files.ts"
import { Paths } from "../../host/Paths.ts"
import { Settings } from "../../host/Settings.ts"
import {
  type RestoreWish,
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
import { asVmmFault, type Client, type ClientFault, connect, says } from "./Client.ts"
import {
  agentPort,
  apiLock,
  apiSocket,
  args,
  disksProblem,
  eventsFile,
  fingerprint,
  type LandlockRule,
  machineConfig,
  vsockSocket
} from "./config.ts"
import { discover, type Found, type Installed } from "./discovery.ts"
import { addDisk, disks, removeDisk, resizeDisk } from "./disks.ts"
import { follow } from "./EventLog.ts"
import { boot, hold, type Machine, pause, powerButton, powerOff, quit, resume, status } from "./machine.ts"
import { memoryMb, resizeMemory } from "./memory.ts"
import { modeObstacle } from "./Release.ts"
import { checkSnapshot, load, snapshot } from "./snapshot.ts"

/** 20 to 100 ms on a quiet host. */
const spawnBoundMs = 30_000
/** Between binding its socket and listening on it the VMM does nothing else. */
const listenPollMs = 1
const listenPolls = 1_000
/** The guest goes off once a run; more events than this have nobody who reads them, and the oldest are dropped. */
const eventsKept = 64

interface Host {
  readonly found: Found
  readonly launcher: VmmLauncher["Service"]
  readonly processes: VmmProcesses["Service"]
  readonly files: Files["Service"]
  readonly paths: Paths["Service"]
  /** Whether this kernel has Landlock: known after the first VM, since only a VMM's try tells it for certain. */
  landlock: boolean
}

const fault = (operation: string, reason: string) => new VmmFault({ operation, reason, cause: undefined })

/** What a VMM leaves in its run directory when it is killed; a socket that is there keeps it from starting. */
const clearRunDirectory = (runDirectory: string) =>
  Effect.promise(() =>
    Promise.all(
      [
        apiSocket(runDirectory),
        apiLock(runDirectory),
        vsockSocket(runDirectory),
        eventsFile(runDirectory),
        path.join(runDirectory, exitFifoName)
      ].map((file) => fs.rm(file, { force: true }))
    )
  )

/** The first connection to a VMM that is starting. */
const connectFirst = Effect.fnUntraced(function* (runDirectory: string) {
  const socket = apiSocket(runDirectory)
  yield* appears(socket)
  const client = yield* connect(socket)
  yield* client.ping.pipe(
    Effect.retry({
      schedule: Schedule.spaced(listenPollMs),
      times: listenPolls,
      while: (cause) => cause.kind === "closed"
    })
  )
  return client
})

/**
 * Starts a VMM and runs `prepare` on its first connection. Nothing is left where that fails or is interrupted; a VMM that
 * ends meanwhile fails it at once, with the last words of its log.
 */
const spawnWith = (
  host: Host,
  { program, release }: Installed,
  config: VmConfig,
  operation: string,
  prepare: (client: Client, identity: ProcessIdentity) => Effect.Effect<void, VmmFault>
): Effect.Effect<ProcessIdentity, VmmFault> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      yield* clearRunDirectory(config.runDirectory)
      const identity = yield* host.launcher.launch({
        id: config.id,
        program,
        args: args(release, config.runDirectory),
        logPath: config.logPath,
        outputPath: config.consolePath,
        runDirectory: config.runDirectory
      })
      const vmm: VmmRef = { id: config.id, process: identity, runDirectory: config.runDirectory }
      const prepared = Effect.scoped(
        connectFirst(config.runDirectory).pipe(
          Effect.mapError(asVmmFault(operation)),
          Effect.timeoutOrElse({
            duration: spawnBoundMs,
            orElse: () => Effect.fail(fault(operation, `the VMM did not answer within ${spawnBoundMs} ms`))
          }),
          Effect.flatMap((client) => prepare(client, identity))
        )
      )
      yield* restore(
        Effect.raceFirst(prepared, host.launcher.untilDeath(vmm, config.logPath, operation))
      ).pipe(Effect.onError(() => Effect.ignore(host.processes.kill(vmm))))
      return identity
    }).pipe(Effect.onError(() => clearRunDirectory(config.runDirectory)))
  )

/** Where the kernel shows the flags of a TAP, which the VMM reads before it opens one. */
const tapFlags = "/sys/devices/virtual/net"

/**
 * What a VMM may open besides what its configuration names: where its snapshots go, and disks that come later. The paths
 * must be there when the rules are made.
 */
const landlockRules = (host: Host, config: VmConfig) =>
  Effect.gen(function* () {
    const { snapshots } = host.paths.instance(config.id)
    const places = [snapshots, host.paths.volumes]
    yield* host.files.makeDirectory(snapshots)
    const rules: ReadonlyArray<LandlockRule> = [
      ...places.map((place) => ({ path: place, access: "rw" as const })),
      ...(config.nic === null ? [] : [{ path: tapFlags, access: "r" as const }])
    ]
    return rules
  }).pipe(
    Effect.mapError((cause) => new VmmFault({ operation: "spawn", reason: "no place for snapshots", cause }))
  )

const isLandlock = (cause: ClientFault): boolean => says(cause, "andlock")

/** Gives the VMM its VM; without Landlock where the kernel has none, which the VMM itself says best. */
const create = (host: Host, config: VmConfig, client: Client) =>
  Effect.gen(function* () {
    const rules = yield* landlockRules(host, config)
    const bare = client.order("vm.create", machineConfig(config, null))
    const made = host.landlock
      ? client.order("vm.create", machineConfig(config, rules)).pipe(
          Effect.catchIf(isLandlock, () => {
            host.landlock = false
            // The configuration was taken before it failed.
            return Effect.andThen(client.order("vm.delete"), bare)
          })
        )
      : bare
    yield* made.pipe(Effect.mapError(asVmmFault("spawn")))
  })

const checked = (config: VmConfig, operation: string) => {
  const problem = disksProblem(config.disks)
  return problem === null ? Effect.void : Effect.fail(fault(operation, problem))
}

const spawn = (host: Host) => (config: VmConfig) =>
  checked(config, "spawn").pipe(
    Effect.andThen(
      spawnWith(host, host.found.installed[0], config, "spawn", (client) => create(host, config, client))
    )
  )

const installedOf = ({ installed }: Found, version: string): Installed | undefined =>
  installed.find(({ release }) => release.version === version)

const restoreObstacle =
  ({ found }: Host) =>
  ({ version, mode }: RestoreWish): string | null => {
    const installed = installedOf(found, version)
    return installed === undefined
      ? `The snapshot needs Cloud Hypervisor ${version}, which is not installed: add it to CLOUD_HYPERVISOR_BIN.`
      : modeObstacle(installed.release, mode)
  }

const spawnRestoring = (host: Host) =>
  Effect.fnUntraced(function* (
    config: VmConfig,
    directory: string,
    written: ReadonlyArray<SnapshotFile>,
    wish: RestoreWish = { version: host.found.installed[0].release.version, mode: "auto" }
  ) {
    const obstacle = restoreObstacle(host)(wish)
    const installed = installedOf(host.found, wish.version)
    if (obstacle !== null || installed === undefined)
      return yield* fault("restore", obstacle ?? "its version is not installed")
    yield* checked(config, "restore")
    yield* checkSnapshot(host.files, config, directory, written)
    return yield* spawnWith(host, installed, config, "restore", (client, { pid }) =>
      load(client, host.files, pid, directory, written, wish)
    )
  })

/**
 * The guest's own doings, from now on; ends with the process. A guest that reset itself or panicked is switched off before it
 * is told of, so that nothing of its next run counts as this one's.
 */
const guestEvents = Effect.fnUntraced(function* (machine: Machine, death: Effect.Effect<unknown>) {
  const queue = yield* Queue.sliding<VmmEvent, Cause.Done>(eventsKept)
  const ends = yield* Queue.sliding<VmmEvent>(eventsKept)
  yield* machine.log.listen(({ source, event, properties }, before) => {
    if (machine.muted || before.ended !== null || before.panicked) return
    if (source === "guest" && event === "panic" && properties?.["event"] === "panic")
      Queue.offerUnsafe(ends, { _tag: "GuestPanicked" })
    if (source !== "vm") return
    if (event === "rebooting") Queue.offerUnsafe(ends, { _tag: "GuestOff", cause: "reset" })
    if (event === "shutdown") Queue.offerUnsafe(queue, { _tag: "GuestOff", cause: "poweroff" })
  })
  yield* Effect.forkScoped(
    Effect.forever(
      Queue.take(ends).pipe(
        Effect.tap(() => hold(machine)),
        Effect.map((event) => Queue.offerUnsafe(queue, event))
      )
    )
  )
  yield* Effect.forkScoped(Effect.andThen(death, Queue.end(queue)))
  return Stream.fromQueue(queue)
})

/** Connects, and proves that what answers is the process that was meant. */
const connectTo = Effect.fnUntraced(function* (host: Host, vmm: VmmRef) {
  if (!(yield* host.processes.isAlive(vmm.process)))
    return yield* fault("attach", `process ${vmm.process.pid} is no more`)
  const client = yield* connect(apiSocket(vmm.runDirectory))
  const { pid } = yield* client.ping.pipe(Effect.mapError(asVmmFault("attach")))
  if (pid !== vmm.process.pid)
    return yield* fault("attach", `process ${pid} answers for process ${vmm.process.pid}`)
  return client
})

const attach = (host: Host) =>
  Effect.fnUntraced(function* (vmm: VmmRef) {
    const client = yield* connectTo(host, vmm)
    const log = yield* follow(host.files, eventsFile(vmm.runDirectory))
    const machine: Machine = { client, log, muted: false }
    const events = yield* guestEvents(machine, host.processes.exit(vmm))
    // A guest that reset itself while nobody watched.
    if (log.history().ended === "reset") yield* hold(machine)
    const session: VmmSession = {
      status: status(machine),
      boot: boot(machine),
      pause: pause(machine),
      resume: resume(machine),
      powerButton: powerButton(machine),
      powerOff: powerOff(machine),
      quit: quit(machine),
      snapshot: (directory) => snapshot(machine, host.files, directory),
      resizeMemory: (mb) => resizeMemory(client, mb),
      memoryMb: memoryMb(client),
      addDisk: (disk) => addDisk(machine, disk),
      removeDisk: (serial) => removeDisk(machine, serial),
      resizeDisk: (serial, bytes) => resizeDisk(machine, serial, bytes),
      disks: disks(machine),
      events,
      agent: { _tag: "HybridVsock", path: vsockSocket(vmm.runDirectory), port: agentPort }
    }
    return session
  })

/** Fails where no usable Cloud Hypervisor is on this host, with a sentence that says what to do. */
export const cloudHypervisorLayer: Layer.Layer<
  Vmm,
  VmmFault,
  Settings | Files | Paths | VmmLauncher | VmmProcesses
> = Layer.effect(
  Vmm,
  Effect.gen(function* () {
    const settings = yield* Settings
    const found = yield* discover(settings.cloudHypervisorBin)
    const files = yield* Files
    const paths = yield* Paths
    // Landlock knows only what is there, and disks that come later are there.
    yield* files
      .makeDirectory(paths.volumes)
      .pipe(
        Effect.mapError(
          (cause) => new VmmFault({ operation: "discover", reason: "no place for volumes", cause })
        )
      )
    const host: Host = {
      found,
      launcher: yield* VmmLauncher,
      processes: yield* VmmProcesses,
      files,
      paths,
      landlock: true
    }
    return {
      kind: "cloud-hypervisor",
      version: found.installed[0].release.version,
      versions: found.installed.map(({ release }) => release.version),
      accelerator: "kvm",
      capabilities: { snapshot: true, memoryGrowth: true, hotDisks: true },
      spawn: spawn(host),
      spawnRestoring: spawnRestoring(host),
      restoreObstacle: restoreObstacle(host),
      attach: attach(host),
      fingerprint: (config) => fingerprint(found.cpu, config)
    }
  })
)
