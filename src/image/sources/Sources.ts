/**
 * Which source a pull uses, decided anew for each (IMAGE_SOURCE): `auto` takes containerd where its socket answers at that
 * moment, and the registry where it does not. Also tells containerd what it need not keep any more.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Files } from "../../host/Files.ts"
import { Paths } from "../../host/Paths.ts"
import type { Containerd } from "../containerd/Containerd.ts"
import { ImageFault } from "../ImageFault.ts"
import { containerdSource } from "./containerd.ts"
import { registrySource } from "./registry.ts"
import type { Source } from "./Source.ts"

export interface SourceSettings {
  readonly imageSource: "auto" | "containerd" | "registry"
  /** Absolute path of containerd's socket. */
  readonly containerdSocket: string
}

export interface SourceBounds {
  /** How often a transfer from a registry that broke off is taken up again, with a pause that grows to 5 s. */
  readonly pullRetryTimes: number
}

export interface Sources {
  /** The source for one pull. Fails where only containerd will do and does not answer. */
  readonly choose: Effect.Effect<Source, ImageFault>
  /** Removes our images in containerd that have none of these names. Does nothing where containerd does not answer. */
  readonly retain: (names: ReadonlySet<string>) => Effect.Effect<void>
  /** Removes the leases that a service which died left behind. Only while no pull runs. */
  readonly sweep: Effect.Effect<void>
}

const silent = new ImageFault({
  reason: "unreachable",
  detail: "containerd does not answer at its socket, and IMAGE_SOURCE=containerd allows no other source."
})

/** gRPC costs a tenth of a second to load: only hosts that have containerd pay it. */
const connect = Effect.fnUntraced(function* (socket: string, namespace: string) {
  const [{ openChannel }, { makeContainerd }] = yield* Effect.promise(() =>
    Promise.all([import("../containerd/Channel.ts"), import("../containerd/Containerd.ts")])
  )
  return makeContainerd(yield* openChannel(socket), namespace)
})

const exists = (file: string) =>
  Effect.promise(() =>
    fs.access(file).then(
      () => true,
      () => false
    )
  )

/** Our namespace in containerd: one per data directory, as the run directory is. */
const namespaceOf = (run: string) => `cloud-hypervisor-dataplane-${path.basename(run)}`

const withContainerd = (
  settings: SourceSettings,
  retryTimes: number,
  files: Files["Service"],
  connected: Effect.Effect<Containerd>
): Sources => {
  /** containerd, where it answers. */
  const answering = Effect.gen(function* () {
    if (!(yield* exists(settings.containerdSocket))) return Option.none<Containerd>()
    const containerd = yield* connected
    const version = yield* Effect.orElseSucceed(containerd.version, () => Option.none<string>())
    return Option.map(version, () => containerd)
  })
  const whereAnswering = (
    body: (containerd: Containerd) => Effect.Effect<void, { readonly message: string }>
  ) =>
    Effect.flatMap(answering, (it) => (Option.isNone(it) ? Effect.void : body(it.value))).pipe(
      Effect.catch((fault) => Effect.logWarning(`Tidying up in containerd failed: ${fault.message}`))
    )
  return {
    choose: Effect.flatMap(answering, (it): Effect.Effect<Source, ImageFault> => {
      if (Option.isSome(it))
        return Effect.succeed(containerdSource({ containerd: it.value, files, retryTimes }))
      return settings.imageSource === "containerd"
        ? Effect.fail(silent)
        : Effect.succeed(registrySource(files, retryTimes))
    }),
    retain: (names) =>
      whereAnswering((containerd) =>
        Effect.flatMap(containerd.images, (all) =>
          Effect.forEach(
            all.filter((it) => !names.has(it)),
            containerd.removeImage,
            { discard: true }
          )
        )
      ),
    sweep: whereAnswering((containerd) =>
      Effect.flatMap(containerd.leases, (all) =>
        Effect.forEach(all, containerd.removeLease, { discard: true })
      )
    )
  }
}

export const makeSources = Effect.fnUntraced(function* (
  settings: SourceSettings,
  { pullRetryTimes }: SourceBounds
): Effect.fn.Return<Sources, never, Files | Paths | Scope.Scope> {
  const files = yield* Files
  if (settings.imageSource === "registry") {
    return {
      choose: Effect.succeed(registrySource(files, pullRetryTimes)),
      retain: () => Effect.void,
      sweep: Effect.void
    }
  }
  const scope = yield* Effect.scope
  const { run } = yield* Paths
  const connected = yield* Effect.cached(
    connect(settings.containerdSocket, namespaceOf(run)).pipe(Effect.provideService(Scope.Scope, scope))
  )
  return withContainerd(settings, pullRetryTimes, files, connected)
})
