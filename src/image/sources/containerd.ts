/**
 * Images from containerd: what it has already, in any namespace, is used as it lies there; what it lacks is pulled into its
 * content store, in a namespace of our own.
 *
 * The pull is ours, not containerd's: its Transfer service is there only since 1.7, and Debian 12 has 1.6. Its content,
 * images and leases services are the same from 1.6 to 2. So the registry is asked by the one client that this host uses for
 * registries anyway, with the same credentials and mirrors, and blobs are written where containerd itself would write them.
 *
 *   resolve: name ─► in a namespace of containerd? ─► documents from there
 *                                 └─ no, or refresh ─► registry
 *   fetch:   lease ─► blob in a namespace? ─► held by the lease, read from there
 *                               └─ no ─► registry ─► file of the pull ─► layer
 *                                                            └─► content store, and at the end the image's name
 */
import * as path from "node:path"
import { buffer } from "node:stream/consumers"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { digestHex, type Digest } from "../../domain/Ids.ts"
import type { Files } from "../../host/Files.ts"
import type { Containerd } from "../containerd/Containerd.ts"
import { ContainerdFault } from "../containerd/ContainerdFault.ts"
import type { LayerBlob } from "../convertLayer.ts"
import { readRange } from "../decompress.ts"
import { corrupt, hostFault, ImageFault } from "../ImageFault.ts"
import {
  assemble,
  digestOf,
  documentMaxBytes,
  type ImageManifest,
  type LayerDescriptor,
  parseManifest,
  selectPlatform
} from "../manifest.ts"
import { format, type Reference } from "../Reference.ts"
import { fetchFromRegistry, resolveInRegistry, type Resolved } from "./registry.ts"
import type { FetchRequest, Found, Source } from "./Source.ts"

const indexDepthMax = 3
/** Blobs that are written into containerd at once. */
const storeConcurrency = 2
const manifestType = "application/vnd.oci.image.manifest.v1+json"
/** containerd keeps what a blob's labels name as long as it keeps the blob (containerd: docs/garbage-collection.md). */
const keepLabel = "containerd.io/gc.ref.content."

export interface ContainerdHost {
  readonly containerd: Containerd
  readonly files: Files["Service"]
  readonly retryTimes: number
}

/** A sentence for what containerd said no with; its own words go to the log. */
export const containerdImageFault = (cause: ContainerdFault): ImageFault =>
  cause.code === "unavailable" || cause.code === "timeout"
    ? new ImageFault({ reason: "unreachable", detail: "containerd does not answer at its socket.", cause })
    : hostFault("containerd of this host refused a request.", cause)

const told = Effect.mapError(containerdImageFault)

/** A document of a namespace's content, with its digest checked; none where it is not there. */
const document = Effect.fnUntraced(function* (
  { containerd }: ContainerdHost,
  namespace: string,
  digest: Digest
) {
  const size = yield* told(containerd.size(namespace, digest))
  if (Option.isNone(size)) return Option.none<Buffer>()
  if (size.value > documentMaxBytes)
    return yield* corrupt("A document in containerd is longer than it may be.")
  const whole = yield* Effect.tryPromise({
    try: () => buffer(containerd.read(namespace, digest, size.value)),
    catch: readFault
  })
  if (digestOf(whole) === digest) return Option.some(whole)
  return yield* corrupt("A document in containerd does not have the digest that it is stored under.")
})

const readFault = (cause: unknown): ImageFault =>
  cause instanceof ContainerdFault
    ? containerdImageFault(cause)
    : hostFault("Reading from containerd failed.", cause)

/** The image under that root as a namespace has it; none where one of its documents is missing there. */
const imageUnder = Effect.fnUntraced(function* (host: ContainerdHost, namespace: string, root: Digest) {
  let digest = root
  for (let depth = 0; depth < indexDepthMax; depth++) {
    const bytes = yield* document(host, namespace, digest)
    if (Option.isNone(bytes)) return Option.none<Resolved>()
    const parsed = yield* Effect.fromResult(parseManifest(bytes.value))
    if (parsed._tag === "Manifest") {
      const config = yield* document(host, namespace, parsed.config.digest)
      if (Option.isNone(config)) return Option.none<Resolved>()
      const manifest = yield* Effect.fromResult(assemble(digest, parsed.layers, config.value))
      return Option.some({ manifest, documents: { manifest: bytes.value, config: config.value } })
    }
    digest = (yield* Effect.fromResult(selectPlatform(parsed.manifests))).digest
  }
  return Option.none<Resolved>()
})

/** Namespaces in the order in which they are looked into: ours first. */
const namespacesOf = ({ containerd }: ContainerdHost) =>
  Effect.map(told(containerd.namespaces), (all) => [
    containerd.namespace,
    ...all.filter((it) => it !== containerd.namespace)
  ])

/** What containerd has under a reference already. */
const present = Effect.fnUntraced(function* (host: ContainerdHost, reference: Reference) {
  for (const namespace of yield* namespacesOf(host)) {
    const named = yield* told(host.containerd.image(namespace, format(reference)))
    const root = reference.digest ?? (Option.isSome(named) ? named.value.digest : null)
    const image = root === null ? Option.none<Resolved>() : yield* imageUnder(host, namespace, root)
    if (Option.isSome(image)) return image
  }
  return Option.none<Resolved>()
})

// ── Fetching ─────────────────────────────────────────────────────────────────────────────────────────────────────────

interface Pull {
  readonly host: ContainerdHost
  readonly lease: string
  readonly request: FetchRequest
}

