/**
 * Images from a registry, through skopeo: it knows the registries' dialects, the credentials of docker and podman, and
 * the mirrors of registries.conf. It copies into an OCI layout of the pull's own, `DIRECTORY/layout`, whose blobs lie in
 * `DIRECTORY/blobs/sha256`; skopeo passes over a blob whose file is there, so
 * - blobs that an earlier, broken pull completed are not fetched again,
 * - layers that this host has already get an empty file in their place and are not fetched at all.
 *
 * The layout's own manifest is not used: skopeo may rewrite it. What the registry said is what counts.
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { digestHex, type Digest } from "../../domain/Ids.ts"
import type { Files } from "../../host/Files.ts"
import { corrupt, fromHost, hostFault, type ImageFault, timedOut, unknownImage } from "../ImageFault.ts"
import {
  assemble,
  digestOf,
  documentMaxBytes,
  type ImageManifest,
  parseManifest,
  selectPlatform
} from "../manifest.ts"
import { format, isLoopback, type Reference, repository } from "../Reference.ts"
import { skopeo } from "./skopeo.ts"
import { isSpent, spentBlob } from "./spentBlob.ts"
import { blobFile, type FetchRequest, type Source } from "./Source.ts"

const inspectTimeoutMs = 60_000
/** A pull may be long; that it stands still may not. */
const pullTimeoutMs = 6 * 3_600_000
const pullStallMs = 120_000
/** The kernel tells of new names but not of growing files. */
const progressIntervalMs = 200
/** An index of indexes is legal; deeper ones are a trick. */
const indexDepthMax = 3

/** A question is repeated for some two seconds, since somebody waits for its answer. */
const inspectRetryTimes = 3
/** A transfer that broke off is taken up again for about half a minute: long enough for a registry's restart. */
export const pullRetryTimes = 9
const retryMax = "5 seconds"
const retries = Schedule.min([Schedule.exponential("300 millis"), Schedule.spaced(retryMax)]).pipe(
  Schedule.jittered
)

const retried = <A, R>(times: number, effect: Effect.Effect<A, ImageFault, R>) =>
  Effect.retry(effect, { while: (fault) => fault.transient, schedule: retries, times })

const tlsArgs = (reference: Reference, flag: string) => (isLoopback(reference) ? [`--${flag}=false`] : [])

/** skopeo takes a tag or a digest, not both; the digest is the more exact one. */
const transport = (reference: Reference, digest: Digest | null): string =>
  digest === null
    ? `docker://${repository(reference)}:${reference.tag ?? "latest"}`
    : `docker://${repository(reference)}@${digest}`

const inspect = (reference: Reference, digest: Digest | null, extra: ReadonlyArray<string>) =>
  retried(
    inspectRetryTimes,
    skopeo({
      args: ["inspect", "--raw", ...extra, ...tlsArgs(reference, "tls-verify"), transport(reference, digest)],
      image: format(reference),
      registry: reference.domain,
      timeoutMs: inspectTimeoutMs,
      outputMaxBytes: documentMaxBytes
    })
  )

const misnamed = (reference: Reference) =>
  corrupt(
    `The registry ${reference.domain} sent a document for ${format(reference)} that does not have its digest.`
  )

/** What a registry said an image is, with the documents that say so. */
export interface Resolved {
  readonly manifest: ImageManifest
  readonly documents: { readonly manifest: Buffer; readonly config: Buffer }
}

/** Follows indexes to the manifest for this platform. */
const findManifest = Effect.fnUntraced(function* (reference: Reference) {
  let digest = reference.digest
  for (let depth = 0; depth < indexDepthMax; depth++) {
    const bytes = yield* inspect(reference, digest, [])
    const own = digestOf(bytes)
    if (digest !== null && own !== digest) return yield* misnamed(reference)
    const parsed = yield* Effect.fromResult(parseManifest(bytes))
    if (parsed._tag === "Manifest")
      return { digest: own, bytes, config: parsed.config, layers: parsed.layers }
    digest = (yield* Effect.fromResult(selectPlatform(parsed.manifests))).digest
  }
  return yield* unknownImage(`The image ${format(reference)} is an index of indexes without an end.`)
})

/** Asks the registry what a reference means, for this host's platform. */
export const resolveInRegistry = Effect.fnUntraced(function* (
  reference: Reference
): Effect.fn.Return<Resolved, ImageFault> {
  const found = yield* findManifest(reference)
  const config = yield* inspect(reference, found.digest, ["--config"])
  if (digestOf(config) !== found.config.digest) return yield* misnamed(reference)
  const manifest = yield* Effect.fromResult(assemble(found.digest, found.layers, config))
  return { manifest, documents: { manifest: found.bytes, config } }
})

/** A pull of some layers of an image from its registry. */
export interface RegistryPull extends FetchRequest {
  readonly reference: Reference
  readonly manifest: ImageManifest
  /** How often a transfer that broke off is taken up again. */
  readonly retryTimes: number
}

const copy = (request: RegistryPull) =>
  skopeo({
    args: [
      "--tmpdir",
      request.directory,
      "copy",
      "--quiet",
      "--dest-shared-blob-dir",
      "blobs",
      "--dest-oci-accept-uncompressed-layers",
      ...tlsArgs(request.reference, "src-tls-verify"),
      transport(request.reference, request.manifest.digest),
      "oci:layout:image"
    ],
    cwd: request.directory,
    image: format(request.reference),
    registry: request.reference.domain,
    timeoutMs: pullTimeoutMs,
    outputMaxBytes: documentMaxBytes
  })

