/** What is on a simulated host: for leak checks, and for questions about a guest that no service can answer. */
import type { InstanceId } from "../../domain/Ids.ts"
import type { InterfaceName } from "../../domain/Network.ts"
import type { ProcessIdentity } from "../../domain/Process.ts"
import * as guests from "./guest.ts"
import { now, type World } from "./World.ts"

export interface Ledger {
  readonly processes: ReadonlyArray<{ readonly id: InstanceId; readonly process: ProcessIdentity }>
  readonly taps: ReadonlyArray<InterfaceName>
  /** Sockets that exist, of live VMMs and of dead ones. */
  readonly sockets: ReadonlyArray<string>
  /** Disks that somebody has open. */
  readonly locks: ReadonlyArray<string>
  /** Open connections to VMMs and agents. */
  readonly wires: number
}

/** Everything that somebody must own. All of it is empty when every VM was torn down. */
export const ledger = (world: World): Ledger => {
  for (const file of world.sockets.keys()) if (!world.disk.exists(file)) world.sockets.delete(file)
  const processes = [...world.processes.values()]
  return {
    processes: processes.map(({ record }) => ({ id: record.id, process: record.identity })),
    taps: [...world.taps.keys()],
    sockets: [...world.sockets.keys()],
    locks: [...world.locks.keys()],
    wires: processes.reduce(
      (sum, it) => sum + (it.session === null ? 0 : 1) + (it.channel === null ? 0 : 1),
      0
    )
  }
}

/** What only an eye inside the guest could see. */
export interface Sight {
  readonly state: guests.Guest["_tag"]
  readonly counter: number
  readonly answers: boolean
  readonly clockBehindMs: number
  readonly entropy: number | null
  readonly memoryMb: number
}

export const look = (world: World, id: InstanceId): Sight | null => {
  const process = world.byId.get(id)
  if (process === undefined) return null
  const { guest, memoryMb } = process.record
  return {
    state: guest._tag,
    counter: guests.counter(guest, now(world)),
    answers: guests.answers(guest),
    clockBehindMs: guests.clockBehindMs(guest, now(world)),
    entropy: guest._tag === "Running" || guest._tag === "Paused" ? guest.memory.entropy : null,
    memoryMb
  }
}
