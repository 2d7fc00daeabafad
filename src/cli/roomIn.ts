/** Backpressure of tar-stream's streams, which are no streams of Node. */

interface Sink {
  readonly destroyed: boolean
  once(event: "drain" | "close", listener: () => void): unknown
}

/** Resolves when the stream has room again; fails where it was closed meanwhile. */
export const roomIn = async (sink: Sink): Promise<void> => {
  await new Promise<void>((resolve) => {
    sink.once("drain", resolve)
    sink.once("close", resolve)
    if (sink.destroyed) resolve()
  })
  if (sink.destroyed) throw new Error("the archive was cut off")
}
