/** cp, as processes against a stub of the endpoints that need a guest: files into it and out of it. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { extract, type Header, pack } from "tar-stream"
import { layerStub, run, Stub } from "../support/guestStub.ts"
import { temporaryDirectory } from "../support/temporary.ts"

interface Member {
  readonly header: Partial<Header> & Pick<Header, "name">
  readonly body?: string
}

const tar = (members: ReadonlyArray<Member>) =>
  Effect.promise(async () => {
    const archive = pack()
    for (const { header, body } of members)
      archive.entry({ mtime: new Date(1_700_000_000_000), ...header }, body ?? "")
    archive.finalize()
    const pieces: Array<Buffer> = []
    for await (const piece of archive) if (Buffer.isBuffer(piece)) pieces.push(piece)
    return Buffer.concat(pieces)
  })

/** Names, types, modes and contents of an archive. */
const listed = (archive: Buffer) =>
  Effect.promise(async () => {
    const entries = extract()
    entries.end(archive)
    const found: Array<string> = []
    for await (const entry of entries) {
      let body = ""
      for await (const piece of entry) body += String(piece)
      const { name, type, mode, uid, linkname } = entry.header
      found.push(`${name} ${type} ${mode.toString(8)} ${uid} ${body}${linkname ?? ""}`)
    }
    return found
  })

