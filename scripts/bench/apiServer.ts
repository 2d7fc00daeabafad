/**
 * One of the two servers that the benchmark compares, as a process of its own: `bare` is node:http that writes ready
 * bytes, `dataplane` is the real HTTP layer over fakes. Both answer the same 100 instances. Tells its port to the parent,
 * and its CPU time whenever asked.
 */
import { createServer } from "node:http"
import { fileURLToPath } from "node:url"
import * as Effect from "effect/Effect"
import { fakeInstance, fakeWorld } from "../../test/support/fakeServices.ts"
import { serveFakes } from "../../test/support/httpServer.ts"

export const instancesCount = 100

const instances = Array.from({ length: instancesCount }, (_, index) =>
  fakeInstance(`instance-${index}`, index)
)

const bare = async (): Promise<number> => {
  const body = Buffer.from(JSON.stringify(instances))
  const server = createServer((_request, response) => {
    response.writeHead(200, {
      "content-type": "application/json",
      "content-length": body.length
    })
    response.end(body)
  })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const address = server.address()
  return typeof address === "object" && address !== null ? address.port : 0
}

/** The list is put together per generation in the service; the fake hands the same text out until it changes. */
const dataplane = async (): Promise<number> => {
  const world = fakeWorld()
  for (const instance of instances) world.instances.set(instance.id, instance)
  world.cacheList = true
  return new Promise((resolve) => {
    Effect.runFork(
      Effect.scoped(
        Effect.flatMap(serveFakes({ world }), ({ port }) => {
          resolve(port)
          return Effect.never
        })
      )
    )
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const port = await (process.argv[2] === "bare" ? bare() : dataplane())
  process.on("message", () => process.send?.({ cpuUs: process.cpuUsage().user + process.cpuUsage().system }))
  process.on("disconnect", () => process.exit(0))
  process.send?.({ port })
}
