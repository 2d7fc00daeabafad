/**
 * The layers of a simulated host. In a real run the world is loaded from files when the service starts, so its VMs were
 * running all the time: what was due meanwhile happens at once, at the time it was due. A machine that was booted anew
 * has no processes and TAPs, simulated ones included.
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Paths } from "../Paths.ts"
import { bootId } from "../Proc.ts"
import { type FaultPlanOptions, makeFaultPlan } from "./FaultPlan.ts"
import { enter, monitorSocket, agentSocket, setTimer } from "./processes.ts"
import { directoryStorage } from "./storage.ts"
import {
  beginService,
  makeWorld,
  now,
  ProcessRecord,
  ServiceProcess,
  sever,
  SimulatedWorld,
  TapRecord,
  type World,
  type WorldOptions
} from "./World.ts"

const Stored = Schema.fromJsonString(
  Schema.Union([
    Schema.Struct({ process: ProcessRecord }),
    Schema.Struct({ tap: TapRecord }),
    Schema.Struct({ boot_id: Schema.String })
  ])
)
const decodeStored = Schema.decodeUnknownOption(Stored)

/** A world as its storage says it is; what cannot be read there is dropped, as if that process had died. */
export const loadWorld = (options: WorldOptions & { readonly bootId: string }) =>
  Effect.gen(function* () {
    const world = yield* makeWorld(options)
    const { storage } = world
    const texts = storage.load()
    const host = Option.getOrUndefined(decodeStored(texts.get("host") ?? ""))
    const sameBoot = host !== undefined && "boot_id" in host && host.boot_id === world.bootId
    for (const [key, text] of texts) {
      const stored = sameBoot ? Option.getOrUndefined(decodeStored(text)) : undefined
      if (stored === undefined) storage.remove(key)
      else if ("process" in stored) admit(world, stored.process)
      else if ("tap" in stored) world.taps.set(stored.tap.name, stored.tap)
    }
    storage.put("host", () => JSON.stringify({ boot_id: world.bootId }))
    world.lastStart = Math.max(world.lastStart, now(world))
    for (const process of world.processes.values()) setTimer(world, process)
    return world
  })

const admit = (world: World, record: ProcessRecord): void => {
  const { pid, start_time } = record.identity
  enter(world, record)
  for (const socket of [monitorSocket(record.runDirectory), agentSocket(record.runDirectory)]) {
    world.sockets.set(socket, pid)
  }
  world.nextPid = Math.max(world.nextPid, pid + 1)
  world.lastStart = Math.max(world.lastStart, Number(start_time))
  world.services = Math.max(world.services, record.parent)
}

export interface HostOptions extends FaultPlanOptions {
  /** Every so many milliseconds a guest prints its counter; 0: never. */
  readonly tickMs?: number
}

/** The world of a real run, kept under DATA_DIR/simulated. */
export const layerDurable = (options: HostOptions): Layer.Layer<SimulatedWorld, never, Paths> =>
  Layer.effect(
    SimulatedWorld,
    Effect.gen(function* () {
      const paths = yield* Paths
      return yield* loadWorld({
        bootId: yield* bootId,
        storage: directoryStorage(path.join(paths.root, "simulated")),
        plan: makeFaultPlan(options),
        ...(options.tickMs === undefined ? {} : { tickMs: options.tickMs })
      })
    })
  )

/** This run of the service on its world; when its scope closes, its connections do and the VMMs go on. */
export const layerService: Layer.Layer<ServiceProcess, never, SimulatedWorld> = Layer.effect(
  ServiceProcess,
  Effect.gen(function* () {
    const world = yield* SimulatedWorld
    return yield* Effect.acquireRelease(
      Effect.sync(() => beginService(world)),
      (run) => Effect.sync(() => sever(world, run))
    )
  })
)
