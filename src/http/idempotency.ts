/**
 * Carries a POST with an `Idempotency-Key` out once. It runs to its end in a fiber of its own, since its client, who may
 * be gone, will ask again; its answer is durable before it goes out. What was refused before anything was done, or may work
 * in a moment, is not kept. What an interrupted request came to is never guessed: only a handler that can tell carries it
 * out again.
 */
import { createHash } from "node:crypto"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { archiveContentType } from "../api/Images.ts"
import { Idempotency, idempotencyKeyMaxChars, idempotencyKeyOf, TellsOutcome } from "../api/Idempotency.ts"
import { IdempotencyKeyReused, InvalidRequest } from "../domain/problems.ts"
import { type Answer, hash, IdempotencyKeys, outcomeUnknown } from "./IdempotencyKeys.ts"
import { mediaType } from "./validation.ts"

type Request = HttpServerRequest.HttpServerRequest
type Response = HttpServerResponse.HttpServerResponse

/** What a handler may know of the key that its request came with. */
export interface Attempt {
  /** Told of every request with this key alike, and of no other: what a name can be made of. */
  readonly token: string
  /** An earlier attempt was cut off, and may have done all or some of it. */
  readonly interrupted: boolean
}

/** Null where the request has no key. */
export const Attempt = Context.Reference<Attempt | null>("dataplane/http/Attempt", {
  defaultValue: () => null
})

/** Refused before anything was done, or worth another try. */
const notKept = new Set([400, 401, 403, 408, 413, 415, 503])

const malformed = new InvalidRequest({
  detail: `Send \`Idempotency-Key\` with 1 to ${idempotencyKeyMaxChars} printable characters, such as a UUID.`,
  errors: [{ path: ["headers", "idempotency-key"], message: "Expected a key, bare or in quotes" }]
})
const otherBody = new IdempotencyKeyReused({
  detail: "This idempotency key was sent with another archive; use a new key for a new request."
})

const isArchive = (request: Request): boolean =>
  mediaType(request.headers["content-type"] ?? "") === archiveContentType

/** All that says what is asked for; an archive, which is not here yet, is compared by its digest later. */
const fingerprint = Effect.fnUntraced(function* (request: Request) {
  const body = isArchive(request) ? "" : yield* request.text
  return hash([request.method, request.url, request.headers["if-match"] ?? "", body].join("\n"))
})

/** The same request, whose archive is digested on its way. */
const digesting = (request: Request) => {
  const digest = createHash("sha256")
  const stream = Stream.tap(request.stream, (chunk) => Effect.sync(() => void digest.update(chunk)))
  const tapped = new Proxy(request, {
    get: (target, key) => (key === "stream" ? stream : Reflect.get(target, key, target))
  })
  return { request: tapped, stream, hex: () => digest.digest("hex") }
}

const textOf = ({ body }: Response): string =>
  body._tag === "Uint8Array" ? new TextDecoder().decode(body.body) : ""

const contentTypeOf = ({ body }: Response): string | undefined =>
  "contentType" in body ? body.contentType : undefined

const answerOf = (response: Response, streamed: string | null): Answer => ({
  status: response.status,
  headers: {
    ...response.headers,
    ...(contentTypeOf(response) === undefined ? {} : { "content-type": contentTypeOf(response) ?? "" })
  },
  body: textOf(response),
  streamed
})

const replayed = ({ status, headers, body }: Answer): Response =>
  HttpServerResponse.text(body, {
    status,
    headers: { ...headers, "idempotency-replayed": "true" },
    ...(headers["content-type"] === undefined ? {} : { contentType: headers["content-type"] })
  })

/** An archive that is sent again is read to its end, to see that it is the same. */
const sameArchive = Effect.fnUntraced(function* (request: Request, answer: Answer) {
  if (answer.streamed === null || !isArchive(request)) return true
  const { stream, hex } = digesting(request)
  yield* Effect.mapError(
    Stream.runDrain(stream),
    () => new InvalidRequest({ detail: "The archive ended early." })
  )
  return hex() === answer.streamed
})

/** The response that a problem becomes; none for what is no problem of ours. */
const problemResponse = <A, E>(exit: Exit.Exit<A, E>): Effect.Effect<Response> | null => {
  if (Exit.isSuccess(exit)) return null
  const [reason] = exit.cause.reasons
  const error: unknown = reason !== undefined && reason._tag === "Fail" ? reason.error : undefined
  return HttpServerRespondable.isRespondable(error) ? HttpServerRespondable.toResponse(error) : null
}

export const layerIdempotency: Layer.Layer<Idempotency, never, IdempotencyKeys> = Layer.effect(
  Idempotency,
  Effect.gen(function* () {
    const keys = yield* IdempotencyKeys
    const scope = yield* Effect.scope

    /** Runs the request, keeps its answer or frees the key. */
    const carryOut = <E, R>(key: string, app: Effect.Effect<Response, E, R>, streamed: () => string | null) =>
      Effect.gen(function* () {
        const exit = yield* Effect.exit(app)
        const response = Exit.isSuccess(exit)
          ? exit.value
          : yield* problemResponse(exit) ?? Effect.succeed(null)
        if (response === null) {
          const unknown =
            Exit.isFailure(exit) && (Cause.hasDies(exit.cause) || Cause.hasInterrupts(exit.cause))
          yield* unknown ? keys.abandon(key) : keys.release(key)
        } else if (notKept.has(response.status)) yield* keys.release(key)
        else
          yield* keys
            .settle(key, answerOf(response, streamed()))
            .pipe(Effect.tapError(() => keys.abandon(key)))
        return yield* exit
      }).pipe(Effect.onInterrupt(() => keys.abandon(key)))

    return Effect.fnUntraced(function* (app, { endpoint }) {
      const request = yield* HttpServerRequest.HttpServerRequest
      const header = request.headers["idempotency-key"]
      if (header === undefined) return yield* app
      const key = idempotencyKeyOf(header)
      if (key === null) return yield* malformed
      const claim = yield* keys.claim(key, yield* Effect.orDie(fingerprint(request)))
      if (claim._tag === "Answered") {
        if (yield* sameArchive(request, claim.answer)) return replayed(claim.answer)
        return yield* otherBody
      }
      if (claim.interrupted && !Context.get(endpoint.annotations, TellsOutcome)) {
        yield* keys.abandon(key)
        return yield* outcomeUnknown
      }
      const digest = isArchive(request) ? digesting(request) : null
      const attempt: Attempt = { token: hash(`${key}\n${claim.at}`), interrupted: claim.interrupted }
      const running = app.pipe(
        Effect.provideService(Attempt, attempt),
        Effect.provideService(HttpServerRequest.HttpServerRequest, digest?.request ?? request)
      )
      const fiber = yield* Effect.forkIn(
        carryOut(key, running, () => digest?.hex() ?? null),
        scope
      )
      return yield* Fiber.join(fiber)
    })
  })
)
