/** Archives that are sent: docker save and OCI layouts, by tools and by hand, sound and hostile. */
import { createReadStream } from "node:fs"
import * as path from "node:path"
import { promisify } from "node:util"
import * as zlib from "node:zlib"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { execa } from "execa"
import { ImageId } from "../../src/domain/Ids.ts"
import { Images } from "../../src/image/Images.ts"
import { filesBelow, imagesOn, settled } from "../support/image.ts"
import {
  dockerArchive,
  image,
  layer,
  layoutFiles,
  ociArchive,
  rawTar,
  sha256,
  tar,
  writeLayout
} from "../support/layers.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const id = ImageId.make("img-sent")
const gzip = promisify(zlib.gzip)

const sound = (compression: "gzip" | "zstd" | "none" = "gzip") =>
  Effect.promise(async () =>
    image([
      await layer(
        [
          { name: "bin/", type: "directory", mode: 0o755 },
          { name: "bin/a", body: "a".repeat(5000) }
        ],
        compression
      ),
      await layer([{ name: "b", body: "b" }], compression)
    ])
  )

const onHost = <A, E, R>(
  body: (dataDir: string) => Effect.Effect<A, E, R>,
  bounds: Parameters<typeof imagesOn>[1] = {}
) =>
  Effect.gen(function* () {
    const dataDir = yield* temporaryDirectory("archives")
    return yield* body(dataDir).pipe(Effect.provide(imagesOn(dataDir, bounds)))
  }).pipe(Effect.scoped)

/** In pieces, as a network would bring it. */
const stream = (bytes: Buffer) =>
  Stream.fromIterable(
    Array.from(
      { length: Math.ceil(bytes.length / 7000) },
      (_, at) => new Uint8Array(bytes.subarray(at * 7000, (at + 1) * 7000))
    )
  )

const imported = (bytes: Buffer, wish?: ImageId) =>
  Effect.gen(function* () {
    const images = yield* Images
    const accepted = yield* images.importArchive(wish, stream(bytes))
    return yield* settled(accepted.id)
  })

describe("an archive", () => {
  it.live("of docker save becomes an image with its tag as name", () =>
    onHost((dataDir) =>
      Effect.gen(function* () {
        const built = yield* sound("none")
        const ready = yield* imported(yield* Effect.promise(() => dockerArchive(built, ["team/app:v2"])))
        assert.deepStrictEqual([ready.status, ready.error], ["ready", null])
        assert.deepStrictEqual([ready.id, ready.name], ["img-app-v2", "docker.io/team/app:v2"])
        assert.strictEqual(ready.digest, sha256(built.config))
        assert.strictEqual(ready.progress.bytes_done, ready.progress.bytes_total)
        // The upload goes when the work ends, a moment after the image is ready.
        const left = yield* filesBelow(path.join(dataDir, "tmp")).pipe(
          Effect.repeat({ schedule: Schedule.spaced(20), until: (names) => names.length === 0, times: 250 })
        )
        assert.deepStrictEqual(left, [])
        const boot = yield* (yield* Images).resolve("team/app:v2")
        assert.strictEqual(boot.layers.length, 2)
      })
    )
  )

  it.live("as an OCI layout, compressed as a whole or not, with layers of each kind", () =>
    Effect.forEach(["gzip", "zstd", "none"] as const, (compression) =>
      onHost(() =>
        Effect.gen(function* () {
          const built = yield* sound(compression)
          const plain = yield* Effect.promise(() => ociArchive(built, "example.org/a/b:3"))
          const ready = yield* imported(plain)
          assert.deepStrictEqual([ready.status, ready.id, ready.digest], ["ready", "img-b-3", built.digest])
          const again = yield* imported(yield* Effect.promise(() => gzip(plain)), id)
          assert.deepStrictEqual([again.status, again.id, again.digest], ["ready", "img-sent", built.digest])
        })
      )
    )
  )

  it.live("as skopeo writes it, both kinds", () =>
    onHost((dataDir) =>
      Effect.gen(function* () {
        const work = yield* temporaryDirectory("skopeo")
        const built = yield* sound()
        yield* Effect.promise(() => writeLayout(`${work}/layout`, built, "x"))
        for (const [index, target] of [
          `docker-archive:${work}/0.tar:made/by:skopeo`,
          `oci-archive:${work}/1.tar:latest`
        ].entries()) {
          yield* Effect.promise(() => execa("skopeo", ["copy", "--quiet", `oci:${work}/layout:x`, target]))
          const file = Stream.fromAsyncIterable(createReadStream(`${work}/${index}.tar`), (cause) =>
            String(cause)
          )
          const accepted = yield* (yield* Images).importArchive(undefined, file)
          const ready = yield* settled(accepted.id)
          assert.deepStrictEqual([ready.status, ready.error], ["ready", null])
          assert.strictEqual(
            ready.name,
            index === 0
              ? "docker.io/made/by:skopeo"
              : `localhost/imported-${built.digest.slice(7, 19)}:latest`
          )
        }
        // The same layers: made once, named twice.
        assert.strictEqual((yield* filesBelow(path.join(dataDir, "layers"))).length, 2)
      })
    )
  )

  it.live("without a name is named by its id or its digest", () =>
    onHost(() =>
      Effect.gen(function* () {
        const bytes = yield* Effect.flatMap(sound(), (it) => Effect.promise(() => ociArchive(it)))
        assert.strictEqual((yield* imported(bytes, id)).name, "localhost/img-sent:latest")
        assert.match((yield* imported(bytes)).id, /^img-imported-[0-9a-f]{12}$/u)
      })
    )
  )
})

