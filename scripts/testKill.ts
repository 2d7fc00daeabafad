/**
 * `npm run test:kill`: kills the service at every boundary of every verb and looks at what is left after the next start.
 *
 *   npm run test:kill                         every boundary of every verb on simulated guests
 *   npm run test:kill -- --verbs standby,stop only these
 *   npm run test:kill -- --sample 25          so many kills, spread over the verbs
 *   npm run test:kill -- --qemu --sample 25   on real guests (root, QEMU, the guest system; see README)
 *
 * Prints the matrix and the recovery times; ends with 1 where a promise is broken.
 */
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { parseArgs } from "node:util"
import { atOnce, type Case, casesOf, live, type Theatre } from "./kill/Matrix.ts"
import { qemuTheatre } from "./kill/qemu.ts"
import { scenarios } from "./kill/scenarios.ts"
import { simulatedTheatre } from "./kill/simulated.ts"
import { printMatrix, printProblems, printTimes } from "./kill/table.ts"

const { values } = parseArgs({
  options: {
    qemu: { type: "boolean", default: false },
    verbs: { type: "string", default: "" },
    sample: { type: "string", default: "0" },
    parallel: { type: "string", default: "2" }
  }
})

/** So many cases, every verb among them, each with boundaries from its beginning to its end. */
const spread = (all: ReadonlyArray<ReadonlyArray<Case>>, sample: number): ReadonlyArray<Case> => {
  if (sample === 0) return all.flat()
  const share = Math.ceil(sample / all.length)
  return all.flatMap((cases) =>
    Array.from({ length: Math.min(share, cases.length) }, (_, at) => {
      const step = (cases.length - 1) / Math.max(1, share - 1)
      return cases[share === 1 ? Math.floor(cases.length / 2) : Math.round(at * step)]
    }).flatMap((it) => it ?? [])
  )
}

const run = async (theatre: Theatre): Promise<boolean> => {
  const names = values.verbs === "" ? null : values.verbs.split(",")
  const chosen = scenarios.filter((it) => names === null || names.includes(it.name))
  const width = Math.max(1, Number(values.parallel))
  const cases = spread(await atOnce(width, chosen, (it) => casesOf(theatre, it)), Number(values.sample))
  process.stderr.write(`${cases.length} kills\n`)
  const verdicts = await atOnce(width, cases, async (it) => {
    const verdict = await live(theatre, it)
    if (verdict.problems.length > 0) process.stderr.write(`${printProblems([verdict])}\n`)
    return verdict
  })
  process.stdout.write(`${printMatrix(verdicts)}\n\n${printTimes(verdicts)}\n`)
  return verdicts.every((it) => it.outcome !== "broken")
}

// An interrupt ends as an exit, so that what was started goes as well.
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(130))

const directory = fs.mkdtempSync(path.join(os.tmpdir(), "chd-matrix-"))
process.once("exit", () => fs.rmSync(directory, { recursive: true, force: true }))
const theatre = values.qemu ? await qemuTheatre(directory) : await simulatedTheatre(directory)
process.exitCode = (await run(theatre)) ? 0 : 1
