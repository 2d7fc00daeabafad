/**
 * The package as people get it: packed by npm, unpacked into a directory that has nothing else of this repository, and
 * run from there, shell front ends included. Its dependencies are linked instead of installed, which would take minutes.
 */
import { existsSync } from "node:fs"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { execa } from "execa"
import { Bundle, demoArchive, type Server, startServer } from "../support/commandLine.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const repository = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..")
const name = "cloud-hypervisor-dataplane"

/** Links what is installed here, by its names; scopes hold names of their own. */
const linkModules = async (to: string): Promise<void> => {
  const from = path.join(repository, "node_modules")
  for (const module of await fs.readdir(from))
    if (!module.startsWith(".")) await fs.symlink(path.join(from, module), path.join(to, module))
}

interface Installed extends Server {
  /** The directory that has it among its node_modules. */
  readonly directory: string
  readonly package: string
}

class Installation extends Context.Service<Installation, Installed>()("test/Installation") {
  static readonly layer = Layer.effect(
    Installation,
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("package")
      const modules = path.join(directory, "node_modules")
      const unpacked = path.join(modules, name)
      const dist = path.join(repository, "dist")
      const wasThere = existsSync(dist)
      yield* Effect.promise(async () => {
        const { stdout } = await execa("npm", ["pack", "--json", "--pack-destination", directory], {
          cwd: repository
        })
        assert.include(stdout, `${name}-`)
        if (!wasThere) await fs.rm(dist, { recursive: true })
        const [archive = ""] = (await fs.readdir(directory)).filter((file) => file.endsWith(".tgz"))
        await fs.mkdir(unpacked, { recursive: true })
        await execa("tar", ["-xzf", path.join(directory, archive), "--strip-components=1", "-C", unpacked])
        await linkModules(modules)
        // As npm links what `bin` says.
        await fs.mkdir(path.join(modules, ".bin"))
        await fs.symlink(`../${name}/dist/dataplane.mjs`, path.join(modules, ".bin/dataplane"))
        await fs.symlink(path.join(repository, "node_modules/.bin/node"), path.join(modules, ".bin/node"))
        await fs.writeFile(path.join(directory, "package.json"), `{"private":true}`)
      })
      const command = path.join(unpacked, "dist/dataplane.mjs")
      const server = yield* Effect.provideService(startServer(), Bundle, command)
      return { ...server, directory, package: unpacked }
    })
  )
}

/** A program in the directory of the package's user, its output where it ends well. */
const inDirectory = (program: string, words: ReadonlyArray<string>) =>
  Effect.flatMap(Installation, ({ directory, url }) =>
    Effect.promise(async () => {
      const bin = path.join(directory, "node_modules/.bin")
      const env = { PATH: `${bin}:${process.env["PATH"] ?? ""}`, DATAPLANE_URL: url, DATA_DIR: directory }
      const { stdout } = await execa(program, words, { cwd: directory, env })
      return stdout
    })
  )

const script = (file: string, ...words: ReadonlyArray<string>) =>
  Effect.flatMap(Installation, (it) => inDirectory(path.join(it.package, "scripts", file), words))

