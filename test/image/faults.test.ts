/** What goes wrong between a registry and this host: a sentence for each, and nothing left. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, layer as withLayer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { ImageId } from "../../src/domain/Ids.ts"
import { Images } from "../../src/image/Images.ts"
import { assertNothingLeft, filesBelow, onFreshHost, Remote, settled, smallImage } from "../support/image.ts"
import { image, layer, sha256 } from "../support/layers.ts"
import { freePort, startRegistry } from "../support/registry.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const id = (text: string) => ImageId.make(text)

/** Pulls what must fail; gives the sentence and what lies on the disk then. */
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

withLayer(Remote.layer, { excludeTestServices: true })("what goes wrong with a registry", (it) => {
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
      const built = yield* smallImage("damaged")
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
})

withLayer(Remote.layer, { excludeTestServices: true })("what goes wrong with an image", (it) => {
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
        yield* registry.push("late/image", "latest", yield* smallImage("late"))
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
