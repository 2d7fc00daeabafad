/** Each rule has a tree that breaks it and the nearest tree that does not; last, the repository itself. */
import { assert, describe, it } from "vitest"
import { checkArchitecture, declaredDependencies } from "../../scripts/architecture.ts"
import { repositoryFiles } from "../../scripts/sources.ts"

const dependencies = new Set(["effect", "@effect/platform-node", "execa"])

const brokenRules = (tree: Readonly<Record<string, string>>): ReadonlyArray<string> =>
  checkArchitecture(new Map(Object.entries(tree)), dependencies).map(({ path, rule }) => `${rule} ${path}`)

const fixtures: ReadonlyArray<{
  readonly name: string
  readonly broken: Readonly<Record<string, string>>
  readonly reported: ReadonlyArray<string>
  readonly sound: Readonly<Record<string, string>>
}> = [
  {
    name: "a driver that knows instances",
    broken: { "src/vmm/Vmm.ts": `import { x } from "../instance/Actor.ts"` },
    reported: ["arrow src/vmm/Vmm.ts"],
    sound: { "src/vmm/Vmm.ts": `import { x } from "../host/Proc.ts"` }
  },
  {
    name: "a type is knowledge too",
    broken: { "src/guest/Agent.ts": `import type { X } from "../vmm/Vmm.ts"` },
    reported: ["arrow src/guest/Agent.ts"],
    sound: { "src/guest/Agent.ts": `import type { X } from "../domain/Ids.ts"` }
  },
  {
    name: "an inline type import",
    broken: { "src/image/Images.ts": `export type A = import("../network/Network.ts").Network` },
    reported: ["arrow src/image/Images.ts"],
    sound: { "src/image/Images.ts": `export type A = import("../host/Paths.ts").Paths` }
  },
  {
    name: "an import at run time",
    broken: { "src/volume/Volumes.ts": `export const a = () => import("../image/Images.ts")` },
    reported: ["arrow src/volume/Volumes.ts"],
    sound: { "src/volume/Volumes.ts": `export const a = () => import("../host/Files.ts")` }
  },
  {
    name: "a re-export",
    broken: { "src/network/Tap.ts": `export { a } from "../guest/Agent.ts"\nexport const b = 1` },
    reported: ["arrow src/network/Tap.ts"],
    sound: { "src/network/Tap.ts": `export { a } from "../domain/Network.ts"\nexport const b = 1` }
  },
  {
    name: "an API that knows the host",
    broken: { "src/api/Instances.ts": `import { x } from "../host/Paths.ts"` },
    reported: ["arrow src/api/Instances.ts"],
    sound: { "src/api/Instances.ts": `import { x } from "../domain/Instance.ts"` }
  },
  {
    name: "a handler that reaches behind the service",
    broken: { "src/http/instances.ts": `import { x } from "../instance/Actor.ts"` },
    reported: ["arrow src/http/instances.ts"],
    sound: { "src/http/instances.ts": `import { x } from "../instance/Instances.ts"` }
  },
  {
    name: "the host knows nobody above it",
    broken: { "src/host/Paths.ts": `import { x } from "../telemetry/LogEvent.ts"` },
    reported: ["arrow src/host/Paths.ts"],
    sound: { "src/host/doctor/probe.ts": `import { x } from "../Command.ts"` }
  },
  {
    name: "a folder without a place",
    broken: { "src/things/a.ts": `import { x } from "../domain/Ids.ts"` },
    reported: ["folder src/things/a.ts"],
    sound: { "src/things/a.ts": `import { x } from "./b.ts"` }
  },
  {
    name: "the product imports its tests",
    broken: { "src/main.ts": `import { x } from "../test/support/fakes.ts"` },
    reported: ["outside src/main.ts"],
    sound: {
      "src/main.ts": `import { x } from "./http/server.ts"`,
      "test/a.ts": `import { x } from "../src/main.ts"`
    }
  },
  {
    name: "rules with a clock",
    broken: { "src/instance/decide.ts": `import * as Clock from "effect/Clock"` },
    reported: ["pure src/instance/decide.ts"],
    sound: { "src/instance/decide.ts": `import * as Option from "effect/Option"` }
  },
  {
    name: "rules that act",
    broken: { "src/instance/project.ts": `import * as Effect from "effect/Effect"` },
    reported: ["pure src/instance/project.ts"],
    sound: { "src/instance/project.ts": `import type { State } from "./Lifecycle.ts"` }
  },
  {
    name: "rules that reach into a service beside them",
    broken: { "src/instance/decide/stop.ts": `import { x } from "../Store.ts"` },
    reported: ["pure src/instance/decide/stop.ts"],
    sound: { "src/instance/decide/stop.ts": `import type { X } from "../Store.ts"` }
  },
  {
    name: "rules with files",
    broken: { "src/vmm/qemu/args.ts": `import * as fs from "node:fs"` },
    reported: ["pure src/vmm/qemu/args.ts"],
    sound: {
      "src/vmm/qemu/args.ts": `import * as path from "node:path"\nimport type { VmConfig } from "../Vmm.ts"`
    }
  },
  {
    name: "rules with randomness",
    broken: { "src/network/pool.ts": `import { randomBytes } from "node:crypto"` },
    reported: ["pure src/network/pool.ts"],
    sound: { "src/network/pool.ts": `import { createHash } from "node:crypto"` }
  },
  {
    name: "rules with all of node:crypto",
    broken: { "src/network/pool.ts": `import * as crypto from "node:crypto"` },
    reported: ["pure src/network/pool.ts"],
    sound: { "src/network/Tap.ts": `import * as crypto from "node:crypto"` }
  },
  {
    name: "a domain with services",
    broken: { "src/domain/Ids.ts": `import * as Layer from "effect/Layer"` },
    reported: ["pure src/domain/Ids.ts"],
    sound: {
      "src/domain/Ids.ts": `import * as Effect from "effect/Effect"\nimport * as S from "effect/Schema"`
    }
  },
  {
    name: "the whole of effect",
    broken: { "test/a.test.ts": `import { Effect } from "effect"` },
    reported: ["deep test/a.test.ts"],
    sound: { "test/a.test.ts": `import * as Effect from "effect/Effect"` }
  },
  {
    name: "the whole of platform-node",
    broken: { "src/http/server.ts": `import { NodeHttpServer } from "@effect/platform-node"` },
    reported: ["deep src/http/server.ts"],
    sound: { "src/http/server.ts": `import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"` }
  },
  {
    name: "a package that is not shipped",
    broken: { "src/host/Command.ts": `import { parseSync } from "rolldown/utils"` },
    reported: ["dependency src/host/Command.ts"],
    sound: {
      "src/host/Command.ts": `import { execa } from "execa"`,
      "scripts/a.ts": `import { x } from "rolldown/utils"`
    }
  },
  {
    name: "a barrel by name",
    broken: { "src/vmm/index.ts": `export const a = 1` },
    reported: ["barrel src/vmm/index.ts"],
    sound: { "src/vmm/indexing.ts": `export const a = 1` }
  },
  {
    name: "a barrel by content",
    broken: { "src/vmm/all.ts": `export { a } from "./a.ts"\nexport { b } from "./b.ts"` },
    reported: ["barrel src/vmm/all.ts"],
    sound: { "src/vmm/all.ts": `export { a } from "./a.ts"\nexport const b = 1` }
  },
  {
    name: "export everything",
    broken: { "src/vmm/a.ts": `export const a = 1\nexport * from "./b.ts"` },
    reported: ["barrel src/vmm/a.ts"],
    sound: { "src/vmm/a.ts": `export const a = 1` }
  },
  {
    name: "a cycle of two",
    broken: {
      "src/vmm/a.ts": `import { b } from "./b.ts"`,
      "src/vmm/b.ts": `import type { A } from "./a.ts"`
    },
    reported: ["cycle src/vmm/a.ts"],
    sound: { "src/vmm/a.ts": `import { b } from "./b.ts"`, "src/vmm/b.ts": `export const b = 1` }
  },
  {
    name: "a cycle of three, off a path that leads into it",
    broken: {
      "src/vmm/a.ts": `import { b } from "./b.ts"`,
      "src/vmm/b.ts": `import { c } from "./c.ts"`,
      "src/vmm/c.ts": `import { d } from "./d.ts"`,
      "src/vmm/d.ts": `import { b } from "./b.ts"`
    },
    reported: ["cycle src/vmm/b.ts"],
    sound: {
      "src/vmm/a.ts": `import { b } from "./b.ts"\nimport { c } from "./c.ts"`,
      "src/vmm/b.ts": `import { c } from "./c.ts"`,
      "src/vmm/c.ts": `export const c = 1`
    }
  }
]

describe("the arrows", () => {
  for (const { name, broken, reported, sound } of fixtures) {
    it(`refuse ${name}`, () => {
      assert.deepStrictEqual(brokenRules(broken), reported)
      assert.deepStrictEqual(brokenRules(sound), [])
    })
  }

  it("say the line and the reason", () => {
    const source = `/** A header. */\nimport { x } from "../instance/Actor.ts"\n`
    const [found] = checkArchitecture(new Map([["src/vmm/Vmm.ts", source]]), dependencies)
    assert.strictEqual(found?.line, 2)
    assert.include(found?.message, "instance/Actor.ts")
  })

  it("hold in this repository", () => {
    const tree = repositoryFiles()
    const own = declaredDependencies(tree.get("package.json") ?? "{}")
    assert.isAbove(own.size, 0)
    assert.deepStrictEqual(checkArchitecture(tree, own), [])
  })
})
