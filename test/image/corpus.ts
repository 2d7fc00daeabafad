/** Nasty images: each case is what builders, old tools or attackers make of layers. Bottom layer first. */
import { type Compression, rawTar, tar, type TestEntry } from "../support/layers.ts"

export interface Case {
  readonly name: string
  readonly layers: ReadonlyArray<Promise<Buffer> | Buffer>
  readonly compression?: Compression
  /** Where containerd leaves the image specification: why, and what it shows beyond (a description) or lacks (null). */
  readonly containerd?: { readonly why: string; readonly names: Readonly<Record<string, string | null>> }
}

const dir = (name: string, mode = 0o755, more: Partial<TestEntry> = {}): TestEntry => ({
  name,
  mode,
  type: "directory",
  ...more
})
const file = (name: string, body: string | Buffer = name, more: Partial<TestEntry> = {}): TestEntry => ({
  name,
  mode: 0o644,
  body,
  ...more
})
const link = (name: string, linkname: string, more: Partial<TestEntry> = {}): TestEntry => ({
  name,
  type: "link",
  linkname,
  ...more
})
const symlink = (name: string, linkname: string): TestEntry => ({
  name,
  type: "symlink",
  linkname,
  mode: 0o777
})
const root = dir("./")

const base = tar([
  root,
  dir("etc/", 0o755),
  file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
  dir("data/", 0o711, { uid: 1000, gid: 1001, mtime: new Date(1_500_000_000_000) }),
  file("data/a", "a", { uid: 1000 }),
  file("data/b"),
  dir("data/deep/", 0o700, { uid: 7 }),
  file("data/deep/one"),
  file("data/deep/two"),
  dir("secret/", 0o1770, { gid: 5 }),
  file("secret/key", "k", { mode: 0o4755 })
])

/** Names that GNU tar, pax and plain headers each store in their own way. */
const longName = `long/${"n".repeat(90)}/${"m".repeat(240)}/end`

const sparseBody = Buffer.from("headtail")

