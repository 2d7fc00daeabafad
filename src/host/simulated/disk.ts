/**
 * The files that VMMs and guests touch themselves, behind the service's back: consoles, logs, sockets, disks. Calls are
 * synchronous, so that one change of the world is one step; they never sync, as a VMM's do not.
 */
import * as fs from "node:fs"
import * as path from "node:path"

export interface Disk {
  readonly exists: (file: string) => boolean
  /** Creates an empty file, or leaves the one that is there. Throws where the directory is missing. */
  readonly touch: (file: string) => void
  /** Throws what the file system throws. */
  readonly append: (file: string, text: string) => void
  readonly remove: (file: string) => void
  /** The bytes at `offset`, fewer at the end of the file. Throws where there is no such file. */
  readonly readAt: (file: string, offset: number, length: number) => Uint8Array
  readonly writeAt: (file: string, offset: number, bytes: Uint8Array) => void
  readonly size: (file: string) => number
}

const fileMode = 0o600

const withFile = <A>(file: string, flags: string, body: (fd: number) => A): A => {
  const fd = fs.openSync(file, flags, fileMode)
  try {
    return body(fd)
  } finally {
    fs.closeSync(fd)
  }
}

/** The host's own file system. */
export const hostDisk: Disk = {
  exists: (file) => fs.existsSync(file),
  touch: (file) => withFile(path.resolve(file), "a", () => undefined),
  append: (file, text) => fs.appendFileSync(file, text, { mode: fileMode }),
  remove: (file) => fs.rmSync(file, { force: true }),
  readAt: (file, offset, length) =>
    withFile(file, "r", (fd) => {
      const bytes = new Uint8Array(length)
      return bytes.subarray(0, fs.readSync(fd, bytes, 0, length, offset))
    }),
  writeAt: (file, offset, bytes) =>
    withFile(file, "r+", (fd) => void fs.writeSync(fd, bytes, 0, bytes.length, offset)),
  size: (file) => fs.statSync(file).size
}
