/** Header blocks and pax bodies of tar archives, decoded. Fields and offsets as in tar(5) and GNU tar's manual. */
import { TarError } from "./TarEntry.ts"

/** Keys and values as bytes, in the order of the archive. */
export type PaxRecords = ReadonlyArray<readonly [key: string, value: string]>

export interface Header {
  readonly name: string
  /** The type flag as a character; NUL of old archives is "0" or, with a slash at the end of the name, "5". */
  readonly flag: string
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: number
  readonly mtime: number
  readonly linkname: string
  readonly major: number
  readonly minor: number
  /** Old GNU sparse: the size of the file with its holes. */
  readonly realSize: number
}

const space = 0x20
const zero = 0x30

/** A base-256 number (GNU): the first byte's high bit says so, the second highest is the sign. */
const base256 = (block: Buffer, start: number, end: number): number => {
  const first = block[start] ?? 0
  if ((first & 0x40) !== 0) throw new TarError("a header in it has a negative number")
  let value = first & 0x3f
  for (let at = start + 1; at < end; at++) value = value * 256 + (block[at] ?? 0)
  if (value > Number.MAX_SAFE_INTEGER) throw new TarError("a header in it has a number out of range")
  return value
}

/** An octal number between any spaces and NULs; an empty field is 0. */
const number = (block: Buffer, start: number, length: number): number => {
  let end = start + length
  if (((block[start] ?? 0) & 0x80) !== 0) return base256(block, start, end)
  let at = start
  while (at < end && (block[at] === space || block[at] === 0)) at++
  while (end > at && (block[end - 1] === space || block[end - 1] === 0)) end--
  let value = 0
  for (; at < end; at++) {
    const digit = (block[at] ?? 0) - zero
    // Some writers close the number and leave old bytes behind it.
    if (digit === -zero || digit === space - zero) break
    if (digit < 0 || digit > 7) throw new TarError("a header in it has a number that is none")
    value = value * 8 + digit
  }
  return value
}

const text = (block: Buffer, start: number, length: number): string => {
  let end = start
  while (end < start + length && block[end] !== 0) end++
  return block.toString("latin1", start, end)
}

/** mtime may be before the epoch; squashfs cannot say so, and an image's meaning does not hang on it. */
const timeOf = (block: Buffer): number => ((block[136] ?? 0) >= 0xc0 ? 0 : number(block, 136, 12))

const isZero = (block: Buffer): boolean => {
  for (const byte of block) if (byte !== 0) return false
  return true
}

/** True where the stored checksum is the sum of the block's bytes, unsigned or, as old tools did it, signed. */
const checksumAgrees = (block: Buffer): boolean => {
  let unsigned = 8 * space
  let signed = 8 * space
  for (let at = 0; at < block.length; at++) {
    if (at >= 148 && at < 156) continue
    const byte = block[at] ?? 0
    unsigned += byte
    signed += byte > 127 ? byte - 256 : byte
  }
  const stored = number(block, 148, 8)
  return stored === unsigned || stored === signed
}

const prefixOf = (block: Buffer): string =>
  block.toString("latin1", 257, 263) !== "ustar\0"
    ? ""
    : block.toString("latin1", 508, 512) === "tar\0"
      ? text(block, 345, 131)
      : text(block, 345, 155)

/** Null for a block of zeros, which closes an archive. */
export const decodeHeader = (block: Buffer): Header | null => {
  if (block[0] === 0 && isZero(block)) return null
  if (!checksumAgrees(block)) throw new TarError("a header in it has a wrong checksum")
  const prefix = prefixOf(block)
  const base = text(block, 0, 100)
  const name = prefix === "" ? base : `${prefix}/${base}`
  const flag = block.toString("latin1", 156, 157)
  const hasDevice = flag === "3" || flag === "4"
  return {
    name,
    flag: flag === "\0" ? (name.endsWith("/") ? "5" : "0") : flag,
    mode: number(block, 100, 8) & 0o7777,
    uid: number(block, 108, 8),
    gid: number(block, 116, 8),
    size: number(block, 124, 12),
    mtime: timeOf(block),
    linkname: text(block, 157, 100),
    major: hasDevice ? number(block, 329, 8) : 0,
    minor: hasDevice ? number(block, 337, 8) : 0,
    realSize: flag === "S" ? number(block, 483, 12) : 0
  }
}

/** Old GNU sparse: `count` pairs of offset and length; unused ones are empty. */
export const extentsOf = (block: Buffer, start: number, count: number): ReadonlyArray<number> => {
  const extents: Array<number> = []
  for (let index = 0; index < count; index++) {
    const at = start + index * 24
    if (block[at] === 0) break
    const length = number(block, at + 12, 12)
    if (length > 0) extents.push(number(block, at, 12), length)
  }
  return extents
}

/** Old GNU sparse: another block of extents follows. */
export const isExtended = (block: Buffer, at: number): boolean => block[at] === 1 || block[at] === 0x31

/** `LENGTH KEY=VALUE\n` records; values may hold any byte. */
export const readPax = (body: Buffer): PaxRecords => {
  const records: Array<readonly [string, string]> = []
  let at = 0
  while (at < body.length) {
    const gap = body.indexOf(space, at)
    const digits = gap === -1 ? "" : body.toString("latin1", at, gap)
    const length = /^[0-9]{1,7}$/u.test(digits) ? Number(digits) : 0
    const end = at + length
    if (end > body.length || end <= gap + 2 || body[end - 1] !== 0x0a) {
      throw new TarError("a pax header in it is malformed")
    }
    const record = body.toString("latin1", gap + 1, end - 1)
    const equals = record.indexOf("=")
    if (equals < 1) throw new TarError("a pax header in it is malformed")
    records.push([record.slice(0, equals), record.slice(equals + 1)])
    at = end
  }
  return records
}
