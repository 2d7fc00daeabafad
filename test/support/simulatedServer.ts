/**
 * The whole service with its HTTP server, in this process, on a simulated host whose guests take no time: real actors,
 * records and rules behind a real port. What it logs is the test's to read.
 */
import * as Effect from "effect/Effect"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import { noLatency } from "../../src/host/simulated/FaultPlan.ts"
import type { World } from "../../src/host/simulated/World.ts"
import { Settings } from "../../src/host/Settings.ts"
import { HttpBounds } from "../../src/http/Bounds.ts"
import { Health } from "../../src/http/Health.ts"
import { layerServer } from "../../src/http/server.ts"
import { layerResources } from "../../src/resources.ts"
import { layerDefects } from "../../src/telemetry/defects.ts"
import { layerLogger } from "../../src/telemetry/Logger.ts"
import { healthy, settingsOf } from "./httpServer.ts"
import { layerGround, layerInstances, makePlace, type PlaceOptions } from "./simulatedService.ts"

export interface SimulatedServerOptions extends PlaceOptions {
  readonly env?: Readonly<Record<string, string>>
  readonly bounds?: Partial<HttpBounds>
  /** Stands under everything that the service does: a tracer, another logger. */
  readonly under?: Layer.Layer<never>
}

export interface SimulatedServer {
  readonly url: string
  readonly port: number
  readonly world: World
  /** Lines of the structured log. */
  readonly events: Array<Record<string, unknown>>
  readonly stderr: Array<string>
}

export const serveSimulated = (options: SimulatedServerOptions = {}) =>
  Effect.gen(function* () {
    const place = yield* makePlace({ ...noLatency, ...options })
    const events: Array<Record<string, unknown>> = []
    const stderr: Array<string> = []
    const sink = {
      stdout: (line: string) => void events.push(JSON.parse(line)),
      stderr: (line: string) => void stderr.push(line)
    }
    const settings = settingsOf({
      VMM: "simulated",
      PORT: "0",
      HOST: "127.0.0.1",
      DATA_DIR: "/data",
      SUBNET_CIDR: "10.77.0.0/16",
      ...options.env
    })
    const defaults = yield* HttpBounds
    const logging = Layer.merge(layerDefects, layerLogger({ logFormat: "json", logLevel: "debug" }, sink))
    const server = layerServer.pipe(
      // Before the ground, which has settings of its own.
      Layer.provide(Layer.succeed(Settings, settings)),
      Layer.provide([layerResources, Layer.succeed(Health, { report: Effect.succeed(healthy) })]),
      Layer.provide(layerInstances),
      Layer.provide(
        Layer.fresh(
          layerGround(place.world, place.files, { ...options, traced: options.under !== undefined })
        )
      ),
      Layer.provide(Layer.succeed(HttpBounds, { ...defaults, ...options.bounds })),
      Layer.provide((options.under ?? Layer.empty).pipe(Layer.provideMerge(logging)))
    )
    const context = yield* Layer.build(Layer.fresh(server))
    const { address } = yield* Effect.provideContext(HttpServer.HttpServer, context)
    const url = HttpServer.formatAddress(address)
    return {
      url,
      port: Number(new URL(url).port),
      world: place.world,
      events,
      stderr
    } satisfies SimulatedServer
  })
