/** The tar reader: every kind of archive that real tools write, in any pieces, and nothing but a TarError for bad ones. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { execa } from "execa"
import { TarError, type TarEntry } from "../../src/image/tar/TarEntry.ts"
import { TarReader } from "../../src/image/tar/TarReader.ts"
import { rawTar, tar } from "../support/layers.ts"
import { temporaryDirectory } from "../support/temporary.ts"

interface Read {
  readonly entry: TarEntry
  readonly body: string
}

const read = (pieces: Iterable<Buffer>): ReadonlyArray<Read> => {
  const all: Array<Read> = []
  let chunks: Array<Buffer> = []
  let current: TarEntry | undefined
  const reader = new TarReader({
    entry: (entry) => {
      current = entry
      chunks = []
      if (entry.type !== "file") all.push({ entry, body: "" })
    },
    data: (bytes) => chunks.push(Buffer.from(bytes)),
    dataEnd: () => {
      if (current !== undefined) all.push({ entry: current, body: Buffer.concat(chunks).toString("latin1") })
    }
  })
  for (const piece of pieces) reader.push(piece)
  reader.end()
  return all
}

function* cut(bytes: Buffer, sizes: ReadonlyArray<number>) {
  let at = 0
  for (let turn = 0; at < bytes.length; turn++) {
    const size = sizes[turn % sizes.length] ?? 1
    yield bytes.subarray(at, at + size)
    at += size
  }
}

const longName = `${"d".repeat(120)}/${"n".repeat(200)}`
const archive = await tar([
  { name: "a/", type: "directory" },
  { name: "a/file", body: "x".repeat(1025), uid: 12, gid: 34, mode: 0o4751 },
  { name: longName, body: "long" },
  { name: "link", type: "link", linkname: longName },
  { name: "sym", type: "symlink", linkname: "a/file" },
  { name: "with", body: "attributes", pax: { "SCHILY.xattr.user.note": "n=\n1" } },
  { name: "empty", body: "" }
])

describe("a tar archive", () => {
  it("is read as it was written", () => {
    const entries = read([archive])
    assert.deepStrictEqual(
      entries.map(({ entry, body }) => [entry.name, entry.type, entry.linkname, body.length]),
      [
        ["a/", "directory", "", 0],
        ["a/file", "file", "", 1025],
        [longName, "file", "", 4],
        ["link", "link", longName, 0],
        ["sym", "symlink", "a/file", 0],
        ["with", "file", "", 10],
        ["empty", "file", "", 0]
      ]
    )
    const { entry } = entries[1] ?? { entry: undefined }
    assert.deepStrictEqual(
      [entry?.mode, entry?.uid, entry?.gid, entry?.mtime],
      [0o4751, 12, 34, 1_600_000_000]
    )
    assert.deepStrictEqual(entries[5]?.entry.xattrs, [["user.note", "n=\n1"]])
  })

  it.prop(
    "is the same in any pieces",
    [
      Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 1500 }))).check(
        Schema.isBetweenLength(1, 20)
      )
    ],
    ([sizes]) => {
      assert.deepStrictEqual(read(cut(archive, sizes)), read([archive]))
    }
  )

  it.prop(
    "that is damaged or cut off is read or refused, and nothing else",
    [
      Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: archive.length - 1 })),
      Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 })),
      Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: archive.length }))
    ],
    ([at, value, length]) => {
      const bad = Buffer.from(archive)
      bad[at] = value
      try {
        read([bad.subarray(0, length)])
      } catch (error) {
        assert.instanceOf(error, TarError)
      }
    }
  )
})

describe("an odd tar archive", () => {
  it("without its closing blocks is whole, with half an entry it is not", () => {
    const bare = archive.subarray(0, archive.length - 1024)
    assert.strictEqual(read([bare]).length, 7)
    assert.throws(() => read([bare.subarray(0, 700)]), TarError)
    assert.throws(() => read([rawTar([{ name: "n".repeat(200) }]).subarray(0, 1024)]), TarError)
  })

  it("may not smuggle overlay attributes, and loses those that squashfs cannot hold", () => {
    const [one] = read([
      rawTar([
        {
          name: "d",
          type: "directory",
          xattrs: [
            ["trusted.overlay.opaque", "y"],
            ["trusted.overlay.redirect", "/etc"],
            ["system.posix_acl_access", "acl"],
            ["user.kept", "1"]
          ]
        }
      ])
    ])
    assert.deepStrictEqual(one?.entry.xattrs, [["user.kept", "1"]])
  })
})

describe("an archive of GNU tar", () => {
  const formats = [
    ["v7", []],
    ["ustar", []],
    ["gnu", []],
    ["oldgnu", ["--sparse"]],
    ["gnu", ["--sparse"]],
    ["posix", []],
    ["posix", ["--sparse", "--sparse-version=0.0"]],
    ["posix", ["--sparse", "--sparse-version=0.1"]],
    ["posix", ["--sparse", "--sparse-version=1.0"]]
  ] as const

  /** The bytes of a file with its holes. */
  const filled = ({ entry, body }: Read): string => {
    if (entry.sparse === null) return body
    const whole = Buffer.alloc(entry.sparse.realSize)
    let from = 0
    for (let at = 0; at < entry.sparse.extents.length; at += 2) {
      const [offset = 0, length = 0] = entry.sparse.extents.slice(at, at + 2)
      whole.write(body.slice(from, from + length), offset, "latin1")
      from += length
    }
    return whole.toString("latin1")
  }

  it.live("shows the same files in every format", () =>
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("tar")
      const root = path.join(directory, "root")
      const seen = yield* Effect.promise(async () => {
        await fs.mkdir(`${root}/sub`, { recursive: true })
        await fs.writeFile(`${root}/sub/plain`, "plain")
        await fs.link(`${root}/sub/plain`, `${root}/sub/zlink`)
        await fs.symlink("plain", `${root}/sub/sym`)
        const sparse = await fs.open(`${root}/sparse`, "w")
        for (let part = 0; part < 40; part++) await sparse.write(`part ${part}`, part * 65_536)
        await sparse.truncate(40 * 65_536 + 100)
        await sparse.close()
        return Promise.all(
          formats.map(async ([format, extra]) => {
            const args = [
              "--create",
              "--file=-",
              `--format=${format}`,
              "--sort=name",
              ...extra,
              "-C",
              root,
              "."
            ]
            const { stdout } = await execa("tar", args, { encoding: "buffer", maxBuffer: 2 ** 26 })
            return read([Buffer.from(stdout)])
          })
        )
      })
      const shown = seen.map((entries) =>
        entries.map((it) => [it.entry.name, it.entry.type, it.entry.linkname, it.entry.mtime, filled(it)])
      )
      for (const one of shown.slice(1)) assert.deepStrictEqual(one, shown[0])
      const sparse = seen.map(
        (entries) => entries.find((it) => it.entry.name === "./sparse")?.entry.sparse !== null
      )
      assert.deepStrictEqual(
        sparse,
        formats.map(([, extra]) => extra.length > 0)
      )
    }).pipe(Effect.scoped)
  )
})
