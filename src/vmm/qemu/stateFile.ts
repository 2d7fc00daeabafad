/**
 * The one file of a QEMU snapshot, `state`: QEMU's migration stream with a head that says how the machine was laid out,
 * and a tail that is written last, so that a file which was not finished is not one. Whether it is the file that was
 * written is not its own to say: its checksum is with whoever keeps the snapshot.
 *
 *   8 bytes   "CHDQEMU1"
 *   4         length of the head, little endian
 *   n         StateHead as JSON
 *   ...       the migration stream
 *   8         "CHDQEND1"
 *   8         length of the stream, little endian
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { VmmFault } from "../Vmm.ts"
import type { Ports } from "./layout.ts"

const headMagic = "CHDQEMU1"
const tailMagic = "CHDQEND1"
const prefixBytes = 12
const tailBytes = 16
const headMaxBytes = 64 * 1024

const StateHead = Schema.Struct({
  /** QEMU's version and machine type. */
  qemu: Schema.String,
  machine: Schema.String,
  /** Root ports of the disks that are in one, by serial. */
  ports: Schema.Record(Schema.String, Schema.Int)
})
export type StateHead = typeof StateHead.Type
const HeadJson = Schema.fromJsonString(StateHead)
const encodeHead = Schema.encodeSync(HeadJson)
const decodeHead = Schema.decodeUnknownOption(HeadJson)

export const stateName = "state"
export const statePath = (directory: string): string => path.join(directory, stateName)
export const portsOf = (head: StateHead): Ports => new Map(Object.entries(head.ports))

/** What stands before the stream. */
export const headOf = (head: StateHead): Buffer => {
  const json = Buffer.from(encodeHead(head), "utf8")
  const prefix = Buffer.alloc(prefixBytes)
  prefix.write(headMagic, 0, "latin1")
  prefix.writeUInt32LE(json.length, headMagic.length)
  return Buffer.concat([prefix, json])
}

/** What stands behind a stream of so many bytes. */
export const tailOf = (streamBytes: number): Buffer => {
  const tail = Buffer.alloc(tailBytes)
  tail.write(tailMagic, 0, "latin1")
  tail.writeBigUInt64LE(BigInt(streamBytes), tailMagic.length)
  return tail
}

export interface StateFile {
  readonly path: string
  readonly head: StateHead
  /** Where the stream begins, and how long it is. */
  readonly offset: number
  readonly bytes: number
}

/** How long the whole file is. */
export const sizeOf = (state: StateFile): number => state.offset + state.bytes + tailBytes

const readAt = async (handle: fs.FileHandle, position: number, length: number): Promise<Buffer> => {
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(length), 0, length, position)
  return buffer.subarray(0, bytesRead)
}

const parse = async (file: string): Promise<StateFile | undefined> => {
  const handle = await fs.open(file, "r")
  try {
    const { size } = await handle.stat()
    if (size < prefixBytes + tailBytes) return undefined
    const prefix = await readAt(handle, 0, prefixBytes)
    const tail = await readAt(handle, size - tailBytes, tailBytes)
    const headBytes = prefix.readUInt32LE(headMagic.length)
    const bytes = tail.readBigUInt64LE(tailMagic.length)
    const offset = prefixBytes + headBytes
    if (prefix.toString("latin1", 0, headMagic.length) !== headMagic) return undefined
    if (tail.toString("latin1", 0, tailMagic.length) !== tailMagic) return undefined
    if (headBytes > headMaxBytes || bytes !== BigInt(size - offset - tailBytes)) return undefined
    const head = decodeHead((await readAt(handle, prefixBytes, headBytes)).toString("utf8"))
    if (Option.isNone(head)) return undefined
    return { path: file, head: head.value, offset, bytes: Number(bytes) }
  } finally {
    await handle.close()
  }
}

/** The state file of a snapshot, if it is whole by its own word; its content is checked while it is loaded. */
export const readStateFile = (directory: string): Effect.Effect<StateFile, VmmFault> =>
  Effect.tryPromise({
    try: () => parse(statePath(directory)),
    catch: (cause) =>
      new VmmFault({ operation: "restore", reason: "the snapshot's state cannot be read", cause })
  }).pipe(
    Effect.flatMap((found) =>
      found === undefined
        ? Effect.fail(
            new VmmFault({
              operation: "restore",
              reason: "the snapshot's state is not complete",
              cause: undefined
            })
          )
        : Effect.succeed(found)
    )
  )
