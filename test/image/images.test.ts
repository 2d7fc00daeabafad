/** The Images service against a real registry and real tools: what it promises. */
import { randomBytes } from "node:crypto"
import { readdirSync, statSync } from "node:fs"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, layer as withLayer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { Digest, ImageId, InstanceId } from "../../src/domain/Ids.ts"
import { ImageGc } from "../../src/image/ImageGc.ts"
import { Images } from "../../src/image/Images.ts"
import {
  assertNothingLeft,
  filesBelow,
  onFreshHost,
  Remote,
  settled,
  smallImage,
  until
} from "../support/image.ts"
import { image, indexOf, layer, sha256 } from "../support/layers.ts"

const id = (text: string) => ImageId.make(text)

/** Bytes that the files below a directory really take. */
const allocatedBelow = (directory: string): number =>
  readdirSync(directory, { recursive: true, withFileTypes: true }).reduce((sum, it) => {
    const stat = it.isFile()
      ? statSync(path.join(it.parentPath, it.name), { throwIfNoEntry: false })
      : undefined
    return sum + (stat === undefined ? 0 : stat.blocks * 512)
  }, 0)

withLayer(Remote.layer, { excludeTestServices: true })("an image from a registry", (it) => {
  it.effect("is pulled, described, resolved, pinned and removed without a trace", () =>
    onFreshHost((dataDir) =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const built = yield* smallImage("one")
        const name = yield* registry.push("team/app", "v1", built)
        const accepted = yield* images.create({ name })
        assert.deepStrictEqual([accepted.id, accepted.status, accepted.name], ["img-app-v1", "pending", name])
        const ready = yield* settled(accepted.id)
        assert.strictEqual(ready.error, null)
        assert.strictEqual(ready.digest, built.digest)
        assert.deepStrictEqual(ready.entrypoint, ["/bin/base"])
        assert.deepStrictEqual(ready.env, { A: "1", B: "x=y" })
        assert.deepStrictEqual([ready.cmd, ready.working_dir, ready.user], [["x"], "/app", "7:8"])
        const total = built.layers.reduce((sum, it) => sum + it.blob.length, 0)
        assert.deepStrictEqual(ready.progress, {
          phase: "ready",
          bytes_done: total,
          bytes_total: total,
          layers_done: 2,
          layers_total: 2
        })
        const boot = yield* images.resolve(name)
        assert.deepStrictEqual(
          boot.layers.map((it) => it.diffId),
          built.layers.map((it) => it.diffId)
        )
        assert.deepStrictEqual(yield* images.pinned(accepted.id, Digest.make(built.digest)), boot)
        const sizes = yield* Effect.promise(() => Promise.all(boot.layers.map((it) => fs.stat(it.path))))
        assert.strictEqual(
          ready.size_bytes,
          sizes.reduce((sum, it) => sum + it.size, 0)
        )
        const user = InstanceId.make("vm-1")
        const inUse = yield* Effect.flip(images.remove(accepted.id, [user]))
        assert.strictEqual(inUse._tag, "ImageInUse")
        // Blobs are gone once their layers are made: a layer is kept once, as squashfs.
        assert.strictEqual((yield* filesBelow(dataDir)).length, 3)
        yield* images.remove(accepted.id, [])
        yield* assertNothingLeft(dataDir)
        assert.strictEqual((yield* Effect.flip(images.get(accepted.id)))._tag, "ImageNotFound")
      })
    )
  )

  it.effect("asked for many times at once is one pull", () =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const name = yield* registry.push("team/once", "latest", yield* smallImage("once"))
        const asked = yield* Effect.forEach(
          [name, name.replace(":latest", ""), name],
          (it) => images.create({ name: it }),
          { concurrency: "unbounded" }
        )
        assert.deepStrictEqual(
          asked.map((it) => it.id),
          [id("img-once"), id("img-once"), id("img-once")]
        )
        assert.strictEqual((yield* settled(id("img-once"))).status, "ready")
        assert.strictEqual((yield* images.list).length, 1)
      })
    )
  )
})

