/**
 * The layers of this host: one squashfs each, made once, shared by all images that have them.
 *
 * A layer that says nothing about the layers below it is named by its DiffID, so that any image shares it. One that does
 * (a whiteout, a hard link to a lower file, a directory without an entry) is right on those layers only, and is named by
 * its place: `sha256(place below + " " + DiffID)`, like the ChainID of image-spec, with an empty place below the bottom.
 * So no image can change what another one's layer means, whatever it holds.
 *
 *   absent ──► NAME.uuid.tmp ──(verified, synced, renamed)──► NAME.squashfs ──(no record needs it)──► absent
 */
import { createHash } from "node:crypto"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"
import { Digest } from "../domain/Ids.ts"
import { Files } from "../host/Files.ts"
import { type Layout, Paths } from "../host/Paths.ts"
import { convertLayer, isTemporary, type LayerBlob } from "./convertLayer.ts"
import { fromHost, hostFault, type ImageFault } from "./ImageFault.ts"
import type { LayerBounds } from "./LayerStream.ts"

/** Conversions of one image at once: decompression is one thread each, tar2sqfs uses the rest. */
const layerConcurrency = 2

/** A layer on this host: what it is, and the name of its squashfs. */
export interface PlacedLayer {
  readonly diff_id: Digest
  readonly key: Digest
}

/** The place names of layers, bottom first. */
export const placesOf = (diffIds: ReadonlyArray<Digest>): ReadonlyArray<Digest> => {
  let below = ""
  return diffIds.map((diffId) => {
    below = `sha256:${createHash("sha256").update(`${below} ${diffId}`).digest("hex")}`
    return Digest.make(below)
  })
}

/**
 * The layers that a guest mounts. Where one is there twice only the upper one counts, and one without a name in it counts
 * for nothing, so every disk of a guest is another file; at least one is left.
 */
export const mounted = (
  layers: ReadonlyArray<PlacedLayer>,
  isEmpty: (layer: PlacedLayer) => boolean
): ReadonlyArray<PlacedLayer> => {
  const last = new Map(layers.map((layer, index) => [layer.diff_id, index]))
  const kept = layers.filter((layer, index) => last.get(layer.diff_id) === index)
  const full = kept.filter((layer) => !isEmpty(layer))
  return full.length > 0 ? full : kept.slice(-1)
}

export interface Needed {
  readonly diffIds: ReadonlyArray<Digest>
  /** The blob of a layer by its index; asked for only where the layer is not here yet. */
  readonly blob: (index: number) => Effect.Effect<LayerBlob, ImageFault>
  readonly onBytes: (bytes: number) => void
  readonly onLayer: Effect.Effect<void>
}

const tell = (doing: string) => Effect.mapError((cause: unknown) => fromHost(doing, cause))

/** squashfs superblock: inode_count at 4; the root is one. */
const namesIn = (path: string): Effect.Effect<number, ImageFault> =>
  Effect.tryPromise({
    try: async () => {
      const handle = await fs.open(path, "r")
      try {
        const { buffer } = await handle.read(Buffer.alloc(8), 0, 8, 0)
        return buffer.readUInt32LE(4) - 1
      } finally {
        await handle.close()
      }
    },
    catch: (cause) => fromHost("Reading a layer", cause)
  })

interface Host {
  readonly files: Files["Service"]
  readonly paths: Layout
  readonly bounds: LayerBounds
  /** One conversion at a time for a place; whoever waited finds the layer made, or makes it. */
  readonly busy: Map<Digest, { readonly lock: Semaphore.Semaphore; waiting: number }>
  /** Bytes on disk of the layers that were looked at. */
  readonly sizes: Map<Digest, number>
}

const exclusively = <A, E, R>({ busy }: Host, place: Digest, effect: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const entry = busy.get(place) ?? { lock: Semaphore.makeUnsafe(1), waiting: 0 }
      entry.waiting += 1
      busy.set(place, entry)
      return entry
    }),
    (entry) => entry.lock.withPermits(1)(effect),
    (entry) =>
      Effect.sync(() => {
        entry.waiting -= 1
        if (entry.waiting === 0) busy.delete(place)
      })
  )

const has = ({ files, paths }: Host, key: Digest) =>
  files.exists(paths.layer(key)).pipe(tell("Looking for a layer"))

/** The layer's name where it is here already. */
const find = (host: Host, diffId: Digest, place: Digest) =>
  Effect.gen(function* () {
    if (yield* has(host, diffId)) return diffId
    return (yield* has(host, place)) ? place : undefined
  })

interface Position {
  readonly index: number
  readonly diffId: Digest
  readonly place: Digest
  /** The squashfs files of the layers below, topmost first. */
  readonly lower: Effect.Effect<ReadonlyArray<string>, ImageFault>
}

