/**
 * What the host sends to one guest. A guest that does not read makes the host hold little: bytes of streams wait for
 * their turn and for room in the socket, one frame at a time and first come first served, so that no stream starves
 * another; small control frames go at once, up to a bound that ends the channel.
 */
import type * as net from "node:net"
import * as Effect from "effect/Effect"
import * as Semaphore from "effect/Semaphore"

/** Unsent bytes beyond which no request is made. */
export const unsentMaxBytes = 256 * 1024
/** Unsent bytes beyond which the guest is given up. */
export const unsentLimitBytes = 1024 * 1024

export interface Outlet {
  /** False where the guest has so much unread that it must be given up. */
  readonly send: (bytes: Buffer) => boolean
  readonly isFull: () => boolean
  /** Writes what `frame` gives once it is this sender's turn and the socket has room; nothing where that is undefined. */
  readonly takeTurn: (frame: () => Buffer | undefined) => Effect.Effect<void>
}

/** Ends when the socket has room, or is gone. */
const untilDrained = (socket: net.Socket) =>
  Effect.callback<void>((resume) => {
    if (!socket.writableNeedDrain || socket.destroyed) return resume(Effect.void)
    const finish = (): void => {
      socket.off("drain", finish).off("close", finish)
      resume(Effect.void)
    }
    socket.on("drain", finish).on("close", finish)
    return Effect.sync(() => socket.off("drain", finish).off("close", finish))
  })

export const makeOutlet = (socket: net.Socket): Outlet => {
  const turns = Semaphore.makeUnsafe(1)
  return {
    send: (bytes) => {
      socket.write(bytes)
      return socket.writableLength <= unsentLimitBytes
    },
    isFull: () => socket.writableLength > unsentMaxBytes,
    // Who has just had his turn lets the others have theirs.
    takeTurn: (frame) =>
      turns
        .withPermit(
          Effect.andThen(
            untilDrained(socket),
            Effect.sync(() => {
              const bytes = frame()
              if (bytes !== undefined) socket.write(bytes)
            })
          )
        )
        .pipe(Effect.andThen(Effect.yieldNow))
  }
}
