/** Images from a real containerd: what it has is used, what it lacks is pulled into it, and its collection takes nothing. */
import { randomBytes } from "node:crypto"
import * as path from "node:path"
import { assert, describe, it, layer as withLayer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { ImageId } from "../../src/domain/Ids.ts"
import { Files } from "../../src/host/Files.ts"
import { layout } from "../../src/host/Paths.ts"
import { Images } from "../../src/image/Images.ts"
import { containerdUnavailable, LocalContainerd } from "../support/containerd.ts"
import {
  assertNothingLeft,
  filesBelow,
  imagesOn,
  Remote,
  settled,
  smallImage,
  until
} from "../support/image.ts"
import { image, indexOf, layer, type TestImage } from "../support/layers.ts"
import { freePort } from "../support/registry.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const unavailable = await Effect.runPromise(containerdUnavailable)
if (unavailable !== null) console.log(`skipped: ${unavailable}`)

const both = Layer.merge(LocalContainerd.layer, Remote.layer)

const namespaceOf = (dataDir: string) =>
  `cloud-hypervisor-dataplane-${path.basename(layout(dataDir, path.join(dataDir, "run")).run)}`

/** Runs with a service that has containerd. */
const withService = <A, E, R>(body: (dataDir: string, namespace: string) => Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const { socket } = yield* LocalContainerd
    const dataDir = yield* temporaryDirectory("images")
    return yield* body(dataDir, namespaceOf(dataDir)).pipe(
      Effect.provide(
        imagesOn(dataDir, {}, Files.layer, { imageSource: "containerd", containerdSocket: socket })
      )
    )
  }).pipe(Effect.scoped)

/** containerd tells of its leases and images only when it is asked. */
const eventually = <A, R>(ask: Effect.Effect<A, never, R>, isDone: (answer: A) => boolean) =>
  ask.pipe(Effect.repeat({ schedule: Schedule.spaced(25), until: isDone, times: 400 }))

const lines = (text: string) => text.split("\n").filter((it) => it !== "")

/** Our images and leases in containerd. */
const kept = (namespace: string) =>
  Effect.gen(function* () {
    const { ctr } = yield* LocalContainerd
    const images = lines(yield* ctr(namespace, "images", "ls", "--quiet"))
    const leases = lines(yield* ctr(namespace, "leases", "ls", "--quiet"))
    return { images, leases }
  })

const pulled = (name: string, id?: string) =>
  Effect.gen(function* () {
    const accepted = yield* (yield* Images).create({
      name,
      ...(id === undefined ? {} : { id: ImageId.make(id) })
    })
    return yield* settled(accepted.id)
  })

const assertReady = (
  ready: { status: string; error: string | null; digest: string | null },
  built: TestImage
) => assert.deepStrictEqual([ready.status, ready.error, ready.digest], ["ready", null, built.digest])

