/** The dashboard asks for nothing that is not there: every metric and every label of its queries exists. */
import * as fs from "node:fs"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { repositoryFiles } from "../../scripts/sources.ts"
import { parseExposition } from "../support/exposition.ts"
import { send } from "../support/httpServer.ts"
import { serveSimulated } from "../support/simulatedServer.ts"

const Dashboard = Schema.Struct({
  title: Schema.String,
  panels: Schema.Array(
    Schema.Struct({
      id: Schema.Int,
      title: Schema.String,
      type: Schema.Literals(["row", "timeseries"]),
      gridPos: Schema.Struct({ x: Schema.Int, y: Schema.Int, w: Schema.Int, h: Schema.Int }),
      targets: Schema.optionalKey(
        Schema.Array(Schema.Struct({ expr: Schema.String, legendFormat: Schema.String }))
      )
    })
  )
})
const file = path.resolve(import.meta.dirname, "../../src/telemetry/grafana-dashboard.json")
const { panels } = Schema.decodeUnknownSync(Schema.fromJsonString(Dashboard))(fs.readFileSync(file, "utf8"))
const queries = panels.flatMap(({ title, targets = [] }) => targets.map((it) => ({ title, ...it })))

const baseName = (name: string) => name.replace(/_(bucket|sum|count)$/u, "")
const metricsOf = (expr: string) => [...expr.matchAll(/dataplane_[a-z_]+/gu)].map(([name]) => baseName(name))
/** Labels that a query selects by, groups by or shows. */
const labelsOf = ({ expr, legendFormat }: (typeof queries)[number]) =>
  new Set([
    ...[...expr.matchAll(/([a-z_]+)\s*(?:=~|!=|!~|=)\s*"/gu)].map(([, label]) => label ?? ""),
    ...[...expr.matchAll(/by \(([^)]*)\)/gu)].flatMap(([, list]) => (list ?? "").split(/,\s*/u)),
    ...[...legendFormat.matchAll(/\{\{([a-z_]+)\}\}/gu)].map(([, label]) => label ?? "")
  ])
/** Prometheus itself adds the target's name. */
const fromPrometheus = new Set(["instance", "le"])

const declared = new Set(
  [...repositoryFiles()]
    .filter(([name]) => name.startsWith("src/") && name.endsWith(".ts"))
    .flatMap(([, source]) => [...source.matchAll(/"(dataplane_[a-z_]+)"/gu)].map(([, name]) => name ?? ""))
)

describe("the dashboard", () => {
  it("asks only for metrics that the service declares, and shows every one of them", () => {
    const asked = new Set(queries.flatMap(({ expr }) => metricsOf(expr)))
    expect([...asked].filter((name) => !declared.has(name))).toEqual([])
    expect([...declared].filter((name) => !asked.has(name))).toEqual([])
  })

  it.live("names only labels that the series have", () =>
    Effect.gen(function* () {
      const server = yield* serveSimulated()
      yield* send(server, "POST", "/instances", { json: { name: "a", image: "img-demo", memory_mb: 128 } })
      yield* send(server, "GET", "/metrics")
      const families = parseExposition((yield* send(server, "GET", "/metrics")).text)
      let checked = 0
      for (const query of queries)
        for (const name of metricsOf(query.expr)) {
          const labels = families.get(name)?.samples[0]?.labels
          if (labels === undefined) continue
          checked += 1
          for (const label of labelsOf(query))
            expect([query.title, label, label in labels || fromPrometheus.has(label)]).toEqual([
              query.title,
              label,
              true
            ])
        }
      // Those of images and of agents come with their first image and their first real guest.
      expect(checked).toBeGreaterThanOrEqual(queries.length - 3)
    }).pipe(Effect.scoped)
  )

  it("lays its panels out without two in one place", () => {
    expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length)
    const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, index) => `${x + (index % w)}/${y + Math.floor(index / w)}`)
    )
    expect(new Set(cells).size).toBe(cells.length)
    for (const { gridPos } of panels) expect(gridPos.x + gridPos.w).toBeLessThanOrEqual(24)
  })
})
