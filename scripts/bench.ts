/**
 * What the dataplane costs, beside what somebody would do without it. Every row is a ratio against a baseline that was
 * measured in the same run, in turns; only ratios say anything on a machine that does other work as well.
 *
 *   npm run bench                      everything, 5 to 8 minutes
 *   npm run bench -- lifecycle api     some of: lifecycle, image, api, clients, scale, agent, volume
 *   npm run bench -- --quick           fewer rounds, about 2 minutes
 *
 * The exit code says whether everything could be measured, not whether the aims were met.
 */
import { mkdirSync } from "node:fs"
import * as path from "node:path"
import { benchAgent } from "./bench/agent.ts"
import { benchApi } from "./bench/api.ts"
import { benchClients } from "./bench/clients.ts"
import { benchLifecycle } from "./bench/lifecycle.ts"
import { benchPull } from "./bench/pull.ts"
import { benchScale } from "./bench/scale.ts"
import { benchVolume } from "./bench/volume.ts"
import { format, machine, type Row, spread, writeJson } from "./bench/table.ts"
import { liveObstacle } from "../test/support/liveHost.ts"

const apiRateAim = 0.5

const imageRows = (quick: boolean): Promise<ReadonlyArray<Row>> =>
  benchPull(quick ? { rounds: 1, blobBytes: 60e6, smallFiles: 10_000 } : { rounds: 3 })

const apiRows = async (quick: boolean): Promise<ReadonlyArray<Row>> => {
  const rows = await benchApi(quick ? { rounds: 3, roundMs: 700 } : {})
  const [bare, ours] = ["bare", "dataplane"].map((server) => rows.find((row) => row.server === server))
  if (bare === undefined || ours === undefined) throw new Error("a server is missing in what was measured")
  return [
    {
      part: "api",
      what: "GET /instances with 100 instances",
      unit: "req/s",
      ours: spread([ours.requestsPerSecond]),
      baseline: { name: `node:http, the same ${bare.bytes} bytes`, spread: spread([bare.requestsPerSecond]) },
      aim: `>= ${apiRateAim}x`,
      met: ours.rateRatio >= apiRateAim
    }
  ]
}

const parts: ReadonlyArray<{
  readonly name: string
  readonly tools: ReadonlyArray<string>
  readonly run: (quick: boolean) => Promise<ReadonlyArray<Row>>
}> = [
  {
    name: "lifecycle",
    tools: [],
    run: (quick) => benchLifecycle(quick ? { boots: 2, cycles: 2, starts: 4 } : {})
  },
  { name: "image", tools: ["umoci", "mkfs.erofs", "docker-registry", "skopeo"], run: imageRows },
  { name: "api", tools: [], run: apiRows },
  {
    name: "clients",
    tools: [],
    run: (quick) => benchClients(quick ? { rounds: 2, requests: 150 } : {})
  },
  {
    name: "scale",
    tools: [],
    run: (quick) => benchScale(quick ? { restarts: 2, listRounds: 1 } : {})
  },
  {
    name: "agent",
    tools: [],
    run: (quick) => benchAgent(quick ? { trips: 10, copies: 2, copyMb: 8 } : {})
  },
  { name: "volume", tools: [], run: (quick) => benchVolume(quick ? 4 : 10) }
]

const named = process.argv.slice(2).filter((argument) => !argument.startsWith("--"))
const quick = process.argv.includes("--quick")
const unknown = named.filter((name) => !parts.some((part) => part.name === name))
if (unknown.length > 0) {
  process.stderr.write(
    `no such part: ${unknown.join(", ")}; there are ${parts.map((it) => it.name).join(", ")}\n`
  )
  process.exit(2)
}

const accelerator = process.env["QEMU_ACCEL"] ?? "tcg"
const before = machine(accelerator)
const rows: Array<Row> = []
const failures: Array<string> = []
for (const part of parts.filter((it) => named.length === 0 || named.includes(it.name))) {
  const startedAt = performance.now()
  process.stderr.write(`${part.name} ...`)
  try {
    const obstacle = liveObstacle(part.tools)
    if (obstacle !== null) throw new Error(obstacle)
    rows.push(...(await part.run(quick)))
    process.stderr.write(` ${Math.round((performance.now() - startedAt) / 1000)} s\n`)
  } catch (cause) {
    process.stderr.write(" failed\n")
    failures.push(`${part.name}: ${cause instanceof Error ? cause.message : String(cause)}`)
  }
}

process.stdout.write(`${format(before, rows)}\n`)
const artifacts = path.join(import.meta.dirname, "../.artifacts")
mkdirSync(artifacts, { recursive: true })
writeJson(path.join(artifacts, "bench.json"), before, rows, failures)
for (const failure of failures) process.stderr.write(`not measured: ${failure}\n`)
process.exit(failures.length === 0 ? 0 : 1)
