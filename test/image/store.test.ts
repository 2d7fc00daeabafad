/** What images take on the disk, what goes when nobody needs it, and the check that finds what the disk lost. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, describe, it, layer as withLayer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Digest, ImageId } from "../../src/domain/Ids.ts"
import { Files } from "../../src/host/Files.ts"
import { layout, Paths } from "../../src/host/Paths.ts"
import { fsck } from "../../src/image/fsck.ts"
import { ImageGc } from "../../src/image/ImageGc.ts"
import { Images } from "../../src/image/Images.ts"
import { filesBelow, imagesOn, Remote, settled, smallImage } from "../support/image.ts"
import { image, layer } from "../support/layers.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const pulled = (name: string) =>
  Effect.gen(function* () {
    const accepted = yield* (yield* Images).create({ name })
    const ready = yield* settled(accepted.id)
    assert.deepStrictEqual([ready.status, ready.error], ["ready", null])
    return ready
  })

const check = (dataDir: string, repair = false) =>
  fsck({ repair }).pipe(
    Effect.provide(Layer.merge(Files.layer, Layer.succeed(Paths, layout(dataDir, `${dataDir}/run`))))
  )

/** A data directory with one pulled image, and no service on it any more. */
const withImage = Effect.gen(function* () {
  const registry = yield* Remote
  const dataDir = yield* temporaryDirectory("store")
  const built = yield* smallImage("stored")
  const name = yield* registry.push("store/app", "latest", built)
  const ready = yield* pulled(name).pipe(Effect.provide(imagesOn(dataDir)))
  const layers = yield* filesBelow(`${dataDir}/layers`)
  return { dataDir, name, built, id: ready.id, layers: layers.map((it) => `${dataDir}/layers/${it}`) }
})

const flipByte = (file: string, at: number) =>
  Effect.promise(async () => {
    const handle = await fs.open(file, "r+")
    const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, at)
    await handle.write(Buffer.from([(buffer[0] ?? 0) ^ 0x01]), 0, 1, at)
    await handle.close()
  })

withLayer(Remote.layer, { excludeTestServices: true })("disk use", (it) => {
  it.effect("says what an image has alone and what it shares, and a collection what it gave back", () =>
    Effect.gen(function* () {
      const registry = yield* Remote
      const dataDir = yield* temporaryDirectory("store")
      yield* Effect.gen(function* () {
        const images = yield* Images
        const gc = yield* ImageGc
        const one = yield* pulled(yield* registry.push("disk/one", "latest", yield* smallImage("one")))
        const alone = yield* images.get(one.id)
        assert.deepStrictEqual(alone.disk, { own_bytes: one.size_bytes, shared_bytes: 0 })
        const name = yield* registry.push("disk/two", "latest", yield* smallImage("two"))
        const two = yield* pulled(name)
        const shared = (yield* images.get(one.id)).disk
        assert.isAbove(shared?.shared_bytes ?? 0, 0)
        assert.strictEqual((shared?.own_bytes ?? 0) + (shared?.shared_bytes ?? 0), one.size_bytes)
        assert.strictEqual((yield* images.get(two.id)).disk?.shared_bytes, shared?.shared_bytes)
        // A tag moves: the layer of the old version is nobody's once no instance has it.
        yield* registry.push("disk/two", "latest", yield* smallImage("three"))
        yield* pulled(name)
        const used = [{ id: two.id, digest: Digest.make(two.digest ?? "") }]
        assert.deepStrictEqual(yield* gc.collect(used), { layers_removed: 0, bytes_freed: 0 })
        const freed = yield* gc.collect([])
        assert.strictEqual(freed.layers_removed, 1)
        assert.isAbove(freed.bytes_freed, 0)
      }).pipe(Effect.provide(imagesOn(dataDir)))
      // What a restart knows is what the files say.
      const [first] = yield* Effect.flatMap(Images, (it) => it.list).pipe(Effect.provide(imagesOn(dataDir)))
      assert.isAbove(first?.disk?.shared_bytes ?? 0, 0)
    }).pipe(Effect.scoped)
  )

  it.effect("where it gets short, broken pulls go; what somebody asked for stays", () =>
    Effect.gen(function* () {
      const registry = yield* Remote
      const dataDir = yield* temporaryDirectory("store")
      const half = yield* Effect.promise(async () =>
        image([await layer([{ name: "a", body: "a".repeat(9000) }]), await layer([{ name: "b", body: "b" }])])
      )
      const broken = yield* registry.push("low/broken", "latest", half)
      const whole = yield* registry.push("low/whole", "latest", yield* smallImage("whole"))
      // A pull that breaks off for a reason that may pass keeps what it has.
      const paths = layout(dataDir, `${dataDir}/run`)
      yield* pulled(whole).pipe(Effect.provide(imagesOn(dataDir)))
      yield* Effect.promise(async () => {
        const record = JSON.parse(await fs.readFile(paths.image(ImageId.make("img-whole")), "utf8"))
        const work = { ...record.current, layers: [] }
        const failed = {
          ...record,
          id: "img-broken",
          name: broken,
          status: "failed",
          error: "x",
          current: null,
          work
        }
        await fs.writeFile(paths.image(ImageId.make("img-broken")), JSON.stringify(failed))
        await fs.mkdir(`${paths.pull(ImageId.make("img-broken"))}/blobs/sha256`, { recursive: true })
        await fs.writeFile(`${paths.pull(ImageId.make("img-broken"))}/blobs/sha256/x`, "x".repeat(1000))
      })
      const pulls = filesBelow(paths.pulls)
      yield* Effect.gen(function* () {
        assert.strictEqual((yield* pulls).length, 1)
        yield* (yield* ImageGc).collect([])
        assert.strictEqual((yield* pulls).length, 1)
      }).pipe(Effect.provide(imagesOn(dataDir)))
      yield* Effect.gen(function* () {
        yield* (yield* ImageGc).collect([])
        assert.deepStrictEqual(yield* pulls, [])
        assert.strictEqual((yield* (yield* Images).get(ImageId.make("img-whole"))).status, "ready")
      }).pipe(Effect.provide(imagesOn(dataDir, { lowSpaceBytes: Number.MAX_SAFE_INTEGER })))
    }).pipe(Effect.scoped)
  )
})

