/** A service that is killed in the middle of a pull, at each stage, and the one that comes after it. */
import { spawn } from "node:child_process"
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { ImageId } from "../../src/domain/Ids.ts"
import { processes } from "../../src/host/Proc.ts"
import { Images } from "../../src/image/Images.ts"
import { filesBelow, imagesOn, settled, until } from "../support/image.ts"
import { image, layer, ociArchive } from "../support/layers.ts"
import { startRegistry } from "../support/registry.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const victim = fileURLToPath(new URL("../support/imagesVictim.ts", import.meta.url))
const id = ImageId.make("img-big")

/** Large and incompressible, so that every stage takes a while; the bottom layer is done long before the top one. */
const big = Effect.promise(async () =>
  image([
    await layer([{ name: "small", body: randomBytes(1000) }]),
    await layer([{ name: "big", body: randomBytes(48 * 1024 * 1024) }], "none")
  ])
)

const killedAt = (dataDir: string, name: string, moment: string) =>
  Effect.promise(async () => {
    const child = spawn(process.execPath, [victim, dataDir, name, moment], {
      stdio: ["ignore", "pipe", "ignore"]
    })
    await once(child.stdout, "data")
    child.kill("SIGKILL")
    await once(child, "exit")
  })

/** Tools that work for a data directory. */
const toolsOf = (dataDir: string) =>
  Effect.map(processes, (all) => all.filter((it) => it.argv.some((arg) => arg.includes(dataDir))))

describe("a service killed in the middle of a pull", () => {
  it.live.each(["fetching", "converting", "made"])(
    "while %s leaves nothing half-made, and the next one finishes it",
    (moment) =>
      Effect.gen(function* () {
        const registry = yield* startRegistry()
        const dataDir = yield* temporaryDirectory("crash")
        const built = yield* big
        const name = yield* registry.push("team/big", "latest", built)
        yield* killedAt(dataDir, name, moment)
        // What is named like a finished layer is one.
        for (const file of (yield* filesBelow(path.join(dataDir, "layers"))).filter((it) =>
          it.endsWith(".squashfs")
        )) {
          const bytes = yield* Effect.promise(() => fs.readFile(path.join(dataDir, "layers", file)))
          assert.strictEqual(bytes.toString("latin1", 0, 4), "hsqs")
          assert.isAtMost(Number(bytes.readBigUInt64LE(40)), bytes.length)
        }
        yield* Effect.gen(function* () {
          const images = yield* Images
          assert.include(["pending", "pulling"], (yield* images.get(id)).status)
          const ready = yield* settled(id)
          assert.deepStrictEqual([ready.status, ready.error, ready.digest], ["ready", null, built.digest])
          const left = yield* filesBelow(dataDir)
          assert.deepStrictEqual(
            left.filter((it) => !it.endsWith(".squashfs")),
            ["images/img-big.json"]
          )
          assert.strictEqual(left.length, 3)
          yield* images.remove(id, [])
          assert.deepStrictEqual(yield* filesBelow(dataDir), [])
        }).pipe(Effect.provide(imagesOn(dataDir)))
        assert.deepStrictEqual(yield* toolsOf(dataDir), [])
      }).pipe(Effect.scoped)
  )
})

describe("work that is stopped", () => {
  it.live("by a DELETE ends its tools and leaves nothing", () =>
    Effect.gen(function* () {
      const registry = yield* startRegistry()
      const dataDir = yield* temporaryDirectory("cancel")
      const name = yield* registry.push("team/big", "latest", yield* big)
      yield* Effect.gen(function* () {
        const images = yield* Images
        for (const isDone of [
          () => true,
          (it: { readonly status: string }) => it.status === "pulling",
          (it: { readonly progress: { readonly bytes_done: number } }) => it.progress.bytes_done > 0
        ]) {
          yield* images.create({ name })
          yield* until(id, isDone)
          yield* images.remove(id, [])
          assert.deepStrictEqual(yield* toolsOf(dataDir), [])
          assert.deepStrictEqual(yield* filesBelow(dataDir), [])
        }
      }).pipe(Effect.provide(imagesOn(dataDir)))
    }).pipe(Effect.scoped)
  )

  it.live("by the end of the service goes on with the next one", () =>
    Effect.gen(function* () {
      const registry = yield* startRegistry()
      const dataDir = yield* temporaryDirectory("drain")
      const name = yield* registry.push("team/big", "latest", yield* big)
      yield* Effect.gen(function* () {
        yield* (yield* Images).create({ name })
        yield* until(id, (it) => it.status === "pulling" && it.progress.bytes_total > 0)
      }).pipe(Effect.provide(imagesOn(dataDir)))
      assert.deepStrictEqual(yield* toolsOf(dataDir), [])
      const ready = yield* settled(id).pipe(Effect.provide(imagesOn(dataDir)))
      assert.strictEqual(ready.status, "ready")
    }).pipe(Effect.scoped)
  )

  it.live("while an upload is converted says that the upload is lost", () =>
    Effect.gen(function* () {
      const dataDir = yield* temporaryDirectory("lost")
      const archive = yield* Effect.flatMap(big, (it) => Effect.promise(() => ociArchive(it)))
      yield* Effect.gen(function* () {
        yield* (yield* Images).importArchive(id, Stream.make(new Uint8Array(archive)))
      }).pipe(Effect.provide(imagesOn(dataDir)))
      yield* Effect.gen(function* () {
        const failed = yield* (yield* Images).get(id)
        assert.strictEqual(failed.status, "failed")
        assert.match(failed.error ?? "", /import it again/iu)
        assert.deepStrictEqual(yield* filesBelow(dataDir), ["images/img-big.json"])
      }).pipe(Effect.provide(imagesOn(dataDir)))
    }).pipe(Effect.scoped)
  )
})

describe("nothing is lost", () => {
  it.live("when the caller goes away", () =>
    Effect.gen(function* () {
      const registry = yield* startRegistry()
      const dataDir = yield* temporaryDirectory("caller")
      const name = yield* registry.push("team/big", "latest", yield* big)
      yield* Effect.gen(function* () {
        const images = yield* Images
        const caller = yield* Effect.forkChild(Effect.andThen(images.create({ name }), Effect.never))
        yield* until(id, () => true)
        yield* Fiber.interrupt(caller)
        assert.strictEqual((yield* settled(id)).status, "ready")
      }).pipe(Effect.provide(imagesOn(dataDir)))
    }).pipe(Effect.scoped)
  )

  it.live("while a record cannot be read: nothing is collected", () =>
    Effect.gen(function* () {
      const registry = yield* startRegistry()
      const dataDir = yield* temporaryDirectory("unreadable")
      const small = yield* Effect.promise(async () => image([await layer([{ name: "f", body: "f" }])]))
      const name = yield* registry.push("team/small", "latest", small)
      const pulled = Effect.gen(function* () {
        const accepted = yield* (yield* Images).create({ name })
        return yield* settled(accepted.id)
      })
      yield* pulled.pipe(Effect.provide(imagesOn(dataDir)))
      const layers = yield* filesBelow(path.join(dataDir, "layers"))
      yield* Effect.promise(() => fs.writeFile(path.join(dataDir, "images", "img-small.json"), "{ half"))
      yield* Effect.void.pipe(Effect.provide(imagesOn(dataDir)))
      assert.deepStrictEqual(yield* filesBelow(path.join(dataDir, "layers")), layers)
    }).pipe(Effect.scoped)
  )
})
