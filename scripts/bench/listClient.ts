/**
 * A client that asks for a list at a bounded rate, from inside the service's network namespace, and a bare node:http
 * server beside the service that answers the same bytes. Rounds alternate; prints the latencies as one line of JSON.
 *
 *   ip netns exec NS node listClient.ts URL requests rounds everyMs
 */
import { fork } from "node:child_process"
import { once } from "node:events"
import * as http from "node:http"
import { setTimeout } from "node:timers/promises"

export interface ListLatencies {
  readonly service: ReadonlyArray<number>
  readonly bare: ReadonlyArray<number>
  readonly bytes: number
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })

const get = async (url: string): Promise<{ readonly ms: number; readonly body: Buffer }> => {
  const startedAt = performance.now()
  const request = http.get(url, { agent })
  const [response]: Array<http.IncomingMessage> = await once(request, "response")
  if (response?.statusCode !== 200) throw new Error(`${url} answers ${response?.statusCode}`)
  const chunks: Array<Buffer> = await response.toArray()
  return { ms: performance.now() - startedAt, body: Buffer.concat(chunks) }
}

/** One request each `everyMs`; one that is late delays the next, and is not counted twice. */
const sample = async (url: string, requests: number, everyMs: number): Promise<ReadonlyArray<number>> => {
  const taken: Array<number> = []
  for (let at = 0; at < requests; at++) {
    const due = performance.now() + everyMs
    taken.push((await get(url)).ms)
    await setTimeout(Math.max(0, due - performance.now()))
  }
  return taken
}

const serveBare = () => {
  process.once("message", (body: string) => {
    const bytes = Buffer.from(body)
    const server = http.createServer((_request, response) => {
      response.writeHead(200, { "content-type": "application/json", "content-length": bytes.length })
      response.end(bytes)
    })
    server.listen(0, "127.0.0.1", () => {
      const address = server.address()
      process.send?.(typeof address === "object" ? (address?.port ?? 0) : 0)
    })
  })
  process.once("disconnect", () => process.exit(0))
}

const compare = async (url: string, requests: number, rounds: number, everyMs: number) => {
  const { body } = await get(url)
  const child = fork(import.meta.filename, ["bare"])
  const port = once(child, "message")
  child.send(body.toString("utf8"))
  const bareUrl = `http://127.0.0.1:${String((await port)[0])}/`
  const found = { service: [0], bare: [0] }
  found.service = []
  found.bare = []
  for (const target of [url, bareUrl]) await sample(target, requests / 4, everyMs)
  for (let round = 0; round < rounds; round++) {
    found.service.push(...(await sample(url, requests, everyMs)))
    found.bare.push(...(await sample(bareUrl, requests, everyMs)))
  }
  child.disconnect()
  agent.destroy()
  process.stdout.write(`${JSON.stringify({ ...found, bytes: body.length } satisfies ListLatencies)}\n`)
}

if (import.meta.main) {
  const [url = "", requests, rounds, everyMs] = process.argv.slice(2)
  if (url === "bare") serveBare()
  else await compare(url, Number(requests), Number(rounds), Number(everyMs))
}
