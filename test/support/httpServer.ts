/** The real server over the fakes, on a free loopback port, for as long as the scope of a test is open. */
import * as Effect from "effect/Effect"
import * as HttpServer from "effect/http/HttpServer"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import { layout, Paths } from "../../src/host/Paths.ts"
import { decodeSettings, type Environment, Settings } from "../../src/host/Settings.ts"
import { HttpBounds } from "../../src/http/Bounds.ts"
import { Health, type HealthReport } from "../../src/http/Health.ts"
import { HostResources } from "../../src/http/HostResources.ts"
import { layerServing } from "../../src/http/server.ts"
import { layerRpc } from "../../src/rpc/server.ts"
import { layerDefects } from "../../src/telemetry/defects.ts"
import { layerLogger } from "../../src/telemetry/Logger.ts"
import { memoryFiles, type MemoryFiles } from "./simulatedFiles.ts"
import { fakeResources } from "./fakeResources.ts"
import { type FakeWorld, fakeWorld, layerFakes } from "./fakeServices.ts"

export interface TestServer {
  readonly url: string
  readonly port: number
  readonly world: FakeWorld
  /** Lines of the structured log, and of the free text beside it. */
  readonly events: Array<Record<string, unknown>>
  readonly stderr: Array<string>
}

export interface TestServerOptions {
  readonly env?: Environment
  readonly bounds?: Partial<HttpBounds>
  readonly health?: Effect.Effect<HealthReport>
  readonly world?: FakeWorld
  /** What is on disk; outlives the server. */
  readonly files?: MemoryFiles
}

export const healthy: HealthReport = {
  ok: true,
  vmm: { kind: "simulated", version: "1", accelerator: "none" },
  checks: []
}

export const serveFakes = (
  options: TestServerOptions = {}
): Effect.Effect<TestServer, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const settings = yield* Effect.fromResult(
      decodeSettings({ PORT: "0", HOST: "127.0.0.1", DATA_DIR: "/nowhere", ...options.env }, false)
    )
    const world = options.world ?? fakeWorld()
    const events: Array<Record<string, unknown>> = []
    const stderr: Array<string> = []
    const sink = {
      stdout: (line: string) => void events.push(JSON.parse(line)),
      stderr: (line: string) => void stderr.push(line)
    }
    const defaults = yield* HttpBounds
    const server = layerServing(layerRpc).pipe(
      Layer.provide(layerFakes(world)),
      Layer.provide(Layer.succeed(Health, { report: options.health ?? Effect.succeed(healthy) })),
      Layer.provide(Layer.succeed(HostResources, fakeResources(world))),
      Layer.provide(Layer.succeed(Settings, settings)),
      Layer.provide([(options.files ?? memoryFiles()).layer, Layer.succeed(Paths, layout("/nowhere"))]),
      Layer.provide(Layer.succeed(HttpBounds, { ...defaults, ...options.bounds })),
      Layer.provide(layerDefects),
      Layer.provide(layerLogger({ logFormat: "json", logLevel: "debug" }, sink))
    )
    const context = yield* Layer.build(server)
    const { address } = yield* Effect.provideContext(HttpServer.HttpServer, context)
    const url = HttpServer.formatAddress(address)
    return { url, port: Number(new URL(url).port), world, events, stderr }
  })

/** Decoded settings of a test, with what is given over defaults that touch nothing. */
export const settingsOf = (env: Environment) => Result.getOrThrow(decodeSettings(env, false))

export interface Answer {
  readonly status: number
  readonly headers: Headers
  readonly text: string
  /** The body as JSON, or undefined where it is none. */
  readonly json: unknown
}

export interface Sending {
  readonly headers?: Record<string, string>
  /** Sent as JSON. */
  readonly json?: unknown
  /** Sent as it is. */
  readonly body?: string | Uint8Array<ArrayBuffer> | ReadableStream
}

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

/** One request with fetch, answered whole. */
export const send = (
  server: Pick<TestServer, "url">,
  method: string,
  path: string,
  sending: Sending = {}
): Effect.Effect<Answer> =>
  Effect.promise(async (signal) => {
    const body = sending.json === undefined ? sending.body : JSON.stringify(sending.json)
    const response = await fetch(server.url + path, {
      method,
      signal,
      ...(body === undefined ? {} : { body }),
      ...(body instanceof ReadableStream ? { duplex: "half" as const } : {}),
      headers: {
        ...(sending.json === undefined ? {} : { "content-type": "application/json" }),
        ...sending.headers
      }
    })
    const text = await response.text()
    return { status: response.status, headers: response.headers, text, json: parsed(text) }
  })