withLayer(Remote.layer, { excludeTestServices: true })("layers", (it) => {
  it.effect("are shared, and outlive the image that brought them", () =>
    onFreshHost((dataDir) =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const [one, two] = [yield* smallImage("share-one"), yield* smallImage("share-two")]
        const first = yield* images.create({ name: yield* registry.push("share/one", "latest", one) })
        yield* settled(first.id)
        // A registry that lost the shared layer proves that nobody asks for it again.
        const name = yield* registry.push("share/two", "latest", two)
        const shared = one.layers[0]
        assert.strictEqual(shared?.digest, two.layers[0]?.digest)
        const second = yield* images.create({ name, id: id("second") })
        assert.strictEqual((yield* settled(second.id)).status, "ready")
        const squashfs = (files: ReadonlyArray<string>) =>
          files.filter((it) => it.endsWith(".squashfs")).length
        assert.strictEqual(squashfs(yield* filesBelow(dataDir)), 3)
        yield* images.remove(first.id, [])
        assert.strictEqual(squashfs(yield* filesBelow(dataDir)), 2)
        const boot = yield* images.resolve("second")
        for (const it of boot.layers) yield* Effect.promise(() => fs.access(it.path))
        yield* images.remove(second.id, [])
        yield* assertNothingLeft(dataDir)
      })
    )
  )

  it.effect("are fetched only where they are not here", () =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const [one, two] = yield* Effect.promise(async () => {
          const common = await layer([{ name: "common", body: "only here, once" }])
          const extra = await layer([{ name: "extra", body: "e" }])
          return [image([common]), image([common, extra])] as const
        })
        const name = yield* registry.push("fetch/one", "latest", one)
        yield* settled((yield* images.create({ name })).id)
        const both = yield* registry.push("fetch/two", "latest", two)
        yield* registry.lose(two.layers[0]?.digest ?? "")
        const ready = yield* settled((yield* images.create({ name: both })).id)
        assert.deepStrictEqual([ready.status, ready.error], ["ready", null])
      })
    )
  )
})

withLayer(Remote.layer, { excludeTestServices: true })("a blob", (it) => {
  it.effect("is given up while its layer is made: the disk never holds both", () =>
    onFreshHost((dataDir) =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const bytes = 48 * 1024 * 1024
        const built = yield* Effect.promise(async () =>
          image([await layer([{ name: "noise", body: randomBytes(bytes) }], "none")])
        )
        const name = yield* registry.push("spent/large", "latest", built)
        const { id } = yield* images.create({ name })
        let most = 0
        yield* until(id, (it) => {
          most = Math.max(most, allocatedBelow(dataDir))
          return it.status === "ready" || it.status === "failed"
        })
        const ready = yield* images.get(id)
        assert.deepStrictEqual([ready.status, ready.error], ["ready", null])
        assert.isAbove(most, bytes)
        assert.isBelow(most, 1.7 * ready.size_bytes)
      })
    )
  )

  it.effect("of a layer that has to be read twice is fetched twice", () =>
    onFreshHost((dataDir) =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const noise = randomBytes(2 * 1024 * 1024)
        const built = yield* Effect.promise(async () =>
          image([
            await layer(
              [
                { name: "f", body: noise },
                { name: "kept", type: "link", linkname: "f" },
                { name: "f", body: "another" }
              ],
              "none"
            )
          ])
        )
        const name = yield* registry.push("spent/twice", "latest", built)
        const { id } = yield* (yield* Images).create({ name })
        const ready = yield* settled(id)
        assert.deepStrictEqual([ready.status, ready.error], ["ready", null])
        assert.strictEqual((yield* filesBelow(dataDir)).length, 2)
      })
    )
  )
})

withLayer(Remote.layer, { excludeTestServices: true })("versions of an image", (it) => {
  it.effect(
    "follow a tag that moved, keep the old version for its instances, and let it go when nobody has it",
    () =>
      onFreshHost((dataDir) =>
        Effect.gen(function* () {
          const registry = yield* Remote
          const images = yield* Images
          const gc = yield* ImageGc
          const [before, after] = [yield* smallImage("before"), yield* smallImage("after", { Cmd: ["y"] })]
          const name = yield* registry.push("team/moves", "latest", before)
          const image = id("img-moves")
          yield* images.create({ name })
          yield* settled(image)
          yield* images.create({ name })
          assert.strictEqual((yield* settled(image)).digest, before.digest)
          yield* registry.push("team/moves", "latest", after)
          const refreshing = yield* images.create({ name })
          assert.strictEqual(refreshing.digest, before.digest)
          // While it is refreshed, what was there is usable.
          assert.strictEqual((yield* images.resolve(name)).digest, Digest.make(before.digest))
          assert.strictEqual((yield* settled(image)).digest, after.digest)
          assert.deepStrictEqual((yield* images.resolve(name)).config.cmd, ["y"])
          const old = yield* images.pinned(image, Digest.make(before.digest))
          assert.deepStrictEqual(old.config.cmd, ["x"])
          yield* gc.collect([{ id: image, digest: Digest.make(before.digest) }])
          for (const it of old.layers) yield* Effect.promise(() => fs.access(it.path))
          yield* gc.collect([])
          assert.strictEqual(
            (yield* Effect.flip(images.pinned(image, Digest.make(before.digest))))._tag,
            "ImageNotFound"
          )
          assert.strictEqual((yield* filesBelow(dataDir)).length, 3)
        })
      )
  )
})

