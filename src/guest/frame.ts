/**
 * The frames of the agent channel; the guest's twin is `agent/src/frame.rs`. Pure.
 *
 * A frame is a header and a payload, stuffed so that it holds no zero byte (Consistent Overhead Byte Stuffing, Cheshire
 * and Baker 1999), closed by one zero byte:
 *
 *   0  1 byte   kind
 *   1  4 bytes  stream, little endian
 *   5  2 bytes  length of the payload, little endian
 *   7  n bytes  payload
 *
 * The zero byte is what a byte stream without connections needs (virtio-serial): whoever comes new to the channel, in
 * the middle of somebody else's frame, sends a zero and is understood from there. A frame that was cut short contradicts
 * its length. Two zeros in a row are an empty frame, which says nothing.
 */
import * as Data from "effect/Data"

/** Header and payload, before stuffing. */
export const frameMaxBytes = 64 * 1024
const headerBytes = 7
export const payloadMaxBytes = frameMaxBytes - headerBytes
/** Bytes that one block of the stuffing stands for, without the zero behind it. */
const runMax = 254
/** One byte of overhead for each run, and one more. */
const stuffedMaxBytes = frameMaxBytes + Math.floor(frameMaxBytes / runMax) + 1

/** JSON: requests, answers and news on stream 0; what concerns one stream on that stream. */
export const controlKind = 1
/** Bytes of a stream: stdin, stdout, a tar. */
export const dataKind = 2
/** Bytes of a process's stderr. */
export const stderrKind = 3
/** The sender has no more bytes for this stream. */
export const endKind = 4
/** The receiver takes so many more bytes of this stream: 4 bytes, little endian. */
export const creditKind = 5

/** The most bytes that a frame with such a payload takes on the channel. */
export const frameBytes = (payloadBytes: number): number => {
  const plain = headerBytes + payloadBytes
  return plain + Math.floor(plain / runMax) + 2
}

export interface Frame {
  readonly kind: number
  readonly stream: number
  readonly payload: Buffer
}

/** What a decoder finds between two zero bytes. */
export type Piece = Data.TaggedEnum<{
  Frame: { readonly frame: Frame }
  /** Not a frame: too long, wrongly stuffed, or cut short. */
  Garbage: { readonly bytes: number }
}>
export const Piece = Data.taggedEnum<Piece>()

const stuff = (plain: Buffer): Buffer => {
  const out = Buffer.allocUnsafe(plain.length + Math.floor(plain.length / runMax) + 2)
  let to = 0
  let from = 0
  for (;;) {
    const zero = plain.indexOf(0, from)
    const run = Math.min((zero === -1 ? plain.length : zero) - from, runMax)
    out[to] = run + 1
    plain.copy(out, to + 1, from, from + run)
    to += run + 1
    from += run
    if (from === plain.length) break
    // A full run stands for no zero; a shorter one for the zero behind it.
    if (run < runMax) from += 1
  }
  out[to] = 0
  return out.subarray(0, to + 1)
}

const unstuff = (stuffed: Buffer): Buffer | undefined => {
  const plain = Buffer.allocUnsafe(stuffed.length)
  let to = 0
  let from = 0
  while (from < stuffed.length) {
    const code = stuffed[from] ?? 0
    const end = from + code
    if (end > stuffed.length) return undefined
    stuffed.copy(plain, to, from + 1, end)
    to += code - 1
    from = end
    if (code <= runMax && from < stuffed.length) plain[to++] = 0
  }
  return plain.subarray(0, to)
}

const parse = (stuffed: Buffer): Frame | undefined => {
  const plain = unstuff(stuffed)
  if (plain === undefined || plain.length < headerBytes || plain.length > frameMaxBytes) return undefined
  const payload = plain.subarray(headerBytes)
  if (payload.length !== plain.readUInt16LE(5)) return undefined
  return { kind: plain.readUInt8(0), stream: plain.readUInt32LE(1), payload }
}

/** The frame with its closing zero. The payload holds at most `payloadMaxBytes`; more is a defect of the caller. */
export const encodeFrame = (frame: Frame): Buffer => {
  if (frame.payload.length > payloadMaxBytes)
    throw new RangeError(`a payload of ${frame.payload.length} bytes`)
  const header = Buffer.alloc(headerBytes)
  header.writeUInt8(frame.kind, 0)
  header.writeUInt32LE(frame.stream, 1)
  header.writeUInt16LE(frame.payload.length, 5)
  return stuff(Buffer.concat([header, frame.payload]))
}

export interface FrameDecoder {
  /** Takes bytes as they come, gives what is whole now. The pieces own their memory. */
  readonly push: (chunk: Buffer) => ReadonlyArray<Piece>
  /** Bytes held of a frame that is not whole yet: never more than a largest frame has. */
  readonly held: () => number
}

/** What a decoder begins with, and goes back to after a large frame. */
const bufferMinBytes = 4096

export const makeFrameDecoder = (): FrameDecoder => {
  let buffer = Buffer.allocUnsafe(bufferMinBytes)
  let held = 0
  /** Bytes of an overlong frame that were let go; 0: the frame is not overlong so far. */
  let overrun = 0

  const hold = (bytes: Buffer): void => {
    if (overrun > 0 || held + bytes.length > stuffedMaxBytes) {
      overrun += held + bytes.length
      held = 0
      return
    }
    if (held + bytes.length > buffer.length) {
      const larger = Buffer.allocUnsafe(Math.min(2 * (held + bytes.length), stuffedMaxBytes))
      buffer.copy(larger, 0, 0, held)
      buffer = larger
    }
    bytes.copy(buffer, held)
    held += bytes.length
  }

  const close = (): Piece | undefined => {
    const stuffed = buffer.subarray(0, held)
    const lost = overrun
    if (buffer.length > bufferMinBytes) buffer = Buffer.allocUnsafe(bufferMinBytes)
    held = 0
    overrun = 0
    if (lost > 0) return Piece.Garbage({ bytes: lost })
    if (stuffed.length === 0) return undefined
    const frame = parse(stuffed)
    return frame === undefined ? Piece.Garbage({ bytes: stuffed.length }) : Piece.Frame({ frame })
  }

  return {
    held: () => held,
    push: (chunk) => {
      const pieces: Array<Piece> = []
      let from = 0
      for (let zero = chunk.indexOf(0); zero !== -1; zero = chunk.indexOf(0, from)) {
        hold(chunk.subarray(from, zero))
        const piece = close()
        if (piece !== undefined) pieces.push(piece)
        from = zero + 1
        // Empty frames are cheap to send, so they are cheap to skip.
        while (chunk[from] === 0) from += 1
      }
      hold(chunk.subarray(from))
      return pieces
    }
  }
}
