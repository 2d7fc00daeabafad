/**
 * The service's wiring, and nothing else: which layer stands on which.
 *
 *   http ──► Instances ──► Supervisor ──► Actors ──► Vmm, Network, Images, Agent ──► host
 *
 * Its end drains and leaves every VM running.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import { layerBoundary } from "./host/Boundary.ts"
import { Files } from "./host/Files.ts"
import { layout, Paths } from "./host/Paths.ts"
import { ServiceLock } from "./host/ServiceLock.ts"
import { Settings } from "./host/Settings.ts"
import { layerHealth } from "./health.ts"
import { layerServing } from "./http/server.ts"
import { imagesLayer } from "./image/ImagesLayer.ts"
import { layerEventLog } from "./instance/EventLog.ts"
import { instancesLayer } from "./instance/InstancesLayer.ts"
import { Journal } from "./instance/Journal.ts"
import { layerRetention } from "./instance/Retention.ts"
import { Store } from "./instance/Store.ts"
import { Supervisor } from "./instance/Supervisor.ts"
import { layerPlatform } from "./platform.ts"
import { layerRpc } from "./rpc/server.ts"
import { layerResources } from "./resources.ts"
import { layerDefects } from "./telemetry/defects.ts"
import { layerLogger } from "./telemetry/Logger.ts"
import { Volumes } from "./volume/Volumes.ts"

const layerPaths = Layer.effect(
  Paths,
  Effect.map(Settings, (settings) => layout(settings.dataDir))
)

/** Loaded only where a collector is named; where there is none, no span is made for it. */
const layerCollector = (endpoint: string | null) =>
  endpoint === null
    ? Layer.succeed(References.TracerEnabled, false)
    : Layer.unwrap(
        Effect.map(
          Effect.promise(() => import("./telemetry/otlp.ts")),
          ({ layerOtlp }) => layerOtlp(endpoint)
        )
      )

const layerTelemetry = Layer.unwrap(
  Effect.map(Settings, (settings) =>
    layerCollector(settings.otlpEndpoint).pipe(
      Layer.provideMerge(Layer.merge(layerLogger(settings), layerDefects))
    )
  )
)

const layerHost = Layer.mergeAll(Files.layer, ServiceLock.layer, layerBoundary(process.env)).pipe(
  Layer.provideMerge(layerPaths),
  Layer.provideMerge(layerTelemetry),
  Layer.provideMerge(Settings.layer)
)

const layerInstances = Layer.merge(instancesLayer, layerRetention).pipe(
  Layer.provide(Supervisor.layer),
  Layer.provide([Store.layer, Journal.layer, layerEventLog])
)

/** Launched, it serves until it is interrupted; it fails with one sentence where it cannot start. */
export const layerService = layerServing(layerRpc).pipe(
  Layer.provide([layerResources, layerHealth]),
  Layer.provide(layerInstances),
  Layer.provide([imagesLayer, Volumes.layer]),
  Layer.provide(layerPlatform),
  Layer.provide(layerHost)
)
