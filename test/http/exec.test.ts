/** Exec as one request, with a process that the test plays. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import { GuestRefused } from "../../src/domain/guestProblems.ts"
import { execId as id, execPath as path, lost, serveExec as serve } from "../support/fakeExec.ts"
import { send } from "../support/httpServer.ts"
import { openSocket } from "../support/rawHttp.ts"

const lines = (text: string): ReadonlyArray<unknown> =>
  text
    .split("\n")
    .slice(0, -1)
    .map((line): unknown => JSON.parse(line))

describe("POST /instances/{id}/exec", () => {
  it.live("answers with a line for each piece of output, and the end last", () =>
    Effect.gen(function* () {
      const { server, started } = yield* serve()
      const asked = yield* Effect.forkChild(
        send(server, "POST", path, {
          json: {
            command: ["sh", "-c", "ls"],
            env: { A: "b" },
            cwd: "/srv",
            user: "web",
            tty: { rows: 24, cols: 80 },
            timeout_ms: 5_000,
            stdin: "grüße"
          }
        })
      )
      const process = yield* Queue.take(started)
      assert.deepStrictEqual(process.request, {
        command: ["sh", "-c", "ls"],
        env: { A: "b" },
        cwd: "/srv",
        user: "web",
        tty: { rows: 24, cols: 80 },
        timeout_ms: 5_000
      })
      assert.deepStrictEqual(
        [yield* Queue.take(process.heard), yield* Queue.take(process.heard)],
        ["grüße", "end"]
      )
      yield* process.say("Stdout", "no newline")
      yield* process.say("Stderr", 'quo"te\nand \u2028 more')
      yield* process.exit({ code: 3 })
      const answer = yield* Fiber.join(asked)
      assert.strictEqual(answer.status, 200)
      assert.strictEqual(answer.headers.get("content-type"), "application/x-ndjson")
      assert.deepStrictEqual(lines(answer.text), [
        { stdout: "no newline" },
        { stderr: 'quo"te\nand \u2028 more' },
        { exit: { code: 3 } }
      ])
      yield* process.ended
    })
  )

  it.live("puts characters together that come in two pieces, each output for itself", () =>
    Effect.gen(function* () {
      const { server, started } = yield* serve()
      const asked = yield* Effect.forkChild(send(server, "POST", path, { json: { command: ["x"] } }))
      const process = yield* Queue.take(started)
      const rocket = Buffer.from("🚀")
      yield* process.say("Stdout", rocket.subarray(0, 2))
      yield* process.say("Stderr", rocket.subarray(0, 1))
      yield* process.say("Stdout", rocket.subarray(2))
      yield* process.say("Stderr", "\ufeffmark")
      yield* process.exit({ signal: "TERM" })
      assert.deepStrictEqual(lines((yield* Fiber.join(asked)).text), [
        { stdout: "🚀" },
        { stderr: "\ufffd\ufeffmark" },
        { exit: { signal: "TERM" } }
      ])
    })
  )

  it.live("carries any bytes both ways with base64", () =>
    Effect.gen(function* () {
      const { server, started } = yield* serve()
      const bytes = Buffer.from([0, 255, 254, 10])
      const asked = yield* Effect.forkChild(
        send(server, "POST", path, {
          json: { command: ["x"], encoding: "base64", stdin: Buffer.from("in").toString("base64") }
        })
      )
      const process = yield* Queue.take(started)
      assert.strictEqual(yield* Queue.take(process.heard), "in")
      yield* process.say("Stdout", bytes)
      yield* process.exit({ timeout: true })
      assert.deepStrictEqual(lines((yield* Fiber.join(asked)).text), [
        { stdout: bytes.toString("base64") },
        { exit: { timeout: true } }
      ])
      for (const stdin of ["a", "a===", "====", "ab=c", "ab c", "grüß"]) {
        const refused = yield* send(server, "POST", path, {
          json: { command: ["x"], encoding: "base64", stdin }
        })
        assert.strictEqual(refused.status, 400, stdin)
      }
    })
  )

  it.live("says in the last line what kept the end from being known", () =>
    Effect.gen(function* () {
      const { server, started } = yield* serve()
      for (const problem of [
        lost,
        new GuestRefused({ detail: "The guest of 'a1' refuses: no memory", instance_id: id })
      ]) {
        const asked = yield* Effect.forkChild(send(server, "POST", path, { json: { command: ["x"] } }))
        const process = yield* Queue.take(started)
        yield* process.say("Stdout", "some")
        yield* process.fail(problem)
        const { type, title, status, detail } = problem
        assert.deepStrictEqual(lines((yield* Fiber.join(asked)).text), [
          { stdout: "some" },
          { error: { type, title, status, detail } }
        ])
      }
    })
  )

  it.live("refuses what is no request, before anything runs", () =>
    Effect.gen(function* () {
      const { server, started } = yield* serve()
      const wrong: ReadonlyArray<object> = [
        {},
        { command: [] },
        { command: "ls" },
        { command: ["a\0b"] },
        { command: ["x"], cwd: "relative" },
        { command: ["x"], timeout_ms: 0 },
        { command: ["x"], tty: true },
        { command: ["x"], tty: { rows: 0, cols: 80 } },
        { command: ["x"], env: { "A=B": "c" } },
        { command: ["x"], encoding: "latin1" },
        { command: ["x"], shell: true }
      ]
      for (const json of wrong) {
        const answer = yield* send(server, "POST", path, { json })
        assert.strictEqual(answer.status, 400, JSON.stringify(json))
      }
      const large = yield* send(server, "POST", path, {
        json: { command: ["x"], stdin: "x".repeat(1024 * 1024) }
      })
      assert.strictEqual(large.status, 413)
      assert.strictEqual(yield* Queue.size(started), 0)
    })
  )

  it.live("kills the process when the client goes away", () =>
    Effect.gen(function* () {
      const { server, started } = yield* serve()
      const socket = yield* openSocket(server.port)
      const body = JSON.stringify({ command: ["sleep", "inf"] })
      socket.write(
        `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
      )
      const process = yield* Queue.take(started)
      socket.destroy()
      yield* process.ended
    })
  )

  it.live("holds little for a client that does not read, and cuts it off", () =>
    Effect.gen(function* () {
      const { server, started } = yield* serve({ bounds: { stalledClientMs: 300 } })
      const socket = yield* openSocket(server.port)
      socket.pause()
      const body = JSON.stringify({ command: ["yes"] })
      socket.write(
        `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
      )
      const process = yield* Queue.take(started)
      let said = 0
      const flood = process
        .say("Stdout", "y".repeat(65_536))
        .pipe(Effect.andThen(Effect.sync(() => void (said += 65_536))), Effect.forever)
      yield* Effect.raceFirst(flood, process.ended)
      // What the two kernels' socket buffers took, and a few pieces on the way.
      assert.isBelow(said, 32 * 1024 * 1024)
    })
  )

  it.live("does not cut off a client of a process that is silent for long", () =>
    Effect.gen(function* () {
      const { server, started } = yield* serve({ bounds: { stalledClientMs: 50 } })
      const asked = yield* Effect.forkChild(send(server, "POST", path, { json: { command: ["x"] } }))
      const process = yield* Queue.take(started)
      yield* process.say("Stdout", "a")
      // A silence is a stretch of time and nothing else.
      yield* Effect.sleep(400)
      yield* process.say("Stdout", "b")
      yield* process.exit({ code: 0 })
      const said = lines((yield* Fiber.join(asked)).text)
      assert.deepStrictEqual(said.at(-1), { exit: { code: 0 } })
    })
  )
})
