/** The Images service against a real registry and real tools: what it promises, and what it does when things go wrong. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, layer as withLayer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { Digest, ImageId, InstanceId } from "../../src/domain/Ids.ts"
import { ImageGc } from "../../src/image/ImageGc.ts"
import { Images } from "../../src/image/Images.ts"
import { filesBelow, imagesOn, settled, until } from "../support/image.ts"
import { image, indexOf, layer, sha256, type TestImage } from "../support/layers.ts"
import { freePort, startRegistry } from "../support/registry.ts"
import type { Registry } from "../support/registry.ts"
import { temporaryDirectory } from "../support/temporary.ts"

class Remote extends Context.Service<Remote, Registry>()("test/Registry") {
  static readonly layer = Layer.effect(Remote, startRegistry())
}

const id = (text: string) => ImageId.make(text)
const directory = (name: string) => ({ name, type: "directory" as const, mode: 0o755 })

const small = (name: string, config = {}): Effect.Effect<TestImage> =>
  Effect.promise(async () =>
    image(
      [
        await layer([directory("bin/"), { name: "bin/base", body: "base" }]),
        await layer([directory("app/"), { name: `app/${name}`, body: name.repeat(1000) }])
      ],
      {
        config: {
          Entrypoint: ["/bin/base"],
          Cmd: ["x"],
          Env: ["A=1", "B=x=y"],
          WorkingDir: "/app",
          User: "7:8",
          ...config
        }
      }
    )
  )

/** Runs with a service of its own, on a directory of its own, and gives that directory. */
const onFreshHost = <A, E, R>(
  body: (dataDir: string) => Effect.Effect<A, E, R>,
  bounds: Parameters<typeof imagesOn>[1] = {}
) =>
  Effect.gen(function* () {
    const dataDir = yield* temporaryDirectory("images")
    return yield* body(dataDir).pipe(Effect.provide(imagesOn(dataDir, bounds)))
  }).pipe(Effect.scoped)

/** Nothing but the service's empty directories. */
const assertNothingLeft = (dataDir: string) =>
  Effect.map(filesBelow(dataDir), (files) => assert.deepStrictEqual(files, []))

