/**
 * Writes openapi.yaml from the schemas; with --check, compares instead and fails when they differ.
 *
 *   node scripts/openapi.ts [--check]
 */
import { readFile, writeFile } from "node:fs/promises"
import { specYaml } from "../src/http/specification.ts"

const target = new URL("../openapi.yaml", import.meta.url)

if (process.argv.includes("--check")) {
  const written = await readFile(target, "utf8").catch(() => "")
  if (written !== specYaml) {
    console.error("openapi.yaml is not what the schemas derive; run `node scripts/openapi.ts`")
    process.exitCode = 1
  }
} else {
  await writeFile(target, specYaml)
}
