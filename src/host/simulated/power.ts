/** What is asked of a simulated guest: to boot, to end in order, to wake up in the present. */
import * as guests from "./guest.ts"
import { alter, programOf, say } from "./processes.ts"
import { note, now, type VmmProcess, type World } from "./World.ts"

/** Draws a new state of an entropy pool. */
export const drawEntropy = (world: World, id: string): number =>
  Math.floor(world.plan.draw(id, "entropy") * Number.MAX_SAFE_INTEGER)

/**
 * Starts the guest from its kernel. The time until init answers is the latency of `guestBoot`; a fault of `guestBoot`
 * is a kernel panic on the way.
 */
export const bootGuest = (world: World, process: VmmProcess): void => {
  const { id, vcpus, memoryMb } = process.record
  const course = world.plan.course("guestBoot", id)
  const read = programOf(world, process)
  const missing = read.mounts.find((it) => !process.record.disks.some((disk) => disk.serial === it.serial))
  const program =
    missing === undefined ? read : { ...read, failure: `no disk with the serial ${missing.serial}` }
  const readyAtMs = course.latencyMs
  const fateOf = (): guests.Fate | null => {
    if (course.fault !== null) return { atMs: readyAtMs / 2, end: { _tag: "Panicked" } }
    if (program.failure !== null) {
      return { atMs: readyAtMs, end: { _tag: "Failed", message: program.failure } }
    }
    return program.fate === null ? null : { atMs: readyAtMs + program.fate.afterMs, end: program.fate.end }
  }
  const memory: guests.Memory = {
    ranMs: 0,
    readyAtMs,
    answered: false,
    fate: fateOf(),
    deaf: program.deaf,
    clockBehindMs: 0,
    entropy: drawEntropy(world, id),
    mounts: program.mounts
  }
  say(world, process, [
    "[    0.000000] Linux version 6.1.0-simulated",
    `[    0.000000] Memory: ${memoryMb}M, CPUs: ${vcpus}`
  ])
  alter(world, process, { guest: guests.boot(memory, now(world)) })
}

/**
 * The power button, or the agent's shutdown: the guest goes off after the latency of `guestEnd`. Lost on a guest that
 * does not run, whose init does not answer yet, or that is deaf; a fault of `guestEnd` makes it deaf this once.
 */
export const askToEnd = (world: World, process: VmmProcess): void => {
  const { guest, id } = process.record
  if (guest._tag !== "Running" || !guest.memory.answered || guest.memory.deaf) {
    return note(world, `guest ${id} does not hear`)
  }
  const course = world.plan.course("guestEnd", id)
  if (course.fault !== null) return note(world, `guest ${id} ignores`)
  const atMs = guests.ranMs(guest, now(world)) + course.latencyMs
  alter(world, process, {
    guest: { ...guest, memory: guests.hasten(guest.memory, { atMs, end: { _tag: "Stopped" } }) }
  })
}

/** Sets the guest's clock and reseeds its entropy pool; says whether there was a guest that could. */
export const awakenGuest = (world: World, process: VmmProcess): boolean => {
  const { guest, id } = process.record
  if (guest._tag !== "Running" || !guest.memory.answered) return false
  alter(world, process, { guest: guests.awaken(guest, drawEntropy(world, id)) })
  return true
}

/** Mounts a disk of the machine; says whether the guest has such a disk. */
export const mountInGuest = (world: World, process: VmmProcess, mount: guests.Mount): boolean => {
  const { guest, disks } = process.record
  if (guest._tag !== "Running" || !disks.some((it) => it.serial === mount.serial)) return false
  alter(world, process, { guest: guests.mount(guest, mount) })
  return true
}

export const unmountInGuest = (world: World, process: VmmProcess, path: string): void => {
  const { guest } = process.record
  if (guest._tag === "Running") alter(world, process, { guest: guests.unmount(guest, path) })
}
