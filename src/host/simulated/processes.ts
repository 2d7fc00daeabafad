/**
 * The process table of a simulated host. It alone changes processes and their guests: each change is stored, told to who
 * waits for it, and the timer of the process is set to the next thing that will happen to it by itself.
 */
import * as path from "node:path"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type { InterfaceName } from "../../domain/Network.ts"
import type { ProcessExit, ProcessIdentity } from "../../domain/Process.ts"
import * as guests from "./guest.ts"
import { idleProgram, type Program } from "./GuestInit.ts"
import {
  keepExit,
  type MachineDisk,
  note,
  now,
  type ProcessRecord,
  type ServiceRun,
  violation,
  type VmmProcess,
  type World
} from "./World.ts"

export const monitorSocket = (runDirectory: string): string => path.join(runDirectory, "monitor.sock")
export const agentSocket = (runDirectory: string): string => path.join(runDirectory, "agent.sock")

/** What a VMM is started with. */
export type Machine = Omit<
  ProcessRecord,
  "identity" | "parent" | "guest" | "memoryMb" | "ending" | "frozen" | "holdsDisks"
>

const storageKey = (identity: ProcessIdentity): string => `vmm-${identity.pid}`

/** Says whether it is kept. What a full disk did not take is lost with the service, as the history then says. */
const store = (world: World, record: ProcessRecord): boolean => {
  try {
    world.storage.put(storageKey(record.identity), () => JSON.stringify({ process: record }))
    return true
  } catch {
    note(world, `not stored ${record.id}`)
    return false
  }
}

/** The live process that an identity names. */
export const lookup = (world: World, identity: ProcessIdentity): VmmProcess | undefined => {
  const found = world.processes.get(identity.pid)
  return found !== undefined &&
    found.record.identity.start_time === identity.start_time &&
    found.record.identity.boot_id === identity.boot_id
    ? found
    : undefined
}

/** The VMM that holds a TAP open, if one does. */
export const tapHolder = (world: World, tap: InterfaceName): VmmProcess | undefined => {
  const owner = world.tapHolders.get(tap)
  return owner === undefined ? undefined : world.processes.get(owner)
}

/** Writes lines to the console of a process, or to its log. A full disk loses them, as it does with a VMM. */
const print = (world: World, file: string, lines: ReadonlyArray<string>): void => {
  try {
    world.disk.append(file, lines.map((line) => `${line}\n`).join(""))
  } catch {
    note(world, `lost ${lines.length} lines`)
  }
}
export const say = (world: World, process: VmmProcess, lines: ReadonlyArray<string>): void =>
  print(world, process.record.consolePath, lines)

/** Why these disks cannot be opened together, or null. Asks before it takes anything. */
const lockRefusal = (world: World, disks: ReadonlyArray<MachineDisk>): string | null => {
  for (const disk of disks) {
    if (!world.disk.exists(disk.path)) return `could not open the disk ${disk.serial}: no such file`
    const lock = world.locks.get(disk.path)
    if (lock === undefined) continue
    if (lock.writer !== null || (!disk.readonly && lock.readers.size > 0)) {
      return `failed to get the "${disk.readonly ? "shared" : "write"}" lock of the disk ${disk.serial}`
    }
  }
  return null
}

const lock = (world: World, pid: number, disks: ReadonlyArray<MachineDisk>): void => {
  for (const disk of disks) {
    const held = world.locks.get(disk.path) ?? { writer: null, readers: new Set<number>() }
    if (disk.readonly) held.readers.add(pid)
    else held.writer = pid
    world.locks.set(disk.path, held)
  }
}

const unlock = (world: World, pid: number, disks: ReadonlyArray<MachineDisk>): void => {
  for (const disk of disks) {
    const held = world.locks.get(disk.path)
    if (held === undefined) continue
    held.readers.delete(pid)
    if (held.writer === pid) held.writer = null
    if (held.writer === null && held.readers.size === 0) world.locks.delete(disk.path)
  }
}

const nextPid = (world: World): number => {
  let pid = world.nextPid
  const after = () => (pid >= world.pids.last ? world.pids.first : pid + 1)
  while (world.processes.has(pid)) pid = after()
  world.nextPid = after()
  return pid
}

/** Forgets one socket of a dead VMM that somebody removed meanwhile, so that the list stays as long as the truth. */
const forgetOneSocket = (world: World): void => {
  for (const [file, pid] of world.sockets) {
    if (!world.processes.has(pid) && !world.disk.exists(file)) world.sockets.delete(file)
    else {
      world.sockets.delete(file)
      world.sockets.set(file, pid)
    }
    return
  }
}

const openFiles = (world: World, machine: Machine, pid: number): string | null => {
  try {
    for (const file of [machine.consolePath, machine.logPath]) world.disk.touch(file)
    for (const file of [monitorSocket(machine.runDirectory), agentSocket(machine.runDirectory)]) {
      world.disk.touch(file)
      world.sockets.set(file, pid)
    }
    return null
  } catch (cause) {
    return `could not open its files: ${cause instanceof Error ? cause.message : String(cause)}`
  }
}

