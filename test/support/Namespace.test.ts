/** The door must carry bytes faithfully, say why a connection fails, and leave nothing behind. */
import { spawn } from "node:child_process"
import { existsSync } from "node:fs"
import { once } from "node:events"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import { makeNamespace, type Namespace } from "./Namespace.ts"

const port = 8081

/** An HTTP server inside the namespace that answers with the length of what it was sent. */
const measure = (namespace: Namespace) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const program = `require("http").createServer((request, response) => {
        let bytes = 0
        request.on("data", (it) => bytes += it.length).on("end", () => response.end(request.url + " " + bytes))
      }).listen(${port}, "127.0.0.1", () => console.log("listening"))`
      const child = spawn("ip", ["netns", "exec", namespace.name, process.execPath, "-e", program], {
        stdio: ["ignore", "pipe", "inherit"]
      })
      await once(child.stdout, "data")
      return child
    }),
    (child) =>
      Effect.promise(async () => {
        child.kill("SIGKILL")
        if (child.exitCode === null && child.signalCode === null) await once(child, "exit")
      })
  )

describe("a test's namespace", () => {
  it.live("carries requests of any size to servers inside", () =>
    Effect.gen(function* () {
      const namespace = yield* makeNamespace
      yield* measure(namespace)
      for (const bytes of [0, 1, 3_000_000]) {
        const request = HttpClientRequest.post(`http://127.0.0.1:${port}/size`).pipe(
          HttpClientRequest.bodyUint8Array(new Uint8Array(bytes))
        )
        const response = yield* namespace.http.execute(request)
        assert.strictEqual(yield* response.text, `/size ${bytes}`)
      }
    })
  )

  it.live("says why a connection failed", () =>
    Effect.gen(function* () {
      const namespace = yield* makeNamespace
      const error = yield* Effect.flip(Effect.tryPromise(() => namespace.dial("127.0.0.1", 1)))
      assert.include(String(error.cause), "refused ECONNREFUSED")
      yield* Effect.flip(namespace.http.get("http://127.0.0.1:1/"))
    })
  )

  it.live("leaves no namespace and no process, not even one that ignores signals", () =>
    Effect.gen(function* () {
      const inside = yield* Effect.scoped(
        Effect.gen(function* () {
          const namespace = yield* makeNamespace
          const child = spawn(
            "ip",
            ["netns", "exec", namespace.name, "sh", "-c", "trap '' TERM INT; echo on; read line"],
            {
              stdio: ["pipe", "pipe", "inherit"]
            }
          )
          yield* Effect.promise(() => once(child.stdout, "data"))
          assert.include(yield* namespace.pids, child.pid)
          assert.isTrue(existsSync(`/run/netns/${namespace.name}`))
          return { name: namespace.name, ended: once(child, "exit") }
        })
      )
      yield* Effect.promise(() => inside.ended)
      assert.isFalse(existsSync(`/run/netns/${inside.name}`))
    })
  )
})
