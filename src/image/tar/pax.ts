/** What pax records say over the header that follows them (POSIX.1-2001; GNU tar's manual for GNU.sparse). */
import { TarError, type SparseMap, type TarEntry, type TarEntryType } from "./TarEntry.ts"
import type { Header, PaxRecords } from "./tarHeader.ts"

const xattrPrefix = "SCHILY.xattr."
/** linux/limits.h: XATTR_SIZE_MAX and XATTR_NAME_MAX. */
const xattrMaxBytes = 65_536
const xattrNameMaxBytes = 255
/** squashfs holds 32 unsigned bits; the last value is (uid_t) -1, which no file can have. */
const idMax = 0xffff_fffe
const timeMax = 0xffff_ffff

const types: Readonly<Record<string, TarEntryType>> = {
  "0": "file",
  "7": "file",
  S: "file",
  "1": "link",
  "2": "symlink",
  "3": "character",
  "4": "block",
  "5": "directory",
  "6": "fifo"
}

const integer = (value: string): number => {
  const parsed = /^[0-9]{1,16}$/u.test(value) ? Number(value) : -1
  if (parsed < 0 || parsed > Number.MAX_SAFE_INTEGER)
    throw new TarError("a pax header in it has a wrong number")
  return parsed
}

/** Seconds with an optional fraction and sign, as whole seconds. */
const seconds = (value: string): number => {
  if (!/^-?[0-9]{1,15}(?:\.[0-9]*)?$/u.test(value)) throw new TarError("a pax header in it has a wrong time")
  return Math.floor(Number(value))
}

const withoutNul = (value: string): string => {
  if (value.includes("\0")) throw new TarError("a name in it holds a NUL")
  return value
}

const extentList = (value: string): ReadonlyArray<number> =>
  value === "" ? [] : value.split(",").map((it) => integer(it))

/** Overlay attributes have a meaning for the guest's root mount that no image may choose. */
const isForbidden = (name: string) => name.startsWith("trusted.overlay.")
/** squashfs can hold these three name spaces and no other, such as system.posix_acl_access. */
const isStorable = (name: string) => /^(?:user|trusted|security)\./u.test(name)

interface Told {
  name?: string
  linkname?: string
  size?: number
  uid?: number
  gid?: number
  mtime?: number
  sparseName?: string
  sparseSize?: number
  sparseMajor?: string
  sparseMap?: ReadonlyArray<number>
  sparsePairs: Array<number>
  xattrs: Map<string, string>
}

/** An empty value takes a record back: the header's own field counts (POSIX.1-2001). */
const tell: Readonly<Record<string, (told: Told, value: string) => void>> = {
  path: (told, value) => (told.name = withoutNul(value)),
  linkpath: (told, value) => (told.linkname = withoutNul(value)),
  size: (told, value) => (told.size = integer(value)),
  uid: (told, value) => (told.uid = integer(value)),
  gid: (told, value) => (told.gid = integer(value)),
  mtime: (told, value) => (told.mtime = seconds(value)),
  "GNU.sparse.name": (told, value) => (told.sparseName = withoutNul(value)),
  "GNU.sparse.size": (told, value) => (told.sparseSize = integer(value)),
  "GNU.sparse.realsize": (told, value) => (told.sparseSize = integer(value)),
  "GNU.sparse.major": (told, value) => (told.sparseMajor = value),
  "GNU.sparse.map": (told, value) => (told.sparseMap = extentList(value)),
  "GNU.sparse.offset": (told, value) => told.sparsePairs.push(integer(value)),
  "GNU.sparse.numbytes": (told, value) => told.sparsePairs.push(integer(value))
}

const listen = (records: PaxRecords): Told => {
  const told: Told = { sparsePairs: [], xattrs: new Map() }
  for (const [key, value] of records) {
    if (key.startsWith(xattrPrefix)) {
      const name = key.slice(xattrPrefix.length)
      if (value.length > xattrMaxBytes || name.length > xattrNameMaxBytes || name.includes("\0")) {
        throw new TarError("an extended attribute in it is out of bounds")
      }
      if (isStorable(name) && !isForbidden(name)) told.xattrs.set(name, value)
    } else if (value !== "") tell[key]?.(told, value)
  }
  return told
}

const noneEmpty = (extents: ReadonlyArray<number>): ReadonlyArray<number> => {
  const kept: Array<number> = []
  for (let at = 0; at + 1 < extents.length; at += 2) {
    const length = extents[at + 1] ?? 0
    if (length > 0) kept.push(extents[at] ?? 0, length)
  }
  return kept
}

const sparseOf = (told: Told): SparseMap | null =>
  told.sparseSize === undefined
    ? null
    : { realSize: told.sparseSize, extents: noneEmpty(told.sparseMap ?? told.sparsePairs) }

const owner = (id: number): number => {
  if (id > idMax) throw new TarError("an owner in it is out of range")
  return id
}

/** The entry that a header means together with the pax records and GNU long names before it. */
export const paxEntry = (
  header: Header,
  records: PaxRecords | null,
  longName: string | null,
  longLink: string | null,
  oldSparse: SparseMap | null
): { readonly entry: TarEntry; readonly mapInData: boolean } => {
  const type = types[header.flag]
  if (type === undefined)
    throw new TarError(`it has an entry of the unknown type ${JSON.stringify(header.flag)}`)
  const told: Told = records === null ? { sparsePairs: [], xattrs: new Map() } : listen(records)
  const sparse = type === "file" ? (oldSparse ?? sparseOf(told)) : null
  return {
    entry: {
      name: longName ?? told.sparseName ?? told.name ?? header.name,
      type,
      mode: header.mode,
      uid: owner(told.uid ?? header.uid),
      gid: owner(told.gid ?? header.gid),
      mtime: Math.min(Math.max(told.mtime ?? header.mtime, 0), timeMax),
      // Everything but a file has no bytes, whatever its size field says (archive/tar: isHeaderOnly).
      size: type === "file" ? (told.size ?? header.size) : 0,
      linkname: longLink ?? told.linkname ?? header.linkname,
      major: header.major,
      minor: header.minor,
      xattrs: told.xattrs.size === 0 ? [] : [...told.xattrs],
      sparse
    },
    mapInData: sparse !== null && told.sparseMajor === "1"
  }
}

/** How many lines the map in front of a GNU.sparse 1.0 file has, by its first line, which counts the parts. */
export const mapLines = (text: string): number => 1 + 2 * integer(text.slice(0, text.indexOf("\n")))

/** That map: decimal lines, the count first. */
export const parseDataMap = (text: string): ReadonlyArray<number> => {
  const lines = text.split("\n", mapLines(text))
  return noneEmpty(lines.slice(1).map((it) => integer(it)))
}
