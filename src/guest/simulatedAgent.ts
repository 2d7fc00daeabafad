/**
 * The agents of simulated guests, and what their init reads and reports: the same config disk as a real one. An instance
 * tells its simulated guest what to do through environment variables of its own:
 *
 *   SIMULATED_EXIT_CODE=3        the image's process ends with this code (SIMULATED_EXIT_SIGNAL=9: by this signal)
 *   SIMULATED_EXIT_AFTER_MS=100  so long after the guest answered; 0 where it is not given
 *   SIMULATED_PANIC_AFTER_MS=100 the kernel panics instead
 *   SIMULATED_BOOT_ERROR=text    init cannot start the image's process, and reports this text
 *   SIMULATED_DEAF=1             the guest ignores every request to end
 *   SIMULATED_HOLDS=/data,/srv   a process keeps what is mounted there in use
 *
 * What exec and files do there is in simulatedExec.ts.
 */
import * as path from "node:path"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Disk } from "../host/simulated/disk.ts"
import type { Operation } from "../host/simulated/FaultPlan.ts"
import { answers, type End } from "../host/simulated/guest.ts"
import { type GuestDisk, GuestInit, idleProgram, type Program } from "../host/simulated/GuestInit.ts"
import { operate } from "../host/simulated/operate.ts"
import { askToEnd, awakenGuest, mountInGuest, unmountInGuest } from "../host/simulated/power.ts"
import { agentSocket, nextChange, programOf } from "../host/simulated/processes.ts"
import {
  ServiceProcess,
  type ServiceRun,
  SimulatedWorld,
  type VmmProcess,
  type Wire,
  type World
} from "../host/simulated/World.ts"
import { Agent } from "./Agent.ts"
import { AgentFault, AgentRefusal, type AgentSession, type Endpoint, VolumeBusy } from "./AgentSession.ts"
import { simulatedExec, simulatedFiles } from "./simulatedExec.ts"
import {
  configMagic,
  configDiskBytes,
  GuestConfig,
  GuestReport,
  reportBytes,
  reportMagic
} from "./GuestConfig.ts"

/** How long a request waits for a guest that does not answer. */
const answerTimeoutMs = 5_000

const headerBytes = configMagic.length + 4
const decodeConfig = Schema.decodeUnknownOption(Schema.fromJsonString(GuestConfig))
const encodeReport = Schema.encodeSync(Schema.fromJsonString(GuestReport))
const text = new TextDecoder()

/** The config that a disk holds; none where it is another disk. */
const readConfig = (disk: Disk, file: string): Option.Option<GuestConfig> => {
  const header = disk.readAt(file, 0, headerBytes)
  if (header.length < headerBytes || text.decode(header.subarray(0, configMagic.length)) !== configMagic) {
    return Option.none()
  }
  const length = new DataView(header.buffer, header.byteOffset).getUint32(configMagic.length, true)
  if (length > configDiskBytes - reportBytes - headerBytes) return Option.none()
  return decodeConfig(text.decode(disk.readAt(file, headerBytes, length)))
}

const numberIn = (env: Readonly<Record<string, string>>, name: string): number | null => {
  const value = env[name]
  return value !== undefined && /^\d{1,9}$/u.test(value) ? Number(value) : null
}

/** What the guest will do of itself, as its environment asks. */
export const programFrom = (config: GuestConfig): Program => {
  const { env } = config
  const panicAfterMs = numberIn(env, "SIMULATED_PANIC_AFTER_MS")
  const exitAfterMs = numberIn(env, "SIMULATED_EXIT_AFTER_MS")
  const code = numberIn(env, "SIMULATED_EXIT_CODE")
  const signal = numberIn(env, "SIMULATED_EXIT_SIGNAL")
  const exits = exitAfterMs !== null || code !== null || signal !== null
  const end: End = signal === null ? { _tag: "Exited", code: code ?? 0 } : { _tag: "Signaled", signal }
  const fate =
    panicAfterMs !== null
      ? ({ afterMs: panicAfterMs, end: { _tag: "Panicked" } } as const)
      : exits
        ? { afterMs: exitAfterMs ?? 0, end }
        : null
  return {
    greeting: [`started ${config.argv[0] ?? "nothing"} on ${config.hostname}`],
    fate,
    failure: env["SIMULATED_BOOT_ERROR"] ?? null,
    deaf: env["SIMULATED_DEAF"] === "1",
    mounts: config.volumes.map(({ serial, mount_path, readonly }) => ({
      serial,
      path: mount_path,
      readonly
    })),
    holds: (env["SIMULATED_HOLDS"] ?? "").split(",").filter((path) => path !== "")
  }
}

