import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as zlib from "node:zlib"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { run } from "../../src/host/Command.ts"
import { loadOrder, moduleInfo, readModules } from "../../src/guest/modules.ts"
import { temporaryDirectory } from "../support/temporary.ts"

/** What the kernel's build leaves in a module, as far as anybody looks. */
const module = (name: string, depends: string, softdep?: string): Buffer =>
  Buffer.from(
    `\x7fELF${name}\0license=GPL\0${softdep === undefined ? "" : `softdep=${softdep}\0`}depends=${depends}\0retpoline=Y\0`,
    "latin1"
  )

it("modules: a module says what it needs", () => {
  assert.deepStrictEqual(moduleInfo(module("a", "")), { depends: [], softDepends: [] })
  assert.deepStrictEqual(moduleInfo(module("a", "virtio,net-failover")), {
    depends: ["virtio", "net_failover"],
    softDepends: []
  })
  assert.deepStrictEqual(moduleInfo(module("ext4", "jbd2", "pre: crc32c aes post: zstd")).softDepends, [
    "crc32c",
    "aes"
  ])
  assert.deepStrictEqual(moduleInfo(module("x", "", "post: zstd")).softDepends, [])
  assert.deepStrictEqual(moduleInfo(module("x", "", "pre: a-b")).softDepends, ["a_b"])
})

const needs: Record<string, ReadonlyArray<string>> = {
  pci: ["ring", "bus"],
  bus: ["ring"],
  net: ["failover", "ring"],
  vsock: ["common", "failover"],
  loop: ["pool"],
  pool: ["loop"]
}
const order = (...wanted: ReadonlyArray<string | readonly [string, number]>) =>
  loadOrder(
    wanted.map((it) => (typeof it === "string" ? { name: it } : { name: it[0], virtioDevice: it[1] })),
    (name) => needs[name] ?? []
  ).map((it) => (it.virtioDevice === undefined ? it.name : `${it.name} ${it.virtioDevice}`))

it("modules: each comes behind what it depends on, once", () => {
  assert.deepStrictEqual(order("pci", "bus", "ring"), ["ring", "bus", "pci"])
  assert.deepStrictEqual(order("loop"), ["pool", "loop"])
})

it("modules: what only one device needs waits for it, what two need does not", () => {
  assert.deepStrictEqual(order("pci", ["net", 1]), ["ring", "bus", "pci", "failover 1", "net 1"])
  assert.deepStrictEqual(order(["net", 1], ["vsock", 19]), [
    "failover",
    "ring 1",
    "net 1",
    "common 19",
    "vsock 19"
  ])
  assert.deepStrictEqual(order(["net", 1], "failover"), ["failover", "ring 1", "net 1"])
})

it.live("modules: any compression, dashes and underscores, built-ins and absent ones passed over", () =>
  Effect.gen(function* () {
    const root = yield* temporaryDirectory("modules")
    const contents = {
      plain: module("plain", "zipped,built_in"),
      zipped: module("zipped", "tight-one"),
      tight: module("tight", "small"),
      small: module("small", "")
    }
    yield* Effect.promise(async () => {
      await fs.mkdir(path.join(root, "kernel/deep"), { recursive: true })
      await fs.writeFile(path.join(root, "modules.builtin"), "kernel/fs/built-in.ko\n")
      await fs.writeFile(path.join(root, "kernel/plain.ko"), contents.plain)
      await fs.writeFile(path.join(root, "kernel/deep/zipped.ko.gz"), zlib.gzipSync(contents.zipped))
      await fs.writeFile(path.join(root, "kernel/tight-one.ko.zst"), zlib.zstdCompressSync(contents.tight))
      await fs.writeFile(path.join(root, "kernel/small.ko"), contents.small)
      await fs.writeFile(path.join(root, "kernel/other.ko"), module("other", ""))
    })
    yield* run("xz", [path.join(root, "kernel/small.ko")])
    const wanted = ["plain", "built_in", "absent", "small"].map((name) => ({ name }))
    const found = yield* readModules(root, wanted)
    assert.deepStrictEqual(
      found.map((it) => it.name),
      ["small", "tight_one", "zipped", "plain"]
    )
    assert.deepStrictEqual(found[0]?.content, contents.small)
    assert.deepStrictEqual(found[1]?.content, contents.tight)
    assert.deepStrictEqual(found[2]?.content, contents.zipped)
    const left = yield* Effect.promise(() => fs.readdir(path.join(root, "kernel")))
    assert.deepStrictEqual(left.toSorted(), [
      "deep",
      "other.ko",
      "plain.ko",
      "small.ko.xz",
      "tight-one.ko.zst"
    ])
  })
)
