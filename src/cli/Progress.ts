/**
 * What takes a while, shown while it does: a bar on a terminal, drawn over itself and taken away at the end, and a plain
 * line for each new phase elsewhere. On stderr, so that results can be piped.
 */
import * as CliOutput from "effect/cli/CliOutput"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { dataplane } from "./dataplane.ts"
import { Screen } from "./Screen.ts"
import { printable } from "./text.ts"

/** How far something is: a phase in words, and of how much how much is done where that is known. */
export interface Stage {
  readonly phase: string
  readonly done?: number
  readonly total?: number
}

const redrawMs = 100
const barMaxCells = 30
const eraseLine = "\r\u001b[K"

const scaled = (bytes: number): string => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"]
  const at = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1)
  const value = bytes / 1024 ** at
  return `${at === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[at] ?? ""}`
}
export { scaled as byteText }

/** The bar's cells: filled from the left where the end is known, a block that wanders where it is not. */
const cells = (stage: Stage, width: number, elapsedMs: number): string => {
  const { done = 0, total = 0 } = stage
  if (total > 0) {
    const filled = Math.min(width, Math.floor((width * done) / total))
    return "#".repeat(filled) + "-".repeat(width - filled)
  }
  const block = Math.max(1, Math.floor(width / 5))
  const way = Math.max(1, width - block)
  const step = Math.floor(elapsedMs / redrawMs) % (2 * way)
  const at = step < way ? step : 2 * way - step
  return "-".repeat(at) + "#".repeat(block) + "-".repeat(width - block - at)
}

const amounts = ({ done, total }: Stage): string =>
  done !== undefined && total !== undefined && total > 0
    ? ` ${Math.min(100, Math.floor((100 * done) / total))} % of ${scaled(total)}`
    : ""

/** One line, at most as wide as the terminal: what, how far, for how long. */
export const bar = (title: string, stage: Stage, elapsedMs: number, columns: number): string => {
  const words = `${printable(title)}: ${printable(stage.phase)}${amounts(stage)} ${(elapsedMs / 1000).toFixed(1)} s`
  const width = Math.min(barMaxCells, columns - CliOutput.displayWidth(words) - 4)
  return width < 5 ? words.slice(0, columns - 1) : `[${cells(stage, width, elapsedMs)}] ${words}`
}

/** Shows the body's stages while it runs. Nothing of it is left on a terminal, however the body ends. */
export const withProgress = <A, E, R>(
  title: string,
  first: Stage,
  body: (show: (stage: Stage) => Effect.Effect<void>) => Effect.Effect<A, E, R>
) =>
  Effect.gen(function* () {
    const screen = yield* Screen
    const { json } = yield* dataplane
    const columns = screen.noteColumns
    const began = yield* Clock.currentTimeMillis
    let stage = first
    if (json) return yield* body(() => Effect.void)
    if (columns === undefined) {
      const line = () => screen.note(`${printable(title)}: ${printable(stage.phase)}\n`)
      line()
      return yield* body((next) =>
        Effect.sync(() => {
          const isNew = next.phase !== stage.phase
          stage = next
          if (isNew) line()
        })
      )
    }
    const draw = Effect.map(Clock.currentTimeMillis, (now) =>
      screen.note(eraseLine + bar(title, stage, now - began, columns))
    )
    const drawing = Effect.repeat(draw, Schedule.spaced(redrawMs))
    const work = body((next) => Effect.sync(() => void (stage = next)))
    return yield* Effect.raceFirst(work, Effect.andThen(drawing, Effect.never)).pipe(
      Effect.ensuring(Effect.sync(() => screen.note(eraseLine)))
    )
  })
