/** Each rule has a file that breaks it and the nearest one that does not; last, the repository itself. */
import { assert, describe, it } from "vitest"
import { repositoryFiles } from "../../scripts/sources.ts"
import { checkStyle } from "../../scripts/tidy.ts"

const brokenRules = (file: string, source: string): ReadonlyArray<string> =>
  checkStyle(new Map([[file, source]])).map(({ rule }) => rule)

const header = "/** What it is. */\n"
/** Put together, so that this file keeps the rules that it tests. */
const joined = (...pieces: ReadonlyArray<string>): string => pieces.join("")

const fixtures: ReadonlyArray<{
  readonly rule: string
  readonly name: string
  readonly broken: readonly [file: string, source: string]
  readonly sound: readonly [file: string, source: string]
}> = [
  {
    rule: "name",
    name: "an empty word in a file name",
    broken: ["src/vmm/VmmManager.ts", header],
    sound: ["src/vmm/VmmProcess.ts", header]
  },
  {
    rule: "name",
    name: "an empty word in a Rust file name",
    broken: ["src/guest/agent/src/net_utils.rs", ""],
    sound: ["src/guest/agent/src/net.rs", ""]
  },
  {
    rule: "name",
    name: "an empty word in a folder name",
    broken: ["test/helpers/a.ts", header],
    sound: ["test/support/a.ts", header]
  },
  {
    rule: "name",
    name: "an empty word in a declared name",
    broken: ["src/a.ts", `${header}export const parseHelper = 1\n`],
    sound: ["src/a.ts", `${header}export const parse = "helper"\n`]
  },
  {
    rule: "name",
    name: "an empty word in a class name",
    broken: ["src/a.ts", `${header}export class StoreImpl {}\n`],
    sound: ["src/a.ts", `${header}export class Simple {}\n`]
  },
  { rule: "index", name: "index.ts", broken: ["test/index.ts", header], sound: ["test/indexing.ts", header] },
  {
    rule: "header",
    name: "a file without a header",
    broken: ["src/a.ts", "export const a = 1\n"],
    sound: ["src/a.ts", `${header}export const a = 1\n`]
  },
  {
    rule: "length",
    name: "a file of 401 lines",
    broken: ["scripts/a.sh", "true\n".repeat(401)],
    sound: ["scripts/a.sh", "true\n".repeat(400)]
  },
  {
    rule: "type-escape",
    name: "a cast",
    broken: ["src/a.ts", `${header}export const a = b as string\n`],
    sound: ["src/a.ts", `${header}export const a = [1] as const\n`]
  },
  {
    rule: "type-escape",
    name: "a cast in a test",
    broken: ["test/a.test.ts", `${header}export const a = (<string>b)\n`],
    sound: ["test/a.test.ts", `${header}export const a = b satisfies string\n`]
  },
  {
    rule: "type-escape",
    name: "any",
    broken: ["src/a.ts", `${header}export const a = (b: Array<any>) => b\n`],
    sound: ["src/a.ts", `${header}export const any = (b: Array<unknown>) => b\n`]
  },
  {
    rule: "type-escape",
    name: "an asserted presence",
    broken: ["src/a.ts", `${header}export const a = b!.c\n`],
    sound: ["src/a.ts", `${header}export const a = !b\n`]
  },
  {
    rule: "type-escape",
    name: "an enum",
    broken: ["src/a.ts", `${header}export enum A { B }\n`],
    sound: ["src/a.ts", `${header}export type A = "B"\n`]
  },
  {
    rule: "suppression",
    name: "a silenced compiler",
    broken: ["src/a.ts", `${header}${joined("// @ts-", "ignore")}\n`],
    sound: ["src/a.ts", `${header}// ts ignores this\n`]
  },
  {
    rule: "suppression",
    name: "a silenced linter",
    broken: ["src/a.ts", `${header}${joined("// oxlint-", "disable-next-line")}\n`],
    sound: ["src/a.ts", `${header}// oxlint says so\n`]
  },
  {
    rule: "unfinished",
    name: "unfinished work",
    broken: ["README.md", joined("TO", "DO: write this\n")],
    sound: ["README.md", "Todos los Santos\n"]
  },
  {
    rule: "machine-path",
    name: "a path of one machine",
    broken: ["scripts/a.sh", joined("cd /wo", "rk/main\n")],
    sound: ["scripts/a.sh", "cd /var/lib/work/main\n"]
  },
  {
    rule: "registry-host",
    name: "a package registry's host",
    broken: [".npmrc", joined("registry=https://registry.", "npmjs.org/\n")],
    sound: [".npmrc", "fund=false\n"]
  },
  {
    rule: "history",
    name: "a comment about history",
    broken: ["src/a.ts", `${header}// as ${joined("iss", "ue 12")} asked\n`],
    sound: ["src/a.ts", `${header}// issued at 12\n`]
  }
]

describe("house style", () => {
  for (const { rule, name, broken, sound } of fixtures) {
    it(`refuses ${name}`, () => {
      assert.deepStrictEqual(brokenRules(...broken), [rule])
      assert.deepStrictEqual(brokenRules(...sound), [])
    })
  }

  it("leaves generated files alone", () => {
    assert.deepStrictEqual(brokenRules("package-lock.json", joined("https://registry.", "npmjs.org/\n")), [])
  })

  it("holds in this repository", () => {
    assert.deepStrictEqual(checkStyle(repositoryFiles()), [])
  })
})
