/** The files that the repository's own rules look at, and their syntax trees. */
import { execFileSync } from "node:child_process"
import { readFileSync, statSync } from "node:fs"
import * as path from "node:path"
import { parseSync } from "rolldown/utils"

/** Contents by path; paths are relative to the repository, with `/`. */
export type SourceTree = ReadonlyMap<string, string>

/** What breaks a rule, and where. */
export interface Violation {
  readonly path: string
  /** Counted from 1; 0 means the file as a whole. */
  readonly line: number
  readonly rule: string
  readonly message: string
}

export const repository = path.resolve(import.meta.dirname, "..")

/** Tracked files and new ones that are not ignored: what a commit would hold. */
export const repositoryFiles = (): SourceTree => {
  const listed = execFileSync("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"], {
    cwd: repository,
    encoding: "utf8"
  })
  const isFile = (name: string) =>
    statSync(path.join(repository, name), { throwIfNoEntry: false })?.isFile() === true
  const present = listed.split("\0").filter((name) => name !== "" && isFile(name))
  return new Map(present.map((name) => [name, readFileSync(path.join(repository, name), "utf8")]))
}

export const lineAt = (source: string, offset: number): number => source.slice(0, offset).split("\n").length

export const parse = (file: string, source: string) => parseSync(file, source, { lang: "ts" })

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null

/** A node of the syntax tree (ESTree with TypeScript's additions), seen without its type. */
export interface SyntaxNode extends Readonly<Record<string, unknown>> {
  readonly type: string
  readonly start: number
}

const isNode = (value: unknown): value is SyntaxNode =>
  isRecord(value) && typeof value["type"] === "string" && typeof value["start"] === "number"

/** Every node below and including this one. */
export const nodesOf = (value: unknown): ReadonlyArray<SyntaxNode> => {
  const found: Array<SyntaxNode> = []
  const visit = (it: unknown): void => {
    if (Array.isArray(it)) it.forEach(visit)
    else if (isRecord(it)) {
      if (isNode(it)) found.push(it)
      Object.values(it).forEach(visit)
    }
  }
  visit(value)
  return found
}

/** Prints violations as `path:line rule: message` and sets the exit code. */
export const report = (what: string, violations: ReadonlyArray<Violation>): void => {
  for (const { path: file, line, rule, message } of violations) {
    process.stderr.write(`${file}${line === 0 ? "" : `:${line}`} ${rule}: ${message}\n`)
  }
  process.stdout.write(violations.length === 0 ? `${what}: ok\n` : `${what}: ${violations.length} to mend\n`)
  process.exitCode = violations.length === 0 ? 0 : 1
}