withLayer(both, { excludeTestServices: true })("an image that containerd has", (it) => {
  it.effect.skipIf(unavailable !== null)(
    "is used as it lies there, whoever's it is; nothing of it stays ours",
    () =>
      withService((dataDir, namespace) =>
        Effect.gen(function* () {
          const containerd = yield* LocalContainerd
          const built = yield* smallImage("local")
          const name = `127.0.0.1:${yield* freePort}/only/here:v1`
          yield* containerd.load("default", built, name)
          const ready = yield* pulled(name)
          assertReady(ready, built)
          assert.deepStrictEqual(ready.entrypoint, ["/bin/base"])
          assert.deepStrictEqual(ready.progress.bytes_done, ready.progress.bytes_total)
          assert.strictEqual((yield* filesBelow(dataDir)).length, 3)
          assert.deepStrictEqual(yield* kept(namespace), { images: [], leases: [] })
          assertReady(yield* pulled(`${name}@${built.digest}`, "exact"), built)
          yield* (yield* Images).remove(ready.id, [])
          yield* (yield* Images).remove(ImageId.make("exact"), [])
          yield* assertNothingLeft(dataDir)
        })
      )
  )

  it.effect.skipIf(unavailable !== null)("is chosen from an index by platform", () =>
    withService(() =>
      Effect.gen(function* () {
        const containerd = yield* LocalContainerd
        const registry = yield* Remote
        const amd = yield* smallImage("multi")
        const arm = image(amd.layers, { architecture: "arm64" })
        yield* registry.push("team/multi", "amd", amd)
        yield* registry.push("team/multi", "arm", arm)
        const name = yield* registry.pushManifest(
          "team/multi",
          "both",
          indexOf([
            { image: arm, os: "linux", architecture: "arm64" },
            { image: amd, os: "linux", architecture: "amd64" }
          ]),
          "application/vnd.oci.image.index.v1+json"
        )
        yield* containerd.ctr("default", "content", "fetch", "--plain-http", "--all-platforms", name)
        yield* registry.lose(amd.layers[1]?.digest ?? "")
        assertReady(yield* pulled(name), amd)
      })
    )
  )

  it.effect.skipIf(unavailable !== null)("that lacks a layer there is completed from the registry", () =>
    withService((_dataDir, namespace) =>
      Effect.gen(function* () {
        const containerd = yield* LocalContainerd
        const registry = yield* Remote
        const built = yield* smallImage("partial")
        const name = yield* registry.push("team/partial", "latest", built)
        yield* containerd.load("default", built, name)
        yield* containerd.ctr("default", "content", "rm", built.layers[1]?.digest ?? "")
        assertReady(yield* pulled(name), built)
        assert.deepStrictEqual(yield* kept(namespace), { images: [name], leases: [] })
      })
    )
  )

  it.effect.skipIf(unavailable !== null)("is asked about at its registry when it is asked for again", () =>
    withService(() =>
      Effect.gen(function* () {
        const containerd = yield* LocalContainerd
        const registry = yield* Remote
        const [before, after] = [yield* smallImage("old"), yield* smallImage("new")]
        const name = yield* registry.push("team/moved", "latest", after)
        yield* containerd.load("default", before, name)
        assertReady(yield* pulled(name), before)
        assertReady(yield* pulled(name), after)
      })
    )
  )
})

withLayer(both, { excludeTestServices: true })("an image that containerd lacks", (it) => {
  it.effect.skipIf(unavailable !== null)("is pulled into it, whole, and goes with DELETE", () =>
    withService((_dataDir, namespace) =>
      Effect.gen(function* () {
        const containerd = yield* LocalContainerd
        const registry = yield* Remote
        const built = yield* smallImage("pulled")
        const name = yield* registry.push("team/pulled", "v2", built)
        const ready = yield* pulled(name)
        assertReady(ready, built)
        assert.deepStrictEqual(yield* kept(namespace), { images: [name], leases: [] })
        assert.match(yield* containerd.ctr(namespace, "images", "check"), /complete \(3\/3\)/u)
        yield* (yield* Images).remove(ready.id, [])
        yield* eventually(kept(namespace), (it) => it.images.length === 0)
        const content = yield* eventually(
          containerd.ctr(namespace, "content", "ls", "--quiet"),
          (it) => lines(it).length === 0
        )
        assert.strictEqual(content, "")
      })
    )
  )

  it.effect.skipIf(unavailable !== null)("is fetched only as far as no namespace has its layers", () =>
    withService(() =>
      Effect.gen(function* () {
        const containerd = yield* LocalContainerd
        const registry = yield* Remote
        const [one, two] = yield* Effect.promise(async () => {
          const common = await layer([{ name: "common", body: randomBytes(5000) }])
          const extra = await layer([{ name: "extra", body: "e" }])
          return [image([common]), image([common, extra])] as const
        })
        yield* containerd.load("other", one, "example.org/one:1")
        const name = yield* registry.push("share/two", "latest", two)
        yield* registry.lose(two.layers[0]?.digest ?? "")
        assertReady(yield* pulled(name), two)
      })
    )
  )

  it.effect.skipIf(unavailable !== null)("and that no registry has fails with the registry's sentence", () =>
    withService((_dataDir, namespace) =>
      Effect.gen(function* () {
        const { domain } = yield* Remote
        const failed = yield* pulled(`${domain}/no/such:image`)
        assert.strictEqual(failed.error, `The registry ${domain} has no image ${domain}/no/such:image.`)
        assert.deepStrictEqual(yield* kept(namespace), { images: [], leases: [] })
      })
    )
  )
})

