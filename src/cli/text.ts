/**
 * Text that others wrote, made safe for a terminal: guests, and whoever names instances, are strangers to the person who
 * reads it.
 */
import { stripVTControlCharacters } from "node:util"

const escape = String.fromCodePoint(0x1b)

/** C0 and C1 controls (ECMA-48), and the marks that turn the direction of writing (Unicode, bidi embeddings, isolates). */
const isUnsafe = (character: string): boolean => {
  const code = character.codePointAt(0) ?? 0
  return (
    code < 0x20 ||
    (code >= 0x7f && code <= 0x9f) ||
    (code >= 0x202a && code <= 0x202e) ||
    (code >= 0x2066 && code <= 0x2069)
  )
}

/** One line without control characters. */
export const printable = (text: string): string =>
  Array.from(text.replace(/[\r\n\t]+/gu, " "), (character) => (isUnsafe(character) ? "?" : character)).join(
    ""
  )

const plain = (text: string): string =>
  Array.from(stripVTControlCharacters(text))
    .filter((character) => character === "\t" || !isUnsafe(character))
    .join("")

/** SGR, select graphic rendition (ECMA-48, 8.3.117): bounded, digits only. */
const colours = /^\[[0-9;]{0,32}m/u

/** A guest's console line for a terminal: colours stay where they are wanted, every other escape goes. */
export const consoleLine = (line: string, colour: boolean): string => {
  if (!colour || !line.includes(escape)) return plain(line)
  let isColoured = false
  const [first = "", ...rest] = line.split(escape)
  const shown = rest.map((part) => {
    const [sgr] = colours.exec(part) ?? []
    if (sgr === undefined) return plain(escape + part)
    isColoured = true
    return escape + sgr + plain(part.slice(sgr.length))
  })
  return plain(first) + shown.join("") + (isColoured ? `${escape}[0m` : "")
}

/** Why something failed, in the words of the error. */
export const reason = (error: unknown): string => (error instanceof Error ? error.message : String(error))
