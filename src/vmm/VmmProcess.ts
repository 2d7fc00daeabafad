/**
 * VMM processes: started so that they outlive the service, and watched to their end by whoever serves them now.
 *
 *   launch ──► child of this service ──exit event──► code and signal known
 *                 │ service restarts
 *                 ▼
 *              adopted ──end of exit.fifo──► dead, code unknown        (no FIFO: looked at every `exitPollMs`)
 *
 * A VMM leads its own session, so a signal to the service's group does not reach it; its standard streams are files, so
 * nobody must read them. It holds the write end of `<runDirectory>/exit.fifo` as descriptor 3 and never uses it: the
 * kernel closes it with the process, which is the one event about a foreign process that costs no polling and no
 * privilege. The FIFO is not proof by itself: death is when pid, start time and boot id name no live process any more,
 * and a zombie is dead.
 *
 * `spawn` of node:child_process and not execa: execa 10 takes no descriptor numbers above 9 in its types, and sends a
 * file through the parent, whose end would be the VMM's.
 *
 * The run directory belongs to the caller; a process found by `scan` counts as ours only where it names a path inside
 * of it in its arguments and holds that FIFO.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { constants, openSync } from "node:fs"
import * as fs from "node:fs/promises"
import * as net from "node:net"
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { InstanceId } from "../domain/Ids.ts"
import { isSameProcess, type ProcessExit, type ProcessIdentity } from "../domain/Process.ts"
import { CommandPrefix } from "../host/Command.ts"
import { Paths } from "../host/Paths.ts"
import { identify, isAlive, processes, signal } from "../host/Proc.ts"
import { type ExitFifos, exitFifos } from "./exitFifo.ts"
import { VmmFault, VmmProcesses, type VmmRef } from "./Vmm.ts"

export const exitFifoName = "exit.fifo"
/** The descriptor of the FIFO in the VMM. */
const exitFd = 3
/** Only where an adopted VMM has no FIFO: the kernel gives no other event about a process that is not a child. */
const exitPollMs = 500
/** Behind the FIFO, in case that something else holds it too. */
const unseenPollMs = 10_000
/** Between the end of the FIFO and the process's own: the kernel closes its files a moment before it is gone. */
const settlePollMs = 5
const settlePolls = 200
/** QEMU and Cloud Hypervisor end within tens of milliseconds of a SIGTERM, unless they hang. */
const termGraceMs = 2_000
/** After SIGKILL: what the kernel needs to give back a large guest's memory. */
const killGraceMs = 10_000
/** How much of what a VMM said goes into a fault. */
const logTailBytes = 2_000
/** Ended children whose exit can still be asked for. */
const endedKept = 1_024
/** A VMM's log holds paths and its console holds what the guest prints: nobody else reads them. */
const logMode = 0o600

export interface LaunchPlan {
  readonly id: InstanceId
  /** The VMM's program: a path, or a name to be found in PATH. */
  readonly program: string
  readonly args: ReadonlyArray<string>
  /** Appended to; made where it is not there. */
  readonly logPath: string
  /** Where its standard output goes instead of the log, appended: the console of a VMM that writes it there. */
  readonly outputPath?: string
  /** Exists, and holds no live VMM. */
  readonly runDirectory: string
}

export class VmmLauncher extends Context.Service<
  VmmLauncher,
  {
    /**
     * Starts a VMM and gives its identity as soon as the kernel knows it. Not interruptible, so that no process is
     * started without its identity being told; fails with the tail of its log where it ended at once.
     */
    readonly launch: (plan: LaunchPlan) => Effect.Effect<ProcessIdentity, VmmFault>
    /** Waits for the end of a VMM and fails with what it said last: to race anything against that needs it alive. */
    readonly untilDeath: (vmm: VmmRef, logPath: string, operation: string) => Effect.Effect<never, VmmFault>
  }
>()("dataplane/vmm/VmmLauncher") {}

/** The end of a log as one string; empty where there is none. */
const logTail = (logPath: string): Effect.Effect<string> =>
  Effect.promise(async () => {
    try {
      const handle = await fs.open(logPath, "r")
      try {
        const { size } = await handle.stat()
        const length = Math.min(size, logTailBytes)
        const { buffer } = await handle.read(Buffer.alloc(length), 0, length, size - length)
        return buffer.toString("utf8").trim()
      } finally {
        await handle.close()
      }
    } catch {
      return ""
    }
  })

const describeExit = (exit: ProcessExit): string =>
  exit.signal !== null
    ? `ended by ${exit.signal}`
    : exit.code !== null
      ? `ended with exit code ${exit.code}`
      : "ended"

const ended = (operation: string, exit: ProcessExit, said: string) =>
  new VmmFault({
    operation,
    reason: `the VMM ${describeExit(exit)}${said === "" ? "" : `: ${said}`}`,
    cause: undefined
  })

