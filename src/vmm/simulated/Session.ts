/**
 * A session with a simulated VMM. What changes a guest's power changes it at once and answers later, as a monitor does:
 * an interrupted pause may well have paused. Pause, resume and power-off of a guest that already is so change nothing and
 * succeed, as QMP has it; boot does not, since a second boot is never meant.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Result from "effect/Result"
import * as Stream from "effect/Stream"
import type { Done } from "effect/Cause"
import type { FileFault } from "../../host/Fault.ts"
import type { Files } from "../../host/Files.ts"
import type { Operation } from "../../host/simulated/FaultPlan.ts"
import * as guests from "../../host/simulated/guest.ts"
import { operate, type Work, whileServed } from "../../host/simulated/operate.ts"
import { askToEnd, bootGuest } from "../../host/simulated/power.ts"
import { addDisk, agentSocket, alter, removeDisk } from "../../host/simulated/processes.ts"
import {
  now,
  type ServiceRun,
  type VmmProcess,
  violation,
  type Wire,
  type World
} from "../../host/simulated/World.ts"
import { type Disk, type VmmEvent, VmmFault, type VmmSession, type VmmStatus } from "../Vmm.ts"
import { fingerprintOf } from "./fingerprint.ts"
import { encodeSnapshot, filesOf, stateFile } from "./snapshot.ts"

/** Events that wait for a reader; the oldest go first. A guest has few. */
const eventsKept = 16

export interface Host {
  readonly world: World
  readonly run: ServiceRun
  readonly files: typeof Files.Service
}

export const refuse = (operation: string, reason: string): VmmFault =>
  new VmmFault({ operation, reason, cause: undefined })

export const fileFault =
  (operation: string) =>
  (fault: FileFault): VmmFault =>
    new VmmFault({ operation, reason: fault.message, cause: fault })

interface Connection {
  readonly host: Host
  readonly process: VmmProcess
  readonly wire: Wire
}

type Steps<B, A> = Pick<Work<B, A, VmmFault>, "begin" | "finish">

/** An operation over an open connection. */
const call = <B, A>(connection: Connection, operation: Operation, steps: Steps<B, A>) => {
  const { host, process, wire } = connection
  return operate(host.world, host.run, {
    operation,
    id: process.record.id,
    fault: (reason) => refuse(operation, reason),
    peer: () => process,
    begin: Effect.suspend(() =>
      Deferred.isDoneUnsafe(wire.closed)
        ? Effect.fail(refuse(operation, "the connection is closed"))
        : steps.begin
    ),
    finish: steps.finish
  })
}

/** An operation whose whole effect comes before its answer. */
const change = (connection: Connection, operation: Operation, body: () => string | null) =>
  Effect.suspend(() =>
    call(connection, operation, {
      begin: Effect.suspend(() => {
        const refusal = body()
        return refusal === null ? Effect.void : Effect.fail(refuse(operation, refusal))
      }),
      finish: () => Effect.void
    })
  )

const statusOf = (guest: guests.Guest): VmmStatus =>
  guest._tag === "Loading" ? { _tag: "Broken", status: "inmigrate" } : { _tag: guest._tag }

const power = (connection: Connection) => {
  const { host, process } = connection
  const { world } = host
  const guest = () => process.record.guest
  return {
    boot: change(connection, "boot", () => {
      if (guest()._tag !== "Prelaunch" && guest()._tag !== "Off") return `the guest is ${guest()._tag}`
      bootGuest(world, process)
      return null
    }),
    pause: change(connection, "pause", () => {
      const it = guest()
      if (it._tag === "Paused") return null
      if (it._tag !== "Running") return `the guest is ${it._tag}`
      alter(world, process, { guest: guests.pause(it, now(world)) })
      return null
    }),
    resume: change(connection, "resume", () => {
      const it = guest()
      if (it._tag === "Running") return null
      if (it._tag !== "Paused") return `the guest is ${it._tag}`
      alter(world, process, { guest: guests.resume(it, now(world)) })
      return null
    }),
    powerButton: change(connection, "powerButton", () => {
      askToEnd(world, process)
      return null
    }),
    powerOff: change(connection, "powerOff", () => {
      if (guest()._tag === "Off") return null
      if (guest()._tag !== "Running" && guest()._tag !== "Paused") return `the guest is ${guest()._tag}`
      alter(world, process, { guest: { _tag: "Off", end: null } })
      return null
    })
  }
}

/** The answer says that it was heard; the end comes when it comes. */
const quit = ({ host, process, wire }: Connection): Effect.Effect<void, VmmFault> => {
  const { world, run } = host
  return operate(world, run, {
    operation: "quit",
    id: process.record.id,
    fault: (reason) => refuse("quit", reason),
    begin: Effect.suspend(() => {
      if (Deferred.isDoneUnsafe(wire.closed)) return Effect.fail(refuse("quit", "the connection is closed"))
      if (process.record.frozen) return Effect.asVoid(Deferred.await(process.death))
      alter(world, process, {
        ending: { atMs: now(world) + world.plan.latencyMs("kill", process.record.id) }
      })
      return Effect.void
    }),
    finish: () => Effect.void
  })
}

