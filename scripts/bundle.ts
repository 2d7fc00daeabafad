/**
 * Builds what is shipped, dist/: the process `dataplane` as few files that load fast, the service in one of its own that
 * only `serve` reads. Node strips no types below node_modules, so a package has to be JavaScript.
 *
 *   node scripts/bundle.ts [DIRECTORY]     default: dist
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { rolldown } from "rolldown"

const repository = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..")

/** Writes the bundle, replacing what was there, and gives the path of the command. */
export const bundle = async (directory: string): Promise<string> => {
  const build = await rolldown({
    input: { dataplane: path.join(repository, "src/main.ts") },
    platform: "node",
    logLevel: "silent"
  })
  await fs.rm(directory, { recursive: true, force: true })
  await build.write({
    dir: directory,
    format: "esm",
    minify: true,
    entryFileNames: "[name].mjs",
    chunkFileNames: "chunks/[name]-[hash].mjs",
    banner: (chunk) => (chunk.isEntry ? "#!/usr/bin/env node" : "")
  })
  await build.close()
  const command = path.join(directory, "dataplane.mjs")
  await fs.chmod(command, 0o755)
  return command
}

if (import.meta.main) {
  const command = await bundle(path.resolve(process.argv[2] ?? path.join(repository, "dist")))
  process.stdout.write(`${path.relative(process.cwd(), command)}\n`)
}
