/**
 * The service that a command talks to: its typed client, derived from the API's own definition, and what a WebSocket
 * needs beside it.
 */
import * as Effect from "effect/Effect"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpApiClient from "effect/http-api/HttpApiClient"
import * as Option from "effect/Option"
import { Api } from "../api/Api.ts"
import { dataplane } from "./dataplane.ts"
import { failure } from "./Failure.ts"
import { GuestApi } from "./GuestApi.ts"

const defaultUrl = "http://127.0.0.1:8080"

const fromEnvironment = (name: string): string | undefined => {
  const value = process.env[name]
  return value === "" ? undefined : value
}

/** `--url`, else DATAPLANE_URL, else loopback; http and https only, without a trailing slash. */
const address = Effect.gen(function* () {
  const { url } = yield* dataplane
  const given = Option.getOrUndefined(url) ?? fromEnvironment("DATAPLANE_URL") ?? defaultUrl
  const parsed = URL.parse(given)
  if (parsed === null || !/^https?:$/u.test(parsed.protocol))
    return yield* failure(
      `--url and DATAPLANE_URL take an http or https URL, such as ${defaultUrl}; not ${given}.`,
      "usage"
    )
  return parsed.href.replace(/\/+$/u, "")
})

/** What requests carry, WebSocket handshakes included. */
const credentials = Effect.gen(function* () {
  const { token } = yield* dataplane
  const given = Option.getOrUndefined(token) ?? fromEnvironment("DATAPLANE_TOKEN")
  if (given === undefined) return {}
  if (!/^[\x21-\x7e]+$/u.test(given))
    return yield* failure("--token and DATAPLANE_TOKEN take a JWT, which has no spaces.", "usage")
  return { authorization: `Bearer ${given}` }
})

export const remote = Effect.gen(function* () {
  const url = yield* address
  const headers = yield* credentials
  const httpClient = HttpClient.mapRequest(yield* HttpClient.HttpClient, (request) =>
    request.pipe(HttpClientRequest.prependUrl(url), HttpClientRequest.setHeaders(headers))
  )
  return {
    url,
    headers,
    /** The API as it is defined. */
    api: yield* HttpApiClient.makeWith(Api, { httpClient }),
    /** Volumes, attachments and files. */
    guest: yield* HttpApiClient.makeWith(GuestApi, { httpClient })
  }
})
export type Remote = Effect.Success<typeof remote>
export type ApiClient = Remote["api"]
