/** Which route a URL is, and which methods it takes: derived from the API, for 405, OPTIONS and the request log. */
import * as FindMyWay from "effect/http/FindMyWay"
import * as HttpApi from "effect/http-api/HttpApi"
import { Api } from "../api/Api.ts"

export interface ServedRoute {
  /** The path with its parameters by name, such as `/instances/:id`. */
  readonly template: string
  readonly methods: ReadonlyArray<string>
}

/** What is served beside the API, behind the same port. */
const calls: ReadonlyArray<readonly [string, ReadonlyArray<string>]> = [
  ["/rpc", ["POST"]],
  ["/rpc/ws", ["GET"]],
  ["/rpc/v3", ["GET", "POST"]]
]

const templates = (): ReadonlyMap<string, ReadonlyArray<string>> => {
  const found = new Map(calls)
  HttpApi.reflect(Api, {
    onGroup: () => undefined,
    onEndpoint: ({ endpoint }) => {
      const path = endpoint.path.length > 1 ? endpoint.path.replace(/\/$/u, "") : endpoint.path
      found.set(path, [...(found.get(path) ?? []), endpoint.method])
    }
  })
  return found
}

/** HEAD is answered wherever GET is; OPTIONS everywhere. */
const withImplied = (methods: ReadonlyArray<string>): ReadonlyArray<string> =>
  [...methods, ...(methods.includes("GET") ? ["HEAD"] : []), "OPTIONS"].toSorted()

/**
 * A parameter is as long as its request line lets it be (node's 16 KiB): one that is too long is told so by its schema, and
 * is not taken for a path that does not exist.
 */
export const maxParamLength = 16_384

const router = FindMyWay.make<ServedRoute>({ maxParamLength })
for (const [template, methods] of templates()) {
  if (template.startsWith("/"))
    router.on("GET", `/${template.slice(1)}`, { template, methods: withImplied(methods) })
}

/** The route of a URL whatever the method, or none. */
export const servedRoute = (url: string): ServedRoute | undefined => router.find("GET", url)?.handler
