/** A loopback HTTP server before a real registry: passes requests on, and answers some of them as bad registries do. */
import * as http from "node:http"
import { once } from "node:events"
import * as Effect from "effect/Effect"

export interface Misbehavior {
  /** Of the path, method before it: `GET /v2/a/blobs/...`. */
  readonly matches: RegExp
  /** For the first so many requests that match. */
  readonly times: number
  readonly status?: number
  readonly headers?: Readonly<Record<string, string>>
  /** Sends so many bytes of the true body and breaks off. */
  readonly cutAfter?: number
}

export interface Misbehaving {
  /** Host and port. */
  readonly domain: string
  /** Requests in the order of their arrival, each with the milliseconds since the one before. */
  readonly seen: ReadonlyArray<string>
}

const pass = (
  port: number,
  request: http.IncomingMessage,
  response: http.ServerResponse,
  cutAfter: number | undefined
) => {
  const headers = { ...request.headers, host: request.headers.host ?? "" }
  const onward = http.request(
    { host: "127.0.0.1", port, path: request.url, method: request.method, headers },
    (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers)
      if (cutAfter === undefined) {
        answer.pipe(response)
        return
      }
      let left = cutAfter
      answer.on("data", (bytes: Buffer) => {
        response.write(bytes.subarray(0, Math.max(left, 0)))
        left -= bytes.length
        if (left <= 0) response.destroy()
      })
    }
  )
  onward.on("error", () => response.destroy())
  request.pipe(onward)
}

/** In front of the registry at that loopback port, until the scope closes. */
export const misbehaving = (port: number, faults: ReadonlyArray<Misbehavior>) =>
  Effect.gen(function* () {
    const left = faults.map((it) => it.times)
    const seen: Array<string> = []
    const server = yield* Effect.acquireRelease(
      Effect.promise(async () => {
        const server = http.createServer((request, response) => {
          const line = `${request.method} ${request.url}`
          seen.push(line)
          const index = faults.findIndex((it, at) => (left[at] ?? 0) > 0 && it.matches.test(line))
          const fault = faults[index]
          if (fault === undefined) return pass(port, request, response, undefined)
          left[index] = (left[index] ?? 0) - 1
          if (fault.cutAfter !== undefined) return pass(port, request, response, fault.cutAfter)
          response.writeHead(fault.status ?? 500, fault.headers).end()
        })
        server.listen(0, "127.0.0.1")
        await once(server, "listening")
        return server
      }),
      (server) =>
        Effect.promise(async () => {
          server.closeAllConnections()
          server.close()
          await once(server, "close")
        })
    )
    const address = server.address()
    const own = typeof address === "object" && address !== null ? address.port : 0
    const it: Misbehaving = { domain: `127.0.0.1:${own}`, seen }
    return it
  })
