/**
 * `VMM=simulated`: a VMM driver without a hypervisor, over the world of `host/simulated`. An interrupted spawn may leave
 * its process, as a service that is killed does; a failed one does not.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import type { ProcessExit } from "../../domain/Process.ts"
import type { SnapshotFile } from "../../domain/Snapshot.ts"
import { Files } from "../../host/Files.ts"
import { operate } from "../../host/simulated/operate.ts"
import { alter, end, lookup, type Machine, openDisks, start } from "../../host/simulated/processes.ts"
import { exitKey, now, ServiceProcess, SimulatedWorld, type VmmProcess } from "../../host/simulated/World.ts"
import { Vmm, type VmConfig, VmmProcesses, type VmmRef } from "../Vmm.ts"
import { fingerprint, fingerprintOf, simulatedVersion } from "./fingerprint.ts"
import { fileFault, type Host, openSession, refuse } from "./Session.ts"
import { decodeSnapshot, filesOf, stateFile } from "./snapshot.ts"

const machineOf = (config: VmConfig): Machine => ({
  id: config.id,
  runDirectory: config.runDirectory,
  vcpus: config.vcpus,
  bootMemoryMb: config.memoryMb,
  memoryMaxMb: config.memoryMaxMb,
  disks: config.disks.map(({ serial, path, readonly, removable = false }) => ({
    serial,
    path,
    readonly,
    removable
  })),
  nic: config.nic,
  consolePath: config.consolePath,
  logPath: config.logPath
})

const died: ProcessExit = { code: 1, signal: null }

const begin = (host: Host, config: VmConfig, operation: "spawn" | "restore") =>
  Effect.suspend(() =>
    Effect.fromResult(
      Result.mapError(
        start(host.world, host.run, machineOf(config), {
          _tag: operation === "spawn" ? "Prelaunch" : "Loading"
        }),
        (reason) => refuse(operation, reason)
      )
    )
  )

const spawning = (host: Host, config: VmConfig, operation: "spawn" | "restore") => ({
  operation,
  id: config.id,
  fault: (reason: string) => refuse(operation, reason),
  begin: begin(host, config, operation),
  peer: (begun: VmmProcess | undefined) => begun,
  undo: (begun: VmmProcess) => end(host.world, begun, died, true)
})

const spawn = (host: Host, config: VmConfig) =>
  operate(host.world, host.run, {
    ...spawning(host, config, "spawn"),
    finish: (process) => Effect.succeed(process.record.identity)
  })

/** Reads and checks the snapshot, opens the disks, and leaves the guest paused where it was. */
const load = (host: Host, process: VmmProcess, directory: string, files: ReadonlyArray<SnapshotFile>) =>
  Effect.gen(function* () {
    const text = yield* host.files.readText(stateFile(directory)).pipe(Effect.mapError(fileFault("restore")))
    if (Option.isNone(text)) return yield* refuse("restore", "there is no snapshot")
    const snapshot = decodeSnapshot(text.value)
    const [written] = files
    if (Option.isNone(snapshot) || written?.checksum !== filesOf(text.value)[0]?.checksum)
      return yield* refuse("restore", "load of migration failed: the state is damaged")
    const { memory, memoryMb, sinceMs } = snapshot.value
    if (snapshot.value.fingerprint !== fingerprintOf(process.record)) {
      return yield* refuse("restore", "load of migration failed: the machine is another one")
    }
    yield* Effect.fromResult(
      Result.mapError(openDisks(host.world, process), (reason) => refuse("restore", reason))
    )
    alter(host.world, process, { memoryMb, guest: { _tag: "Paused", memory, sinceMs } })
    return process.record.identity
  })

const spawnRestoring = (
  host: Host,
  config: VmConfig,
  directory: string,
  files: ReadonlyArray<SnapshotFile>
) =>
  operate(host.world, host.run, {
    ...spawning(host, config, "restore"),
    finish: (process) => load(host, process, directory, files)
  })

/** A code is known to the service that started the process and to no other, as with wait(2). */
const exitOf = ({ world, run }: Host, { process: identity }: VmmRef): Effect.Effect<ProcessExit> =>
  Effect.suspend(() => {
    const unknown: ProcessExit = { code: null, signal: null }
    const seen = (parent: number, exit: ProcessExit): ProcessExit => (parent === run.epoch ? exit : unknown)
    const alive = lookup(world, identity)
    if (alive !== undefined) {
      return Deferred.await(alive.death).pipe(
        Effect.flatMap((exit) =>
          run.alive ? Effect.succeed(seen(alive.record.parent, exit)) : Effect.interrupt
        )
      )
    }
    const kept = world.exits.get(exitKey(identity))
    return Effect.succeed(kept === undefined ? unknown : seen(kept.parent, kept.exit))
  })

/**
 * SIGTERM first: from then on the process will end by itself, also where the caller is interrupted. A frozen one takes
 * SIGKILL, which leaves its sockets.
 */
const kill = ({ world, run }: Host, { id, process: identity }: VmmRef) =>
  operate(world, run, {
    operation: "kill",
    id,
    fault: (reason) => refuse("kill", reason),
    begin: Effect.sync(() => {
      const process = lookup(world, identity)
      if (process !== undefined && !process.record.frozen) {
        alter(world, process, { ending: { atMs: now(world) + killedWithinMs } })
      }
      return process
    }),
    undo: (process) => {
      if (process !== undefined) alter(world, process, { ending: null })
    },
    finish: (process) =>
      Effect.sync(() => {
        if (process === undefined) return
        const { frozen } = process.record
        end(world, process, frozen ? { code: null, signal: "SIGKILL" } : { code: 0, signal: null }, !frozen)
      })
  })

/** A VMM that got SIGTERM is gone after this, whoever waits for it. */
const killedWithinMs = 1_000

const host = Effect.gen(function* () {
  return { world: yield* SimulatedWorld, run: yield* ServiceProcess, files: yield* Files } satisfies Host
})

const vmm = Layer.effect(
  Vmm,
  Effect.map(host, (it) => ({
    kind: "simulated" as const,
    version: simulatedVersion,
    versions: [simulatedVersion],
    accelerator: "none" as const,
    capabilities: { snapshot: true, memoryGrowth: true, hotDisks: true },
    spawn: (config) => spawn(it, config),
    spawnRestoring: (config, directory, files) => spawnRestoring(it, config, directory, files),
    // There is no memory behind a simulated guest: every way to load it is the same.
    restoreObstacle: () => null,
    attach: (ref) =>
      Effect.suspend(() => {
        const process = lookup(it.world, ref.process)
        return process === undefined
          ? Effect.fail(refuse("attach", "no such process"))
          : openSession(it, process)
      }),
    fingerprint
  }))
)

const processes = Layer.effect(
  VmmProcesses,
  Effect.map(host, (it) => ({
    exit: (ref) => exitOf(it, ref),
    isAlive: (identity) => Effect.sync(() => lookup(it.world, identity) !== undefined),
    kill: (ref) => kill(it, ref),
    scan: Effect.sync(() =>
      [...it.world.processes.values()].map(({ record }) => ({
        id: record.id,
        process: record.identity,
        runDirectory: record.runDirectory
      }))
    )
  }))
)

/** Both services of the driver. */
export const layer: Layer.Layer<Vmm | VmmProcesses, never, SimulatedWorld | ServiceProcess | Files> =
  Layer.merge(vmm, processes)