/** Makes a layer, or finds it made. */
const make = Effect.fnUntraced(function* (host: Host, needed: Needed, at: Position) {
  const there = yield* find(host, at.diffId, at.place)
  if (there !== undefined) return { diff_id: at.diffId, key: there }
  const keyOf = (isContextual: boolean) => (isContextual ? at.place : at.diffId)
  const isContextual = yield* convertLayer({
    blob: yield* needed.blob(at.index),
    bounds: host.bounds,
    directory: host.paths.layers,
    lower: at.lower,
    target: (isContextual) => host.paths.layer(keyOf(isContextual)),
    onBytes: needed.onBytes
  })
  return { diff_id: at.diffId, key: keyOf(isContextual) }
})

const missing = (host: Host, diffIds: ReadonlyArray<Digest>) => {
  const places = placesOf(diffIds)
  return Effect.filter(
    diffIds.map((_, index) => index),
    (index) => {
      const [diffId, place] = [diffIds[index], places[index]]
      return diffId === undefined || place === undefined
        ? Effect.succeed(false)
        : Effect.map(find(host, diffId, place), (key) => key === undefined)
    }
  )
}

const ensure = Effect.fnUntraced(function* (host: Host, needed: Needed) {
  const places = placesOf(needed.diffIds)
  const done = yield* Effect.forEach(needed.diffIds, () => Deferred.make<PlacedLayer, ImageFault>())
  const lowerOf = (index: number) =>
    Effect.forEach(done.slice(0, index).toReversed(), (it) =>
      Effect.map(Deferred.await(it), (layer) => host.paths.layer(layer.key))
    )
  return yield* Effect.forEach(
    needed.diffIds,
    (diffId, index) => {
      const [place, own] = [places[index], done[index]]
      if (place === undefined || own === undefined) return Effect.fail(hostFault("A layer has no place."))
      return exclusively(
        host,
        place,
        make(host, needed, { index, diffId, place, lower: lowerOf(index) })
      ).pipe(
        Effect.tap(() => needed.onLayer),
        Effect.onExit((exit) => Deferred.done(own, exit))
      )
    },
    { concurrency: layerConcurrency }
  )
})

/** Bytes of a layer on disk; 0 where it is not here. */
const learn = ({ files, paths, sizes }: Host, key: Digest) =>
  files.stat(paths.layer(key)).pipe(
    tell("Reading a layer"),
    Effect.map((stat) => {
      const bytes = stat._tag === "Some" ? stat.value.size : 0
      if (bytes > 0) sizes.set(key, bytes)
      return bytes
    })
  )

const measure = Effect.fnUntraced(function* (host: Host, layers: ReadonlyArray<PlacedLayer>) {
  const empty = new Set<Digest>()
  let bytes = 0
  for (const key of new Set(layers.map((it) => it.key))) {
    bytes += yield* learn(host, key)
    if ((yield* namesIn(host.paths.layer(key))) === 0) empty.add(key)
  }
  return { bytes, isEmpty: (layer: PlacedLayer) => empty.has(layer.key) }
})

/** What was removed. */
export interface Freed {
  readonly layers: number
  readonly bytes: number
}

const remove = Effect.fnUntraced(function* ({ files, paths }: Host, isGone: (name: string) => boolean) {
  let [layers, bytes] = [0, 0]
  for (const name of yield* files.list(paths.layers)) {
    if (!isGone(name)) continue
    const stat = yield* files.stat(`${paths.layers}/${name}`)
    yield* files.remove(`${paths.layers}/${name}`)
    layers += 1
    bytes += stat._tag === "Some" ? stat.value.allocated : 0
  }
  return { layers, bytes } satisfies Freed
})

export const makeLayers = (bounds: LayerBounds) =>
  Effect.gen(function* () {
    const host: Host = { files: yield* Files, paths: yield* Paths, bounds, busy: new Map(), sizes: new Map() }
    return {
      /** True where the layer of that name is here. */
      has: (key: Digest) => has(host, key),
      /** Indexes of the layers that are not here. */
      missing: (diffIds: ReadonlyArray<Digest>) => missing(host, diffIds),
      /**
       * Makes the layers that are not here, bottom first, two at a time. A layer waits for those below it only where it
       * says something about them; those have begun before it, so nothing waits in a circle.
       */
      ensure: (needed: Needed) => ensure(host, needed),
      /** Bytes of the layers on disk, each counted once, and which of them hold no name. */
      measure: (layers: ReadonlyArray<PlacedLayer>) => measure(host, layers),
      /** Looks at a layer; gives its bytes on disk, 0 where it is not here. */
      learn: (key: Digest) => learn(host, key),
      /** Bytes of a layer that was made or looked at; 0 for others. */
      sizeOf: (key: Digest): number => host.sizes.get(key) ?? 0,
      /** Removes what conversions that never ended left behind. Only while none is at work. */
      sweep: remove(host, isTemporary),
      /** Removes every finished layer that is not in `needed`; gives what that was. */
      retain: (needed: ReadonlySet<Digest>) => {
        const kept = new Set([...needed].map((key) => path.basename(host.paths.layer(key))))
        return remove(host, (name) => !isTemporary(name) && !kept.has(name))
      }
    }
  })

export type Layers = Effect.Success<ReturnType<typeof makeLayers>>
