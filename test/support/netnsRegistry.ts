/**
 * A real docker-registry on the loopback of a service's namespace, where the service itself finds it; pushed to with
 * skopeo, as people do. Ended with the scope.
 */
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { type ArchiveSource, ociArchive } from "../../scripts/imageArchive.ts"
import type { Namespace } from "./Namespace.ts"
import { temporaryDirectory } from "./temporary.ts"

export const registryTools = ["docker-registry", "skopeo"] as const

const port = 5000
/** The registry tells nobody when it listens. */
const readyIntervalMs = 50
const readyTimes = 400

export interface NamespaceRegistry {
  readonly domain: string
  /** Pushes an image and gives its reference. */
  readonly push: (name: string, source: ArchiveSource) => Effect.Effect<string>
  /** Changes the stored bytes of every layer of an image, behind the registry's back. */
  readonly damage: (name: string, change: (bytes: Buffer) => Buffer) => Effect.Effect<void>
}

const serve = (namespace: Namespace, directory: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const config = path.join(directory, "config.yml")
      const root = path.join(directory, "storage")
      await fs.writeFile(
        config,
        `version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: ${root}}}\nhttp: {addr: "127.0.0.1:${port}"}\n`
      )
      return spawn("ip", ["netns", "exec", namespace.name, "docker-registry", "serve", config], {
        stdio: "ignore"
      })
    }),
    (child) =>
      Effect.promise(async () => {
        if (child.exitCode !== null || child.signalCode !== null) return
        child.kill("SIGKILL")
        await once(child, "exit")
      })
  )

/** Largest blobs first: the layers. */
const layerFiles = async (directory: string, name: string): Promise<ReadonlyArray<string>> => {
  const repository = path.join(directory, "storage/docker/registry/v2/repositories", name, "_layers/sha256")
  const blobs = (await fs.readdir(repository)).map((hex) =>
    path.join(directory, "storage/docker/registry/v2/blobs/sha256", hex.slice(0, 2), hex, "data")
  )
  const contents = await Promise.all(
    blobs.map(async (file) => ({ file, head: (await fs.readFile(file)).subarray(0, 2) }))
  )
  // The image's configuration lies among them: JSON, where a layer is gzip (RFC 1952).
  return contents.filter(({ head }) => head[0] === 0x1f && head[1] === 0x8b).map(({ file }) => file)
}

export const startNamespaceRegistry = (namespace: Namespace) =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("registry")
    yield* serve(namespace, directory)
    yield* namespace.http
      .get(`http://127.0.0.1:${port}/v2/`)
      .pipe(Effect.retry({ schedule: Schedule.spaced(readyIntervalMs), times: readyTimes }), Effect.orDie)
    const domain = `127.0.0.1:${port}`
    const registry: NamespaceRegistry = {
      domain,
      push: (name, source) =>
        Effect.gen(function* () {
          const archive = path.join(directory, `${name.replaceAll("/", "-")}.tar`)
          const bytes = yield* Effect.promise(() => ociArchive({ ...source, name: "latest" }))
          yield* Effect.promise(() => fs.writeFile(archive, bytes))
          const to = `docker://${domain}/${name}:latest`
          yield* Effect.orDie(
            namespace.run("skopeo", [
              "copy",
              "--insecure-policy",
              "--dest-tls-verify=false",
              `oci-archive:${archive}`,
              to
            ])
          )
          return `${domain}/${name}:latest`
        }),
      damage: (name, change) =>
        Effect.promise(async () => {
          for (const file of await layerFiles(directory, name))
            await fs.writeFile(file, change(await fs.readFile(file)))
        })
    }
    return registry
  })