const refused = (bytes: Buffer, bounds: Parameters<typeof imagesOn>[1] = {}) =>
  onHost(
    (dataDir) =>
      Effect.gen(function* () {
        const images = yield* Images
        const problem = yield* Effect.flip(images.importArchive(id, stream(bytes)))
        assert.deepStrictEqual(yield* filesBelow(dataDir), [])
        assert.deepStrictEqual(yield* images.list, [])
        const detail = "detail" in problem ? problem.detail : ""
        assert.isFalse(detail.includes(dataDir))
        return [problem._tag, detail] as const
      }),
    bounds
  )

const expectRefusal = (
  bytes: Buffer,
  tag: string,
  why: RegExp,
  bounds: Parameters<typeof imagesOn>[1] = {}
) =>
  Effect.map(refused(bytes, bounds), ([found, detail]) => {
    assert.strictEqual(found, tag)
    assert.match(detail, why)
  })

describe("an archive is refused, and leaves nothing", () => {
  it.live("where it is garbage, empty or a tar of something else", () =>
    Effect.gen(function* () {
      yield* expectRefusal(Buffer.from("garbage".repeat(1000)), "InvalidRequest", /not sound/u)
      yield* expectRefusal(
        Buffer.alloc(0),
        "InvalidRequest",
        /neither a docker save archive nor an OCI layout/u
      )
      const other = yield* Effect.promise(() => tar([{ name: "hello", body: "world" }]))
      yield* expectRefusal(other, "InvalidRequest", /neither/u)
    })
  )

  it.live("where it is cut off", () =>
    Effect.gen(function* () {
      const whole = yield* Effect.flatMap(sound(), (it) => Effect.promise(() => ociArchive(it)))
      yield* expectRefusal(whole.subarray(0, 3000), "InvalidRequest", /ends in the middle/u)
      const zipped = yield* Effect.promise(() => gzip(whole))
      yield* expectRefusal(zipped.subarray(0, -10), "InvalidRequest", /damaged or cut off/u)
    })
  )

  it.live("where it is larger than the bound, also once unpacked", () =>
    Effect.gen(function* () {
      const bomb = yield* Effect.promise(async () =>
        gzip(await tar([{ name: "zeros", body: Buffer.alloc(3_000_000) }]))
      )
      assert.isBelow(bomb.length, 10_000)
      yield* expectRefusal(bomb, "PayloadTooLarge", /more than 1000000 bytes/u, {
        archiveMaxBytes: 1_000_000
      })
    })
  )
})

describe("an archive that lies or breaks off is refused, and leaves nothing", () => {
  it.live("where its manifest lies about names, digests or sizes", () =>
    Effect.gen(function* () {
      const built = yield* sound()
      const files = layoutFiles(built, "a/b:c")
      const change = (edit: (files: Map<string, Buffer>) => void) => {
        const copy = new Map(files)
        edit(copy)
        return Effect.promise(() => tar([...copy].map(([name, body]) => ({ name, body }))))
      }
      const manifest = `blobs/sha256/${built.digest.slice(7)}`
      const first = `blobs/sha256/${(built.layers[0]?.digest ?? "").slice(7)}`
      yield* expectRefusal(yield* change((it) => it.delete(manifest)), "InvalidRequest", /lacks/u)
      yield* expectRefusal(yield* change((it) => it.delete(first)), "InvalidRequest", /lacks the layer/u)
      yield* expectRefusal(
        yield* change((it) => it.set(manifest, Buffer.concat([built.manifest, Buffer.from(" ")]))),
        "InvalidRequest",
        /does not have the digest/u
      )
      yield* expectRefusal(
        yield* change((it) => it.set(first, Buffer.from("short"))),
        "InvalidRequest",
        /size/u
      )
      yield* expectRefusal(
        yield* change((it) => it.set("index.json", Buffer.from("{"))),
        "InvalidRequest",
        /not JSON/u
      )
    })
  )

  it.live("where the sender goes away; its own error comes back", () =>
    onHost((dataDir) =>
      Effect.gen(function* () {
        const whole = yield* Effect.flatMap(sound(), (it) => Effect.promise(() => ociArchive(it)))
        const broken = Stream.concat(stream(whole.subarray(0, 9000)), Stream.fail("gone away"))
        assert.strictEqual(yield* Effect.flip((yield* Images).importArchive(id, broken)), "gone away")
        assert.deepStrictEqual(yield* filesBelow(dataDir), [])
      })
    )
  )
})