export const corpus: ReadonlyArray<Case> = [
  {
    name: "a whiteout of a file and of a directory",
    layers: [base, tar([file("data/.wh.a", ""), file(".wh.secret", "")])]
  },
  {
    name: "a whiteout of a name that no layer has",
    layers: [base, tar([file("data/.wh.nothing", ""), file("none/.wh.at-all", ""), file("new", "n")])],
    containerd: {
      why: "it makes the directory of a whiteout that hides nothing",
      names: { "./none/": "directory 755 0:0     " }
    }
  },
  {
    name: "whiteouts in the bottom layer",
    layers: [tar([root, dir("d/"), file("d/.wh.x", ""), file("d/y")])]
  },
  {
    name: "an opaque marker before, after and without its directory",
    layers: [
      base,
      tar([file("data/.wh..wh..opq", ""), dir("data/", 0o750, { uid: 3 }), file("data/new")]),
      tar([dir("secret/", 0o700), file("secret/other"), file("secret/.wh..wh..opq", "")]),
      tar([file("data/.wh..wh..opq", ""), file("data/newer")])
    ]
  },
  {
    name: "an opaque marker for a directory that no layer has",
    layers: [base, tar([dir("fresh/", 0o700), file("fresh/.wh..wh..opq", ""), file("fresh/x")])]
  },
  {
    name: "whiteouts inside of an opaque directory",
    layers: [base, tar([dir("data/"), file("data/.wh..wh..opq", ""), file("data/.wh.b", ""), file("data/c")])]
  },
  {
    name: "a directory removed and made again in one layer",
    layers: [base, tar([file(".wh.data", ""), dir("data/", 0o700), file("data/z")])]
  },
  {
    name: "a whiteout and a file of the same name, whiteout last",
    layers: [base, tar([file("data/a", "new a"), file("data/.wh.a", "")])],
    containerd: {
      why: "image-spec, layer.md: a whiteout hides names of lower layers only; it hides this layer's as well",
      names: { "./data/a": null }
    }
  },
  {
    name: "a file replaced by a directory and a directory by a file",
    layers: [base, tar([dir("data/a/"), file("data/a/in"), file("data/deep", "flat")])]
  },
  {
    name: "removed in one layer, back in the next",
    layers: [base, tar([file(".wh.data", "")]), tar([dir("data/", 0o755), file("data/back")])]
  },
  {
    name: "directories without entries keep the attributes of lower layers",
    layers: [base, tar([file("data/deep/three"), file("secret/x"), file("brand/new/dir/f")])]
  },
  {
    name: "hard links inside a layer, before and after, to links and to symbolic links",
    layers: [
      tar([
        root,
        file("one", "1"),
        link("two", "one"),
        link("three", "two"),
        symlink("s", "one"),
        dir("d/"),
        link("d/four", "./one")
      ])
    ]
  },
  {
    name: "a hard link to a file of a lower layer",
    // As builders write them, with the file's own attributes: containerd gives the file those of the link's header.
    layers: [
      base,
      tar([
        link("data/linked", "data/a", { uid: 1000, mode: 0o644 }),
        link("again", "/data/a", { uid: 1000, mode: 0o644 }),
        link("su", "secret/key", { mode: 0o4755 })
      ])
    ]
  },
  {
    name: "duplicates: the last one counts",
    layers: [
      tar([
        root,
        file("x", "first"),
        link("kept", "x"),
        file("x", "second", { mode: 0o600 }),
        dir("d/", 0o700),
        dir("d/", 0o711),
        file("gone/f"),
        symlink("gone2", "x"),
        file("gone2", "now a file"),
        symlink("x2", "nowhere"),
        dir("x2/")
      ])
    ]
  },
  {
    name: "names that are absolute, doubled and dotted",
    layers: [
      tar([
        root,
        dir("/abs/"),
        file("/abs/f"),
        file("./dot/./f"),
        file("a//b"),
        file("up/../flat"),
        file("/../clamped")
      ])
    ]
  },
  {
    name: "long names and targets",
    layers: [
      tar([root, file(longName), symlink("far", `/${"t".repeat(300)}`), link("l".repeat(200), longName)])
    ]
  },
  {
    name: "UTF-8 names, and names that are no UTF-8",
    layers: [
      rawTar([
        { name: "./", type: "directory", mode: 0o755 },
        { name: Buffer.from("grüße 世界").toString("latin1"), body: Buffer.from("u") },
        { name: "caf\xe9", body: Buffer.from("l") },
        { name: 'sp ace "quoted" back\\slash', body: Buffer.from("q") }
      ])
    ]
  },
  {
    name: "extended attributes, binary ones too",
    layers: [
      rawTar([
        { name: "./", type: "directory", mode: 0o755 },
        {
          name: "newuidmap",
          mode: 0o755,
          body: Buffer.from("elf"),
          xattrs: [
            [
              "security.capability",
              "\x01\x00\x00\x02\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
            ]
          ]
        },
        { name: "d/", type: "directory", mode: 0o755, xattrs: [["user.note", "on a directory"]] }
      ]),
      tar([file("d/implicit-parent-keeps-its-attribute")])
    ]
  },
  {
    name: "devices, fifos and odd modes",
    layers: [
      tar([
        root,
        { name: "null", type: "character-device", devmajor: 1, devminor: 3, mode: 0o666 },
        { name: "disk", type: "block-device", devmajor: 8, devminor: 1, mode: 0o660, gid: 6 },
        { name: "pipe", type: "fifo", mode: 0o600 },
        file("suid", "s", { mode: 0o6755 }),
        file("none", "", { mode: 0o000 }),
        dir("sticky/", 0o1777)
      ])
    ]
  },
  {
    name: "large ids and old times",
    layers: [
      rawTar([
        { name: "./", type: "directory", mode: 0o755 },
        { name: "big", uid: 3_000_000_000, gid: 2_500_000, mtime: 1, body: Buffer.from("b") }
      ])
    ]
  },
  {
    name: "sparse files",
    layers: [
      rawTar([
        { name: "./", type: "directory", mode: 0o755 },
        { name: "sparse", body: sparseBody, sparse: { realSize: 1_000_000, extents: [0, 4, 900_000, 4] } }
      ])
    ]
  },
  {
    name: "a merged /usr: symbolic links and files that go through them, in one layer",
    layers: [
      tar([
        root,
        dir("usr/"),
        dir("usr/bin/", 0o755),
        symlink("bin", "usr/bin"),
        file("bin/tool", "t", { mode: 0o755 }),
        symlink("lib", "/usr/lib"),
        file("lib/so")
      ])
    ]
  },
  {
    name: "aufs' own files",
    layers: [base, tar([file(".wh..wh.aufs", ""), dir(".wh..wh.plnk/"), file("new")])]
  },
  { name: "an empty layer, twice, between others", layers: [base, tar([]), tar([file("x")]), tar([])] },
  {
    name: "the same layer twice",
    layers: [base, tar([file("data/a", "A")]), tar([file("data/a", "B")]), tar([file("data/a", "A")])]
  },
  { name: "layers of zstd", layers: [base, tar([file("z"), file(".wh.data", "")])], compression: "zstd" },
  { name: "layers without compression", layers: [base, tar([file("z")])], compression: "none" }
]