const closeSockets = (world: World, runDirectory: string): void => {
  for (const file of [monitorSocket(runDirectory), agentSocket(runDirectory)]) {
    world.sockets.delete(file)
    world.disk.remove(file)
  }
}

const startRefusal = (world: World, machine: Machine, holdsDisks: boolean): string | null => {
  if (world.byDirectory.has(machine.runDirectory)) return "its sockets are in use by another VMM"
  if (machine.nic !== null) {
    if (!world.taps.has(machine.nic.tap)) return `there is no TAP ${machine.nic.tap}`
    if (world.tapHolders.has(machine.nic.tap)) return `TAP ${machine.nic.tap}: device or resource busy`
  }
  return holdsDisks ? lockRefusal(world, machine.disks) : null
}

/** Puts a process into the table, from a start or from storage. */
export const enter = (world: World, record: ProcessRecord): VmmProcess => {
  const process: VmmProcess = {
    record,
    death: Deferred.makeUnsafe(),
    session: null,
    channel: null,
    changed: null,
    timer: null
  }
  const { pid } = record.identity
  world.processes.set(pid, process)
  world.byDirectory.set(record.runDirectory, process)
  world.byId.set(record.id, process)
  if (record.nic !== null) world.tapHolders.set(record.nic.tap, pid)
  if (record.holdsDisks) lock(world, pid, record.disks)
  return process
}

/** Starts a VMM whose guest is not started, or is still being loaded. Fails with a sentence, and leaves nothing then. */
export const start = (
  world: World,
  run: ServiceRun,
  machine: Machine,
  guest: Extract<guests.Guest, { readonly _tag: "Prelaunch" | "Loading" }>
): Result.Result<VmmProcess, string> => {
  const holdsDisks = guest._tag === "Prelaunch"
  const refusal = startRefusal(world, machine, holdsDisks)
  if (refusal !== null) return Result.fail(refusal)
  forgetOneSocket(world)
  const pid = nextPid(world)
  const failure = openFiles(world, machine, pid)
  if (failure !== null) {
    closeSockets(world, machine.runDirectory)
    return Result.fail(failure)
  }
  if (world.byId.has(machine.id)) violation(world, `two VMMs of ${machine.id}`)
  world.lastStart = Math.max(world.lastStart + 1, now(world))
  const record: ProcessRecord = {
    ...machine,
    identity: { pid, start_time: `${world.lastStart}`, boot_id: world.bootId },
    parent: run.epoch,
    memoryMb: machine.bootMemoryMb,
    holdsDisks,
    guest,
    ending: null,
    frozen: false
  }
  if (!store(world, record)) {
    closeSockets(world, machine.runDirectory)
    return Result.fail("could not be recorded under DATA_DIR/simulated")
  }
  print(world, machine.logPath, [`simulated VMM ${pid} started`])
  return Result.succeed(enter(world, record))
}

/** Opens the disks of a process that was started without them. */
export const openDisks = (world: World, process: VmmProcess): Result.Result<void, string> => {
  const refusal = lockRefusal(world, process.record.disks)
  if (refusal !== null) return Result.fail(refusal)
  lock(world, process.record.identity.pid, process.record.disks)
  process.record = { ...process.record, holdsDisks: true }
  store(world, process.record)
  return Result.succeed(undefined)
}

export const addDisk = (
  world: World,
  process: VmmProcess,
  disk: MachineDisk
): Result.Result<void, string> => {
  if (process.record.disks.some((it) => it.serial === disk.serial)) {
    return Result.fail(`there is a disk ${disk.serial}`)
  }
  const refusal = lockRefusal(world, [disk])
  if (refusal !== null) return Result.fail(refusal)
  lock(world, process.record.identity.pid, [disk])
  process.record = { ...process.record, disks: [...process.record.disks, disk] }
  store(world, process.record)
  return Result.succeed(undefined)
}

export const removeDisk = (world: World, process: VmmProcess, serial: string): void => {
  if (guests.mountsOf(process.record.guest).some((it) => it.serial === serial))
    violation(world, `the disk ${serial} of ${process.record.id} was removed while it was mounted`)
  unlock(
    world,
    process.record.identity.pid,
    process.record.disks.filter((it) => it.serial === serial)
  )
  process.record = { ...process.record, disks: process.record.disks.filter((it) => it.serial !== serial) }
  store(world, process.record)
}