interface Wanted {
  readonly index: number
  readonly path: string
  readonly size: number
  readonly digest: Digest
  readonly diffId: Digest
}

const wantedOf = (request: RegistryPull, blobs: string): ReadonlyArray<Wanted> =>
  request.wanted.flatMap((index): ReadonlyArray<Wanted> => {
    const layer = request.manifest.layers[index]
    if (layer === undefined || layer.digest === null) return []
    const { digest, size, diff_id: diffId } = layer
    return [{ index, path: path.join(blobs, digestHex(digest)), size, digest, diffId }]
  })

type FilesOf = Files["Service"]
const onDisk = Effect.mapError((cause: unknown) => fromHost("Writing the pull", cause))
const layoutOf = (request: RegistryPull) => path.join(request.directory, "layout")

const sizeOf = (files: FilesOf, file: string) =>
  Effect.map(files.stat(file), Option.match({ onNone: () => -1, onSome: (it) => it.size }))

/** Empty files for what is not wanted; nothing of the wrong size for what is. */
const prepare = Effect.fnUntraced(function* (
  files: FilesOf,
  request: RegistryPull,
  blobs: string,
  wanted: ReadonlyArray<Wanted>
) {
  yield* files.remove(layoutOf(request))
  yield* files.makeDirectory(blobs)
  for (const name of yield* files.list(blobs)) if (isSpent(name)) yield* files.remove(path.join(blobs, name))
  for (const it of wanted) if ((yield* sizeOf(files, it.path)) !== it.size) yield* files.remove(it.path)
  const kept = new Set(wanted.map((it) => it.path))
  for (const { digest } of request.manifest.layers) {
    const file = digest === null ? null : path.join(blobs, digestHex(digest))
    if (file !== null && !kept.has(file)) yield* files.write(file, "")
  }
}, onDisk)

/** Bytes of unfinished blobs: skopeo writes them in the layout before it names them. */
const unfinished = Effect.fnUntraced(function* (files: FilesOf, layout: string) {
  let bytes = 0
  for (const name of yield* files.list(layout)) {
    if (name.startsWith("oci-put-blob")) bytes += Math.max(0, yield* sizeOf(files, path.join(layout, name)))
  }
  return bytes
})

/** A transfer under observation. */
interface Transfer {
  readonly request: RegistryPull
  readonly wanted: ReadonlyArray<Wanted>
  /** Indexes of blobs that have arrived. */
  readonly told: Set<number>
}

/** Tells what is here, and gives how much that is. */
const look = Effect.fnUntraced(function* (files: FilesOf, { request, wanted, told }: Transfer) {
  let bytes = 0
  for (const it of wanted) {
    if (!told.has(it.index) && (yield* sizeOf(files, it.path)) === it.size) {
      told.add(it.index)
      const blob = request.spend
        ? spentBlob(files, it.path, it.size, it.digest, it.diffId)
        : blobFile(it.path, it.size, it.digest, it.diffId)
      yield* request.arrived(it.index, blob)
    }
    if (told.has(it.index)) bytes += it.size
  }
  bytes += yield* unfinished(files, layoutOf(request))
  yield* request.progress(bytes)
  return bytes
}, onDisk)

/** Looks again and again; fails where nothing grows for too long. */
const watch = Effect.fnUntraced(function* (files: FilesOf, transfer: Transfer) {
  let most = -1
  let stillMs = 0
  while (stillMs <= pullStallMs) {
    const bytes = yield* look(files, transfer)
    stillMs = bytes > most ? 0 : stillMs + progressIntervalMs
    most = Math.max(most, bytes)
    yield* Effect.sleep(progressIntervalMs)
  }
  const { domain } = transfer.request.reference
  return yield* timedOut(`The registry ${domain} sent nothing for ${pullStallMs / 1000} seconds.`)
})

const transferAll = Effect.fnUntraced(function* (files: FilesOf, request: RegistryPull) {
  const blobs = path.join(request.directory, "blobs", "sha256")
  const transfer: Transfer = { request, wanted: wantedOf(request, blobs), told: new Set() }
  const copied = retried(
    request.retryTimes,
    prepare(files, request, blobs, transfer.wanted).pipe(Effect.andThen(copy(request)))
  )
  yield* Effect.raceFirst(copied, watch(files, transfer))
  yield* look(files, transfer)
  yield* transfer.told.size < transfer.wanted.length
    ? Effect.fail(hostFault(`skopeo ended without all layers of ${format(request.reference)}.`))
    : Effect.void
})

/** Brings the wanted blobs into files of the pull's directory. */
export const fetchFromRegistry = (files: FilesOf, request: RegistryPull): Effect.Effect<void, ImageFault> =>
  request.wanted.length === 0 ? Effect.void : transferAll(files, request)

export const registrySource = (files: FilesOf, retryTimes: number): Source => ({
  resolve: (reference) =>
    Effect.map(resolveInRegistry(reference), ({ manifest }) => ({
      manifest,
      fetch: (request) => fetchFromRegistry(files, { ...request, reference, manifest, retryTimes })
    }))
})
