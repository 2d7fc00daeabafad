/**
 * Where a command writes: results on stdout, everything else on stderr. Knows what kind of place each is, so that people
 * get tables as wide as their terminal and programs get all of it.
 */
import * as Context from "effect/Context"
import * as Layer from "effect/Layer"

/** For a terminal that does not say how wide it is. */
const defaultColumns = 80

export class Screen extends Context.Service<
  Screen,
  {
    /** Writes a result. Synchronous, in one piece: an interrupted command has written whole lines or none. */
    readonly out: (text: string) => void
    /** Writes what is no result: progress, notes, errors. */
    readonly note: (text: string) => void
    /** Columns of the terminal on stdout; undefined where it is none, and nothing is cut. */
    readonly columns: number | undefined
    /** Columns of the terminal on stderr, on which progress is drawn; undefined where it is none. */
    readonly noteColumns: number | undefined
    /** Whether stdout takes colours: a terminal, and NO_COLOR (no-color.org) is not set. */
    readonly colour: boolean
  }
>()("dataplane/cli/Screen") {
  static readonly layer: Layer.Layer<Screen> = Layer.sync(Screen, () => {
    const { stdout, stderr, env } = process
    const wide = (stream: NodeJS.WriteStream) =>
      stream.isTTY ? (stream.columns > 0 ? stream.columns : defaultColumns) : undefined
    // The reader has gone, as `head` does when it has enough: the end that the shell gives a program without handler.
    stdout.on("error", () => process.exit(141))
    const colourful = (env["NO_COLOR"] ?? "") === "" && env["TERM"] !== "dumb"
    return {
      out: (text) => void stdout.write(text),
      note: (text) => void stderr.write(text),
      columns: wide(stdout),
      noteColumns: env["TERM"] === "dumb" ? undefined : wide(stderr),
      colour: colourful && stdout.isTTY
    }
  })
}