const blobOf = ({ host: { containerd } }: Pull, layer: LayerDescriptor, digest: Digest): LayerBlob => ({
  read: async function* () {
    try {
      yield* containerd.read(containerd.namespace, digest, layer.size)
    } catch (cause) {
      throw readFault(cause)
    }
  },
  digest,
  diffId: layer.diff_id
})

/** Takes a blob that some namespace has into ours, under the lease. False where none has it. */
const adopt = Effect.fnUntraced(function* (
  { host: { containerd }, lease }: Pull,
  namespaces: ReadonlyArray<string>,
  digest: Digest,
  size: number
) {
  for (const namespace of namespaces) {
    const found = yield* told(containerd.size(namespace, digest))
    if (Option.isNone(found) || found.value !== size) continue
    const read = (offset: number) => containerd.read(namespace, digest, size, offset)
    const isHeld = yield* containerd.write(lease, { digest, size, labels: {}, read }).pipe(
      Effect.as(true),
      // Collected between the question and the lease.
      Effect.catchIf(
        (fault) => fault.code === "not-found",
        () => Effect.succeed(false)
      ),
      told
    )
    if (isHeld) return true
  }
  return false
})

/** Tells of every wanted layer that containerd has; gives the indexes of the others and the bytes of these. */
const adoptAll = Effect.fnUntraced(function* (pull: Pull, { layers }: ImageManifest) {
  const namespaces = yield* namespacesOf(pull.host)
  const lacking: Array<number> = []
  let bytes = 0
  for (const index of pull.request.wanted) {
    const layer = layers[index]
    if (layer === undefined || layer.digest === null) continue
    if (yield* adopt(pull, namespaces, layer.digest, layer.size)) {
      bytes += layer.size
      yield* pull.request.arrived(index, blobOf(pull, layer, layer.digest))
      yield* pull.request.progress(bytes)
    } else lacking.push(index)
  }
  return { lacking, bytes }
})

/** Writes what was fetched into the content store, and names the image there. */
const keep = Effect.fnUntraced(function* (
  pull: Pull,
  reference: Reference,
  { manifest, documents }: Resolved
) {
  const { host, lease, request } = pull
  const blobs = path.join(request.directory, "blobs", "sha256")
  const ofDocument = (bytes: Buffer) =>
    async function* (offset: number) {
      yield bytes.subarray(offset)
    }
  yield* Effect.forEach(
    request.wanted.flatMap((index) => manifest.layers[index] ?? []),
    ({ digest, size }) => {
      if (digest === null) return Effect.void
      const file = path.join(blobs, digestHex(digest))
      const read = (offset: number) => readRange({ path: file, offset, length: size - offset })
      return host.containerd.write(lease, { digest, size, labels: {}, read })
    },
    { concurrency: storeConcurrency, discard: true }
  )
  const config = digestOf(documents.config)
  yield* host.containerd.write(lease, {
    digest: config,
    size: documents.config.length,
    labels: {},
    read: ofDocument(documents.config)
  })
  const layers = manifest.layers.map(({ digest }, index) => [`${keepLabel}l.${index}`, digest ?? ""] as const)
  yield* host.containerd.write(lease, {
    digest: manifest.digest,
    size: documents.manifest.length,
    labels: { [`${keepLabel}config`]: config, ...Object.fromEntries(layers) },
    read: ofDocument(documents.manifest)
  })
  yield* host.containerd.putImage(format(reference), {
    digest: manifest.digest,
    size: documents.manifest.length,
    media_type: manifestType
  })
})

const holdLease = Effect.fnUntraced(function* ({ containerd }: ContainerdHost, id: string) {
  yield* told(containerd.makeNamespace)
  const now = yield* Clock.currentTimeMillis
  yield* Effect.acquireRelease(told(containerd.makeLease(id, now)), () =>
    Effect.ignore(containerd.removeLease(id))
  )
})

const fetchInto = (host: ContainerdHost, reference: Reference, resolved: Resolved): Found["fetch"] =>
  Effect.fnUntraced(function* (request) {
    if (request.wanted.length === 0) return
    const lease = `pull-${path.basename(request.directory)}`
    yield* holdLease(host, lease)
    const pull: Pull = { host, lease, request }
    const { lacking, bytes } = yield* adoptAll(pull, resolved.manifest)
    if (lacking.length === 0) return
    const fetch: FetchRequest = {
      ...request,
      wanted: lacking,
      // containerd takes them from the files afterwards.
      spend: false,
      progress: (more) => request.progress(bytes + more)
    }
    yield* fetchFromRegistry(host.files, {
      ...fetch,
      reference,
      manifest: resolved.manifest,
      retryTimes: host.retryTimes
    })
    // The image is whole without it: what containerd keeps spares a later pull, no more.
    yield* keep({ ...pull, request: fetch }, reference, resolved).pipe(
      Effect.catch((fault) => Effect.logWarning("containerd did not keep what was pulled", fault))
    )
  })

/** `containerd` answered a moment ago. */
export const containerdSource = (host: ContainerdHost): Source => ({
  resolve: Effect.fnUntraced(function* (reference, { refresh }) {
    const here =
      refresh && reference.digest === null ? Option.none<Resolved>() : yield* present(host, reference)
    const resolved = Option.isSome(here) ? here.value : yield* resolveInRegistry(reference)
    return { manifest: resolved.manifest, fetch: fetchInto(host, reference, resolved) }
  })
})
