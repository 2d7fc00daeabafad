/** Which route a URL is, and which methods it takes: derived from the API, for 405, OPTIONS and the request log. */
import * as FindMyWay from "effect/http/FindMyWay"
import * as HttpApi from "effect/http-api/HttpApi"
import { Api } from "../api/Api.ts"

export interface ServedRoute {
  /** The path with its parameters by name, such as `/instances/:id`. */
  readonly template: string
  readonly methods: ReadonlyArray<string>
}

const templates = (): ReadonlyMap<string, ReadonlyArray<string>> => {
  const found = new Map<string, ReadonlyArray<string>>()
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

const router = FindMyWay.make<ServedRoute>()
for (const [template, methods] of templates()) {
  if (template.startsWith("/"))
    router.on("GET", `/${template.slice(1)}`, { template, methods: withImplied(methods) })
}

/** The route of a URL whatever the method, or none. */
export const servedRoute = (url: string): ServedRoute | undefined => router.find("GET", url)?.handler
