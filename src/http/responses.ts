/**
 * What every response passes on its way out: an error that is not a problem yet becomes one, with the headers that its
 * status calls for, and the request log takes its sample. Requests that another site's page makes a browser send never
 * reach a handler.
 */
import { isIP } from "node:net"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as HttpEffect from "effect/http/HttpEffect"
import * as HttpRouter from "effect/http/HttpRouter"
import type * as HttpServerError from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerRespondable from "effect/http/HttpServerRespondable"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import type * as Layer from "effect/Layer"
import {
  Busy,
  Forbidden,
  InternalError,
  InvalidRequest,
  MethodNotAllowed,
  PayloadTooLarge,
  RouteNotFound,
  UnsupportedMediaType
} from "../domain/problems.ts"
import { durations, family } from "../host/Measure.ts"
import { isLoopback, Settings } from "../host/Settings.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { HttpBounds } from "./Bounds.ts"
import { servedRoute } from "./routes.ts"

type Request = HttpServerRequest.HttpServerRequest
type Response = HttpServerResponse.HttpServerResponse
type Problem = HttpServerRespondable.Respondable

const retryAfterSeconds = 1
/** Closed by the client before there was an answer (nginx's number, which Effect uses too); nobody reads it. */
const clientClosedRequest = 499

const isProblem = (response: Response): boolean =>
  response.headers["content-type"]?.startsWith("application/problem+json") === true

/** The problem that a bare error status stands for. */
const problemOf = (request: Request, status: number): Problem => {
  switch (status) {
    case 400:
      return new InvalidRequest({ detail: "The request could not be read." })
    case 404: {
      const path = request.url.split("?")[0]?.slice(0, 200) ?? ""
      return new RouteNotFound({ detail: `There is nothing at ${path}; GET /docs shows every route.` })
    }
    case 413:
      return new PayloadTooLarge({ detail: "The body is larger than this route takes." })
    case 415:
      return new UnsupportedMediaType({ detail: "Send the body as JSON.", supported: ["application/json"] })
    case 503:
      return new Busy({ detail: "The service is stopping; try again in a moment." })
    default:
      return new InternalError({
        detail: "The dataplane failed to answer; its log has the cause as a `defect`."
      })
  }
}

const methodNotAllowed = (request: Request, methods: ReadonlyArray<string>): Effect.Effect<Response> =>
  HttpServerRespondable.toResponse(
    new MethodNotAllowed({
      detail: `This route does not take ${request.method}; it takes ${methods.join(", ")}.`,
      allowed: methods
    })
  ).pipe(Effect.map(HttpServerResponse.setHeader("allow", methods.join(", "))))

/** A miss of the router: a wrong path, a wrong method, or the question which methods there are. */
const missed = (request: Request, status: number): Effect.Effect<Response> => {
  const route = status === 404 ? servedRoute(request.url) : undefined
  if (route === undefined) return HttpServerRespondable.toResponse(problemOf(request, status))
  const allow = route.methods.join(", ")
  return request.method === "OPTIONS"
    ? Effect.succeed(HttpServerResponse.empty({ status: 204, headers: { allow } }))
    : methodNotAllowed(request, route.methods)
}

const withStatusHeaders = (response: Response): Response => {
  if (response.status === 503)
    return HttpServerResponse.setHeader(response, "retry-after", `${retryAfterSeconds}`)
  return response
}

const completed = (request: Request, response: Response): Effect.Effect<Response> => {
  if (response.status < 400) return Effect.succeed(response)
  if (response.status === clientClosedRequest) return Effect.succeed(response)
  const problem = isProblem(response) ? Effect.succeed(response) : missed(request, response.status)
  return Effect.map(problem, withStatusHeaders)
}

/** `host[:port]` without the port; brackets of IPv6 off. */
const hostName = (authority: string): string =>
  authority.startsWith("[") ? (authority.slice(1).split("]")[0] ?? "") : (authority.split(":")[0] ?? "")

/**
 * Why a browser's request is refused, or undefined. A page of another site names itself in `Origin`; one whose name was
 * made to point here (DNS rebinding) is seen by a `Host` that is not loopback's, which matters where no token is asked.
 */
const foreign = (request: Request, guardHost: boolean): string | undefined => {
  const { host, origin } = request.headers
  if (origin !== undefined && (host === undefined || !origin.endsWith(`//${host}`)))
    return "Requests from pages of other sites are not allowed."
  if (guardHost && host !== undefined && !isLoopback(hostName(host)) && isIP(hostName(host)) === 0)
    return "Without JWT_SECRET this service answers to localhost and IP addresses only."
  return undefined
}

const requests = family(
  Metric.counter("dataplane_http_requests_total", {
    description: "Requests answered, by route, method and status.",
    incremental: true
  })
)
const requestSeconds = durations(
  "dataplane_http_request_seconds",
  "How long requests took until their answer began, by route."
)
/** Methods that a label may hold; clients can make up any other. */
const methods = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])

/** Templates, never paths: the number of series does not grow with instances or with what clients make up. */
const count = (request: Request, response: Response, startedMs: number): Effect.Effect<void> => {
  const route = servedRoute(request.url)?.template ?? "none"
  const method = methods.has(request.method) ? request.method : "other"
  return Effect.andThen(
    Metric.update(requests({ route, method, status: `${response.status}` }), 1),
    Metric.update(requestSeconds({ route }), (performance.now() - startedMs) / 1000)
  )
}

interface RequestLog {
  readonly sample: (request: Request, response: Response, startedMs: number) => Effect.Effect<void>
}

/** Errors always, the rest one of n; the route's template, never its query, headers or body. */
const requestLog = (every: number): RequestLog => {
  let successes = 0
  return {
    sample: (request, response, startedMs) => {
      if (response.status < 400 && ++successes % every !== 0) return Effect.void
      return logEvent("http.request", "answered a request", {
        method: request.method,
        route: servedRoute(request.url)?.template ?? "none",
        status: response.status,
        duration_ms: Math.round((performance.now() - startedMs) * 10) / 10
      })
    }
  }
}

/** Global: sees the responses of every route, and those that a failed cause becomes. */
export const layerResponses: Layer.Layer<never, never, HttpRouter.HttpRouter | Settings> =
  HttpRouter.middleware(
    Effect.gen(function* () {
      const settings = yield* Settings
      const bounds = yield* HttpBounds
      const guardHost = settings.jwtSecret === null && isLoopback(settings.host)
      const log = requestLog(bounds.requestLogEvery)
      return (app) =>
        Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => {
          const startedMs = performance.now()
          const finish = (
            request: Request,
            response: Response
          ): Effect.Effect<Response, HttpServerError.HttpServerError> =>
            Effect.tap(completed(request, response), (done) =>
              Effect.andThen(count(request, done, startedMs), log.sample(request, done, startedMs))
            )
          const refused = foreign(request, guardHost)
          return HttpEffect.withPreResponseHandler(
            refused === undefined
              ? app
              : HttpServerRespondable.toResponse(new Forbidden({ detail: refused })),
            finish
          )
        })
    }),
    { global: true }
  )
