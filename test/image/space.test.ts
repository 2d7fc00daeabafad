/** A disk that gets full, a packer that breaks off: a sentence, and nothing left. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { ImageId } from "../../src/domain/Ids.ts"
import { FileFault } from "../../src/host/Fault.ts"
import { Files } from "../../src/host/Files.ts"
import { layout } from "../../src/host/Paths.ts"
import { Images } from "../../src/image/Images.ts"
import { filesBelow, imagesOn, settled } from "../support/image.ts"
import { image, layer, layerOf, ociArchive, rawTar } from "../support/layers.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const id = ImageId.make("img-space")

/** The machine's own files, with some of what they do replaced. */
const filesBut = (change: (files: Files["Service"]) => Partial<Files["Service"]>) =>
  Layer.effect(
    Files,
    Effect.map(Files, (files) => Files.of({ ...files, ...change(files) }))
  ).pipe(Layer.provide(Files.layer))

const importing = (dataDir: string, files: Layer.Layer<Files>) =>
  Effect.gen(function* () {
    const archive = yield* Effect.promise(async () =>
      ociArchive(image([await layer([{ name: "f", body: "f" }])]))
    )
    const accepted = yield* (yield* Images).importArchive(id, Stream.make(new Uint8Array(archive)))
    return yield* settled(accepted.id)
  }).pipe(Effect.provide(imagesOn(dataDir, {}, files)))

const full = (target: string) =>
  new FileFault({ operation: "write", path: target, code: "ENOSPC", cause: new Error("ENOSPC") })

describe("a full disk", () => {
  it.live("while a layer is converted fails the image", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryDirectory("full")
      const failed = yield* importing(
        dataDir,
        filesBut(() => ({ freeBytes: () => Effect.succeed(1000) }))
      )
      assert.strictEqual(failed.status, "failed")
      assert.match(failed.error ?? "", /less than 256 MiB free/u)
      assert.deepStrictEqual(yield* filesBelow(dataDir), ["images/img-space.json"])
    }).pipe(Effect.scoped)
  )

  it.live("when a finished layer is stored fails the image", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryDirectory("full")
      const files = filesBut(() => ({ rename: (_from: string, to: string) => Effect.fail(full(to)) }))
      const failed = yield* importing(dataDir, files)
      assert.strictEqual(failed.error, "Storing a layer failed: the disk of the data directory is full.")
      assert.deepStrictEqual(yield* filesBelow(path.join(dataDir, "layers")), [])
    }).pipe(Effect.scoped)
  )

  it.live("when not even the failure can be written still shows it", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryDirectory("full")
      const record = layout(dataDir).image(id)
      let writes = 0
      const files = filesBut((real) => ({
        write: (target: string, content: string | Uint8Array) =>
          target === record && writes++ > 0 ? Effect.fail(full(target)) : real.write(target, content)
      }))
      const failed = yield* importing(dataDir, files)
      assert.strictEqual(failed.status, "failed")
      assert.match(failed.error ?? "", /disk of the data directory is full/u)
    }).pipe(Effect.scoped)
  )

  it.live("when the record is written first refuses the upload", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryDirectory("full")
      const files = filesBut(() => ({ write: (target: string) => Effect.fail(full(target)) }))
      const refused = yield* Effect.flip(importing(dataDir, files))
      assert.strictEqual("_tag" in refused ? refused._tag : "", "Unprocessable")
      assert.deepStrictEqual(yield* filesBelow(dataDir), [])
    }).pipe(Effect.scoped)
  )
})

/** A tar2sqfs, first on the path until the scope closes, that reads a little and gives up. */
const brokenTar2sqfs = Effect.gen(function* () {
  const directory = yield* temporaryDirectory("path")
  const before = process.env["PATH"]
  yield* Effect.promise(() =>
    fs.writeFile(path.join(directory, "tar2sqfs"), "#!/bin/sh\nhead -c 512 >/dev/null\nexit 1\n", {
      mode: 0o755
    })
  )
  yield* Effect.acquireRelease(
    Effect.sync(() => void (process.env["PATH"] = `${directory}:${before}`)),
    () => Effect.sync(() => void (process.env["PATH"] = before))
  )
})

describe("tar2sqfs", () => {
  it.live("that breaks off fails the image, and leaves nothing", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryDirectory("refused")
      const archive = yield* Effect.promise(async () =>
        ociArchive(image([await layerOf(rawTar([{ name: "f" }]))]))
      )
      yield* brokenTar2sqfs
      yield* Effect.gen(function* () {
        yield* (yield* Images).importArchive(id, Stream.make(new Uint8Array(archive)))
        const failed = yield* settled(id)
        assert.strictEqual(
          failed.error,
          "A layer could not be packed: tar2sqfs refused what is in it, or broke off."
        )
        assert.deepStrictEqual(yield* filesBelow(dataDir), ["images/img-space.json"])
      }).pipe(Effect.provide(imagesOn(dataDir)))
    }).pipe(Effect.scoped)
  )
})
