/** Whether the host has room for one more guest. Pure; memory is counted by what guests may take, not by what they use. */
import type { Instance } from "../domain/Instance.ts"

/** Kept for the host itself and the VMMs' own needs. */
export const hostReserveMb = 512

/** An instance that holds memory of the host now, or is about to. */
export const holdsMemory = (view: Instance): boolean => {
  switch (view.state) {
    case "Stopped":
      return view.transition !== null
    case "Standby":
      return view.transition === "restore"
    default:
      return true
  }
}

/** MiB that another guest could still be given, at least 0. */
export const availableMb = (hostMb: number, views: ReadonlyArray<Instance>): number => {
  const taken = views.filter(holdsMemory).reduce((sum, view) => sum + view.memory_mb, 0)
  return Math.max(0, hostMb - hostReserveMb - taken)
}
