/** How results are printed: JSON as the API has it for programs, lines and tables for people. */
import * as Effect from "effect/Effect"
import { dataplane } from "./dataplane.ts"
import { Failure, failureOf } from "./Failure.ts"
import { Screen } from "./Screen.ts"
import { table } from "./table.ts"
import { printable } from "./text.ts"

const jsonText = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`

/** One document: JSON with `--json`, else what it is for people. */
export const print = (value: unknown, forPeople: (screen: Screen["Service"]) => string) =>
  Effect.gen(function* () {
    const screen = yield* Screen
    const { json } = yield* dataplane
    screen.out(json ? jsonText(value) : forPeople(screen))
  })

export const printJson = (value: unknown) => Effect.map(Screen, ({ out }) => out(jsonText(value)))

/** One of a stream's objects: a line of JSON with `--json`. */
export const printEach = (value: unknown, forPeople: (screen: Screen["Service"]) => string) =>
  Effect.gen(function* () {
    const screen = yield* Screen
    const { json } = yield* dataplane
    screen.out(json ? `${JSON.stringify(value)}\n` : forPeople(screen))
  })

export const printTable = <A>(
  items: ReadonlyArray<A>,
  headings: ReadonlyArray<string>,
  row: (item: A) => ReadonlyArray<string>
) => print(items, ({ columns }) => table(headings, items.map(row), columns))

export const note = (text: string) => Effect.map(Screen, (screen) => screen.note(`${text}\n`))

/**
 * The same for each reference, in order; one that fails stops no other. Prints as it goes for people; with `--json` one
 * document at the end, an array where several were asked for. Fails with the first failure, the rest is told.
 */
export const forEachReference = <A, E, R>(
  references: ReadonlyArray<string>,
  act: (reference: string) => Effect.Effect<A, E, R>,
  forPeople: (value: A) => string
) =>
  Effect.gen(function* () {
    const screen = yield* Screen
    const { json } = yield* dataplane
    const done: Array<A> = []
    const failures: Array<Failure> = []
    for (const reference of references) {
      const result = yield* Effect.result(act(reference))
      if (result._tag === "Success") {
        done.push(result.success)
        if (!json) screen.out(forPeople(result.success))
      } else {
        const { sentence, exitCode } = yield* failureOf(result.failure)
        const who = references.length === 1 ? "" : `${printable(reference)}: `
        failures.push(new Failure({ sentence: `${who}${sentence}`, exitCode }))
      }
    }
    if (json && done.length > 0) screen.out(jsonText(references.length === 1 ? done[0] : done))
    const [first, ...others] = failures
    if (first === undefined) return
    return yield* new Failure({
      sentence: [first, ...others].map(({ sentence }) => sentence).join("\n"),
      exitCode: first.exitCode
    })
  })
