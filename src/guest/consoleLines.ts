/**
 * Where a line of a console ends. Pure, and a function of the bytes from the line's start only, so that it makes no
 * difference how they arrived, or where a reader resumed.
 *
 * A line ends with a line feed, with carriage returns and a line feed (a serial port's, and a program's own on top), or
 * with carriage returns alone, as progress bars have them. One that is longer than 64 KiB is cut into pieces, never
 * inside of a UTF-8 sequence. Escape sequences stay as they are.
 */

export const lineMaxBytes = 64 * 1024
/** Carriage returns that belong to one end; more make lines of their own. */
const returnsMax = 16
/** With so many bytes at hand, there always is a line. */
export const enoughBytes = lineMaxBytes + returnsMax + 2

const lineFeed = 0x0a
const carriageReturn = 0x0d
const utf8MaxBytes = 4

export interface Line {
  /** Offset of the byte behind the text. */
  readonly textEnd: number
  /** Offset of the byte behind the line's end: where the next one starts. */
  readonly next: number
}

/** The end of a line at carriage returns that start at `at`; undefined where it depends on the byte to come. */
const endAtReturns = (bytes: Buffer, at: number, ended: boolean): Line | undefined => {
  let next = at
  while (next < bytes.length && bytes[next] === carriageReturn && next - at < returnsMax) next++
  if (next === bytes.length) return ended ? { textEnd: at, next } : undefined
  return { textEnd: at, next: bytes[next] === lineFeed ? next + 1 : next }
}

/** Back to the start of the UTF-8 sequence that a cut would split; bytes that are none are cut where they are. */
const cutAt = (bytes: Buffer, limit: number): Line => {
  const isContinuation = (at: number) => ((bytes[at] ?? 0) & 0xc0) === 0x80
  let cut = limit
  while (limit - cut < utf8MaxBytes && isContinuation(cut)) cut--
  const end = isContinuation(cut) ? limit : cut
  return { textEnd: end, next: end }
}

/**
 * The line that starts at `from`; undefined where more bytes have to come first. `ended` says that none will: what is
 * left then is a line as well.
 */
export const lineAt = (bytes: Buffer, from: number, ended: boolean): Line | undefined => {
  const limit = from + lineMaxBytes
  for (let at = from; at < bytes.length; at++) {
    const byte = bytes[at]
    if (byte === lineFeed) return { textEnd: at, next: at + 1 }
    if (byte === carriageReturn) return endAtReturns(bytes, at, ended)
    if (at === limit) return cutAt(bytes, limit)
  }
  return ended && from < bytes.length ? { textEnd: bytes.length, next: bytes.length } : undefined
}
