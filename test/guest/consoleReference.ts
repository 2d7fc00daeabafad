/** What the lines of a console are, said a second time: by a regular expression over whole runs. Shares no code. */
export interface ReferenceLine {
  readonly cursor: number
  readonly line: string
}

const lineMax = 65_536

/** Lines of whole runs, with long ones (of one-byte characters) cut. */
export const referenceLines = (runs: ReadonlyArray<Buffer>): ReadonlyArray<ReferenceLine> => {
  const found: Array<ReferenceLine> = []
  let base = 0
  for (const run of runs) {
    for (const match of run.toString("latin1").matchAll(/([^\r\n]*)(\n|\r{1,16}\n?|$)/gu)) {
      const [whole, text = ""] = match
      if (whole === "") continue
      const pieces = text.match(/.{1,65536}/gsu) ?? [""]
      let cursor = base + match.index
      for (const [index, piece] of pieces.entries()) {
        cursor += index === pieces.length - 1 ? whole.length - index * lineMax : lineMax
        found.push({ cursor, line: Buffer.from(piece, "latin1").toString("utf8") })
      }
    }
    base += run.length
  }
  return found
}
