/** Every wait and every count that the HTTP server bounds; tests make them small. */
import * as Context from "effect/Context"

const defaults = {
  /** The request line and the headers must be here by then. */
  headersMs: 10_000,
  /** A JSON body must be here by then. */
  bodyMs: 30_000,
  /** An archive may be long, but never silent for longer. */
  uploadIdleMs: 60_000,
  /** Of one copy into or out of a guest: more than any of its disks holds by default. */
  archiveMaxBytes: 64 * 1024 ** 3,
  /** A connection on which nothing at all moves is closed; longer than any wait or verb that is silent. */
  idleMs: 900_000,
  /** A kept-alive connection without a request is closed. */
  keepAliveMs: 65_000,
  /** A stream without a new line sends a comment, so that both ends see a dead connection. */
  heartbeatMs: 15_000,
  /** A client that takes no byte of a stream for so long is cut off. */
  stalledClientMs: 60_000,
  /** How long open requests may take to end when the service stops. Streams end at once. */
  drainMs: 4_000,
  /** Beyond, one that waits for nothing gives way; where none does, the newcomer is refused. */
  connectionsMax: 2_048,
  /** One successful request of so many is logged. */
  requestLogEvery: 100
}

export type HttpBounds = typeof defaults

export const HttpBounds = Context.Reference<HttpBounds>("dataplane/http/Bounds", {
  defaultValue: () => defaults
})
