/**
 * Files of this host as a tar, read as it is sent: a file, or a directory with all below it, under a name of its own.
 * Symbolic links go as links; sockets, FIFOs and devices are left out and told.
 */
import { createReadStream } from "node:fs"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Stream from "effect/Stream"
import { pack, type Pack } from "tar-stream"

import { failure, type Failure } from "./Failure.ts"
import { roomIn } from "./roomIn.ts"
import { reason } from "./text.ts"

const modeBits = 0o7777

type Sink = ReturnType<Pack["entry"]>

/** The file's first `size` bytes, which its header has announced already: one that grows meanwhile is sent as it was. */
const addBody = async (body: Sink, source: string, size: number): Promise<void> => {
  let sent = 0
  if (size > 0)
    for await (const piece of createReadStream(source, { end: size - 1 })) {
      if (!Buffer.isBuffer(piece)) continue
      sent += piece.length
      if (!body.write(piece)) await roomIn(body)
    }
  if (sent < size) throw new Error("it became shorter while it was read")
  body.end(null)
}

/** tar-stream's entries are owned by root in the guest, as what a person copies into a machine is. */
const add = async (
  archive: Pack,
  source: string,
  name: string,
  skipped: (file: string) => void
): Promise<void> => {
  const about = await fs.lstat(source)
  const common = { name, mode: about.mode & modeBits, mtime: about.mtime, uid: 0, gid: 0 }
  if (about.isDirectory()) {
    archive.entry({ ...common, name: `${name}/`, type: "directory" })
    const names = await fs.readdir(source)
    for (const inner of names.toSorted())
      await add(archive, path.join(source, inner), `${name}/${inner}`, skipped)
  } else if (about.isSymbolicLink()) {
    archive.entry({ ...common, type: "symlink", linkname: await fs.readlink(source) })
  } else if (about.isFile()) {
    const entry = archive.entry({ ...common, type: "file", size: about.size })
    await addBody(entry, source, about.size)
  } else skipped(source)
}

/** The archive of what is at `source`, whose top entry is `name`. Ends with the reader. */
export const packFiles = (
  source: string,
  name: string,
  skipped: (file: string) => void
): Stream.Stream<Uint8Array, Failure> =>
  Stream.unwrap(
    Effect.sync(() => {
      const archive = pack()
      const failed = (error: unknown) => failure(`Cannot read ${source}: ${reason(error)}`)
      // A link that the person names is followed, one below it is not.
      void fs
        .realpath(source)
        .then((real) => add(archive, real, name, skipped))
        .then(
          () => archive.finalize(),
          (error: unknown) => archive.destroy(error instanceof Error ? error : new Error(String(error)))
        )
      return Stream.fromAsyncIterable<unknown, Failure>(archive, failed).pipe(
        Stream.filter(Predicate.isUint8Array),
        Stream.ensuring(Effect.sync(() => archive.destroy()))
      )
    })
  )