layer(Installation.layer, { timeout: 180_000 })("the package", (it) => {
  it.effect("has its command, which runs images on a server of its own", () =>
    Effect.gen(function* () {
      assert.include(yield* inDirectory("npx", ["--offline", "dataplane", "--help"]), "SUBCOMMANDS")
      const archive = yield* demoArchive
      const dataplane = (...words: ReadonlyArray<string>) => inDirectory("dataplane", words)
      assert.strictEqual(yield* dataplane("image", "import", archive, "--id", "img-demo"), "img-demo ready")
      assert.strictEqual(yield* dataplane("run", "img-demo", "--id", "first", "-m", "256"), "first Running")
      assert.strictEqual(yield* dataplane("rm", "first"), "first deleted")
    })
  )

  it.effect("has the shell front ends, which do what they say and can be repeated", () =>
    Effect.gen(function* () {
      const dataplane = (...words: ReadonlyArray<string>) => inDirectory("dataplane", words)
      const many = ["2", "img-demo", "web", "--", "--memory", "256", "-l", "tier=web"]
      assert.strictEqual(yield* script("setup-vms.sh", ...many), "web-1 Running\nweb-2 Running")
      assert.strictEqual(
        yield* script("setup-vms.sh", ...many),
        "web-1 is there already\nweb-2 is there already"
      )
      assert.strictEqual(yield* script("standby-vm.sh", "web-1", "web-2"), "web-1 Standby\nweb-2 Standby")
      assert.strictEqual(yield* script("restore-vm.sh", "web-2"), "web-2 Running")
      yield* dataplane("stop", "web-2")
      assert.strictEqual(yield* script("start-all-vms.sh"), "web-2 Running\nweb-1 Running")
      assert.strictEqual(yield* script("start-all-vms.sh"), "")
      for (const file of ["setup-vms.sh", "start-all-vms.sh", "standby-vm.sh", "restore-vm.sh"])
        assert.include(yield* script(file, "--help"), `scripts/${file}`)
      yield* dataplane("rm", "web-1", "web-2")
    })
  )

  it.effect("has the API and the RPC group as modules without any server, and their types", () =>
    Effect.gen(function* () {
      const { directory, package: unpacked } = yield* Installation
      const file = path.join(directory, "client.mjs")
      yield* Effect.promise(() =>
        fs.writeFile(
          file,
          `import { Api } from "${name}/api"
           import { DataplaneRpcs } from "${name}/rpc"
           import * as Effect from "effect/Effect"
           import * as FetchHttpClient from "effect/http/FetchHttpClient"
           import * as HttpApiClient from "effect/http-api/HttpApiClient"
           const list = Effect.flatMap(HttpApiClient.make(Api, { baseUrl: process.env.DATAPLANE_URL }), (client) => client.images.list())
           const images = await Effect.runPromise(Effect.provide(list, FetchHttpClient.layer))
           console.log(images.map(({ id }) => id).join(), DataplaneRpcs.requests.size > 10)`
        )
      )
      assert.strictEqual(yield* inDirectory("node", [file]), "img-demo true")
      const shipped = yield* Effect.promise(() =>
        fs.readdir(path.join(unpacked, "dist/lib"), { recursive: true })
      )
      assert.includeMembers(shipped, ["api/Api.d.ts", "rpc/Rpcs.d.ts"])
      assert.deepStrictEqual(
        shipped.filter((it) => /^(http|instance|host|vmm|image|guest)\//u.test(it)),
        []
      )
    })
  )

  it.effect("has scripts and a systemd unit that their own checkers find nothing in", (context) =>
    Effect.gen(function* () {
      const { package: unpacked, directory } = yield* Installation
      const files = (yield* Effect.promise(() => fs.readdir(path.join(unpacked, "scripts")))).map((it) =>
        path.join(unpacked, "scripts", it)
      )
      const unit = files.find((file) => file.endsWith(".service")) ?? ""
      const text = yield* Effect.promise(() => fs.readFile(unit, "utf8"))
      for (const line of ["KillMode=process", "Restart=on-failure", "OOMPolicy=continue"])
        assert.include(text, line)
      assert.notMatch(text, /^(Private|Protect|RestrictNamespaces|MemoryDeny)/mu)
      const checkers = [
        ["systemd-analyze", ["verify", unit]],
        ["shellcheck", ["-x", "-P", unpacked, ...files.filter((file) => file.endsWith(".sh"))]]
      ] as const
      const missing: Array<string> = []
      for (const [program, words] of checkers) {
        const { failed, exitCode, all } = yield* Effect.promise(() =>
          execa(program, words, { reject: false, all: true, cwd: directory })
        )
        if (failed && exitCode === undefined) missing.push(program)
        else assert.deepStrictEqual([exitCode, all], [0, ""])
      }
      if (missing.length > 0) context.skip(`${missing.join(" and ")} not installed`)
    })
  )
})
