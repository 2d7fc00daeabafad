/**
 * A real docker-registry on loopback, with a port and a directory of its own, ended with the scope. Images are pushed
 * over its HTTP API, so that tests can push what no tool would.
 */
import { spawn } from "node:child_process"
import { createServer } from "node:net"
import { once } from "node:events"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { temporaryDirectory } from "./temporary.ts"
import { sha256, type TestImage } from "./layers.ts"

/** The registry tells nobody when it listens. */
const readyIntervalMs = 25
const readyTimes = 400

export interface Registry {
  /** Host and port. */
  readonly domain: string
  readonly push: (repository: string, tag: string, image: TestImage) => Effect.Effect<string>
  readonly pushManifest: (
    repository: string,
    tag: string,
    manifest: Buffer,
    mediaType: string
  ) => Effect.Effect<string>
  /** Changes the stored bytes of a blob behind the registry's back. */
  readonly damage: (digest: string, change: (bytes: Buffer) => Buffer) => Effect.Effect<void>
  /** Removes the stored bytes of a blob behind the registry's back. */
  readonly lose: (digest: string) => Effect.Effect<void>
  readonly port: number
  readonly kill: Effect.Effect<void>
  /** Starts it again, on the same port and storage. */
  readonly start: Effect.Effect<void>
}

/** A port that nothing listens on. */
export const freePort = Effect.promise(async () => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const address = server.address()
  server.close()
  await once(server, "close")
  return typeof address === "object" && address !== null ? address.port : 0
})

const ok = async (response: Promise<Response>): Promise<Response> => {
  const it = await response
  if (!it.ok) throw new Error(`${it.status} ${it.url}: ${await it.text()}`)
  return it
}

const upload = async (base: string, bytes: Buffer, headers: Record<string, string>): Promise<void> => {
  const begun = await ok(fetch(`${base}/blobs/uploads/`, { method: "POST", headers }))
  const location = new URL(begun.headers.get("location") ?? "", base)
  location.searchParams.set("digest", sha256(bytes))
  await ok(
    fetch(location, {
      method: "PUT",
      body: new Uint8Array(bytes),
      headers: { ...headers, "content-type": "application/octet-stream" }
    })
  )
}

export const manifestType = "application/vnd.oci.image.manifest.v1+json"

const configOf = (directory: string, port: number, extra: string) => `version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: ${directory}}, delete: {enabled: true}}
http: {addr: "127.0.0.1:${port}"}
${extra}`

/** The server, ended with the scope; to be killed and started at will. */
const serve = Effect.fnUntraced(function* (directory: string, port: number, extra: string) {
  const config = path.join(directory, "config.yml")
  yield* Effect.promise(() => fs.writeFile(config, configOf(path.join(directory, "storage"), port, extra)))
  let child: ReturnType<typeof spawn> | undefined
  const kill = Effect.promise(async () => {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    child.kill("SIGKILL")
    await once(child, "exit")
  })
  const start = Effect.suspend(() => {
    child = spawn("docker-registry", ["serve", config], { stdio: "ignore" })
    return Effect.tryPromise(() => fetch(`http://127.0.0.1:${port}/v2/`)).pipe(
      Effect.retry({ schedule: Schedule.spaced(readyIntervalMs), times: readyTimes }),
      Effect.orDie,
      Effect.asVoid
    )
  })
  yield* Effect.acquireRelease(start, () => kill)
  return { kill, start }
})

const blobPath = (directory: string, digest: string) => {
  const hex = digest.slice("sha256:".length)
  return path.join(directory, "storage/docker/registry/v2/blobs/sha256", hex.slice(0, 2), hex, "data")
}

/** `extra` is added to the registry's configuration (YAML); `authorization` is what a push needs. */
export const startRegistry = (extra = "", authorization = "") =>
  Effect.gen(function* () {
    const headers: Record<string, string> = authorization === "" ? {} : { authorization }
    const directory = yield* temporaryDirectory("registry")
    const port = yield* freePort
    const server = yield* serve(directory, port, extra)
    const base = `http://127.0.0.1:${port}/v2`
    const pushManifest: Registry["pushManifest"] = (repository, tag, manifest, mediaType) =>
      Effect.promise(() =>
        ok(
          fetch(`${base}/${repository}/manifests/${tag}`, {
            method: "PUT",
            body: new Uint8Array(manifest),
            headers: { ...headers, "content-type": mediaType }
          })
        )
      ).pipe(Effect.as(`127.0.0.1:${port}/${repository}:${tag}`))
    const registry: Registry = {
      domain: `127.0.0.1:${port}`,
      port,
      ...server,
      push: (repository, tag, image) =>
        Effect.promise(async () => {
          for (const bytes of [image.config, ...image.layers.map((it) => it.blob)]) {
            await upload(`${base}/${repository}`, bytes, headers)
          }
        }).pipe(Effect.andThen(pushManifest(repository, tag, image.manifest, manifestType))),
      pushManifest,
      damage: (digest, change) =>
        Effect.promise(async () => {
          const file = blobPath(directory, digest)
          await fs.writeFile(file, change(await fs.readFile(file)))
        }),
      lose: (digest) => Effect.promise(() => fs.rm(blobPath(directory, digest)))
    }
    return registry
  })
