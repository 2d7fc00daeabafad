/** Disks of volumes as files, with the host's own e2fsprogs and tar: made, filled from archives, grown, put right. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { buffer } from "node:stream/consumers"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import * as tar from "tar-stream"
import { Files } from "../../src/host/Files.ts"
import { UploadBroken } from "../../src/volume/unpack.ts"
import { VolumeImages } from "../../src/volume/VolumeImages.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const mib = 1024 * 1024
const size = 64 * mib

const images = Layer.provideMerge(VolumeImages.layer, Files.layer)

const within = <A, E>(body: (directory: string, it: VolumeImages["Service"]) => Effect.Effect<A, E>) =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("volume")
    return yield* body(directory, yield* VolumeImages)
  }).pipe(Effect.provide(images), Effect.scoped)

const debugfs = (file: string, command: string): string =>
  execFileSync("debugfs", ["-R", command, file], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] })

const isClean = (file: string): boolean => {
  execFileSync("e2fsck", ["-fn", file], { stdio: "ignore" })
  return true
}

type Entry = Parameters<tar.Pack["entry"]>[0] & { readonly content?: string | Buffer }

const archive = async (entries: ReadonlyArray<Entry>): Promise<Buffer> => {
  const pack = tar.pack()
  for (const { content, ...header } of entries) pack.entry(header, content ?? "")
  pack.finalize()
  return buffer(pack)
}

const pieces = (bytes: Uint8Array): Stream.Stream<Uint8Array> =>
  Stream.fromIterable(
    Array.from({ length: Math.ceil(bytes.length / 10_000) }, (_, at) =>
      bytes.subarray(at * 10_000, (at + 1) * 10_000)
    )
  )

const fill = (directory: string, it: VolumeImages["Service"], bytes: Uint8Array, capacity = size) => {
  const file = path.join(directory, "disk.raw")
  return Effect.as(it.fill(file, capacity, path.join(directory, "tree"), pieces(bytes)), file)
}

const reasonOf = <A, E extends { readonly _tag: string }>(effect: Effect.Effect<A, E>) =>
  Effect.map(Effect.flip(effect), (fault) => {
    assert.strictEqual(fault._tag, "ArchiveRefused")
    return "reason" in fault ? String(fault.reason) : ""
  })

describe("a new disk", () => {
  it.live("is ext4 over all of it, and takes next to nothing of the host", () =>
    within((directory, it) =>
      Effect.gen(function* () {
        const file = path.join(directory, "disk.raw")
        yield* it.make(file, 10 * 1024 * mib)
        const stat = fs.statSync(file)
        assert.strictEqual(stat.size, 10 * 1024 * mib)
        assert.isBelow(stat.blocks * 512, 16 * mib)
        assert.isTrue(isClean(file))
      })
    )
  )

  it.live("grows with its file system, and a disk that was not unmounted is put right", () =>
    within((directory, it) =>
      Effect.gen(function* () {
        const file = path.join(directory, "disk.raw")
        yield* it.make(file, size)
        const blocks = () => Number(/Block count:\s+(\d+)/u.exec(debugfs(file, "stats"))?.[1])
        const before = blocks()
        yield* it.grow(file, 3 * size)
        assert.strictEqual(blocks(), 3 * before)
        assert.isTrue(isClean(file))
        // Again is the same.
        yield* it.grow(file, 3 * size)
        assert.strictEqual(fs.statSync(file).size, 3 * size)
        // The flag that a kernel leaves whose guest died with the disk mounted.
        execFileSync("debugfs", ["-w", "-R", "feature needs_recovery", file], { stdio: "ignore" })
        assert.include(debugfs(file, "features"), "needs_recovery")
        yield* it.settle(file)
        assert.notInclude(debugfs(file, "features"), "needs_recovery")
      })
    )
  )
})

describe.skipIf(process.getuid?.() !== 0)("a disk from an archive (needs root, for owners)", () => {
  it.live("has its owners, modes, links and times", () =>
    within((directory, it) =>
      Effect.gen(function* () {
        const mtime = new Date(1_700_000_000_000)
        const bytes = yield* Effect.promise(() =>
          archive([
            { name: "dir/", type: "directory", mode: 0o750, uid: 1000, gid: 1001, mtime },
            { name: "dir/file", mode: 0o640, uid: 1000, gid: 1001, mtime, content: "hello\n" },
            { name: "dir/set", mode: 0o4755, uid: 0, gid: 0, mtime, content: "#!/bin/sh\n" },
            { name: "dir/link", type: "symlink", linkname: "../../../etc/shadow", mtime },
            { name: "dir/same", type: "link", linkname: "dir/file", mtime }
          ])
        )
        const file = yield* fill(directory, it, bytes)
        assert.isTrue(isClean(file))
        assert.strictEqual(debugfs(file, "cat /dir/file"), "hello\n")
        assert.match(
          debugfs(file, "stat /dir/file"),
          /Mode:\s+0640[\s\S]*User:\s+1000\s+Group:\s+1001[\s\S]*Links: 2/u
        )
        assert.match(debugfs(file, "stat /dir/set"), /Mode:\s+04755/u)
        assert.match(debugfs(file, "stat /dir/link"), /Fast link dest: "\.\.\/\.\.\/\.\.\/etc\/shadow"/u)
        assert.deepStrictEqual(fs.readdirSync(directory), ["disk.raw"])
      })
    )
  )

  it.live("never leaves its directory, whatever the names are", () =>
    within((directory, it) =>
      Effect.gen(function* () {
        const inside = path.join(directory, "in")
        fs.mkdirSync(inside)
        const outside = path.join(directory, "outside")
        fs.mkdirSync(outside)
        const hostile: ReadonlyArray<ReadonlyArray<Entry>> = [
          [{ name: "../outside/a", content: "x" }],
          [{ name: `${outside}/b`, content: "x" }],
          [
            { name: "out", type: "symlink", linkname: outside },
            { name: "out/c", content: "x" }
          ],
          [
            { name: "up", type: "symlink", linkname: "../.." },
            { name: "up/outside/d", content: "x" }
          ],
          [{ name: "e", type: "link", linkname: `${outside}/secret` }],
          [{ name: "f/../../outside/f", content: "x" }]
        ]
        fs.writeFileSync(path.join(outside, "secret"), "secret")
        for (const entries of hostile) {
          const bytes = yield* Effect.promise(() => archive(entries))
          yield* Effect.exit(fill(inside, it, bytes))
          fs.rmSync(inside, { recursive: true })
          fs.mkdirSync(inside)
        }
        assert.deepStrictEqual(fs.readdirSync(outside), ["secret"])
        assert.strictEqual(fs.statSync(path.join(outside, "secret")).nlink, 1)
      })
    )
  )

  it.live("is refused where it holds device nodes, is cut off, is none, or does not fit", () =>
    within((directory, it) =>
      Effect.gen(function* () {
        const refusedFor = (bytes: Uint8Array) => {
          fs.rmSync(path.join(directory, "disk.raw"), { force: true })
          return reasonOf(fill(directory, it, bytes))
        }
        const node = yield* Effect.promise(() =>
          archive([{ name: "sda", type: "block-device", devmajor: 8, devminor: 0 }])
        )
        assert.match(yield* refusedFor(node), /^tar says: .*sda.*not permitted/u)
        assert.isFalse(fs.existsSync(path.join(directory, "tree", "sda")))
        const whole = yield* Effect.promise(() => archive([{ name: "a", content: Buffer.alloc(100_000, 1) }]))
        assert.match(yield* refusedFor(whole.subarray(0, 60_000)), /tar says: Unexpected EOF/u)
        assert.match(yield* refusedFor(Buffer.alloc(20_000, "no archive")), /tar says: .*tar archive/u)
        const large = yield* Effect.promise(() =>
          archive([{ name: "a", content: Buffer.alloc(70 * mib, 1) }])
        )
        assert.match(yield* refusedFor(large), /larger than the volume/u)
        const many = yield* Effect.promise(() => archive([{ name: "a", content: Buffer.alloc(62 * mib, 1) }]))
        assert.match(yield* refusedFor(many), /does not fit/u)
      })
    )
  )

  it.live("an upload that breaks off is told as what it is", () =>
    within((directory, it) =>
      Effect.gen(function* () {
        const broken = Stream.concat(
          Stream.succeed<Uint8Array>(new Uint8Array(512)),
          Stream.fail(new UploadBroken())
        )
        const fault = yield* Effect.flip(
          it.fill(path.join(directory, "disk.raw"), size, path.join(directory, "tree"), broken)
        )
        assert.strictEqual(fault._tag, "UploadBroken")
      })
    )
  )
})
