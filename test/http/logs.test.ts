/** Log streams: cursors, resume, heartbeats, plain text, bounds, and what a client sees when something breaks. */
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import type { HttpBounds } from "../../src/http/Bounds.ts"
import type { LogLine } from "../../src/instance/Instances.ts"
import { epoch, fakeInstance } from "../support/fakeServices.ts"
import { send, serveFakes, type TestServer } from "../support/httpServer.ts"
import { openSocket } from "../support/rawHttp.ts"

const line = (text: string, cursor: number): LogLine => ({ cursor, time: epoch, line: text })

const server = (bounds: Partial<HttpBounds> = {}) =>
  Effect.tap(serveFakes({ bounds }), ({ world }) =>
    Effect.sync(() => world.instances.set("a1", fakeInstance("a1")))
  )

/** Pieces of a streamed body, one `take` at a time; cancelled with the scope. */
const follow = (server: TestServer, path: string, headers: Record<string, string> = {}) =>
  Effect.gen(function* () {
    const controller = yield* Effect.acquireRelease(
      Effect.sync(() => new AbortController()),
      (it) => Effect.sync(() => it.abort())
    )
    const response = yield* Effect.promise(() =>
      fetch(server.url + path, { headers, signal: controller.signal })
    )
    const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader()
    let text = ""
    /** Reads until the pattern is there, and gives all that was read. */
    const until = (pattern: RegExp) =>
      Effect.promise(async () => {
        while (!pattern.test(text)) {
          const next = await reader?.read()
          if (next === undefined || next.done) return text
          text += next.value
        }
        return text
      })
    return { response, until, abort: Effect.sync(() => controller.abort()) }
  })

describe("server-sent events", () => {
  it.live("carry the cursor as id and the line as one line of JSON, whatever the guest printed", () =>
    Effect.gen(function* () {
      const it = yield* server()
      const texts = [
        "plain",
        "",
        'quo"te',
        "tab\tand \u001b[31mcolour",
        "data: fake\n\nid: 9",
        "\u2028 ünï 🚀",
        ": c"
      ]
      it.world.logs = () => Stream.fromIterable(texts.map((text, index) => line(text, (index + 1) * 10)))
      const answer = yield* send(it, "GET", "/instances/a1/logs")
      expect(answer.headers.get("content-type")).toBe("text/event-stream")
      expect(answer.headers.get("cache-control")).toBe("no-store")
      expect(answer.headers.get("x-accel-buffering")).toBe("no")
      const [greeting, ...events] = answer.text.split("\n\n").filter((part) => part !== "")
      expect(greeting).toBe(": connected")
      expect(events).toHaveLength(texts.length)
      for (const [index, event] of events.entries()) {
        const [id, data, ...rest] = event.split("\n")
        expect(id).toBe(`id: ${(index + 1) * 10}`)
        expect(rest).toEqual([])
        expect(JSON.parse((data ?? "").slice("data: ".length))).toEqual({ time: epoch, line: texts[index] })
      }
    }).pipe(Effect.scoped)
  )

  it.live("hand follow, tail, source and Last-Event-ID to the service, with their defaults", () =>
    Effect.gen(function* () {
      const it = yield* server()
      yield* send(it, "GET", "/instances/a1/logs")
      yield* send(it, "GET", "/instances/a1/logs?tail=5&source=vmm&follow=true")
      yield* send(it, "GET", "/instances/a1/logs?source=dataplane&tail=0", {
        headers: { "last-event-id": "1234" }
      })
      expect(it.world.calls.map(([, , request]) => request)).toEqual([
        { source: "app", follow: false, tail: Option.none(), after: Option.none() },
        { source: "vmm", follow: true, tail: Option.some(5), after: Option.none() },
        { source: "dataplane", follow: false, tail: Option.some(0), after: Option.some(1234) }
      ])
      expect((yield* send(it, "GET", "/instances/nope/logs")).status).toBe(404)
    }).pipe(Effect.scoped)
  )
})

