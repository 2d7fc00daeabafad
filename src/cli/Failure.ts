/**
 * How a command fails: one sentence for a person, and an exit code for a script. Every error that a command can meet
 * (a problem of the API, a service that does not answer, a line that cannot be parsed) becomes one of these here.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as HttpClientError from "effect/http/HttpClientError"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { printable } from "./text.ts"

/** What a script may rely on. `exec` and `run --rm` pass on the guest's own code, which may be any of these. */
export const exitCodes = {
  failure: 1,
  usage: 2,
  notFound: 3,
  conflict: 4,
  unreachable: 5,
  notAllowed: 6,
  timedOut: 7,
  unavailable: 8,
  interrupted: 130
} as const

export class Failure extends Data.TaggedError("Failure")<{
  readonly sentence: string
  readonly exitCode: number
}> {
  override get message(): string {
    return this.sentence
  }
}

export const failure = (sentence: string, code: keyof typeof exitCodes = "failure"): Failure =>
  new Failure({ sentence, exitCode: exitCodes[code] })

/** What every problem of the API has (RFC 9457); `errors` says where a request was wrong. */
export const ProblemLike = Schema.Struct({
  status: Schema.Int,
  title: Schema.optionalKey(Schema.String),
  detail: Schema.optionalKey(Schema.String),
  errors: Schema.optionalKey(
    Schema.Array(
      Schema.Struct({
        path: Schema.Array(Schema.Union([Schema.String, Schema.Int])),
        message: Schema.String
      })
    )
  )
})
export type ProblemLike = typeof ProblemLike.Type
const isProblem = Schema.is(ProblemLike)

const byStatus: Readonly<Record<number, keyof typeof exitCodes>> = {
  400: "usage",
  401: "notAllowed",
  403: "notAllowed",
  404: "notFound",
  408: "timedOut",
  409: "conflict",
  412: "conflict",
  413: "usage",
  503: "unavailable"
}

/** The detail says all, also where; `errors` adds only places that it does not name. */
const problemSentence = ({ title, detail, errors = [], status }: ProblemLike): string => {
  const said = detail ?? title ?? `The service answered ${status}.`
  const missing = errors.map(({ message }) => message).filter((message) => !said.includes(message))
  return printable([said, ...missing].join(" "))
}

export const problemFailure = (problem: ProblemLike): Failure =>
  failure(problemSentence(problem), byStatus[problem.status] ?? "failure")

const causeText = (cause: unknown): string =>
  cause instanceof Error ? ("code" in cause ? String(cause.code) : cause.message) : String(cause)

/** An answer that the API does not define for the call: a problem all the same, or another program's page. */
const undeclared = (error: HttpClientError.HttpClientError): Effect.Effect<Failure> => {
  const { response } = error
  if (response === undefined) {
    const { origin } = new URL(error.request.url)
    return Effect.succeed(
      failure(
        `Nothing answers as a dataplane at ${origin} (${causeText(error.cause)}); start it with \`dataplane serve\`, or say where it is with --url or DATAPLANE_URL.`,
        "unreachable"
      )
    )
  }
  return response.json.pipe(
    Effect.map((body) =>
      isProblem(body)
        ? problemFailure(body)
        : failure(
            `What answers at ${new URL(error.request.url).origin} is not this dataplane: status ${response.status}.`
          )
    ),
    Effect.orElseSucceed(() =>
      failure(
        `What answers at ${new URL(error.request.url).origin} is not this dataplane: status ${response.status}, no JSON.`
      )
    )
  )
}

/** The first sentence that an error, or what caused it, has: some say nothing of their own. */
const sentence = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error)
  return error.message === "" && error.cause !== undefined ? sentence(error.cause) : error.message
}

/** Any error of a command as a failure. */
export const failureOf = (error: unknown): Effect.Effect<Failure> => {
  if (error instanceof Failure) return Effect.succeed(error)
  if (HttpClientError.isHttpClientError(error)) return undeclared(error)
  if (isProblem(error)) return Effect.succeed(problemFailure(error))
  if (Schema.isSchemaError(error))
    return Effect.succeed(failure(`The service speaks another version of the API: ${error.message}`))
  return Effect.succeed(failure(printable(sentence(error))))
}

/** A value that a person typed, decoded by the schema of the API; what is wrong with it is a usage error. */
export const typed = <A, I>(
  schema: Schema.Codec<A, I>,
  value: unknown,
  name: string
): Effect.Effect<A, Failure> =>
  Option.match(Schema.decodeUnknownOption(schema)(value), {
    onSome: Effect.succeed,
    onNone: () =>
      Effect.flip(Schema.decodeUnknownEffect(schema)(value)).pipe(
        Effect.map(({ message }) => message),
        Effect.orElseSucceed(() => "not valid"),
        Effect.flatMap((message) => Effect.fail(failure(`${name}: ${message}`, "usage")))
      )
  })
