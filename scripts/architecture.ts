/**
 * Which way imports may point, checked over the syntax trees of all sources. Type-only imports count: whoever names
 * another's type knows it.
 *
 *   main ──► rpc ──► http, cli ──► instance/Instances, image/Images, volume/Volumes (interfaces)
 *              │                        │
 *              ▼                        ▼
 *             api          instance ──► vmm, network, image, volume, guest ──► host ──► domain
 *              └──────────────────────────── domain ◄────────────────────────────────────┘
 *
 *   node scripts/architecture.ts
 */
import * as path from "node:path"
import {
  type SourceTree,
  type Violation,
  lineAt,
  nodesOf,
  parse,
  report,
  repositoryFiles
} from "./sources.ts"

/** What a folder of src may import besides itself: folders, or single files. Nothing else is reachable. */
const arrows: Readonly<Record<string, ReadonlyArray<string>>> = {
  domain: [],
  host: ["domain"],
  telemetry: ["domain", "host"],
  vmm: ["domain", "host"],
  network: ["domain", "host"],
  image: ["domain", "host"],
  volume: ["domain", "host"],
  guest: ["domain", "host"],
  instance: ["domain", "host", "telemetry", "vmm", "network", "image", "volume", "guest"],
  api: ["domain"],
  http: [
    "domain",
    "host",
    "telemetry",
    "api",
    "instance/Instances.ts",
    "image/Images.ts",
    "volume/Volumes.ts"
  ],
  rpc: [
    "domain",
    "host",
    "telemetry",
    "api",
    "http",
    "instance/Instances.ts",
    "image/Images.ts",
    "volume/Volumes.ts"
  ],
  cli: ["domain", "api", "rpc"]
}

/** Files of rules: no services, no clock, no randomness, no I/O. */
const pureFiles: ReadonlyArray<RegExp> = [
  /^src\/domain\//,
  /^src\/instance\/(Lifecycle|project|decide)\.ts$/,
  /^src\/instance\/decide\//,
  /^src\/network\/pool\.ts$/,
  /^src\/vmm\/qemu\/(args|layout)\.ts$/,
  /^src\/vmm\/cloud-hypervisor\/config\.ts$/
]
const isPure = (file: string): boolean => pureFiles.some((it) => it.test(file))

/** Modules of effect that are data and functions over it. */
const dataModules = new Set(
  [
    "Arr Array BigInt Boolean Brand Cause Chunk Data Duration DateTime Encoding Equal Equivalence Exit Filter Function",
    "Graph HashMap HashSet Hash Iterable IpAddress IpNetwork Match MutableHashMap Newtype Number Option Order",
    "Ordering Predicate Record Redacted RegExp Result Schema SchemaGetter SchemaIssue SchemaTransformation String",
    "Struct Tuple Types Unify ByteSize"
  ]
    .join(" ")
    .split(" ")
    .map((name) => `effect/${name}`)
)
/** Schemas say their defaults as effects, and a problem is an error class of the HTTP API. */
const domainModules = new Set(["effect/Effect", "effect/http-api/HttpApiError"])
/** Of Node, only functions of their arguments. */
const pureBuiltins: ReadonlyMap<string, ReadonlySet<string>> = new Map([
  ["node:crypto", new Set(["createHash"])]
])

interface Import {
  readonly from: string
  readonly specifier: string
  /** The file in the tree that a relative specifier names; undefined for packages. */
  readonly target: string | undefined
  readonly typeOnly: boolean
  /** Imported names; `*` for all of them. */
  readonly names: ReadonlyArray<string>
  readonly line: number
}

const importKinds = new Set([
  "ImportDeclaration",
  "ExportNamedDeclaration",
  "ExportAllDeclaration",
  "ImportExpression",
  "TSImportType"
])

const specifierOf = (source: unknown): string | undefined =>
  typeof source === "object" && source !== null && "value" in source && typeof source.value === "string"
    ? source.value
    : undefined

const namesOf = (specifiers: unknown): ReadonlyArray<string> =>
  nodesOf(specifiers).flatMap((node) => {
    if (node.type === "ImportNamespaceSpecifier" || node.type === "ImportDefaultSpecifier") return ["*"]
    const imported: unknown = node.type === "ImportSpecifier" ? node["imported"] : undefined
    return typeof imported === "object" && imported !== null && "name" in imported
      ? [String(imported.name)]
      : []
  })

const importsOf = (file: string, source: string): ReadonlyArray<Import> =>
  nodesOf(parse(file, source).program).flatMap((node) => {
    const specifier = importKinds.has(node.type) ? specifierOf(node["source"]) : undefined
    if (specifier === undefined) return []
    const target = specifier.startsWith(".")
      ? path.posix.join(path.posix.dirname(file), specifier)
      : undefined
    const typeOnly =
      node["importKind"] === "type" || node["exportKind"] === "type" || node.type === "TSImportType"
    const names = namesOf(node["specifiers"])
    return [{ from: file, specifier, target, typeOnly, names, line: lineAt(source, node.start) }]
  })

/** The folder of src that a file belongs to; `main` for the files beside the folders. */
const folderOf = (file: string): string => {
  const [, folder, rest] = file.split("/")
  return rest === undefined ? "main" : (folder ?? "main")
}

const violation = (it: Import, rule: string, message: string): Violation => ({
  path: it.from,
  line: it.line,
  rule,
  message
})

