/** The TAPs of a simulated host: made in two halves, so that a half-made one can be found. */
import type { InterfaceName } from "../../domain/Network.ts"
import { tapHolder } from "./processes.ts"
import { type TapRecord, violation, type World } from "./World.ts"

const storageKey = (tap: InterfaceName): string => `tap-${tap}`

/** Makes or replaces a TAP. */
export const putTap = (world: World, tap: TapRecord): void => {
  world.taps.set(tap.name, tap)
  world.storage.put(storageKey(tap.name), () => JSON.stringify({ tap }))
}

/** Takes the rules of a TAP away, or gives them to it; ignored where there is no such TAP, or where it is so already. */
export const pinTap = (world: World, name: InterfaceName, pinned: boolean): void => {
  const tap = world.taps.get(name)
  if (tap !== undefined && tap.pinned !== pinned) putTap(world, { ...tap, pinned })
}

/** A TAP is gone, whoever held it. */
export const dropTap = (world: World, name: InterfaceName): void => {
  world.taps.delete(name)
  world.storage.remove(storageKey(name))
}

/** Removes a TAP, also from under a running VMM, as the kernel does; that no correct service does. */
export const removeTap = (world: World, name: InterfaceName): void => {
  const holder = tapHolder(world, name)
  if (holder !== undefined) violation(world, `TAP of ${holder.record.id} removed from under its VMM`)
  dropTap(world, name)
}
