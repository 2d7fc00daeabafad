/** The matrix and its recovery times as text. */
import type { Verdict } from "./Matrix.ts"

const row = (cells: ReadonlyArray<string>, widths: ReadonlyArray<number>): string =>
  cells
    .map((cell, at) => cell.padEnd(widths[at] ?? 0))
    .join("  ")
    .trimEnd()

const table = (rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = (rows[0] ?? []).map((_, at) => Math.max(...rows.map((cells) => cells[at]?.length ?? 0)))
  const [head = [], ...others] = rows
  return [
    row(head, widths),
    widths.map((width) => "-".repeat(width)).join("  "),
    ...others.map((it) => row(it, widths))
  ].join("\n")
}

const median = (sorted: ReadonlyArray<number>): number => sorted[Math.floor(sorted.length / 2)] ?? 0
const ms = (value: number): string => value.toFixed(0)

/** Every cell: the verb, where the service was killed, what became of it. */
export const printMatrix = (verdicts: ReadonlyArray<Verdict>): string =>
  table([
    ["verb", "killed at", "found", "outcome", "recovery ms"],
    ...verdicts.map((it) => [
      it.scenario.name,
      it.boundary.replace(/#\d+$/u, ""),
      it.state,
      it.outcome,
      ms(it.recoveryMs)
    ])
  ])

/** One line for each verb: kills, outcomes, recovery times (process start until nothing is in transition). */
export const printTimes = (verdicts: ReadonlyArray<Verdict>): string => {
  const line = (name: string, of: ReadonlyArray<Verdict>) => {
    const times = of.map((it) => it.recoveryMs).toSorted((left, right) => left - right)
    const count = (outcome: Verdict["outcome"]) => `${of.filter((it) => it.outcome === outcome).length}`
    return [
      name,
      `${of.length}`,
      count("finished"),
      count("undone"),
      count("broken"),
      ms(times[0] ?? 0),
      ms(median(times)),
      ms(times.at(-1) ?? 0)
    ]
  }
  const names = [...new Set(verdicts.map((it) => it.scenario.name))]
  return table([
    ["verb", "kills", "finished", "undone", "broken", "min ms", "median ms", "max ms"],
    ...names.map((name) =>
      line(
        name,
        verdicts.filter((it) => it.scenario.name === name)
      )
    ),
    line("all", verdicts)
  ])
}

export const printProblems = (verdicts: ReadonlyArray<Verdict>): string =>
  verdicts
    .flatMap((it) => it.problems.map((problem) => `${it.scenario.name}, ${it.boundary}: ${problem}`))
    .join("\n")