const checkArrow = (it: Import): ReadonlyArray<Violation> => {
  if (!it.from.startsWith("src/") || it.target === undefined) return []
  if (!it.target.startsWith("src/")) {
    return [violation(it, "outside", `src imports ${it.target}, which is not part of the product`)]
  }
  const from = folderOf(it.from)
  const to = folderOf(it.target)
  if (from === "main" || from === to) return []
  const allowed = arrows[from]
  if (allowed === undefined) return [violation(it, "folder", `src/${from} has no place in the architecture`)]
  if (allowed.includes(to) || allowed.includes(it.target.slice("src/".length))) return []
  return [
    violation(
      it,
      "arrow",
      `${from} imports ${it.target.slice("src/".length)}; it may import ${allowed.join(", ")}`
    )
  ]
}

const isPureBuiltin = ({ specifier, names }: Import): boolean => {
  const allowed = pureBuiltins.get(specifier)
  return specifier === "node:path" || (allowed !== undefined && names.every((name) => allowed.has(name)))
}

const checkPurity = (it: Import): ReadonlyArray<Violation> => {
  if (!isPure(it.from)) return []
  const isDomain = it.from.startsWith("src/domain/")
  const pure =
    it.target === undefined
      ? dataModules.has(it.specifier) || isPureBuiltin(it) || (isDomain && domainModules.has(it.specifier))
      : isPure(it.target) || (it.typeOnly && folderOf(it.from) === folderOf(it.target))
  return pure ? [] : [violation(it, "pure", `a file of rules imports ${it.specifier}`)]
}

/** The roots load every module of the package (facts: 1,150 modules, half a second of start). */
const barrelPackages = new Set(["effect", "@effect/platform-node"])

const checkPackage =
  (dependencies: ReadonlySet<string>) =>
  (it: Import): ReadonlyArray<Violation> => {
    if (it.target !== undefined) return []
    if (barrelPackages.has(it.specifier)) {
      return [violation(it, "deep", `import ${it.specifier}/Module, not ${it.specifier} as a whole`)]
    }
    if (!it.from.startsWith("src/") || it.specifier.startsWith("node:")) return []
    const name = it.specifier
      .split("/")
      .slice(0, it.specifier.startsWith("@") ? 2 : 1)
      .join("/")
    return dependencies.has(name)
      ? []
      : [violation(it, "dependency", `${name} is not in package.json's dependencies`)]
  }

/** A barrel hides who needs what; a file of nothing but re-exports is one. */
const checkBarrel = (file: string, source: string): ReadonlyArray<Violation> => {
  const { body } = parse(file, source).program
  const passesOn = (type: string, from: unknown) =>
    type === "ExportAllDeclaration" || (type === "ExportNamedDeclaration" && specifierOf(from) !== undefined)
  const statements = nodesOf(body).filter((node) =>
    body.some((it) => it.start === node.start && it.type === node.type)
  )
  const all = statements.find((node) => node.type === "ExportAllDeclaration")
  if (all !== undefined) {
    return [
      {
        path: file,
        line: lineAt(source, all.start),
        rule: "barrel",
        message: "export * hides what is exported"
      }
    ]
  }
  const barrel =
    path.posix.basename(file).startsWith("index.") ||
    (statements.length > 0 && statements.every((node) => passesOn(node.type, node["source"])))
  return barrel
    ? [{ path: file, line: 0, rule: "barrel", message: "import the module that defines it instead" }]
    : []
}

/** Each cycle once, from its file that is first in the alphabet. */
const findCycles = (imports: ReadonlyArray<Import>): ReadonlyArray<Violation> => {
  const graph = Map.groupBy(
    imports.filter((it) => it.target !== undefined),
    (it) => it.from
  )
  const done = new Set<string>()
  const trail: Array<string> = []
  const found: Array<Violation> = []
  const visit = (file: string): void => {
    const at = trail.indexOf(file)
    if (at !== -1) {
      const cycle = trail.slice(at)
      const rule = "cycle"
      found.push({ path: file, line: 0, rule, message: [...cycle, file].join(" -> ") })
      return
    }
    if (done.has(file)) return
    trail.push(file)
    for (const it of graph.get(file) ?? []) if (it.target !== undefined) visit(it.target)
    trail.pop()
    done.add(file)
  }
  for (const file of [...graph.keys()].toSorted()) visit(file)
  return found
}

/** Every violation in a tree. `dependencies` are the package names that src may import. */
export const checkArchitecture = (
  tree: SourceTree,
  dependencies: ReadonlySet<string>
): ReadonlyArray<Violation> => {
  const files = [...tree].filter(([name]) => /^(src|test|scripts)\/.*\.ts$/.test(name))
  const imports = files.flatMap(([name, source]) => importsOf(name, source))
  return [
    ...files.flatMap(([name, source]) => checkBarrel(name, source)),
    ...imports.flatMap(checkArrow),
    ...imports.flatMap(checkPurity),
    ...imports.flatMap(checkPackage(dependencies)),
    ...findCycles(imports)
  ]
}

/** The names in package.json's `dependencies`. */
export const declaredDependencies = (packageJson: string): ReadonlySet<string> => {
  const manifest: unknown = JSON.parse(packageJson)
  const declared =
    typeof manifest === "object" && manifest !== null && "dependencies" in manifest
      ? manifest.dependencies
      : undefined
  return new Set(typeof declared === "object" && declared !== null ? Object.keys(declared) : [])
}

if (import.meta.main) {
  const tree = repositoryFiles()
  report("architecture", checkArchitecture(tree, declaredDependencies(tree.get("package.json") ?? "{}")))
}
