/**
 * Every nasty image must look to a guest exactly as real containerd and `umoci unpack` make it look: type, mode, owner,
 * time, link, device, content and extended attributes of every entry.
 */
import { execa } from "execa"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, describe, it, layer as withLayer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { ImageId } from "../../src/domain/Ids.ts"
import { Images } from "../../src/image/Images.ts"
import { containerdUnavailable, LocalContainerd } from "../support/containerd.ts"
import { applyLayers } from "../support/containerdDiff.ts"
import { imagesOn, mountsUnavailable, readDirectory, readLayers, settled } from "../support/image.ts"
import { type Compression, image, layerOf, ociArchive, writeLayout } from "../support/layers.ts"
import { temporaryDirectory } from "../support/temporary.ts"
import { type Case, corpus } from "./corpus.ts"

const id = ImageId.make("img-corpus")

const build = (it: Case, compression: Compression) =>
  Effect.promise(async () =>
    image(await Promise.all(it.layers.map(async (bytes) => layerOf(await bytes, compression))))
  )

/** What umoci makes of it. */
const unpacked = (built: ReturnType<typeof image>) =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("umoci")
    const bundle = path.join(directory, "bundle")
    yield* Effect.promise(() => writeLayout(path.join(directory, "layout"), built, "image"))
    yield* Effect.promise(() => execa("umoci", ["unpack", "--image", `${directory}/layout:image`, bundle]))
    return yield* readDirectory(path.join(bundle, "rootfs"))
  })

/** What a guest sees. */
const mounted = (built: ReturnType<typeof image>) =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("corpus")
    return yield* Effect.gen(function* () {
      const images = yield* Images
      const archive = yield* Effect.promise(() => ociArchive(built))
      yield* images.importArchive(id, Stream.make(new Uint8Array(archive)))
      const ready = yield* settled(id)
      assert.strictEqual(ready.error, null)
      const { layers } = yield* images.resolve(id)
      return yield* readLayers(layers.map((it) => it.path))
    }).pipe(Effect.provide(imagesOn(path.join(directory, "data"))))
  })

const unavailable = await Effect.runPromise(mountsUnavailable)
if (unavailable !== null) console.log(`skipped: ${unavailable}`)

describe.skipIf(unavailable !== null)("a nasty image looks as umoci unpacks it", () => {
  it.live.each(corpus)("$name", (one) =>
    Effect.gen(function* () {
      const ours = yield* mounted(yield* build(one, one.compression ?? "gzip"))
      // umoci knows no zstd.
      const theirs = yield* unpacked(yield* build(one, "gzip"))
      assert.deepStrictEqual(ours, theirs)
      assert.isAtLeast(Object.keys(theirs).length, 2)
    }).pipe(Effect.scoped)
  )
})

const noContainerd = unavailable ?? (await Effect.runPromise(containerdUnavailable))
if (noContainerd !== null) console.log(`skipped: ${noContainerd}`)

/** What containerd makes of it. */
const unpackedByContainerd = Effect.fnUntraced(function* (built: ReturnType<typeof image>, name: string) {
  const containerd = yield* LocalContainerd
  const directory = yield* temporaryDirectory("apply")
  yield* Effect.promise(() => fs.chmod(directory, 0o755))
  yield* containerd.load("corpus", built, name)
  yield* applyLayers(containerd.socket, "corpus", built, directory)
  return yield* readDirectory(directory)
})

withLayer(LocalContainerd.layer, { excludeTestServices: true })(
  "a nasty image looks as containerd unpacks it",
  (it) => {
    for (const one of corpus)
      it.effect.skipIf(noContainerd !== null)(one.name, () =>
        Effect.gen(function* () {
          const built = yield* build(one, one.compression ?? "gzip")
          const theirs = yield* unpackedByContainerd(built, `example.org/case:${corpus.indexOf(one)}`)
          const expected: Record<string, string> = { ...(yield* mounted(built)) }
          for (const [name, description] of Object.entries(one.containerd?.names ?? {})) {
            if (description === null) delete expected[name]
            else expected[name] = description
          }
          assert.deepStrictEqual(theirs, expected)
        }).pipe(Effect.scoped)
      )
  }
)