interface Child {
  readonly identity: ProcessIdentity
  readonly process: ChildProcess
  readonly exit: Deferred.Deferred<ProcessExit>
  /** Who waits for its end. Without any, the service may end before it does. */
  waiting: number
}

/** The end of a child; the event loop stays for it as long as somebody waits. */
const childExit = (child: Child): Effect.Effect<ProcessExit> =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      if (child.waiting++ === 0) child.process.ref()
    }),
    () => Deferred.await(child.exit),
    () =>
      Effect.sync(() => {
        if (--child.waiting === 0) child.process.unref()
      })
  )

const sleep = (ms: number) => Effect.sleep(ms)

/** Looks at the process until it is dead: often at first, then at the slow interval. */
const pollUntilDead = Effect.fnUntraced(function* (process: ProcessIdentity, quickPolls: number) {
  for (let polls = 0; yield* isAlive(process); polls++)
    yield* sleep(polls < quickPolls ? settlePollMs : exitPollMs)
})

/** Ends with the FIFO's last writer. Fails where the FIFO cannot be opened. */
const fifoEnd = (fifo: string): Effect.Effect<void, unknown> =>
  Effect.callback<void, unknown>((resume) => {
    let reader: net.Socket
    try {
      // O_NONBLOCK: opening must not wait for a writer (fifo(7)).
      reader = new net.Socket({
        fd: openSync(fifo, constants.O_RDONLY | constants.O_NONBLOCK),
        readable: true,
        writable: false
      })
    } catch (cause) {
      return resume(Effect.fail(cause))
    }
    reader
      .once("error", (cause) => resume(Effect.fail(cause)))
      .once("close", () => resume(Effect.void))
      .resume()
    return Effect.sync(() => reader.destroy())
  })

/**
 * What the FIFO does not tell: a death between the first look and its opening (a FIFO whose last writer went before that
 * never ends), and one behind which a child of the VMM still holds it.
 */
const deadUnseen = Effect.fnUntraced(function* (process: ProcessIdentity) {
  yield* sleep(settlePollMs)
  while (yield* isAlive(process)) yield* sleep(unseenPollMs)
})

/** The end of a VMM that another process started; its exit code went to whoever reaped it. */
const adoptedExit = Effect.fnUntraced(function* (vmm: VmmRef) {
  const unknown: ProcessExit = { code: null, signal: null }
  if (!(yield* isAlive(vmm.process))) return unknown
  const fifo = fifoEnd(path.join(vmm.runDirectory, exitFifoName))
  const watched = yield* Effect.exit(Effect.raceFirst(fifo, deadUnseen(vmm.process)))
  yield* pollUntilDead(vmm.process, Exit.isSuccess(watched) ? settlePolls : 0)
  return unknown
})

const launchFault = (operation: string, reason: string) => (cause: unknown) =>
  new VmmFault({ operation, reason, cause })

const openFiles = (plan: LaunchPlan, fifo: string) =>
  Effect.acquireRelease(
    Effect.tryPromise({
      try: async () => {
        const opened: Array<fs.FileHandle> = []
        const open = async (file: string, flags: string) => {
          const handle = await fs.open(file, flags, logMode)
          opened.push(handle)
          return handle
        }
        try {
          const log = await open(plan.logPath, "a")
          const output = plan.outputPath === undefined ? log : await open(plan.outputPath, "a")
          // Read and write, since a FIFO without a reader cannot be opened for writing alone (fifo(7)).
          return { log, output, exit: await open(fifo, "r+"), opened }
        } catch (cause) {
          await Promise.all(opened.map((it) => it.close()))
          throw cause
        }
      },
      catch: launchFault("spawn", "the VMM's log and exit FIFO could not be opened")
    }),
    ({ opened }) => Effect.promise(() => Promise.all(opened.map((it) => it.close())))
  )

interface Outcome {
  readonly exit: ProcessExit
  /** Why it could not even be started, where it could not. */
  readonly cause: unknown
}

interface Streams {
  readonly output: fs.FileHandle
  readonly log: fs.FileHandle
  readonly exit: fs.FileHandle
}

const startChild = (plan: LaunchPlan, prefix: ReadonlyArray<string>, { output, log, exit }: Streams) => {
  const [file, ...args] = [...prefix, plan.program, ...plan.args]
  const child = spawn(file ?? plan.program, args, {
    detached: true,
    env: { PATH: process.env["PATH"] ?? "/usr/sbin:/usr/bin:/sbin:/bin", LANG: "C" },
    cwd: "/",
    stdio: ["ignore", output.fd, log.fd, exit.fd]
  })
  child.unref()
  return child
}

const outcomeOf = (child: ChildProcess, exit: Deferred.Deferred<ProcessExit>): Promise<Outcome> =>
  new Promise((resolve) => {
    const end = (how: ProcessExit, cause: unknown) => {
      Deferred.doneUnsafe(exit, Effect.succeed(how))
      resolve({ exit: how, cause })
    }
    child
      .once("exit", (code, name) => end({ code, signal: name }, undefined))
      .once("error", (cause) => end({ code: null, signal: null }, cause))
  })

