/** The servers behind a pull are killed in the middle of it and started again: nothing half-made is ever ready. */
import { randomBytes } from "node:crypto"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type { ImageId } from "../../src/domain/Ids.ts"
import { Files } from "../../src/host/Files.ts"
import { Images } from "../../src/image/Images.ts"
import type { ImageBounds } from "../../src/image/ImagesLayer.ts"
import type { SourceSettings } from "../../src/image/sources/Sources.ts"
import { containerdUnavailable, startContainerd } from "../support/containerd.ts"
import { startGate } from "../support/gate.ts"
import { imagesOn, mountsUnavailable, readLayers, registryOnly, settled, until } from "../support/image.ts"
import { image, layer, type TestImage } from "../support/layers.ts"
import { freePort, startRegistry } from "../support/registry.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const unavailable = await Effect.runPromise(containerdUnavailable)
if (unavailable !== null) console.log(`skipped: ${unavailable}`)
const unmountable = await Effect.runPromise(mountsUnavailable)

const layerBytes = 12 * 1024 * 1024
/** In the middle of the second layer. */
const middle = layerBytes + layerBytes / 2

const builtOf = (sizes: ReadonlyArray<number>) =>
  Effect.promise(async () =>
    image(
      await Promise.all(sizes.map((bytes, n) => layer([{ name: `f${n}`, body: randomBytes(bytes) }], "none")))
    )
  )
const built = builtOf([layerBytes, layerBytes, layerBytes])

/** Files that other processes make tell nobody. */
const lookIntervalMs = 20
const looks = 1500

const service = (dataDir: string, source: SourceSettings, bounds: Partial<ImageBounds> = {}) =>
  imagesOn(dataDir, bounds, Files.layer, source)

/** Starts a pull and watches it; whenever it is seen ready, it must be whole. */
const watched = Effect.fnUntraced(function* (name: string) {
  const images = yield* Images
  const { id } = yield* images.create({ name })
  const watch = yield* Effect.forkChild(
    until(id, (it) => {
      if (it.status === "ready") assert.strictEqual(it.progress.layers_done, 3)
      return it.status === "ready" || it.status === "failed"
    })
  )
  return { id, end: Fiber.join(watch) }
})

const assertWhole = Effect.fnUntraced(function* (id: ImageId, made: TestImage) {
  const images = yield* Images
  const ready = yield* images.get(id)
  assert.deepStrictEqual([ready.status, ready.error, ready.digest], ["ready", null, made.digest])
  if (unmountable !== null) return
  const { layers } = yield* images.resolve(id)
  assert.strictEqual(Object.keys(yield* readLayers(layers.map((it) => it.path))).length, 4)
})

describe("a registry that is killed in the middle of a pull", () => {
  it.live("and comes back at once is asked again", () =>
    Effect.gen(function* () {
      const registry = yield* startRegistry()
      const gate = yield* startGate({ host: "127.0.0.1", port: registry.port })
      const dataDir = yield* temporaryDirectory("outage")
      const made = yield* built
      yield* registry.push("team/out", "latest", made)
      yield* Effect.gen(function* () {
        yield* gate.holdAfter(middle)
        const { id, end } = yield* watched(`127.0.0.1:${gate.port}/team/out:latest`)
        yield* gate.held
        assert.notStrictEqual((yield* (yield* Images).get(id)).status, "ready")
        yield* registry.kill
        yield* registry.start
        yield* gate.open
        yield* end
        yield* assertWhole(id, made)
      }).pipe(Effect.provide(service(dataDir, registryOnly)))
    }).pipe(Effect.scoped)
  )

  it.live("and stays away fails it with a sentence; POST again goes on where it was", () =>
    Effect.gen(function* () {
      const registry = yield* startRegistry()
      const gate = yield* startGate({ host: "127.0.0.1", port: registry.port })
      const dataDir = yield* temporaryDirectory("outage")
      const made = yield* builtOf([1000, 1000, layerBytes])
      yield* registry.push("team/away", "latest", made)
      yield* Effect.gen(function* () {
        const name = `127.0.0.1:${gate.port}/team/away:latest`
        yield* gate.holdAfter(layerBytes / 2)
        const { id, end } = yield* watched(name)
        yield* gate.held
        const files = yield* Files
        const small = made.layers.filter((it) => it.blob.length < layerBytes)
        const here = Effect.map(files.list(`${dataDir}/pulls/${id}/blobs/sha256`), (names) =>
          small.every((it) => names.includes(it.digest.slice("sha256:".length)))
        )
        yield* here.pipe(
          Effect.repeat({ schedule: Schedule.spaced(lookIntervalMs), until: (all) => all, times: looks })
        )
        yield* registry.kill
        yield* gate.open
        const failed = yield* end
        assert.strictEqual(failed.status, "failed")
        assert.match(failed.error ?? "", /cannot be reached/u)
        yield* registry.start
        // What was complete is not asked for again: the registry has lost it.
        for (const it of small) yield* registry.lose(it.digest)
        yield* (yield* Images).create({ name })
        yield* settled(id)
        yield* assertWhole(id, made)
      }).pipe(Effect.provide(Layer.merge(service(dataDir, registryOnly, { pullRetryTimes: 1 }), Files.layer)))
    }).pipe(Effect.scoped)
  )
})

describe.skipIf(unavailable !== null)("a containerd that is killed", () => {
  it.live("while layers are read from it goes on where it was once it is back", () =>
    Effect.gen(function* () {
      const containerd = yield* startContainerd()
      const dataDir = yield* temporaryDirectory("outage")
      const socket = `${dataDir}/gate`
      const gate = yield* startGate({ path: containerd.socket }, socket)
      const made = yield* built
      const name = `127.0.0.1:${yield* freePort}/only/here:latest`
      yield* containerd.load("default", made, name)
      yield* Effect.gen(function* () {
        yield* gate.holdAfter(middle)
        const { id, end } = yield* watched(name)
        yield* gate.held
        assert.notStrictEqual((yield* (yield* Images).get(id)).status, "ready")
        yield* containerd.kill
        yield* gate.open
        yield* containerd.start
        yield* end
        yield* assertWhole(id, made)
      }).pipe(Effect.provide(service(dataDir, { imageSource: "containerd", containerdSocket: socket })))
    }).pipe(Effect.scoped)
  )

  it.live(
    "with the registry while a pull goes into it: the image is whole, and so is what containerd keeps",
    () =>
      Effect.gen(function* () {
        const containerd = yield* startContainerd()
        const registry = yield* startRegistry()
        const gate = yield* startGate({ host: "127.0.0.1", port: registry.port })
        const dataDir = yield* temporaryDirectory("outage")
        const made = yield* built
        yield* registry.push("team/both", "latest", made)
        const source = { imageSource: "containerd", containerdSocket: containerd.socket } as const
        yield* Effect.gen(function* () {
          yield* gate.holdAfter(middle)
          const name = `127.0.0.1:${gate.port}/team/both:latest`
          const { id, end } = yield* watched(name)
          yield* gate.held
          yield* containerd.kill
          yield* registry.kill
          yield* registry.start
          yield* gate.open
          yield* containerd.start
          yield* end
          yield* assertWhole(id, made)
          const [namespace = ""] = (yield* containerd.ctr("default", "namespaces", "ls", "--quiet"))
            .split("\n")
            .filter((it) => it.startsWith("cloud-hypervisor-dataplane-"))
          assert.match(
            yield* containerd.ctr(namespace, "images", "check", `name==${name}`),
            /complete \(4\/4\)/u
          )
        }).pipe(Effect.provide(service(dataDir, source)))
      }).pipe(Effect.scoped)
  )
})