const configDisk = (
  disk: Disk,
  disks: ReadonlyArray<GuestDisk>
): { readonly file: string; readonly config: GuestConfig } | null => {
  for (const { path: file, readonly } of disks) {
    const config = readonly ? Option.none() : readConfig(disk, file)
    if (Option.isSome(config)) return { file, config: config.value }
  }
  return null
}

const reportOf = (end: End): GuestReport | null => {
  switch (end._tag) {
    case "Exited":
      return { kind: "exited", code: end.code }
    case "Signaled":
      return { kind: "signaled", signal: end.signal }
    case "Stopped":
      return { kind: "stopped" }
    case "Failed":
      return { kind: "failed", message: end.message }
    default:
      return null
  }
}

const writeReport = (disk: Disk, file: string, report: GuestReport): void => {
  const json = new TextEncoder().encode(encodeReport(report)).subarray(0, reportBytes - headerBytes)
  const bytes = new Uint8Array(reportBytes)
  bytes.set(new TextEncoder().encode(reportMagic))
  new DataView(bytes.buffer).setUint32(reportMagic.length, json.length, true)
  bytes.set(json, headerBytes)
  disk.writeAt(file, disk.size(file) - reportBytes, bytes)
}

/** Init over the config disk. */
export const layerInit: Layer.Layer<never> = Layer.succeed(GuestInit, {
  read: (disk, disks) => {
    const found = configDisk(disk, disks)
    return found === null ? idleProgram : programFrom(found.config)
  },
  report: (disk, disks, end) => {
    const report = reportOf(end)
    const found = report === null ? null : configDisk(disk, disks)
    if (found !== null && report !== null) writeReport(disk, found.file, report)
  }
})

const refuse = (operation: string, reason: string): AgentFault =>
  new AgentFault({ operation, reason, cause: undefined })

interface Connection {
  readonly world: World
  readonly run: ServiceRun
  readonly process: VmmProcess
  readonly wire: Wire
}

/** Waits for an answer of the guest: for as long as it takes, or for `withinMs`. */
const untilAnswer = ({ process, wire }: Connection, operation: string, withinMs: number | null) => {
  const wait: Effect.Effect<void, AgentFault> = Effect.suspend(() => {
    if (Deferred.isDoneUnsafe(wire.closed)) return Effect.fail(refuse(operation, "the channel is closed"))
    if (answers(process.record.guest) && !process.record.frozen) return Effect.void
    return Effect.raceFirst(nextChange(process), Deferred.await(wire.closed)).pipe(Effect.andThen(wait))
  })
  if (withinMs === null) return wait
  return Effect.timeoutOrElse(wait, {
    duration: withinMs,
    orElse: () => Effect.fail(refuse(operation, "no answer from the guest"))
  })
}

const ask = <E = never>(
  connection: Connection,
  operation: Operation,
  withinMs: number | null,
  finish: Effect.Effect<void, E>
): Effect.Effect<void, AgentFault | E> =>
  Effect.suspend(() =>
    operate<void, void, AgentFault | E>(connection.world, connection.run, {
      operation,
      id: connection.process.record.id,
      fault: (reason) => refuse(operation, reason),
      peer: () => connection.process,
      begin: untilAnswer(connection, operation, withinMs),
      finish: () => finish
    })
  )

