/**
 * House style that a program can see. No exemptions: a rule that does not fit is changed here, for all.
 *
 *   node scripts/tidy.ts
 *
 * Function length is oxlint's (max-lines-per-function), file length is here as well, since it holds for Rust and shell
 * too.
 */
import * as path from "node:path"
import {
  type SourceTree,
  type SyntaxNode,
  type Violation,
  lineAt,
  nodesOf,
  parse,
  report,
  repositoryFiles
} from "./sources.ts"

const maxLines = 400

/** Words that say nothing of what a thing is. */
const emptyWords = new Set(["manager", "helper", "helpers", "util", "utils", "impl"])

/** The words of a name in any case style: `ImageManager`, `image_manager`, `image-manager`. */
const wordsOf = (name: string): ReadonlyArray<string> =>
  name
    .replaceAll(/([a-z0-9])([A-Z])/g, "$1 $2")
    .split(/[^A-Za-z0-9]+/)
    .map((word) => word.toLowerCase())

const emptyWordIn = (name: string): string | undefined => wordsOf(name).find((word) => emptyWords.has(word))

type Rule = (file: string, source: string) => ReadonlyArray<Violation>

const isTypeScript = (file: string): boolean => file.endsWith(".ts")
const isCode = (file: string): boolean => /\.(ts|rs|sh)$/.test(file)

const fileNames: Rule = (file) => {
  const word = emptyWordIn(file)
  return [
    ...(word === undefined
      ? []
      : [{ path: file, line: 0, rule: "name", message: `"${word}" says nothing; name the thing` }]),
    ...(/^index\.[a-z]+$/.test(path.posix.basename(file))
      ? [{ path: file, line: 0, rule: "index", message: "a file is the noun that it defines" }]
      : [])
  ]
}

const header: Rule = (file, source) =>
  /^(src|scripts)\/.*\.ts$/.test(file) && !source.startsWith("/**")
    ? [{ path: file, line: 1, rule: "header", message: "open with a comment: what it is, who owns what" }]
    : []

const length: Rule = (file, source) => {
  const lines = source.split("\n").length - 1
  return isCode(file) && lines > maxLines
    ? [{ path: file, line: lines, rule: "length", message: `${lines} lines; at most ${maxLines}` }]
    : []
}

/** Ways around the type checker, by the node that says them. */
const escapes: Readonly<Record<string, string>> = {
  TSAnyKeyword: "any: say what it is, or unknown",
  TSNonNullExpression: "!: handle the absence",
  TSTypeAssertion: "a cast: parse or narrow instead",
  TSEnumDeclaration: "an enum is not erasable: a union of literals",
  TSModuleDeclaration: "a namespace is not erasable: a module"
}

const isConstAssertion = (node: SyntaxNode, source: string): boolean => {
  const type: unknown = node["typeAnnotation"]
  return (
    typeof type === "object" &&
    type !== null &&
    "start" in type &&
    typeof type.start === "number" &&
    /^const\b/.test(source.slice(type.start))
  )
}

const typeEscapes: Rule = (file, source) =>
  isTypeScript(file)
    ? nodesOf(parse(file, source).program).flatMap((node) => {
        const cast = node.type === "TSAsExpression" && !isConstAssertion(node, source)
        const message = cast ? "a cast: parse or narrow instead" : escapes[node.type]
        return message === undefined
          ? []
          : [{ path: file, line: lineAt(source, node.start), rule: "type-escape", message }]
      })
    : []

const declarations = new Set([
  "VariableDeclarator",
  "FunctionDeclaration",
  "ClassDeclaration",
  "TSTypeAliasDeclaration",
  "TSInterfaceDeclaration"
])

const declaredNames: Rule = (file, source) =>
  isTypeScript(file)
    ? nodesOf(parse(file, source).program).flatMap((node) => {
        const id: unknown = declarations.has(node.type) ? node["id"] : undefined
        const name = typeof id === "object" && id !== null && "name" in id ? id.name : undefined
        const word = typeof name === "string" ? emptyWordIn(name) : undefined
        return word === undefined
          ? []
          : [
              {
                path: file,
                line: lineAt(source, node.start),
                rule: "name",
                message: `"${word}" in ${String(name)} says nothing`
              }
            ]
      })
    : []

/** Texts are put together from pieces, so that this file does not break its own rules. */
const word = (...pieces: ReadonlyArray<string>): string => pieces.join("")
const any = (texts: ReadonlyArray<string>): string =>
  texts.map((it) => it.replaceAll(".", String.raw`\.`)).join("|")

interface TextRule {
  readonly rule: string
  readonly pattern: RegExp
  readonly message: string
}

const textRules: ReadonlyArray<TextRule> = [
  {
    rule: "unfinished",
    pattern: new RegExp(
      String.raw`\b(${any([word("TO", "DO"), word("FIX", "ME"), word("XX", "X"), word("HA", "CK")])})\b`
    ),
    message: "finish it, or leave it out"
  },
  {
    rule: "suppression",
    pattern: new RegExp(
      any([
        word("@ts-", "ignore"),
        word("@ts-", "expect-error"),
        word("@ts-", "nocheck"),
        word("oxlint-", "disable"),
        word("eslint-", "disable"),
        word("@effect-", "diagnostics")
      ])
    ),
    message: "mend the cause"
  },
  {
    rule: "machine-path",
    pattern: new RegExp(`(^|[\\s"'\`(=:])/(${any([word("ro", "ot/."), word("wo", "rk/")])})`),
    message: "a path of one machine"
  },
  {
    rule: "registry-host",
    pattern: new RegExp(
      any([
        word("registry.", "npmjs"),
        word("crates", ".io"),
        word("py", "pi.org"),
        word("deb.", "debian.org"),
        word("archive.", "ubuntu.com")
      ])
    ),
    message: "the machine's own configuration says where packages come from"
  },
  {
    rule: "history",
    pattern: new RegExp(String.raw`\b(issue|ticket) #?\d`, "i"),
    message: "comments are timeless; history is git's"
  }
]

const texts: Rule = (file, source) =>
  source
    .split("\n")
    .flatMap((text, index) =>
      textRules
        .filter(({ pattern }) => pattern.test(text))
        .map(({ rule, message }) => ({ path: file, line: index + 1, rule, message }))
    )

const rules: ReadonlyArray<Rule> = [fileNames, header, length, typeEscapes, declaredNames, texts]

/** Generated or foreign text: no style of ours. */
const isForeign = (file: string): boolean =>
  /(^|\/)(package-lock\.json|Cargo\.lock|LICENSE)$/.test(file) || file === "openapi.yaml"

/** Every violation in a tree. */
export const checkStyle = (tree: SourceTree): ReadonlyArray<Violation> =>
  [...tree]
    .filter(([file]) => !isForeign(file))
    .flatMap(([file, source]) => rules.flatMap((rule) => rule(file, source)))

if (import.meta.main) report("style", checkStyle(repositoryFiles()))