describe("following and resuming", () => {
  it.live("a client that comes back with the last id misses nothing and sees nothing twice", () =>
    Effect.gen(function* () {
      const it = yield* server()
      const all = Array.from({ length: 50 }, (_, index) => line(`line ${index}`, (index + 1) * 7))
      it.world.logs = (_id, { after }) =>
        Stream.fromIterable(all.filter(({ cursor }) => cursor > Option.getOrElse(after, () => 0)))
      const seen: Array<string> = []
      let last: string | undefined
      for (let round = 0; round < 10; round++) {
        const headers = last === undefined ? {} : { "last-event-id": last }
        const { text } = yield* send(it, "GET", "/instances/a1/logs", { headers })
        const events = [...text.matchAll(/id: (\d+)\ndata: (.*)\n\n/gu)].slice(0, 5)
        for (const [, id, data = ""] of events) {
          seen.push(data)
          last = id
        }
      }
      expect(seen).toEqual(all.map((it) => JSON.stringify({ time: it.time, line: it.line })))
    }).pipe(Effect.scoped)
  )

  it.live("a followed stream says hello at once, then lines as they come, with heartbeats between", () =>
    Effect.gen(function* () {
      const it = yield* server({ heartbeatMs: 30 })
      const lines = yield* Queue.unbounded<LogLine>()
      it.world.logs = () => Stream.fromQueue(lines)
      const stream = yield* follow(it, "/instances/a1/logs?follow=true")
      expect(yield* stream.until(/^: connected\n\n/u)).not.toContain("data:")
      yield* Queue.offer(lines, line("first", 5))
      yield* stream.until(/"line":"first"/u)
      expect(yield* stream.until(/(: heartbeat\n\n){2}/u)).not.toContain("second")
      yield* Queue.offer(lines, line("second", 11))
      expect(yield* stream.until(/"line":"second"\}\n\n/u)).toMatch(
        /id: 11\ndata: \{"time":"[^"]+","line":"second"\}/u
      )
    }).pipe(Effect.scoped)
  )

  it.live("a client that goes away ends the stream of the service, every time", () =>
    Effect.gen(function* () {
      const it = yield* server()
      const ended = yield* Queue.unbounded<number>()
      let started = 0
      it.world.logs = () => {
        const number = ++started
        return Stream.concat(Stream.make(line("first", 5)), Stream.never).pipe(
          Stream.ensuring(Queue.offer(ended, number))
        )
      }
      for (let round = 1; round <= 20; round++) {
        const path = `/instances/a1/logs?follow=true`
        yield* Effect.scoped(
          Effect.flatMap(follow(it, path, round % 2 === 0 ? { accept: "text/plain" } : {}), (stream) =>
            Effect.andThen(stream.until(/first/u), stream.abort)
          )
        )
        expect(yield* Queue.take(ended)).toBe(round)
      }
    }).pipe(Effect.scoped)
  )
})

describe("failures and slow clients", () => {
  it.live("a failure in the middle ends the stream; its cause is in the log and never on the wire", () =>
    Effect.gen(function* () {
      const it = yield* server()
      it.world.logs = () =>
        Stream.concat(Stream.make(line("first", 5)), Stream.die(new Error("/var/lib/secret hunter2")))
      for (const accept of ["text/event-stream", "text/plain"]) {
        const answer = yield* send(it, "GET", "/instances/a1/logs?follow=true", { headers: { accept } })
        expect(answer.status).toBe(200)
        expect(answer.text).toContain("first")
        expect(answer.text).not.toMatch(/secret|hunter2|Error|failure/u)
      }
      const defects = it.events.filter(({ event }) => event === "defect")
      expect(defects).toHaveLength(2)
      expect(defects[0]).toMatchObject({ reason: expect.stringContaining("hunter2") })
    }).pipe(Effect.scoped)
  )

  it.live("a client that reads nothing costs no memory and is cut off", () =>
    Effect.gen(function* () {
      const it = yield* server({ stalledClientMs: 300 })
      const ended = yield* Deferred.make<void>()
      const text = "x".repeat(1000)
      let produced = 0
      it.world.logs = () =>
        Stream.iterate(1, (cursor) => cursor + 1).pipe(
          Stream.map((cursor) => {
            produced = cursor
            return line(text, cursor)
          }),
          Stream.ensuring(Deferred.succeed(ended, undefined))
        )
      const socket = yield* openSocket(it.port)
      socket.pause()
      socket.write("GET /instances/a1/logs?follow=true HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
      yield* Deferred.await(ended)
      // Kernel buffers of both ends hold a few megabytes; an endless stream that nobody stopped would hold far more.
      expect(produced).toBeLessThan(40_000)
      expect((yield* send(it, "GET", "/health")).status).toBe(200)
    }).pipe(Effect.scoped)
  )
})

describe("plain text", () => {
  it.live("is the lines alone, for those who accept it and not events", () =>
    Effect.gen(function* () {
      const it = yield* server()
      it.world.logs = () => Stream.make(line("one", 4), line("two", 8))
      const plain = yield* send(it, "GET", "/instances/a1/logs", { headers: { accept: "text/plain" } })
      expect(plain.headers.get("content-type")).toBe("text/plain; charset=utf-8")
      expect(plain.text).toBe("one\ntwo\n")
      for (const accept of [
        "*/*",
        "text/event-stream",
        "text/event-stream, text/plain;q=0.5",
        "application/json"
      ]) {
        const answer = yield* send(it, "GET", "/instances/a1/logs", { headers: { accept } })
        expect([accept, answer.headers.get("content-type")]).toEqual([accept, "text/event-stream"])
      }
    }).pipe(Effect.scoped)
  )

  it.live("sends its headers before the first line, and no heartbeats", () =>
    Effect.gen(function* () {
      const it = yield* server({ heartbeatMs: 10 })
      const lines = yield* Queue.unbounded<LogLine>()
      it.world.logs = () => Stream.fromQueue(lines)
      const stream = yield* follow(it, "/instances/a1/logs?follow=true", { accept: "text/plain" })
      expect(stream.response.status).toBe(200)
      yield* Queue.offerAll(lines, [line("one", 4), line("two", 8)])
      expect(yield* stream.until(/two\n/u)).toBe("one\ntwo\n")
    }).pipe(Effect.scoped)
  )
})
