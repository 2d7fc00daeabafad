/**
 * Writes the archive that the kernel unpacks as its first root: cpio in the "new ASCII" format (initramfs buffer format,
 * kernel Documentation/driver-api/early-userspace/buffer-format.rst). Pure: the same entries, the same bytes.
 */

export type CpioEntry =
  | { readonly _tag: "File"; readonly path: string; readonly mode: number; readonly content: Uint8Array }
  | { readonly _tag: "Directory"; readonly path: string; readonly mode: number }
  | {
      readonly _tag: "CharacterDevice"
      readonly path: string
      readonly mode: number
      readonly major: number
      readonly minor: number
    }

/** stat(2): the type in a mode. */
const typeBits = { File: 0o100000, Directory: 0o040000, CharacterDevice: 0o020000 } as const
const magic = "070701"
const alignment = 4

const hex8 = (value: number): string => value.toString(16).padStart(8, "0")
const padding = (length: number): Buffer => Buffer.alloc((alignment - (length % alignment)) % alignment)

interface Header {
  readonly inode: number
  readonly mode: number
  readonly size: number
  readonly major: number
  readonly minor: number
}

/** Header, name with its NUL, and padding: 110 bytes of header count for the alignment. */
const head = (path: string, { inode, mode, size, major, minor }: Header): Buffer => {
  const name = Buffer.from(`${path}\0`)
  const links = mode >= typeBits.Directory && mode < typeBits.Directory + 0o10000 ? 2 : 1
  const [uid, gid, time, fileMajor, fileMinor, checksum] = [0, 0, 0, 0, 0, 0]
  const fields = [
    inode,
    mode,
    uid,
    gid,
    links,
    time,
    size,
    fileMajor,
    fileMinor,
    major,
    minor,
    name.length,
    checksum
  ]
  const header = Buffer.concat([Buffer.from(magic + fields.map(hex8).join("")), name])
  return Buffer.concat([header, padding(header.length)])
}

/** Paths are relative to the root, without a leading slash; a directory comes before what is in it. Owner is root. */
export const encodeCpio = (entries: ReadonlyArray<CpioEntry>): Buffer => {
  const parts = entries.flatMap((entry, index) => {
    const content = entry._tag === "File" ? entry.content : new Uint8Array()
    const { major, minor } = entry._tag === "CharacterDevice" ? entry : { major: 0, minor: 0 }
    const mode = typeBits[entry._tag] | entry.mode
    return [
      head(entry.path, { inode: index + 1, mode, size: content.length, major, minor }),
      content,
      padding(content.length)
    ]
  })
  const trailer = head("TRAILER!!!", { inode: 0, mode: 0, size: 0, major: 0, minor: 0 })
  return Buffer.concat([...parts, trailer])
}
