/** The archives must be what image tools take for real, and the same bytes every time. */
import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { extract } from "tar-stream"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import { busyboxLayer, demoImage } from "../../scripts/demoImage.ts"
import { type ArchiveSource, dockerArchive, layerTar, ociArchive } from "../../scripts/imageArchive.ts"
import { liveObstacle } from "../support/liveHost.ts"

const source: ArchiveSource = {
  layers: [
    [
      { kind: "directory", path: "bin" },
      { kind: "file", path: "bin/tool", content: "#!/bin/sh\n", mode: 0o755 },
      { kind: "symlink", path: "bin/link", target: "tool" },
      { kind: "hardlink", path: "bin/hard", target: "bin/tool" }
    ],
    [{ kind: "file", path: "etc/name", content: new Uint8Array([0, 255, 10]) }]
  ],
  entrypoint: ["/bin/tool"],
  cmd: ["serve"],
  env: { A: "1", B: "two words" },
  workingDir: "/srv",
  user: "app:app",
  name: "example:1"
}

const entriesOf = async (tar: Buffer): Promise<ReadonlyArray<string>> => {
  const reader = extract()
  reader.end(tar)
  const found: Array<string> = []
  for await (const entry of reader) {
    const { type, name, linkname, mode, uid, mtime } = entry.header
    const target = linkname === undefined || linkname === null ? "" : ` -> ${linkname}`
    found.push(`${type} ${name}${target} ${mode.toString(8)} ${uid} ${mtime.getTime()}`)
    entry.resume()
  }
  return found
}

describe("image archives", () => {
  let directory = ""
  beforeAll(() => {
    directory = mkdtempSync(path.join(os.tmpdir(), "chd-archive-"))
  })
  afterAll(() => rmSync(directory, { recursive: true, force: true }))

  it("keep kinds, modes and link targets, with root and the epoch", async () => {
    const [first = []] = source.layers
    assert.deepStrictEqual(await entriesOf(await layerTar(first)), [
      "directory bin 755 0 0",
      "file bin/tool 755 0 0",
      "symlink bin/link -> tool 777 0 0",
      "link bin/hard -> bin/tool 644 0 0"
    ])
  })

  it("are the same bytes every time", async () => {
    assert.isTrue((await ociArchive(source)).equals(await ociArchive(source)))
    assert.isTrue((await dockerArchive(source)).equals(await dockerArchive(source)))
  })

  it("name no blob twice where layers are equal", async () => {
    const layer = [{ kind: "file", path: "a", content: "a" }] as const
    const twice = await entriesOf(await ociArchive({ layers: [layer, layer] }))
    assert.strictEqual(new Set(twice).size, twice.length)
    const saved = await entriesOf(await dockerArchive({ layers: [layer, layer] }))
    assert.strictEqual(new Set(saved).size, saved.length)
  })

  for (const [form, make] of [
    ["oci-archive", ociArchive],
    ["docker-archive", dockerArchive]
  ] as const) {
    it(`are taken by skopeo as ${form}, with their configuration`, async (context) => {
      const obstacle = liveObstacle(["skopeo"])
      context.skip(obstacle !== null && obstacle.includes("skopeo"), obstacle ?? "")
      const file = path.join(directory, `${form}.tar`)
      writeFileSync(file, await make(source))
      const read = (...args: ReadonlyArray<string>): unknown =>
        JSON.parse(execFileSync("skopeo", ["inspect", ...args, `${form}:${file}`], { encoding: "utf8" }))
      assert.deepInclude(read("--config"), {
        architecture: "amd64",
        os: "linux",
        config: {
          Env: ["A=1", "B=two words"],
          Entrypoint: ["/bin/tool"],
          Cmd: ["serve"],
          WorkingDir: "/srv",
          User: "app:app"
        }
      })
      // A copy checks every digest and diff id on its way.
      const copy = `oci:${path.join(directory, form)}`
      execFileSync("skopeo", ["copy", "--quiet", `${form}:${file}`, copy])
    })
  }
})

describe("the demo image", () => {
  it("needs a busybox that is there and needs no loader", () => {
    assert.throws(() => busyboxLayer("/nonexistent"), /not installed/)
    const directory = mkdtempSync(path.join(os.tmpdir(), "chd-busybox-"))
    try {
      // Any dynamic program will do; node itself is one.
      execFileSync("ln", ["-s", process.execPath, path.join(directory, "busybox")])
      assert.throws(() => busyboxLayer(directory), /not static/)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  it("has a shell and a web server as links to one binary, and takes changes", () => {
    const image = demoImage({ entrypoint: ["/bin/sh"], env: { PATH: "/bin" } })
    const links = image.layers
      .flat()
      .flatMap((it) => (it.kind === "symlink" ? [`${it.path} ${it.target}`] : []))
    assert.includeMembers(links, ["bin/sh busybox", "bin/httpd busybox"])
    assert.deepStrictEqual(image.entrypoint, ["/bin/sh"])
    assert.strictEqual(image.layers.length, 2)
  })

  it("has equal layers whatever its configuration", async () => {
    const digests = async (changes: Partial<ArchiveSource>) => {
      const tars = await Promise.all(demoImage(changes).layers.map(layerTar))
      return tars.map((tar) => createHash("sha256").update(tar).digest("hex"))
    }
    assert.deepStrictEqual(await digests({}), await digests({ cmd: ["other"] }))
  })
})
