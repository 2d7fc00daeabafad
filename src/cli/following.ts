/**
 * Server-sent events that go on where they stopped: a connection that drops is opened again behind the last event that
 * was seen, so that nothing is lost and nothing told twice.
 *
 *   connect ──event──► connected ──drop, end──► (wait) ──► connect behind the last event
 *                                                 └── nothing for a minute ──► the last failure
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as HttpClientError from "effect/http/HttpClientError"
import * as Stream from "effect/Stream"
import { failure } from "./Failure.ts"
import { note } from "./results.ts"

const firstWaitMs = 250
const longestWaitMs = 4000
/** A service that is restarted is back by then. */
const giveUpAfterMs = 60_000

interface Cursor {
  readonly id: string
}

const isGone = (error: unknown): boolean =>
  HttpClientError.isHttpClientError(error) && error.reason._tag !== "EncodeError"

/** Where a reader is: the id of the last event that was handed on. */
export interface Position {
  after: number | undefined
}

/**
 * Opens, hands each event on, and opens again. `goesOn` false: the end of the stream is the end. A first connection that
 * fails is not tried again: the person may have given the wrong address. `open` fails with a problem: that is the end.
 */
export const followEvents = <A extends Cursor, E, E1, E2, R, R1, R2>(options: {
  readonly open: (after: number | undefined) => Effect.Effect<Stream.Stream<A, E1, R1>, E, R>
  readonly each: (event: A) => Effect.Effect<void, E2, R2>
  readonly position: Position
  readonly goesOn: boolean
}) =>
  Effect.gen(function* () {
    const { position } = options
    let waitMs = firstWaitMs
    let quietSince: number | undefined
    let isConnected = false
    const once = Effect.gen(function* () {
      const events = yield* options.open(position.after)
      if (quietSince !== undefined) yield* note("Connected again.")
      isConnected = true
      quietSince = undefined
      yield* Stream.runForEach(events, (event) =>
        Effect.uninterruptible(
          Effect.map(options.each(event), () => {
            position.after = Number(event.id)
            waitMs = firstWaitMs
          })
        )
      )
    })
    for (;;) {
      const result = yield* Effect.result(once)
      if (result._tag === "Success" && !options.goesOn) return
      if (result._tag === "Failure" && !(isConnected && isGone(result.failure)))
        return yield* Effect.fail(result.failure)
      const now = yield* Clock.currentTimeMillis
      if (quietSince === undefined) yield* note("The connection was lost; connecting again.")
      quietSince ??= now
      if (now - quietSince > giveUpAfterMs)
        return yield* result._tag === "Failure"
          ? Effect.fail(result.failure)
          : failure("The service ended the stream and does not answer.", "unreachable")
      yield* Effect.sleep(waitMs)
      waitMs = Math.min(2 * waitMs, longestWaitMs)
    }
  })