withLayer(Remote.layer, { excludeTestServices: true })("platforms and digests", (it) => {
  it.effect("are chosen from an index by platform, and taken by digest", () =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const amd = yield* smallImage("amd")
        const arm = image(amd.layers, { architecture: "arm64" })
        yield* registry.push("team/multi", "amd", amd)
        yield* registry.push("team/multi", "arm", arm)
        const both = indexOf([
          { image: arm, os: "linux", architecture: "arm64" },
          { image: amd, os: "linux", architecture: "amd64" }
        ])
        const indexType = "application/vnd.oci.image.index.v1+json"
        const name = yield* registry.pushManifest("team/multi", "both", both, indexType)
        assert.strictEqual((yield* settled((yield* images.create({ name })).id)).digest, amd.digest)
        const byDigest = `${registry.domain}/team/multi@${sha256(both)}`
        const exact = yield* images.create({ name: byDigest, id: id("exact") })
        assert.strictEqual((yield* settled(exact.id)).digest, amd.digest)
        const only = indexOf([{ image: arm, os: "linux", architecture: "arm64" }])
        const foreign = yield* registry.pushManifest("team/multi", "only", only, indexType)
        const failed = yield* settled((yield* images.create({ name: foreign })).id)
        assert.strictEqual(failed.error, "The image is not made for linux/amd64, only for linux/arm64.")
        const unlisted = yield* images.create({ name: `${registry.domain}/team/multi:arm` })
        assert.strictEqual(
          (yield* settled(unlisted.id)).error,
          "The image is made for linux/arm64; this host runs linux/amd64."
        )
      })
    )
  )
})

withLayer(Remote.layer, { excludeTestServices: true })("the default id", (it) => {
  it.effect("where taken gets the digest behind it; a clash with an id of one's own is refused", () =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const one = yield* images.create({
          name: yield* registry.push("a/same", "latest", yield* smallImage("a"))
        })
        const two = yield* images.create({
          name: yield* registry.push("b/same", "latest", yield* smallImage("b"))
        })
        assert.strictEqual(one.id, "img-same")
        assert.match(two.id, /^img-same-[0-9a-f]{8}$/u)
        const clash = yield* Effect.flip(images.create({ name: "nginx", id: id("img-same") }))
        assert.strictEqual(clash._tag, "ImageExists")
        yield* settled(one.id)
        yield* settled(two.id)
      })
    )
  )
})

withLayer(Remote.layer, { excludeTestServices: true })("progress", (it) => {
  it.effect("only grows, and is logged", () => {
    const events: Array<Readonly<Record<string, unknown>>> = []
    const isReady = Deferred.makeUnsafe<void>()
    const logger = Logger.make<unknown, void>((options) => {
      const annotations = options.fiber.getRef(References.CurrentLogAnnotations)
      events.push(annotations)
      if (annotations["event"] === "image.ready") Deferred.doneUnsafe(isReady, Effect.void)
    })
    return onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const built = yield* Effect.promise(async () =>
          image(
            await Promise.all(
              [1, 2, 3].map((n) => layer([{ name: `f${n}`, body: Buffer.alloc(3_000_000, `${n}`) }], "none"))
            )
          )
        )
        const accepted = yield* images.create({
          name: yield* registry.push("team/progress", "latest", built)
        })
        const seen: Array<number> = []
        const watch = until(accepted.id, (it) => {
          seen.push(it.progress.bytes_done, it.progress.layers_done)
          assert.isAtMost(it.progress.bytes_done, it.progress.bytes_total)
          return it.status === "ready"
        })
        yield* watch
        yield* Deferred.await(isReady)
        for (const part of [0, 1]) {
          const values = seen.filter((_, index) => index % 2 === part)
          assert.deepStrictEqual(
            values,
            values.toSorted((a, b) => a - b)
          )
        }
        const mine = events.filter((it) => it["image_id"] === accepted.id)
        assert.strictEqual(mine.at(0)?.["event"], "image.progress")
        assert.strictEqual(mine.at(-1)?.["event"], "image.ready")
        assert.strictEqual(mine.at(-1)?.["layers_done"], 3)
      })
    ).pipe(Effect.provide(Logger.layer([logger])))
  })
})