withLayer(Remote.layer, { excludeTestServices: true })("images from a registry", (it) => {
  it.effect("are pulled, described, resolved, pinned and removed without a trace", () =>
    onFreshHost((dataDir) =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const built = yield* small("one")
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

  it.effect("asked for many times at once are one pull", () =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const name = yield* registry.push("team/once", "latest", yield* small("once"))
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

  it.effect("share layers, and a layer outlives the image that brought it", () =>
    onFreshHost((dataDir) =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const [one, two] = [yield* small("share-one"), yield* small("share-two")]
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

  it.effect("fetch only the layers that are not here", () =>
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

  it.effect(
    "follow a tag that moved, keep the old version for its instances, and let it go when nobody has it",
    () =>
      onFreshHost((dataDir) =>
        Effect.gen(function* () {
          const registry = yield* Remote
          const images = yield* Images
          const gc = yield* ImageGc
          const [before, after] = [yield* small("before"), yield* small("after", { Cmd: ["y"] })]
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

  it.effect("are chosen from an index by platform, and taken by digest", () =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const amd = yield* small("amd")
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

  it.effect(
    "with the default id taken get the digest behind it, and a clash with an id of one's own is refused",
    () =>
      onFreshHost(() =>
        Effect.gen(function* () {
          const registry = yield* Remote
          const images = yield* Images
          const one = yield* images.create({
            name: yield* registry.push("a/same", "latest", yield* small("a"))
          })
          const two = yield* images.create({
            name: yield* registry.push("b/same", "latest", yield* small("b"))
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

  it.effect("report progress that only grows, and log it", () => {
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

withLayer(Remote.layer, { excludeTestServices: true })("what goes wrong with a registry", (it) => {
  const failing = (name: string) =>
    onFreshHost((dataDir) =>
      Effect.gen(function* () {
        const images = yield* Images
        const accepted = yield* images.create({ name })
        const failed = yield* settled(accepted.id)
        assert.strictEqual(failed.status, "failed")
        const unready = yield* Effect.flip(images.resolve(accepted.id))
        assert.strictEqual(unready._tag, "ImageNotReady")
        assert.isFalse((failed.error ?? "").includes(dataDir))
        const left = (yield* filesBelow(dataDir)).filter((it) => !it.startsWith("images/"))
        yield* images.remove(accepted.id, [])
        yield* assertNothingLeft(dataDir)
        return { error: failed.error ?? "", left }
      })
    )

  it.effect("a reference that is none is refused at once", () =>
    onFreshHost((dataDir) =>
      Effect.gen(function* () {
        const refused = yield* Effect.flip((yield* Images).create({ name: "Not A Reference" }))
        assert.strictEqual(refused._tag, "Unprocessable")
        yield* assertNothingLeft(dataDir)
      })
    )
  )

  it.effect("an image that the registry does not have", () =>
    Effect.gen(function* () {
      const { domain } = yield* Remote
      const { error, left } = yield* failing(`${domain}/no/such:image`)
      assert.strictEqual(error, `The registry ${domain} has no image ${domain}/no/such:image.`)
      assert.deepStrictEqual(left, [])
    })
  )

  it.effect("a registry that does not answer", () =>
    Effect.gen(function* () {
      const domain = `127.0.0.1:${yield* freePort}`
      assert.strictEqual((yield* failing(`${domain}/a/b`)).error, `The registry ${domain} cannot be reached.`)
    })
  )

  it.effect("a registry that wants credentials", () =>
    Effect.gen(function* () {
      const htpasswd = yield* temporaryDirectory("auth")
      yield* Effect.promise(() => fs.writeFile(path.join(htpasswd, "users"), ""))
      const { domain } = yield* startRegistry(`auth: {htpasswd: {realm: test, path: ${htpasswd}/users}}`)
      assert.match((yield* failing(`${domain}/a/b`)).error, /needs credentials \(skopeo login/u)
    }).pipe(Effect.scoped)
  )

  it.effect("a blob that the registry damaged", () =>
    Effect.gen(function* () {
      const registry = yield* Remote
      const built = yield* small("damaged")
      const name = yield* registry.push("bad/damaged", "latest", built)
      yield* registry.damage(built.layers[1]?.digest ?? "", (bytes) => {
        bytes[bytes.length - 20] = (bytes[bytes.length - 20] ?? 0) ^ 0xff
        return bytes
      })
      const { error, left } = yield* failing(name)
      assert.match(error, /digest/u)
      assert.deepStrictEqual(left, [])
    })
  )

  it.effect("a layer that is no archive, one that is cut off, and one whose config lies about it", () =>
    Effect.gen(function* () {
      const registry = yield* Remote
      const good = yield* Effect.promise(() => layer([{ name: "f", body: "f".repeat(5000) }]))
      const garbage = Buffer.from("this is not a tar".repeat(100))
      const cases = [
        { blob: garbage, diffId: sha256(garbage), why: /is not a sound archive/u },
        { blob: good.blob.subarray(0, 60), diffId: good.diffId, why: /damaged or cut off/u },
        {
          blob: good.blob,
          diffId: sha256(garbage),
          why: /does not have the digest that the image's config says/u
        }
      ]
      for (const [index, { blob, diffId, why }] of cases.entries()) {
        const broken = image([{ ...good, blob, digest: sha256(blob), diffId }])
        const { error, left } = yield* failing(yield* registry.push("bad/layer", `v${index}`, broken))
        assert.match(error, why)
        assert.deepStrictEqual(left, [])
      }
    })
  )

  it.effect("a failed image is pulled again by the same POST", () =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const name = `${registry.domain}/late/image:latest`
        const accepted = yield* images.create({ name })
        assert.strictEqual((yield* settled(accepted.id)).status, "failed")
        yield* registry.push("late/image", "latest", yield* small("late"))
        assert.strictEqual((yield* images.create({ name })).error, null)
        assert.strictEqual((yield* settled(accepted.id)).status, "ready")
      })
    )
  )

  it.effect("more work than the bound is refused", () =>
    onFreshHost(
      () =>
        Effect.gen(function* () {
          const registry = yield* Remote
          const images = yield* Images
          yield* images.create({ name: `${registry.domain}/one:1` })
          const refused = yield* Effect.flip(images.create({ name: `${registry.domain}/two:2` }))
          assert.strictEqual(refused._tag, "Busy")
          yield* settled(id("img-one-1"))
        }),
      { workMax: 1 }
    )
  )
})
