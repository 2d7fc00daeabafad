/**
 * The whole kill matrix on simulated guests, as `npm run test:kill` runs it: real processes, real SIGKILL. Its scenarios
 * are spread over two files, so that both cores have work.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { atOnce, type Case, casesOf, live, type Theatre } from "../../scripts/kill/Matrix.ts"
import { scenarios } from "../../scripts/kill/scenarios.ts"
import { simulatedTheatre } from "../../scripts/kill/simulated.ts"
import { printProblems } from "../../scripts/kill/table.ts"

/** About a second and a half of one core for each kill. */
const timeoutMs = 300_000
/** Guests that are waited for leave a core to another case. */
const parallel = 2
/** Below this the boundaries of one half were not found, and the rest proves nothing. */
const casesMin = 60

/** Every second scenario, from the first or the second on. */
export const testKills = (half: 0 | 1): void => {
  describe("the service killed at every boundary of every verb", () => {
    const mine = scenarios.filter((_, at) => at % 2 === half)
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), "chd-matrix-"))
    let theatre: Theatre | undefined
    let all: ReadonlyArray<ReadonlyArray<Case>> = []

    beforeAll(async () => {
      const made = await simulatedTheatre(directory)
      theatre = made
      all = await atOnce(parallel, mine, (it) => casesOf(made, it))
    }, timeoutMs)
    afterAll(() => fs.rmSync(directory, { recursive: true, force: true }))

    it("passes boundaries worth killing at", () => {
      assert.isAtLeast(all.flat().length, casesMin)
      for (const cases of all) assert.isAtLeast(cases.length, 6)
    })

    for (const [at, scenario] of mine.entries())
      it(
        `${scenario.name} is finished or undone, leaves nothing and disturbs nobody`,
        async () => {
          assert.isDefined(theatre)
          const made = theatre
          const verdicts = await atOnce(parallel, all[at] ?? [], (it) => live(made, it))
          assert.strictEqual(printProblems(verdicts), "")
        },
        timeoutMs
      )
  })
}