const start = Effect.fnUntraced(function* (children: Map<number, Child>, fifos: ExitFifos, plan: LaunchPlan) {
  const fifo = path.join(plan.runDirectory, exitFifoName)
  yield* fifos.make(fifo).pipe(Effect.mapError(launchFault("spawn", "the VMM's exit FIFO could not be made")))
  const prefix = yield* CommandPrefix
  const files = yield* openFiles(plan, fifo)
  const child = startChild(plan, prefix, files)
  const exit = Deferred.makeUnsafe<ProcessExit>()
  const outcome = outcomeOf(child, exit)
  const { pid } = child
  const identity = pid === undefined ? Option.none<ProcessIdentity>() : yield* identify(pid)
  if (Option.isNone(identity)) {
    const how = yield* Effect.promise(() => outcome)
    if (pid !== undefined) return yield* ended("spawn", how.exit, yield* logTail(plan.logPath))
    const reason = `${plan.program} could not be started; is it installed and executable?`
    return yield* new VmmFault({ operation: "spawn", reason, cause: how.cause })
  }
  if (children.size >= endedKept)
    for (const [old, { exit: done }] of children) if (Deferred.isDoneUnsafe(done)) children.delete(old)
  children.set(identity.value.pid, { identity: identity.value, process: child, exit, waiting: 0 })
  return identity.value
}, Effect.scoped)

const kill = (exit: (vmm: VmmRef) => Effect.Effect<ProcessExit>) =>
  Effect.fnUntraced(function* (vmm: VmmRef) {
    const endsWithin = (ms: number) => exit(vmm).pipe(Effect.timeoutOption(ms), Effect.map(Option.isSome))
    if (!(yield* isAlive(vmm.process))) return
    yield* signal(vmm.process, "SIGTERM")
    if (yield* endsWithin(termGraceMs)) return
    yield* signal(vmm.process, "SIGKILL")
    if (yield* endsWithin(killGraceMs)) return
    return yield* new VmmFault({
      operation: "kill",
      reason: `process ${vmm.process.pid} is still there ${killGraceMs} ms after SIGKILL`,
      cause: undefined
    })
  })

const decodeId = Schema.decodeUnknownOption(InstanceId)

/** The instance whose run directory a command line names, such as `path=<runRoot>/<id>/qmp.sock`. */
export const instanceOf = (argv: ReadonlyArray<string>, runRoot: string): Option.Option<InstanceId> => {
  const prefix = `${runRoot}/`
  for (const argument of argv) {
    const at = argument.indexOf(prefix)
    if (at === -1) continue
    const id = decodeId(argument.slice(at + prefix.length).split("/", 1)[0])
    if (Option.isSome(id)) return id
  }
  return Option.none()
}

const holdsFifo = (pid: number, runDirectory: string): Effect.Effect<boolean> =>
  Effect.promise(() =>
    fs.readlink(`/proc/${pid}/fd/${exitFd}`).then(
      // A removed file is shown as `<path> (deleted)` (proc(5)); its holder is a VMM all the same.
      (target) => target.startsWith(path.join(runDirectory, exitFifoName)),
      () => false
    )
  )

const scan = (runRoot: string): Effect.Effect<ReadonlyArray<VmmRef>> =>
  Effect.gen(function* () {
    const found: Array<VmmRef> = []
    for (const { pid, argv } of yield* processes) {
      const id = instanceOf(argv, runRoot)
      if (pid === process.pid || Option.isNone(id)) continue
      const runDirectory = path.join(runRoot, id.value)
      const identity = yield* identify(pid)
      if (Option.isSome(identity) && (yield* holdsFifo(pid, runDirectory)))
        found.push({ id: id.value, process: identity.value, runDirectory })
    }
    return found
  })

/** Both services over one book of children: how a VMM ended is known only to the process that started it. */
export const vmmProcessesLayer: Layer.Layer<VmmProcesses | VmmLauncher, never, Paths> = Layer.effectContext(
  Effect.gen(function* () {
    const paths = yield* Paths
    const children = new Map<number, Child>()
    const fifos = yield* exitFifos(paths.run)
    const exit = (vmm: VmmRef) =>
      Effect.suspend(() => {
        const child = children.get(vmm.process.pid)
        return child !== undefined && isSameProcess(child.identity, vmm.process)
          ? childExit(child)
          : adoptedExit(vmm)
      })
    return Context.make(VmmProcesses, {
      exit,
      isAlive,
      kill: kill(exit),
      scan: scan(paths.run)
    }).pipe(
      Context.add(VmmLauncher, {
        launch: (plan) => Effect.uninterruptible(start(children, fifos, plan)),
        untilDeath: (vmm, logPath, operation) =>
          exit(vmm).pipe(
            Effect.flatMap((how) =>
              Effect.flatMap(logTail(logPath), (said) => Effect.fail(ended(operation, how, said)))
            )
          )
      })
    )
  })
)
