/**
 * What came on a stream and was not read yet: at most a window of bytes, since the rules hold the sender to its credit,
 * and few pieces whatever it cuts them into. Small neighbours are put together; where the two kinds take turns for too
 * long, their order among each other is given up rather than memory.
 */

export interface Segment {
  readonly stderr: boolean
  readonly bytes: Uint8Array
}

/** Pieces of at least so many bytes are kept as they came; smaller ones are put together up to it. */
const pieceBytes = 16 * 1024
/** So many pieces are kept in their order. */
const piecesMax = 64

interface Piece {
  readonly stderr: boolean
  buffer: Buffer
  length: number
}

export interface Inbox {
  readonly push: (stderr: boolean, bytes: Buffer) => void
  readonly take: () => Segment | undefined
  /** Pieces held now. */
  readonly pieces: () => number
}

const append = (piece: Piece, bytes: Buffer): void => {
  const length = piece.length + bytes.length
  if (length > piece.buffer.length) {
    const larger = Buffer.allocUnsafe(2 * length)
    piece.buffer.copy(larger, 0, 0, piece.length)
    piece.buffer = larger
  }
  bytes.copy(piece.buffer, piece.length)
  piece.length = length
}

export const makeInbox = (): Inbox => {
  const pieces: Array<Piece> = []

  /** The piece that takes these bytes up; none where they are one of their own. */
  const neighbour = (stderr: boolean, bytes: number): Piece | undefined => {
    const last = pieces.at(-1)
    if (last?.stderr === stderr && last.length + bytes <= pieceBytes) return last
    return pieces.length < piecesMax ? undefined : pieces.findLast((it) => it.stderr === stderr)
  }

  return {
    push: (stderr, bytes) => {
      const piece = neighbour(stderr, bytes.length)
      if (piece === undefined) pieces.push({ stderr, buffer: bytes, length: bytes.length })
      else append(piece, bytes)
    },
    take: () => {
      const piece = pieces.shift()
      return piece === undefined
        ? undefined
        : { stderr: piece.stderr, bytes: piece.buffer.subarray(0, piece.length) }
    },
    pieces: () => pieces.length
  }
}