layer(layerStub, { timeout: 120_000 })("cp", (it) => {
  it.effect("packs what is here under the name that it gets there", () =>
    Effect.gen(function* () {
      const { archives, asked } = yield* Stub
      const root = yield* temporaryDirectory("cp")
      yield* Effect.promise(async () => {
        await fs.mkdir(path.join(root, "site/inner"), { recursive: true })
        await fs.writeFile(path.join(root, "site/page.html"), "hello", { mode: 0o640 })
        await fs.writeFile(path.join(root, "site/inner/empty"), "")
        await fs.symlink("page.html", path.join(root, "site/link"))
        await fs.chmod(path.join(root, "site/page.html"), 0o640)
      })
      archives.set("/srv", yield* tar([{ header: { name: "srv/", type: "directory" } }]))
      archives.set("/etc/motd", yield* tar([{ header: { name: "motd" }, body: "old" }]))
      const sent = (from: string, to: string) =>
        Effect.gen(function* () {
          const ended = yield* run(["cp", from, to], { cwd: root })
          assert.deepStrictEqual([ended.code, ended.out], [0, ""], ended.err)
          const [method, url, body] = asked.at(-1) ?? ["", "", Buffer.alloc(0)]
          return [method, new URL(url, "http://x").searchParams.get("path"), yield* listed(body)]
        })
      assert.deepStrictEqual(yield* sent("site", "vm-1:/srv"), [
        "PUT",
        "/srv",
        [
          "site/ directory 755 0 ",
          "site/inner/ directory 755 0 ",
          "site/inner/empty file 644 0 ",
          "site/link symlink 777 0 page.html",
          "site/page.html file 640 0 hello"
        ]
      ])
      assert.deepStrictEqual(yield* sent("site/page.html", "vm-1:/etc/motd"), [
        "PUT",
        "/etc",
        ["motd file 640 0 hello"]
      ])
      assert.deepStrictEqual(yield* sent("site/page.html", "vm-1:/new/name"), [
        "PUT",
        "/new",
        ["name file 640 0 hello"]
      ])
      assert.deepStrictEqual(yield* sent("site/page.html", "vm-1:/new/"), [
        "PUT",
        "/new/",
        ["page.html file 640 0 hello"]
      ])
      const over = yield* run(["cp", "site", "vm-1:/etc/motd"], { cwd: root })
      assert.match(over.err, /^\/etc\/motd is a file in the guest, and site is a directory\.$/mu)
      assert.match((yield* run(["cp", "no-such", "vm-1:/srv"], { cwd: root })).err, /Cannot read no-such/u)
      const neither = yield* run(["cp", "./a:b", "c"], { cwd: root })
      assert.deepStrictEqual([neither.code, neither.out], [2, ""])
    })
  )

  it.effect("unpacks what comes as cp would, and merges with what is there", () =>
    Effect.gen(function* () {
      const { archives } = yield* Stub
      const root = yield* temporaryDirectory("cp")
      archives.set(
        "/srv/site",
        yield* tar([
          { header: { name: "site/", type: "directory", mode: 0o755 } },
          { header: { name: "site/page", mode: 0o4755, uid: 0 }, body: "hello" },
          { header: { name: "site/again", type: "link", linkname: "site/page" } },
          { header: { name: "site/link", type: "symlink", linkname: "page" } },
          { header: { name: "site/null", type: "character-device", devmajor: 1, devminor: 3 } }
        ])
      )
      archives.set("/etc/motd", yield* tar([{ header: { name: "motd", mode: 0o600 }, body: "hi" }]))
      const read = (file: string) => Effect.promise(() => fs.readFile(path.join(root, file), "utf8"))
      const first = yield* run(["cp", "vm-1:/srv/site", "copy"], { cwd: root })
      assert.deepStrictEqual([first.code, first.out], [0, ""], first.err)
      assert.match(first.err, /site\/null is neither a file nor a directory: left out/u)
      assert.deepStrictEqual(
        [yield* read("copy/page"), yield* read("copy/link"), yield* read("copy/again")],
        ["hello", "hello", "hello"]
      )
      const about = yield* Effect.promise(() => fs.stat(path.join(root, "copy/page")))
      assert.deepStrictEqual([about.mode & 0o7777, about.mtimeMs], [0o755, 1_700_000_000_000])
      yield* Effect.promise(() => fs.mkdir(path.join(root, "into/site"), { recursive: true }))
      yield* Effect.promise(() => fs.writeFile(path.join(root, "into/site/mine"), "mine"))
      yield* run(["cp", "vm-1:/srv/site", "into"], { cwd: root })
      assert.deepStrictEqual(
        [yield* read("into/site/mine"), yield* read("into/site/page")],
        ["mine", "hello"]
      )
      yield* run(["cp", "vm-1:/etc/motd", "renamed"], { cwd: root })
      assert.strictEqual(yield* read("renamed"), "hi")
      const raw = yield* run(["cp", "vm-1:/etc/motd", "-"], { cwd: root })
      assert.deepStrictEqual(yield* listed(Buffer.from(raw.out)), ["motd file 600 0 hi"])
      assert.match(
        (yield* run(["cp", "vm-1:/etc/motd", "no/such/"], { cwd: root })).err,
        /there is no directory no\/such\//u
      )
      const absent = yield* run(["cp", "vm-1:/no", "x"], { cwd: root })
      assert.deepStrictEqual([absent.code, absent.err], [1, "There is no such file in the guest.\n"])
      const left = yield* Effect.promise(() => fs.readdir(root))
      assert.sameMembers(left, ["copy", "into", "renamed"])
    })
  )

  const hostile: ReadonlyArray<readonly [what: string, members: ReadonlyArray<Member>, says: RegExp]> = [
    ["climbs out", [{ header: { name: "x/../../out" }, body: "bad" }], /leads out/u],
    ["is absolute", [{ header: { name: "/tmp/out" }, body: "bad" }], /leads out/u],
    [
      "has a second top",
      [{ header: { name: "x/", type: "directory" } }, { header: { name: "y" }, body: "bad" }],
      /second top/u
    ],
    [
      "writes through a link of its own",
      [
        { header: { name: "x/", type: "directory" } },
        { header: { name: "x/to", type: "symlink", linkname: "/victim" } },
        { header: { name: "x/to/out" }, body: "bad" }
      ],
      /Cannot write/u
    ],
    [
      "links a file of the host into it",
      [
        { header: { name: "x/", type: "directory" } },
        { header: { name: "x/passwd", type: "link", linkname: "../../../../../../etc/passwd" } }
      ],
      /leads out/u
    ]
  ]
  it.effect("refuses an archive that leads out of its place, and leaves nothing of it", () =>
    Effect.gen(function* () {
      const { archives } = yield* Stub
      const root = yield* temporaryDirectory("cp")
      const victim = path.join(root, "victim")
      const place = path.join(root, "place")
      yield* Effect.promise(() => Promise.all([fs.mkdir(victim), fs.mkdir(place)]))
      for (const [what, members, says] of hostile) {
        const aimed = members.map(({ header, ...rest }) => ({
          ...rest,
          header: header.linkname === "/victim" ? { ...header, linkname: victim } : header
        }))
        archives.set("/bad", yield* tar(aimed))
        const ended = yield* run(["cp", "vm-1:/bad", "."], { cwd: place })
        assert.strictEqual(ended.code, 1, what)
        assert.match(ended.err, says, what)
        assert.deepStrictEqual(yield* Effect.promise(() => fs.readdir(victim)), [], what)
        assert.deepStrictEqual(yield* Effect.promise(() => fs.readdir(place)), [], what)
      }
      // Cut off in the middle of a file: nothing half-written stays.
      const whole = yield* tar([{ header: { name: "big" }, body: "x".repeat(100_000) }])
      archives.set("/bad", whole.subarray(0, 50_000))
      assert.strictEqual((yield* run(["cp", "vm-1:/bad", "."], { cwd: place })).code, 1)
      assert.deepStrictEqual(yield* Effect.promise(() => fs.readdir(place)), [])
    })
  )
})
