/** Every event of the closed list is told somewhere in the product, and nothing tells one that is not on it. */
import { expect, it } from "@effect/vitest"
import { LogEventName } from "../../src/telemetry/LogEvent.ts"
import { repositoryFiles } from "../../scripts/sources.ts"

/** Names in the calls of `logEvent` (the first argument) and of `image/work.ts`'s own `log`. */
const toldIn = (source: string): ReadonlyArray<string> => [
  ...[...source.matchAll(/\blogEvent\(\s*(?:known\s*\?\s*)?"([a-z.]+)"(?:\s*:\s*"([a-z.]+)")?/gu)].flatMap(
    ([, first, second]) => [first ?? "", ...(second === undefined ? [] : [second])]
  ),
  ...[...source.matchAll(/\blog\(\w+, "([a-z.]+)"/gu)].map(([, name]) => name ?? "")
]

it("no event of the list is missing from the code, and none is made up", () => {
  const told = new Set(
    [...repositoryFiles()]
      .filter(([file]) => file.startsWith("src/") && file !== "src/telemetry/LogEvent.ts")
      .flatMap(([, source]) => toldIn(source))
  )
  const names: ReadonlyArray<string> = LogEventName.literals
  expect(names.filter((name) => !told.has(name))).toEqual([])
  expect([...told].filter((name) => !names.includes(name))).toEqual([])
})
