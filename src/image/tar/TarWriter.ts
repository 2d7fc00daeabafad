/**
 * Tar entries as tar2sqfs reads them: a ustar header where everything fits, a pax header before it where not. Numbers
 * that overflow octal fields, long names, extended attributes and sparse maps (GNU.sparse 0.1) go to pax.
 */
import { blockBytes, paddingOf, type TarEntry, type TarEntryType } from "./TarEntry.ts"

const typeFlags: Record<TarEntryType, string> = {
  file: "0",
  link: "1",
  symlink: "2",
  character: "3",
  block: "4",
  directory: "5",
  fifo: "6"
}
const nameFieldBytes = 100
const idFieldMax = 0o7777777
const sizeFieldMax = 0o77777777777

/** Two zero blocks: tar2sqfs refuses an archive without them. */
export const trailer: Buffer = Buffer.alloc(2 * blockBytes)
const zeros = Buffer.alloc(blockBytes)
/** The zeros between an entry's last byte and the next header. */
export const padding = (size: number): Buffer => zeros.subarray(0, paddingOf(size))

const octal = (block: Buffer, value: number, offset: number, digits: number) => {
  block.write(value.toString(8).padStart(digits, "0"), offset, digits, "latin1")
}

const headerBlock = (
  name: string,
  flag: string,
  size: number,
  entry: Pick<TarEntry, "mode" | "uid" | "gid" | "mtime" | "linkname" | "major" | "minor">
): Buffer => {
  const block = Buffer.allocUnsafe(blockBytes).fill(0)
  block.write(name.slice(0, nameFieldBytes), 0, "latin1")
  octal(block, entry.mode, 100, 7)
  octal(block, entry.uid > idFieldMax ? 0 : entry.uid, 108, 7)
  octal(block, entry.gid > idFieldMax ? 0 : entry.gid, 116, 7)
  octal(block, size > sizeFieldMax ? 0 : size, 124, 11)
  octal(block, entry.mtime, 136, 11)
  block.write("        ", 148, "latin1")
  block.write(flag, 156, "latin1")
  block.write(entry.linkname.slice(0, nameFieldBytes), 157, "latin1")
  block.write("ustar\u000000", 257, "latin1")
  octal(block, entry.major, 329, 7)
  octal(block, entry.minor, 337, 7)
  let sum = 0
  for (let at = 0; at < blockBytes; at++) sum += block[at] ?? 0
  octal(block, sum, 148, 6)
  block[154] = 0
  return block
}

/** `LENGTH KEY=VALUE\n`, where LENGTH counts itself (pax, "ustar interchange format: pax header"). */
const paxRecord = (key: string, value: string): string => {
  const rest = ` ${key}=${value}\n`
  let length = rest.length + 1
  while (`${length}`.length + rest.length !== length) length = `${length}`.length + rest.length
  return `${length}${rest}`
}

const paxRecords = (entry: TarEntry): string => {
  let records = ""
  if (entry.name.length > nameFieldBytes) records += paxRecord("path", entry.name)
  if (entry.linkname.length > nameFieldBytes) records += paxRecord("linkpath", entry.linkname)
  if (entry.uid > idFieldMax) records += paxRecord("uid", `${entry.uid}`)
  if (entry.gid > idFieldMax) records += paxRecord("gid", `${entry.gid}`)
  if (entry.size > sizeFieldMax) records += paxRecord("size", `${entry.size}`)
  if (entry.sparse !== null) {
    records += paxRecord("GNU.sparse.size", `${entry.sparse.realSize}`)
    records += paxRecord("GNU.sparse.numblocks", `${entry.sparse.extents.length / 2}`)
    records += paxRecord("GNU.sparse.map", entry.sparse.extents.join(","))
  }
  for (const [name, value] of entry.xattrs) records += paxRecord(`SCHILY.xattr.${name}`, value)
  return records
}

const plain = { mode: 0o644, uid: 0, gid: 0, mtime: 0, linkname: "", major: 0, minor: 0 }

/** The header of an entry; its `size` bytes and their padding follow. */
export const header = (entry: TarEntry): Buffer => {
  const records = paxRecords(entry)
  const block = headerBlock(entry.name, typeFlags[entry.type], entry.size, entry)
  if (records === "") return block
  const body = Buffer.from(records, "latin1")
  return Buffer.concat([headerBlock("pax", "x", body.length, plain), body, padding(body.length), block])
}