withLayer(both, { excludeTestServices: true })("leases", (it) => {
  it.effect.skipIf(unavailable !== null)(
    "hold what a pull works with, whatever others remove meanwhile",
    () =>
      withService(() =>
        Effect.gen(function* () {
          const containerd = yield* LocalContainerd
          const images = yield* Images
          const built = yield* Effect.promise(async () =>
            image([
              await layer([{ name: "first", body: randomBytes(24 * 1024 * 1024) }], "none"),
              await layer([{ name: "second", body: randomBytes(24 * 1024 * 1024) }], "none")
            ])
          )
          const name = `127.0.0.1:${yield* freePort}/taken/away:v1`
          yield* containerd.load("default", built, name)
          const { id } = yield* images.create({ name })
          yield* until(
            id,
            (it) => it.progress.bytes_done === it.progress.bytes_total && it.progress.bytes_total > 0
          )
          yield* containerd.ctr("default", "images", "rm", "--sync", name)
          assert.strictEqual(yield* containerd.ctr("default", "content", "ls", "--quiet"), "")
          assertReady(yield* settled(id), built)
        })
      )
  )

  it.effect.skipIf(unavailable !== null)("go when a DELETE cancels the pull", () =>
    withService((dataDir, namespace) =>
      Effect.gen(function* () {
        const containerd = yield* LocalContainerd
        const images = yield* Images
        const built = yield* Effect.promise(async () =>
          image([await layer([{ name: "big", body: randomBytes(24 * 1024 * 1024) }], "none")])
        )
        const name = `127.0.0.1:${yield* freePort}/never/mind:v1`
        yield* containerd.load("default", built, name)
        const { id } = yield* images.create({ name })
        yield* until(id, (it) => it.progress.bytes_done > 0)
        yield* images.remove(id, [])
        assert.deepStrictEqual(yield* kept(namespace), { images: [], leases: [] })
        yield* assertNothingLeft(dataDir)
      })
    )
  )

  it.effect.skipIf(unavailable !== null)("of a service that died are removed by the next one", () =>
    Effect.gen(function* () {
      const { socket, ctr } = yield* LocalContainerd
      const dataDir = yield* temporaryDirectory("images")
      yield* ctr(namespaceOf(dataDir), "leases", "create", "--id", "pull-img-dead", "--expires", "24h")
      const source = { imageSource: "auto", containerdSocket: socket } as const
      yield* Effect.gen(function* () {
        assert.deepStrictEqual((yield* kept(namespaceOf(dataDir))).leases, [])
      }).pipe(Effect.provide(imagesOn(dataDir, {}, Files.layer, source)))
    }).pipe(Effect.scoped)
  )
})

describe("where containerd does not answer", () => {
  const pullWith = (imageSource: "auto" | "containerd") =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryDirectory("images")
      const registry = yield* Remote
      const name = yield* registry.push("team/auto", "latest", yield* smallImage("auto"))
      const source = { imageSource, containerdSocket: `${dataDir}/none` }
      return yield* pulled(name).pipe(Effect.provide(imagesOn(dataDir, {}, Files.layer, source)))
    }).pipe(Effect.provide(Remote.layer), Effect.scoped)

  it.live("auto takes the registry", () =>
    Effect.map(pullWith("auto"), (ready) => assert.strictEqual(ready.status, "ready"))
  )

  it.live("IMAGE_SOURCE=containerd fails with a sentence", () =>
    Effect.map(pullWith("containerd"), (failed) =>
      assert.strictEqual(
        failed.error,
        "containerd does not answer at its socket, and IMAGE_SOURCE=containerd allows no other source."
      )
    )
  )
})
