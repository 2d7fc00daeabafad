/** What clients import brings no server code, and runs wherever Web APIs are. */
import { readFileSync } from "node:fs"
import { isBuiltin } from "node:module"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import { rolldown } from "rolldown"
import { nodesOf, parse, repository } from "../../scripts/sources.ts"

const entries = ["src/api/Api.ts", "src/rpc/Rpcs.ts"]

/** What the file's import and export declarations name. */
const imported = (file: string): ReadonlyArray<string> =>
  nodesOf(parse(file, readFileSync(path.join(repository, file), "utf8")).program).flatMap((node) => {
    const source = node["source"]
    return typeof source === "object" && source !== null && "value" in source ? [String(source.value)] : []
  })

const reached = (entry: string): ReadonlySet<string> => {
  const found = new Set<string>()
  const visit = (file: string): void => {
    if (found.has(file)) return
    found.add(file)
    for (const name of imported(file))
      if (name.startsWith(".")) visit(path.posix.join(path.posix.dirname(file), name))
      else found.add(name)
  }
  visit(entry)
  return found
}

describe("what clients import", () => {
  for (const entry of entries) {
    it(`${entry} reaches definitions only`, () => {
      const files = [...reached(entry)]
      expect(files.length).toBeGreaterThan(20)
      const server = files.filter(
        (name) => !/^src\/(api|domain|rpc)\/|^effect\//u.test(name) || isBuiltin(name)
      )
      expect(server).toEqual([])
      expect(files.filter((name) => name.startsWith("src/rpc/") && !/\/Rpc\w*\.ts$/u.test(name))).toEqual([])
    })

    it(`${entry} bundles for a browser without anything of Node`, async () => {
      const bundle = await rolldown({
        input: path.join(repository, entry),
        platform: "browser",
        logLevel: "silent"
      })
      const { output } = await bundle.generate({ format: "esm", codeSplitting: false })
      await bundle.close()
      const [chunk] = output
      expect(chunk.code.length).toBeGreaterThan(10_000)
      expect([...chunk.imports, ...chunk.dynamicImports]).toEqual([])
      expect(chunk.code).not.toMatch(/\b(from|import)\b\s*\(?\s*["']node:|\brequire\(/u)
    })
  }
})
