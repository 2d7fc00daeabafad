/**
 * What an operation asks of a request besides its own input, as the OpenAPI document should say it: the scope of the
 * token, and the headers that its middlewares read.
 */
import * as Predicate from "effect/Predicate"
import * as HttpApi from "effect/http-api/HttpApi"
import type * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import { Api } from "./Api.ts"
import { Authorization, requiredScope } from "./Authorization.ts"
import { Idempotency, idempotencyKeyParameter } from "./Idempotency.ts"
import { IfMatch, ifMatchParameter } from "./IfMatch.ts"

type Json = Readonly<Record<string, unknown>>

const isRecord = (value: unknown): value is Json => Predicate.isObject(value) && !Array.isArray(value)

const templateOf = (path: string): string => {
  const plain = path.length > 1 ? path.replace(/\/$/u, "") : path
  return plain.replaceAll(/:(\w+)/gu, "{$1}")
}

const endpoints = (): ReadonlyMap<string, HttpApiEndpoint.Top> => {
  const found = new Map<string, HttpApiEndpoint.Top>()
  HttpApi.reflect(Api, {
    onGroup: () => undefined,
    onEndpoint: ({ endpoint }) =>
      void found.set(`${endpoint.method.toLowerCase()} ${templateOf(endpoint.path)}`, endpoint)
  })
  return found
}

const parametersOf = ({ parameters }: Json): ReadonlyArray<unknown> =>
  Array.isArray(parameters) ? parameters : []

/** OpenAPI 3.1 lists under a bearer scheme the roles that a call takes. */
const completed = (operation: Json, endpoint: HttpApiEndpoint.Top): Json => ({
  ...operation,
  parameters: [
    ...parametersOf(operation),
    ...(endpoint.middlewares.has(IfMatch) ? [ifMatchParameter] : []),
    ...(endpoint.middlewares.has(Idempotency) ? [idempotencyKeyParameter] : [])
  ],
  ...(endpoint.middlewares.has(Authorization) ? { security: [{ bearer: [requiredScope(endpoint)] }] } : {})
})

/** The paths with every operation completed. */
export const withConditions = (paths: unknown): unknown => {
  if (!isRecord(paths)) return paths
  const known = endpoints()
  const item = (path: string, operations: Json): Json =>
    Object.fromEntries(
      Object.entries(operations).map(([method, operation]) => {
        const endpoint = known.get(`${method} ${path}`)
        return [
          method,
          endpoint !== undefined && isRecord(operation) ? completed(operation, endpoint) : operation
        ]
      })
    )
  return Object.fromEntries(
    Object.entries(paths).map(([path, operations]) => [
      path,
      isRecord(operations) ? item(path, operations) : operations
    ])
  )
}