withLayer(Remote.layer, { excludeTestServices: true })("the check", (it) => {
  it.effect("finds nothing where all is sound", () =>
    Effect.gen(function* () {
      const { dataDir } = yield* withImage
      assert.deepStrictEqual(yield* check(dataDir), { records: 1, layers: 2, blobs: 0, findings: [] })
    }).pipe(Effect.scoped)
  )

  it.effect(
    "finds a layer with one bit changed anywhere, removes it, and the next service brings it back",
    () =>
      Effect.gen(function* () {
        const { dataDir, id, built, layers } = yield* withImage
        const registry = yield* Remote
        const [file = ""] = layers
        const { size } = yield* Effect.promise(() => fs.stat(file))
        for (const at of [0, 97, size - 4096 - 1, size - 4096 + 8]) {
          yield* flipByte(file, at)
          const found = yield* check(dataDir)
          assert.deepStrictEqual(
            found.findings.map((it) => [it.kind, it.name, it.state]),
            [["layer", path.basename(file), "repairable"]],
            `byte ${at}`
          )
          assert.match(found.findings[0]?.problem ?? "", /belongs to img-app/u)
          yield* flipByte(file, at)
        }
        yield* flipByte(file, 97)
        const repaired = yield* check(dataDir, true)
        // Removed, it is missing until a service starts.
        assert.deepStrictEqual(
          repaired.findings.map((it) => it.state),
          ["repaired"]
        )
        assert.deepStrictEqual(
          (yield* check(dataDir)).findings.map((it) => [it.kind, it.state]),
          [["layer", "left"]]
        )
        // The tag has moved meanwhile: what comes back is what was lost.
        yield* registry.push("store/app", "latest", yield* smallImage("moved"))
        yield* Effect.gen(function* () {
          const ready = yield* settled(id)
          assert.deepStrictEqual([ready.status, ready.error, ready.digest], ["ready", null, built.digest])
        }).pipe(Effect.provide(imagesOn(dataDir)))
        assert.deepStrictEqual((yield* check(dataDir)).findings, [])
      }).pipe(Effect.scoped)
  )

  it.effect("finds and removes what is nobody's, and only names a record that cannot be read", () =>
    Effect.gen(function* () {
      const { dataDir, layers } = yield* withImage
      const hex = "ab".repeat(32)
      yield* Effect.promise(async () => {
        await fs.copyFile(layers[0] ?? "", `${dataDir}/layers/${hex}.squashfs`)
        await fs.writeFile(`${dataDir}/layers/${hex}.1.tmp`, "half")
        await fs.mkdir(`${dataDir}/pulls/img-gone`)
        await fs.writeFile(`${dataDir}/images/img-x.json.tmp-1`, "{")
      })
      const before = yield* check(dataDir)
      assert.deepStrictEqual(
        [...new Set(before.findings.map((it) => `${it.kind} ${it.state}`))],
        ["leftover repairable"]
      )
      assert.strictEqual(before.findings.length, 4)
      yield* check(dataDir, true)
      assert.deepStrictEqual((yield* check(dataDir)).findings, [])
      yield* Effect.promise(() => fs.writeFile(`${dataDir}/images/img-half.json`, "{ half"))
      const named = yield* check(dataDir, true)
      assert.deepStrictEqual(
        named.findings.map((it) => [it.kind, it.name, it.state]),
        [["record", "img-half.json", "left"]]
      )
      assert.strictEqual((yield* filesBelow(`${dataDir}/layers`)).length, 2)
    }).pipe(Effect.scoped)
  )
})

describe("the check of a pull that was broken off", () => {
  it.live("removes a blob that does not have its digest", () =>
    Effect.gen(function* () {
      const { dataDir, id } = yield* withImage
      const paths = layout(dataDir, `${dataDir}/run`)
      yield* Effect.promise(async () => {
        const file = paths.image(id)
        await fs.writeFile(
          file,
          JSON.stringify({ ...JSON.parse(await fs.readFile(file, "utf8")), status: "pulling" })
        )
        const blobs = `${paths.pull(id)}/blobs/sha256`
        await fs.mkdir(blobs, { recursive: true })
        await fs.writeFile(`${blobs}/${"cd".repeat(32)}`, "other bytes")
        await fs.writeFile(`${blobs}/${"ef".repeat(32)}`, "")
      })
      const found = yield* check(dataDir, true)
      assert.deepStrictEqual(
        found.findings.map((it) => [it.kind, it.state]),
        [["blob", "repaired"]]
      )
      assert.strictEqual((yield* check(dataDir)).blobs, 0)
    }).pipe(Effect.provide(Remote.layer), Effect.scoped)
  )
})
