/** What the benchmark found, as one table for a person and one file for a program; and the machine that it was found on. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"

/** Of several measurements. */
export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
  readonly count: number
}

export interface Row {
  readonly part: string
  readonly what: string
  readonly unit: "ms" | "req/s" | "KiB" | "MB/s"
  readonly ours: Spread
  /** What ours is compared with, measured in the same run in turns with it. */
  readonly baseline: { readonly name: string; readonly spread: Spread }
  /** In words; empty where the row is there to be seen only. */
  readonly aim: string
  readonly met: boolean | null
}

export interface Machine {
  readonly cpu: string
  readonly cores: number
  readonly memory_gib: number
  readonly kernel: string
  readonly qemu: string
  readonly accelerator: string
  readonly node: string
  readonly load_at_start: string
}

/** The p-th percentile (0 to 100) by nearest rank. */
export const percentile = (values: ReadonlyArray<number>, p: number): number => {
  const sorted = values.toSorted((left, right) => left - right)
  return sorted[Math.max(0, Math.ceil((p / 100) * sorted.length) - 1)] ?? Number.NaN
}

export const spread = (values: ReadonlyArray<number>): Spread => ({
  median: percentile(values, 50),
  min: Math.min(...values),
  max: Math.max(...values),
  count: values.length
})

/** A row whose aim is a bound that grows with the baseline: at most `factor` times and `plus` more. */
export const atMost = (row: Omit<Row, "aim" | "met">, factor: number, plus: number): Row => ({
  ...row,
  aim: `<= ${factor}x + ${plus} ${row.unit}`,
  met: row.ours.median <= factor * row.baseline.spread.median + plus
})

export const machine = (accelerator: string): Machine => ({
  cpu: os.cpus()[0]?.model ?? "unknown",
  cores: os.cpus().length,
  memory_gib: Math.round(os.totalmem() / 2 ** 30),
  kernel: os.release(),
  qemu: qemuVersion(),
  accelerator,
  node: process.version,
  load_at_start: os
    .loadavg()
    .map((it) => it.toFixed(2))
    .join(" ")
})

const qemuVersion = (): string => {
  try {
    const said = execFileSync("qemu-system-x86_64", ["--version"], { encoding: "utf8" })
    return /version ([\d.]+)/u.exec(said)?.[1] ?? "unknown"
  } catch {
    return "not installed"
  }
}

const shown = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toFixed(1))
const shownSpread = (it: Spread): string =>
  it.count === 1 ? shown(it.median) : `${shown(it.median)} (${shown(it.min)}-${shown(it.max)})`
const verdict = ({ met }: Row): string => (met === null ? "" : met ? "yes" : "NO")

const cells = (row: Row): ReadonlyArray<string> => [
  row.part,
  row.what,
  row.unit,
  shownSpread(row.ours),
  shownSpread(row.baseline.spread),
  (row.ours.median / row.baseline.spread.median).toFixed(2),
  row.aim,
  verdict(row),
  row.baseline.name
]

const titles = ["part", "what", "unit", "ours", "baseline", "ratio", "aim", "met", "the baseline is"]

/** Medians with the least and the most in parentheses; a markdown table, so that it can be put into a README. */
export const format = (of: Machine, rows: ReadonlyArray<Row>): string => {
  const lines = [titles, ...rows.map(cells)]
  const widths = titles.map((_, at) => Math.max(...lines.map((line) => line[at]?.length ?? 0)))
  const drawn = lines.map((line) => `| ${line.map((it, at) => it.padEnd(widths[at] ?? 0)).join(" | ")} |`)
  const rule = `|${widths.map((width) => "-".repeat(width + 2)).join("|")}|`
  const facts = Object.entries(of).map(([name, value]) => `${name}: ${value}`)
  return [facts.join(", "), "", drawn[0], rule, ...drawn.slice(1)].join("\n")
}

export const writeJson = (
  file: string,
  of: Machine,
  rows: ReadonlyArray<Row>,
  failures: ReadonlyArray<string>
) => fs.writeFileSync(file, `${JSON.stringify({ machine: of, rows, failures }, null, 2)}\n`)
