import { execFileSync } from "node:child_process"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { type CpioEntry, encodeCpio } from "../../src/guest/cpio.ts"
import { encodeInitrd } from "../../src/guest/initrd.ts"
import { temporaryDirectory } from "../support/temporary.ts"

/** Busybox has a cpio of its own, which is there wherever guests are built; the kernel's is tried by the live test. */
const busyboxMissing = ((): string | undefined => {
  try {
    execFileSync("busybox", ["true"])
    return undefined
  } catch {
    console.warn("skipped: cpio archives unpacked by busybox (busybox is not installed)")
    return "busybox is not installed"
  }
})()

const entries: ReadonlyArray<CpioEntry> = [
  { _tag: "Directory", path: "a", mode: 0o755 },
  // Names and contents of every remainder modulo four.
  ...[0, 1, 2, 3, 4, 5, 4_097].map((length): CpioEntry => ({
    _tag: "File",
    path: `a/${"n".repeat(length % 9)}${length}`,
    mode: 0o640,
    content: Buffer.alloc(length, 0x61)
  })),
  { _tag: "File", path: "init", mode: 0o755, content: Buffer.from("#!\0") }
]

it.live.skipIf(busyboxMissing)("cpio: what is written is what another implementation unpacks", () =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("cpio")
    execFileSync("busybox", ["cpio", "-i"], { cwd: directory, input: encodeCpio(entries), stdio: "pipe" })
    for (const entry of entries) {
      const target = path.join(directory, entry.path)
      const stat = yield* Effect.promise(() => fs.stat(target))
      assert.strictEqual(stat.mode & 0o777, entry.mode, entry.path)
      assert.strictEqual(stat.isDirectory(), entry._tag === "Directory")
      if (entry._tag === "File") {
        assert.deepStrictEqual(yield* Effect.promise(() => fs.readFile(target)), Buffer.from(entry.content))
      }
    }
    assert.strictEqual((yield* Effect.promise(() => fs.readdir(path.join(directory, "a")))).length, 7)
  })
)

it.skipIf(busyboxMissing)("cpio: an initrd has the console, the modules in their order, and init", () => {
  const archive = encodeInitrd(Buffer.from("agent"), [
    { name: "virtio", content: Buffer.from("v") },
    { name: "virtio_net", content: Buffer.from("n"), virtioDevice: 1 }
  ])
  const listed = execFileSync("busybox", ["cpio", "-tv"], { input: archive, encoding: "utf8", stdio: "pipe" })
  const lines = listed
    .trim()
    .split("\n")
    .map((line) => line.split(/\s+/))
  assert.deepStrictEqual(
    lines.map((it) => it.at(-1)),
    [
      "dev",
      "dev/console",
      "proc",
      "sys",
      "modules",
      "modules/order",
      "modules/virtio.ko",
      "modules/virtio_net.ko",
      "init"
    ]
  )
  assert.strictEqual(lines[1]?.[0], "crw-------")
  // The device numbers, which busybox does not list: fields 10 and 11 of the 110 byte header before the name.
  const header = archive.toString("latin1", archive.indexOf("dev/console") - 110)
  assert.strictEqual(header.slice(6 + 9 * 8, 6 + 11 * 8), "0000000500000001")
  assert.strictEqual(lines.at(-1)?.[0], "-rwxr-xr-x")
  const order = execFileSync("busybox", ["cpio", "-i", "--to-stdout", "modules/order"], {
    input: archive,
    stdio: "pipe"
  })
  assert.strictEqual(order.toString(), "virtio.ko\nvirtio_net.ko 1\n")
})

it("cpio: the same entries, the same bytes", () => {
  assert.deepStrictEqual(encodeCpio(entries), encodeCpio(entries))
})