const snapshot = (connection: Connection, directory: string) => {
  const { host, process } = connection
  const { files, world } = host
  const fault = fileFault("snapshot")
  return call(connection, "snapshot", {
    begin: Effect.gen(function* () {
      const { guest, memoryMb } = process.record
      if (guest._tag !== "Paused") {
        violation(world, `snapshot of ${process.record.id} while ${guest._tag}`)
        return yield* refuse("snapshot", `the guest is ${guest._tag}`)
      }
      const present = yield* files.exists(directory).pipe(Effect.mapError(fault))
      if (!present) return yield* refuse("snapshot", "the directory does not exist")
      const names = yield* files.list(directory).pipe(Effect.mapError(fault))
      if (names.length > 0) return yield* refuse("snapshot", "the directory is not empty")
      const { memory, sinceMs } = guest
      const text = encodeSnapshot({ fingerprint: fingerprintOf(process.record), memoryMb, memory, sinceMs })
      yield* files.write(stateFile(directory), text.slice(0, text.length / 2)).pipe(Effect.mapError(fault))
      return { text, guest }
    }),
    finish: ({ text, guest }) =>
      Effect.gen(function* () {
        if (process.record.guest !== guest) return yield* refuse("snapshot", "the guest did not stay paused")
        yield* files.write(stateFile(directory), text).pipe(Effect.mapError(fault))
        return yield* Effect.as(whileServed(host.run), filesOf(text))
      })
  })
}

/** Half of the way before the latency, the rest after it: an interrupted growth stays where it is. */
const resizeMemory = (connection: Connection, memoryMb: number) => {
  const { host, process } = connection
  return call(connection, "resizeMemory", {
    begin: Effect.suspend(() => {
      const { bootMemoryMb, memoryMaxMb, memoryMb: actual, guest } = process.record
      if (memoryMb < bootMemoryMb || memoryMb > memoryMaxMb) {
        return Effect.fail(
          refuse("resizeMemory", `${memoryMb} MiB is not between ${bootMemoryMb} and ${memoryMaxMb} MiB`)
        )
      }
      if (guest._tag === "Running") {
        alter(host.world, process, { memoryMb: Math.round((actual + memoryMb) / 2) })
      }
      return Effect.void
    }),
    finish: () =>
      Effect.sync(() => {
        if (process.record.guest._tag === "Running") alter(host.world, process, { memoryMb })
        return process.record.memoryMb
      })
  })
}

/** It runs, and answers the request; or there is none. */
const guestLetsGo: ReadonlySet<guests.Guest["_tag"]> = new Set(["Running", "Prelaunch", "Off", "Panicked"])

const disks = (connection: Connection) => {
  const { host, process } = connection
  return {
    addDisk: (disk: Disk) =>
      call(connection, "addDisk", {
        begin: Effect.suspend(() =>
          Effect.fromResult(
            Result.mapError(addDisk(host.world, process, { ...disk, removable: true }), (reason) =>
              refuse("addDisk", reason)
            )
          )
        ),
        finish: () => Effect.void
      }),
    /** A guest that stands still lets nothing go. The file is closed after the guest was told, not before. */
    removeDisk: (serial: string) =>
      call(connection, "removeDisk", {
        begin: Effect.suspend(() => {
          if (!process.record.disks.some((it) => it.serial === serial)) {
            return Effect.fail(refuse("removeDisk", `there is no disk ${serial}`))
          }
          return guestLetsGo.has(process.record.guest._tag)
            ? Effect.void
            : Effect.fail(refuse("removeDisk", "the guest did not let go of the disk"))
        }),
        finish: () => Effect.sync(() => removeDisk(host.world, process, serial))
      }),
    resizeDisk: (serial: string) =>
      change(connection, "resizeDisk", () =>
        process.record.disks.some((it) => it.serial === serial) ? null : `there is no disk ${serial}`
      ),
    disks: read(connection, "disks", () =>
      process.record.disks.filter((it) => it.removable === true).map((it) => it.serial)
    )
  }
}

/** What cannot fail but with the connection: read at once. */
const read = <A>({ host, process, wire }: Connection, operation: string, body: () => A) =>
  Effect.suspend((): Effect.Effect<A, VmmFault> => {
    if (!host.run.alive) return Effect.interrupt
    if (Deferred.isDoneUnsafe(wire.closed)) return Effect.fail(refuse(operation, "the connection is closed"))
    if (process.record.frozen) {
      return Deferred.await(process.death).pipe(
        Effect.andThen(Effect.fail(refuse(operation, "the VMM ended")))
      )
    }
    return Effect.succeed(body())
  })

/** Connects; one client at a time, as QMP has it. The scope closes the connection. */
export const openSession = (host: Host, process: VmmProcess) =>
  Effect.gen(function* () {
    const events = yield* Queue.sliding<VmmEvent, Done>(eventsKept)
    const wire: Wire = {
      closed: Deferred.makeUnsafe(),
      tell: (event) => void Queue.offerUnsafe(events, event)
    }
    const connection: Connection = { host, process, wire }
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        if (process.session === wire) process.session = null
        Deferred.doneUnsafe(wire.closed, Effect.void)
        Queue.endUnsafe(events)
      })
    )
    yield* operate(host.world, host.run, {
      operation: "attach",
      id: process.record.id,
      fault: (reason) => refuse("attach", reason),
      peer: () => process,
      begin: Effect.suspend(() => {
        if (process.session !== null) return Effect.fail(refuse("attach", "another client is connected"))
        process.session = wire
        return Effect.void
      }),
      undo: () => {
        if (process.session === wire) process.session = null
      },
      finish: () => Effect.void
    })
    const session: VmmSession = {
      ...power(connection),
      ...disks(connection),
      status: read(connection, "status", () => statusOf(process.record.guest)),
      memoryMb: read(connection, "memoryMb", () => process.record.memoryMb),
      quit: Effect.suspend(() => quit(connection)),
      snapshot: (directory) => snapshot(connection, directory),
      resizeMemory: (memoryMb) => resizeMemory(connection, memoryMb),
      events: Stream.fromQueue(events).pipe(Stream.interruptWhen(Deferred.await(wire.closed))),
      agent: { _tag: "UnixSocket", path: agentSocket(process.record.runDirectory) }
    }
    return session
  })
