/** Columns for people: as wide as what is in them, and no wider than the terminal. */
import * as CliOutput from "effect/cli/CliOutput"
import { printable } from "./text.ts"

const gap = "  "
/** A column is not cut below this. */
const narrowest = 4

/** Cuts to a width in terminal cells; an ellipsis says so. */
const cut = (text: string, width: number): string => {
  if (CliOutput.displayWidth(text) <= width) return text
  let kept = ""
  for (const character of text) {
    if (CliOutput.displayWidth(kept + character) > width - 1) break
    kept += character
  }
  return `${kept}…`
}

const padded = (text: string, width: number): string =>
  text + " ".repeat(Math.max(0, width - CliOutput.displayWidth(text)))

/** Takes what is too much from the widest column, again and again. */
const fitted = (widths: ReadonlyArray<number>, columns: number | undefined): ReadonlyArray<number> => {
  if (columns === undefined) return widths
  const fitting = [...widths]
  const total = () => fitting.reduce((sum, width) => sum + width, 0) + gap.length * (fitting.length - 1)
  while (total() > columns) {
    const widest = Math.max(...fitting)
    if (widest <= narrowest) break
    fitting[fitting.indexOf(widest)] = widest - 1
  }
  return fitting
}

/** Rows under their headings, each line ended. `columns` undefined: nothing is cut. */
export const table = (
  headings: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string>>,
  columns: number | undefined
): string => {
  const lines = [headings, ...rows.map((row) => row.map(printable))]
  const widths = fitted(
    headings.map((_, at) => Math.max(...lines.map((line) => CliOutput.displayWidth(line[at] ?? "")))),
    columns
  )
  return lines
    .map((line) => line.map((text, at) => padded(cut(text, widths[at] ?? 0), widths[at] ?? 0)).join(gap))
    .map((line) => `${line.trimEnd()}\n`)
    .join("")
}
