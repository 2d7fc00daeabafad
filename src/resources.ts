/** GET /resources from the published views, the address pool, and the file system of DATA_DIR. */
import { availableParallelism } from "node:os"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type { Instance } from "./domain/Instance.ts"
import type { InstanceResources, Resources, ResourceShare } from "./domain/Resources.ts"
import { Files } from "./host/Files.ts"
import { HostMemory } from "./host/Memory.ts"
import { Paths } from "./host/Paths.ts"
import { HostResources } from "./http/HostResources.ts"
import { availableMb, holdsMemory } from "./instance/admission.ts"
import { Instances } from "./instance/Instances.ts"
import { Network } from "./network/Network.ts"
import { tellMetrics } from "./telemetry/metricsSnapshot.ts"

/** Looks at disks at once: each is one system call. */
const statConcurrency = 16
const bytesPerMb = 1024 * 1024

const share = (capacity: number, allocated: number, free = capacity - allocated): ResourceShare => ({
  capacity,
  allocated,
  free: Math.max(0, free)
})

const sum = (values: ReadonlyArray<number>): number => values.reduce((total, value) => total + value, 0)

const instanceResources = (view: Instance, usedBytes: number): InstanceResources => {
  const holds = holdsMemory(view)
  return {
    instance_id: view.id,
    state: view.state,
    vcpus: holds ? view.vcpus : 0,
    memory_mb: holds ? view.memory_mb : 0,
    disk_mb: view.overlay_mb,
    disk_used_mb: Math.ceil(usedBytes / bytesPerMb),
    ip: view.network.ip
  }
}

/** A disk that cannot be looked at, or a file system that says nothing, counts as nothing: a report is never refused. */
const orZero = <E, R>(bytes: Effect.Effect<number, E, R>): Effect.Effect<number, never, R> =>
  Effect.orElseSucceed(bytes, () => 0)

const usedBytes = Effect.fnUntraced(function* (view: Instance) {
  const files = yield* Files
  const paths = yield* Paths
  const stat = yield* Effect.orElseSucceed(files.stat(paths.instance(view.id).overlay), () => Option.none())
  return Option.match(stat, { onNone: () => 0, onSome: ({ allocated }) => allocated })
})

const report = Effect.fnUntraced(function* (
  used: (view: Instance) => Effect.Effect<number, never, Files | Paths>
) {
  const instances = yield* Instances
  const network = yield* Network
  const files = yield* Files
  const paths = yield* Paths
  const { totalMb } = yield* HostMemory
  const views = yield* instances.list({})
  const each = yield* Effect.forEach(
    views,
    (view) => Effect.map(used(view), (bytes) => instanceResources(view, bytes)),
    { concurrency: statConcurrency }
  )
  const addresses = yield* network.usage
  const disk = Math.floor((yield* orZero(files.totalBytes(paths.root))) / bytesPerMb)
  const diskFree = Math.floor((yield* orZero(files.freeBytes(paths.root))) / bytesPerMb)
  return {
    cpus: share(availableParallelism(), sum(each.map((it) => it.vcpus))),
    memory_mb: share(totalMb, sum(each.map((it) => it.memory_mb)), availableMb(totalMb, views)),
    disk_mb: share(disk, sum(each.map((it) => it.disk_mb)), diskFree),
    addresses: share(addresses.total, addresses.leased),
    instances: each
  } satisfies Resources
})

export const layerResources = Layer.effect(
  HostResources,
  Effect.gen(function* () {
    const services = yield* Effect.context<Effect.Services<ReturnType<typeof report>>>()
    const totals = Effect.provideContext(
      report(() => Effect.succeed(0)),
      services
    )
    yield* tellMetrics(totals)
    return HostResources.of({ report: Effect.provideContext(report(usedBytes), services), totals })
  })
)