/** A real guest waits for the disk to appear; here it is there at once, or never. */
const volumeRequests = (
  connection: Connection
): Pick<AgentSession, "mount" | "unmount" | "grow" | "load"> => {
  const { world, process } = connection
  return {
    mount: (request) =>
      ask(
        connection,
        "agentMount",
        answerTimeoutMs,
        Effect.suspend(() =>
          mountInGuest(world, process, request)
            ? Effect.void
            : Effect.fail(
                new AgentRefusal({
                  operation: "mount",
                  reason: `no disk ${request.serial} for ${request.path}`
                })
              )
        )
      ),
    unmount: (path, { lazy }) =>
      ask(
        connection,
        "agentUnmount",
        answerTimeoutMs,
        Effect.suspend(() => {
          if (lazy || !programOf(world, process).holds.includes(path))
            return Effect.sync(() => unmountInGuest(world, process, path))
          const holders = [{ pid: 7, command: "simulated" }]
          return Effect.fail(new VolumeBusy({ path, reason: "it is in use", holders }))
        })
      ),
    grow: () => ask(connection, "agentGrow", answerTimeoutMs, Effect.void),
    load: Effect.sync(() => {
      const totalKib = process.record.memoryMb * 1024
      return { averages: [0, 0, 0], totalKib, availableKib: Math.trunc(totalKib / 2) }
    })
  }
}

const connect = (world: World, run: ServiceRun, endpoint: Endpoint) =>
  Effect.gen(function* () {
    const process = world.byDirectory.get(path.dirname(endpoint.path))
    if (process === undefined || agentSocket(process.record.runDirectory) !== endpoint.path) {
      return yield* refuse("connect", "nothing listens there")
    }
    const wire: Wire = { closed: Deferred.makeUnsafe(), tell: () => undefined }
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        if (process.channel === wire) process.channel = null
        Deferred.doneUnsafe(wire.closed, Effect.void)
      })
    )
    yield* operate(world, run, {
      operation: "agentConnect",
      id: process.record.id,
      fault: (reason) => refuse("connect", reason),
      peer: () => process,
      begin: Effect.suspend(() => {
        if (process.channel !== null) return Effect.fail(refuse("connect", "another client is connected"))
        process.channel = wire
        return Effect.void
      }),
      undo: () => {
        if (process.channel === wire) process.channel = null
      },
      finish: () => Effect.void
    })
    const connection: Connection = { world, run, process, wire }
    const closing = Effect.andThen(
      Deferred.await(wire.closed),
      Effect.fail(refuse("exec", "the channel is closed"))
    )
    const session: AgentSession = {
      ready: ask(connection, "agentReady", null, Effect.void),
      shutdown: () =>
        ask(
          connection,
          "agentShutdown",
          answerTimeoutMs,
          Effect.sync(() => askToEnd(world, process))
        ),
      awaken: ask(
        connection,
        "agentAwaken",
        answerTimeoutMs,
        Effect.sync(() => void awakenGuest(world, process))
      ),
      sync: ask(connection, "agentSync", answerTimeoutMs, Effect.void),
      ...volumeRequests(connection),
      exec: (request) =>
        Effect.andThen(
          ask(connection, "agentExec", answerTimeoutMs, Effect.void),
          simulatedExec(request, closing)
        ),
      ...simulatedFiles(process, ask(connection, "agentTransfer", answerTimeoutMs, Effect.void)),
      closed: Deferred.await(wire.closed)
    }
    return session
  })

/** Agents of the guests of a simulated host. One client at a time, as a virtio-serial port has it. */
export const layer: Layer.Layer<Agent, never, SimulatedWorld | ServiceProcess> = Layer.effect(
  Agent,
  Effect.gen(function* () {
    const world = yield* SimulatedWorld
    const run = yield* ServiceProcess
    return Agent.of({ connect: (endpoint) => Effect.suspend(() => connect(world, run, endpoint)) })
  })
)