const failing = (layerTar: Buffer, why: RegExp, bounds: Parameters<typeof imagesOn>[1] = {}) =>
  onHost(
    (dataDir) =>
      Effect.gen(function* () {
        const blob = yield* Effect.promise(() => gzip(layerTar))
        const mediaType = "application/vnd.oci.image.layer.v1.tar+gzip"
        const built = image([{ blob, digest: sha256(blob), diffId: sha256(layerTar), mediaType }])
        const failed = yield* imported(yield* Effect.promise(() => ociArchive(built)), id)
        assert.strictEqual(failed.status, "failed")
        assert.match(failed.error ?? "", why)
        assert.isFalse((failed.error ?? "").includes(dataDir))
        assert.deepStrictEqual(yield* filesBelow(dataDir), ["images/img-sent.json"])
      }),
    bounds
  )

const hostile = [
  [
    "a name that leads out",
    () => rawTar([{ name: "../../etc/cron.d/x", body: Buffer.from("x") }]),
    /leads out of the image/u
  ],
  [
    "a name below a file",
    () =>
      rawTar([
        { name: "f", body: Buffer.from("x") },
        { name: "f/g", body: Buffer.from("y") }
      ]),
    /not a directory/u
  ],
  [
    "a hard link to nothing",
    () => rawTar([{ name: "l", type: "link", linkname: "/etc/shadow" }]),
    /a file of no layer/u
  ],
  [
    "a hard link to a directory",
    () =>
      rawTar([
        { name: "d", type: "directory" },
        { name: "l", type: "link", linkname: "d" }
      ]),
    /points to a directory/u
  ],
  [
    "links in a circle",
    () =>
      rawTar([
        { name: "a", type: "symlink", linkname: "b" },
        { name: "b", type: "symlink", linkname: "a" },
        { name: "a/x" }
      ]),
    /too many links/u
  ],
  [
    "a whiteout of the directory itself",
    () => rawTar([{ name: "d/.wh..", body: Buffer.alloc(0) }]),
    /hides no name/u
  ],
  ["a name of 256 bytes", () => rawTar([{ name: "n".repeat(256) }]), /too long/u],
  [
    "a wrong checksum",
    () => {
      const it = rawTar([{ name: "f" }])
      it[0] = 0x67
      return it
    },
    /checksum/u
  ],
  [
    "an unknown kind of entry",
    () => {
      const it = rawTar([{ name: "f" }])
      it.write("Z", 156)
      it.write("000000", 148)
      const sum = it.subarray(0, 512).reduce((a, b, i) => a + (i >= 148 && i < 156 ? 32 : b), 0)
      it.write(sum.toString(8).padStart(6, "0"), 148)
      return it
    },
    /unknown type/u
  ],
  ["an owner that no file can have", () => rawTar([{ name: "f", uid: 0xffff_ffff }]), /out of range/u]
] as const

describe("a hostile layer fails its image with a sentence, and leaves nothing", () => {
  it.live.each(hostile)("%s", ([, build, why]) => failing(build(), why))

  it.live("more bytes than the bound, holes counted", () =>
    Effect.gen(function* () {
      const bounds = { layerMaxBytes: 1_000_000 }
      yield* failing(
        rawTar([{ name: "zeros", body: Buffer.alloc(1_000_001) }]),
        /more than 1000000 bytes unpacked/u,
        bounds
      )
      const holes = rawTar([
        { name: "s", body: Buffer.from("x"), sparse: { realSize: 2 ** 40, extents: [0, 1] } }
      ])
      yield* failing(holes, /more than 1000000 bytes unpacked/u, bounds)
    })
  )

  it.live("more entries than the bound", () =>
    failing(rawTar(Array.from({ length: 101 }, (_, at) => ({ name: `f${at}` }))), /more than 100 entries/u, {
      layerMaxEntries: 100
    })
  )
})