/** Ends a process. `orderly`: it removed its sockets itself; otherwise they stay, as after SIGKILL. */
export const end = (world: World, process: VmmProcess, exit: ProcessExit, orderly: boolean): void => {
  const { record } = process
  const { pid } = record.identity
  if (world.processes.get(pid) !== process) return
  process.timer?.interruptUnsafe()
  process.timer = null
  world.processes.delete(pid)
  world.byDirectory.delete(record.runDirectory)
  if (world.byId.get(record.id) === process) world.byId.delete(record.id)
  if (record.nic !== null) world.tapHolders.delete(record.nic.tap)
  if (record.holdsDisks) unlock(world, pid, record.disks)
  if (orderly) closeSockets(world, record.runDirectory)
  world.storage.remove(storageKey(record.identity))
  note(world, `ended ${record.id} code ${exit.code} signal ${exit.signal}`)
  keepExit(world, record, exit)
  const wires = [process.session, process.channel]
  process.session = null
  process.channel = null
  Deferred.doneUnsafe(process.death, Effect.succeed(exit))
  for (const wire of wires) if (wire !== null) Deferred.doneUnsafe(wire.closed, Effect.void)
  tellChange(process)
}

const tellChange = (process: VmmProcess): void => {
  const { changed } = process
  process.changed = null
  if (changed !== null) Deferred.doneUnsafe(changed, Effect.void)
}

/** Ends at the next change of this process or its guest. */
export const nextChange = (process: VmmProcess): Effect.Effect<void> =>
  Effect.suspend(() => {
    process.changed ??= Deferred.makeUnsafe()
    return Deferred.await(process.changed)
  })

export const alter = (
  world: World,
  process: VmmProcess,
  change: Partial<Pick<ProcessRecord, "guest" | "memoryMb" | "ending" | "frozen">>
): void => {
  if (world.processes.get(process.record.identity.pid) !== process) return
  process.record = { ...process.record, ...change }
  store(world, process.record)
  setTimer(world, process)
  tellChange(process)
}

/** What the guest's init reads from its disks; a guest without readable ones idles. */
export const programOf = (world: World, process: VmmProcess): Program => {
  try {
    return world.init.read(world.disk, process.record.disks)
  } catch {
    note(world, `guest ${process.record.id} has no program`)
    return idleProgram
  }
}

const report = (world: World, process: VmmProcess, by: guests.End): void => {
  try {
    world.init.report(world.disk, process.record.disks, by)
  } catch {
    note(world, `guest ${process.record.id} lost its report`)
  }
}

/** The guest goes off or panics by itself: report, console, event, in this order. The VMM stays. */
export const endGuest = (world: World, process: VmmProcess, by: guests.End): void => {
  const { record } = process
  note(world, `guest ${record.id} ${by._tag}`)
  if (by._tag === "Panicked") say(world, process, ["Kernel panic - not syncing: simulated"])
  else {
    report(world, process, by)
    say(world, process, [by._tag === "Reset" ? "reboot: Restarting system" : "reboot: Power down"])
  }
  alter(world, process, { guest: guests.ended(by) })
  process.session?.tell(
    by._tag === "Panicked"
      ? { _tag: "GuestPanicked" }
      : { _tag: "GuestOff", cause: by._tag === "Reset" ? "reset" : "poweroff" }
  )
}

/** What happens next to a process by itself, and in how many milliseconds. */
type Next =
  | { readonly _tag: "Gone"; readonly inMs: number }
  | { readonly _tag: "Deed"; readonly inMs: number; readonly deed: guests.Deed }
  | { readonly _tag: "Tick"; readonly inMs: number }

const nextOf = (world: World, { ending, guest }: ProcessRecord): Next | null => {
  const at = now(world)
  const found: Array<Next> = []
  if (ending !== null) found.push({ _tag: "Gone", inMs: Math.max(0, ending.atMs - at) })
  const next = guests.nextDeed(guest, at)
  if (next !== null) found.push({ _tag: "Deed", ...next })
  if (world.tickMs > 0 && guests.answers(guest)) {
    found.push({ _tag: "Tick", inMs: world.tickMs - (guests.ranMs(guest, at) % world.tickMs) })
  }
  return found.toSorted((one, other) => one.inMs - other.inMs)[0] ?? null
}

const happen = (world: World, process: VmmProcess, next: Next): void => {
  if (next._tag === "Gone") return end(world, process, { code: 0, signal: null }, true)
  const { guest, id } = process.record
  if (guest._tag !== "Running") return
  const count = `counter ${guests.counter(guest, now(world))}`
  if (next._tag === "Tick") {
    say(world, process, [count])
    return setTimer(world, process)
  }
  if (next.deed._tag === "End") return endGuest(world, process, next.deed.end)
  note(world, `guest ${id} answers`)
  say(world, process, ["init: ready", ...programOf(world, process).greeting, count])
  alter(world, process, { guest: guests.answer(guest) })
}

/** Lets what is due happen, and sets the timer for what comes after it. */
export const setTimer = (world: World, process: VmmProcess): void => {
  const timer = process.timer
  process.timer = null
  timer?.interruptUnsafe()
  const next = nextOf(world, process.record)
  if (next === null) return
  if (next.inMs === 0) return happen(world, process, next)
  process.timer = world.fork(
    Effect.sleep(next.inMs).pipe(
      Effect.andThen(
        Effect.sync(() => {
          process.timer = null
          happen(world, process, next)
        })
      )
    )
  )
}
