/**
 * Builds what is shipped, dist/: Node strips no types below node_modules, so a package has to be JavaScript.
 *
 *   dist/dataplane.mjs            the command; loads fast, the service only for `serve`
 *   dist/build-initrd.mjs         what scripts/build-initrd.sh runs, with the guest agent's sources in dist/agent
 *   dist/setup-host-network.mjs   what scripts/setup-host-network.sh runs
 *   dist/lib/                     the API and the RPC group as modules with their types, for clients
 *
 *   node scripts/bundle.ts [DIRECTORY]     default: dist
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { execa } from "execa"
import { rolldown } from "rolldown"

const repository = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..")
const inRepository = (file: string): string => path.join(repository, file)

const programs = {
  dataplane: inRepository("src/main.ts"),
  "build-initrd": inRepository("src/guest/buildInitrd.ts"),
  "setup-host-network": inRepository("src/network/setupHost.ts")
}

/** What clients import; each brings the modules that it stands on, and no server. */
const library = ["src/api/Api.ts", "src/rpc/Rpcs.ts"]

/** Writes the programs, replacing what was there, and gives the path of the command. */
export const bundle = async (directory: string): Promise<string> => {
  const build = await rolldown({ input: programs, platform: "node", logLevel: "silent" })
  await fs.rm(directory, { recursive: true, force: true })
  await build.write({
    dir: directory,
    format: "esm",
    minify: true,
    entryFileNames: "[name].mjs",
    // Side by side: the agent's sources are looked for beside the module that packs them.
    chunkFileNames: "[name]-[hash].mjs",
    banner: (chunk) => (chunk.isEntry ? "#!/usr/bin/env node" : "")
  })
  await build.close()
  await fs.cp(inRepository("src/guest/agent"), path.join(directory, "agent"), {
    recursive: true,
    filter: (file) => path.basename(file) !== "target"
  })
  const command = path.join(directory, "dataplane.mjs")
  await fs.chmod(command, 0o755)
  return command
}

/** Writes the library: one module for each of ours, so that clients share their own effect with it. */
const emitLibrary = async (directory: string): Promise<void> => {
  const project = path.join(directory, "tsconfig.json")
  const compilerOptions = {
    noEmit: false,
    declaration: true,
    allowImportingTsExtensions: false,
    rootDir: inRepository("src"),
    outDir: path.join(directory, "lib"),
    typeRoots: [inRepository("node_modules/@types")],
    plugins: []
  }
  const files = library.map(inRepository)
  const config = { extends: inRepository("tsconfig.json"), compilerOptions, include: [], files }
  await fs.writeFile(project, JSON.stringify(config))
  await execa(inRepository("node_modules/.bin/tsc"), ["-p", project], { stdio: "inherit" })
  await fs.rm(project)
}

if (import.meta.main) {
  const directory = path.resolve(process.argv[2] ?? inRepository("dist"))
  const command = await bundle(directory)
  await emitLibrary(directory)
  process.stdout.write(`${path.relative(process.cwd(), command)}\n`)
}
