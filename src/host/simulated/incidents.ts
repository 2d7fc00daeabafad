/** What befalls a simulated host unasked. Each says whether there was something for it to befall. */
import type { InstanceId } from "../../domain/Ids.ts"
import type { InterfaceName } from "../../domain/Network.ts"
import type { End } from "./guest.ts"
import { alter, end, endGuest } from "./processes.ts"
import { dropTap } from "./taps.ts"
import { sever, type VmmProcess, type World } from "./World.ts"

const withProcess = (world: World, id: InstanceId, body: (process: VmmProcess) => void): boolean => {
  const process = world.byId.get(id)
  if (process === undefined) return false
  body(process)
  return true
}

const guestEnds = (world: World, id: InstanceId, by: End): boolean => {
  const process = world.byId.get(id)
  if (process?.record.guest._tag !== "Running") return false
  endGuest(world, process, by)
  return true
}

/** The VMM is gone at once and leaves its sockets, as after SIGKILL or a fault of its own. */
export const crashVmm = (world: World, id: InstanceId, signal = "SIGKILL"): boolean =>
  withProcess(world, id, (process) => end(world, process, { code: null, signal }, false))

/** The VMM stays, but answers nothing and ignores SIGTERM. */
export const freezeVmm = (world: World, id: InstanceId): boolean =>
  withProcess(world, id, (process) => alter(world, process, { frozen: true }))

export const guestPanics = (world: World, id: InstanceId): boolean =>
  guestEnds(world, id, { _tag: "Panicked" })

export const guestPowersOff = (world: World, id: InstanceId): boolean =>
  guestEnds(world, id, { _tag: "PoweredOff" })

export const guestResets = (world: World, id: InstanceId): boolean => guestEnds(world, id, { _tag: "Reset" })

/** The image's process ends with this code, and init powers off. */
export const guestExits = (world: World, id: InstanceId, code: number): boolean =>
  guestEnds(world, id, { _tag: "Exited", code })

/** A TAP that disappears behind the service's back. */
export const tapVanishes = (world: World, tap: InterfaceName): boolean => {
  const present = world.taps.has(tap)
  dropTap(world, tap)
  return present
}

/** The service is killed with SIGKILL: the VMMs go on, and nothing that the service still tries has any effect. */
export const killService = (world: World): void => {
  if (world.service !== null) sever(world, world.service)
}

/** The machine loses power: no process, no TAP, no socket; files stay, and the next boot has another id. */
export const reboot = (world: World, bootId: string): void => {
  killService(world)
  for (const process of world.processes.values()) {
    end(world, process, { code: null, signal: null }, true)
  }
  for (const tap of world.taps.keys()) dropTap(world, tap)
  for (const file of world.sockets.keys()) world.disk.remove(file)
  world.sockets.clear()
  world.exits.clear()
  world.bootId = bootId
  world.lastStart = 0
}
