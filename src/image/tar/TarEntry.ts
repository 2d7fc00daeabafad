/**
 * One entry of a tar archive, in the terms of ustar (POSIX.1-1988), pax (POSIX.1-2001) and GNU tar. All texts are
 * byte strings (latin1): names and extended attributes of Linux are bytes, not UTF-8, and come out as they went in.
 */
export type TarEntryType = "file" | "link" | "symlink" | "character" | "block" | "directory" | "fifo"

/** Where the bytes of a sparse file go (GNU.sparse.map): pairs of offset and length in a file of `realSize` bytes. */
export interface SparseMap {
  readonly realSize: number
  readonly extents: ReadonlyArray<number>
}

export interface TarEntry {
  readonly name: string
  readonly type: TarEntryType
  /** Permission bits, 0 to 0o7777. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Seconds since the epoch; squashfs holds 32 unsigned bits of it. */
  readonly mtime: number
  /** Bytes that follow in the archive; 0 for everything but files. */
  readonly size: number
  readonly linkname: string
  readonly major: number
  readonly minor: number
  readonly xattrs: ReadonlyArray<readonly [name: string, value: string]>
  readonly sparse: SparseMap | null
}

export const blockBytes = 512
export const paddingOf = (size: number): number => (blockBytes - (size % blockBytes)) % blockBytes

/** What is wrong with an archive, as the end of a sentence that begins with its name. */
export class TarError extends Error {
  override readonly name = "TarError"
}

/** A byte string for people: UTF-8 where it is UTF-8, quoted, control characters escaped, bounded. */
export const shown = (name: string): string => {
  const text = Buffer.from(name, "latin1").toString("utf8")
  return JSON.stringify(text.length > 120 ? `${text.slice(0, 120)}…` : text)
}
