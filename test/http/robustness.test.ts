/**
 * What clients do to a server that it must survive, each thing at once and many times: memory stays within a bound that is
 * far below what was thrown at it, everybody else is served meanwhile, and afterwards nothing is left of it.
 */
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { connect, type Socket } from "node:net"
import { fileURLToPath } from "node:url"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { send } from "../support/httpServer.ts"

const program = fileURLToPath(new URL("../support/attackedServer.ts", import.meta.url))
const mib = 1024 * 1024
const host = "host: 127.0.0.1\r\n"
const json = "content-type: application/json\r\n"

type Question = "memory" | "peak" | "connections" | "defects"

const say = async (child: ChildProcess): Promise<number> => {
  const [message] = await once(child, "message")
  return Schema.decodeUnknownSync(Schema.Finite)(message)
}

/** The server in its own process; ends with the scope. */
const attacked = (bounds: Readonly<Record<string, number>> = {}) =>
  Effect.gen(function* () {
    const child = yield* Effect.acquireRelease(
      Effect.sync(() => fork(program, [JSON.stringify(bounds)])),
      (it) =>
        Effect.promise(async () => {
          if (it.exitCode !== null || it.signalCode !== null) return
          it.kill("SIGKILL")
          await once(it, "exit")
        })
    )
    const port = yield* Effect.promise(() => say(child))
    const ask = (question: Question) =>
      Effect.promise(async () => {
        child.send(question)
        return say(child)
      })
    return { port, url: `http://127.0.0.1:${port}`, ask }
  })
type Attacked = Effect.Success<ReturnType<typeof attacked>>

/** Sockets that are open until the scope closes; one that the server refuses or resets is a socket all the same. */
const sockets = (port: number, count: number) =>
  Effect.acquireRelease(
    Effect.promise(() =>
      Promise.all(
        Array.from(
          { length: count },
          () =>
            new Promise<Socket>((resolve) => {
              const socket = connect({ port, host: "127.0.0.1" })
              socket.on("error", () => resolve(socket))
              socket.on("connect", () => resolve(socket))
            })
        )
      )
    ),
    (all) => Effect.sync(() => all.forEach((socket) => socket.destroy()))
  )

/** The first piece of each answer. */
const answered = (all: ReadonlyArray<Socket>) =>
  Effect.promise(() =>
    Promise.all(
      all.map(async (socket) => {
        const [chunk] = await once(socket, "data")
        return String(chunk)
      })
    )
  )

let made = 0
/** A well-behaved client reads, creates, and deletes what it made. */
const others = Effect.fnUntraced(function* (server: Attacked) {
  const id = `vm-${++made}`
  expect((yield* send(server, "GET", "/health")).status).toBe(200)
  const body = { id, name: id, image: "img-demo", memory_mb: 128, vcpus: 1 }
  expect((yield* send(server, "POST", "/instances", { json: body })).status).toBe(201)
  expect((yield* send(server, "GET", `/instances/${id}`)).status).toBe(200)
  expect((yield* send(server, "DELETE", `/instances/${id}`)).status).toBe(204)
})

/** Until nothing but the well-behaved client's own connection is left. */
const alone = (server: Attacked) =>
  Effect.flatMap(server.ask("connections"), (count) => (count <= 2 ? Effect.void : Effect.fail(count))).pipe(
    Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 500 })
  )

/**
 * Runs the attack beside other clients, and measures what stays of it. What warms up stays as well: code that is compiled,
 * the newest events. A leak of each connection or request would be several times the bound.
 */
const survives = Effect.fnUntraced(function* <E, R>(
  server: Attacked,
  attack: Effect.Effect<void, E, R>,
  leftMiB = 24
) {
  yield* others(server)
  const before = yield* server.ask("memory")
  yield* Effect.scoped(Effect.andThen(attack, others(server)))
  yield* alone(server)
  yield* others(server)
  expect((yield* server.ask("memory")) - before).toBeLessThan(leftMiB * mib)
  expect(yield* server.ask("defects")).toBe(0)
})

const readers = 500
const readerBoundMiB = 150

describe("the server", () => {
  it.live("serves 500 readers of events at once, those that never read and those that vanish", () =>
    Effect.gen(function* () {
      const server = yield* attacked()
      const attack = Effect.gen(function* () {
        const before = yield* server.ask("memory")
        const all = yield* sockets(server.port, readers)
        for (const socket of all) socket.write(`GET /events HTTP/1.1\r\n${host}\r\n`)
        for (const answer of yield* answered(all)) expect(answer).toMatch(/^HTTP\/1\.1 200 /u)
        // Half of them read, a quarter takes nothing more, a quarter is gone without a word.
        const [reading, silent, gone] = [all.slice(0, 250), all.slice(250, 375), all.slice(375)]
        const seen = reading.map(
          (socket) =>
            new Promise<void>((resolve) => {
              socket.on("data", (chunk: Buffer) => {
                if (chunk.includes("instance.deleted")) resolve()
              })
            })
        )
        for (const socket of silent) socket.pause()
        for (const socket of gone) socket.resetAndDestroy()
        for (let round = 0; round < 3; round++) yield* others(server)
        yield* Effect.promise(() => Promise.all(seen))
        expect((yield* server.ask("memory")) - before).toBeLessThan(readerBoundMiB * mib)
      })
      yield* survives(server, attack)
    }).pipe(Effect.scoped)
  )

  it.live("holds no body that is too large: 1 GB in bodies of 100 MB, to JSON routes and to the import", () =>
    Effect.gen(function* () {
      const server = yield* attacked()
      const piece = Buffer.alloc(mib, "x")
      const chunk = Buffer.concat([Buffer.from(`${mib.toString(16)}\r\n`), piece, Buffer.from("\r\n")])
      /** Goes on until all is sent or the server has enough; gives the answer's first line. */
      const upload = (path: string, contentType: string) =>
        Effect.promise(async () => {
          const socket = connect({ port: server.port, host: "127.0.0.1" })
          let answer = ""
          const closed = new Promise<void>((resolve) => socket.on("close", () => resolve()))
          socket.on("error", () => undefined)
          socket.on("data", (data: Buffer) => (answer += data.toString("latin1")))
          socket.write(
            `POST ${path} HTTP/1.1\r\n${host}content-type: ${contentType}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n`
          )
          for (let index = 0; index < 100 && !socket.destroyed; index++) {
            const full = !socket.write(chunk)
            if (full) await Promise.race([new Promise((resolve) => socket.once("drain", resolve)), closed])
          }
          if (!socket.destroyed) socket.write("0\r\n\r\n")
          await closed
          return answer.split("\r\n")[0] ?? ""
        })
      const attack = Effect.gen(function* () {
        yield* server.ask("peak")
        const json = yield* Effect.all(
          Array.from({ length: 5 }, () => upload("/instances", "application/json")),
          { concurrency: 5 }
        )
        // A client that is cut off while it sends may not see the answer.
        for (const line of json) expect(line).toMatch(/^(HTTP\/1\.1 413 .*)?$/u)
        const archives = yield* Effect.all(
          Array.from({ length: 5 }, () => upload("/images/import", "application/x-tar")),
          { concurrency: 5 }
        )
        for (const line of archives) expect(line).toMatch(/^HTTP\/1\.1 422 /u)
        expect(yield* server.ask("peak")).toBeLessThan(256 * mib)
      })
      yield* survives(server, attack)
      const told = yield* send(server, "POST", "/instances", {
        body: new Uint8Array(2 * mib),
        headers: { "content-type": "application/json" }
      })
      expect(told.status).toBe(413)
    }).pipe(Effect.scoped)
  )

  it.live("thousands of idle sockets and senders of endless headers take nobody's place", () =>
    Effect.gen(function* () {
      const server = yield* attacked({ connectionsMax: 1_000, headersMs: 60_000 })
      const attack = Effect.gen(function* () {
        const idle = yield* sockets(server.port, 1_500)
        const slow = yield* sockets(server.port, 1_500)
        for (const socket of slow) socket.write(`GET /instances HTTP/1.1\r\n${host}x-a: `)
        for (let round = 0; round < 3; round++) {
          for (const socket of slow) if (!socket.destroyed) socket.write("a")
          yield* others(server)
        }
        expect(yield* server.ask("connections")).toBeLessThanOrEqual(1_010)
        expect(idle.length + slow.length).toBe(3_000)
      })
      yield* survives(server, attack)
    }).pipe(Effect.scoped)
  )

  it.live("slow headers are cut off in time, though they go on and on", () =>
    Effect.gen(function* () {
      const server = yield* attacked({ headersMs: 500 })
      const attack = Effect.gen(function* () {
        const slow = yield* sockets(server.port, 200)
        const closed = Promise.all(slow.map((socket) => once(socket, "close")))
        for (const socket of slow) {
          socket.resume()
          socket.write(`GET /instances HTTP/1.1\r\n${host}x-a: `)
        }
        const drip = setInterval(() => slow.forEach((socket) => socket.writable && socket.write("a")), 50)
        yield* others(server)
        yield* Effect.promise(() => closed)
        clearInterval(drip)
      })
      yield* survives(server, attack)
    }).pipe(Effect.scoped)
  )

  it.live("floods of headers, and of requests whose answers nobody reads, are bounded", () =>
    Effect.gen(function* () {
      const server = yield* attacked()
      for (let index = 0; index < 50; index++) {
        const id = `list-${index}`
        const body = {
          id,
          name: id,
          image: "img-demo",
          memory_mb: 128,
          start: false,
          env: { X: "y".repeat(2_000) }
        }
        expect((yield* send(server, "POST", "/instances", { json: body })).status).toBe(201)
      }
      const attack = Effect.gen(function* () {
        const before = yield* server.ask("memory")
        const many = yield* sockets(server.port, 100)
        const headers = Array.from({ length: 5_000 }, (_, index) => `x-${index}: ${index}\r\n`).join("")
        for (const socket of many) socket.write(`GET /instances HTTP/1.1\r\n${host}${headers}\r\n`)
        for (const answer of yield* answered(many)) expect(answer).toMatch(/^HTTP\/1\.1 431 /u)
        // 40 clients ask 500 times each for 150 KB, and read nothing: 3 GB of answers, were they made.
        const pipelines = yield* sockets(server.port, 40)
        for (const socket of pipelines) {
          socket.pause()
          socket.write(`GET /instances HTTP/1.1\r\n${host}\r\n`.repeat(500))
        }
        yield* others(server)
        expect((yield* server.ask("memory")) - before).toBeLessThan(96 * mib)
      })
      yield* survives(server, attack)
    }).pipe(Effect.scoped)
  )

  it.live("clients that vanish while they wait, send or are answered leave nothing", () =>
    Effect.gen(function* () {
      const server = yield* attacked()
      const body = { id: "waited", name: "w", image: "img-demo", memory_mb: 128 }
      expect((yield* send(server, "POST", "/instances", { json: body })).status).toBe(201)
      const requests = [
        `GET /instances/waited/wait?state=Stopped&timeout_ms=600000 HTTP/1.1\r\n${host}\r\n`,
        `GET /instances/waited/logs?follow=true HTTP/1.1\r\n${host}\r\n`,
        `POST /instances HTTP/1.1\r\n${host}${json}content-length: 1000\r\n\r\n{"name":`,
        `POST /images/import HTTP/1.1\r\n${host}content-type: application/x-tar\r\ncontent-length: 100000\r\n\r\nabc`,
        `GET /instances HTTP/1.1\r\n${host}\r\n`
      ]
      const attack = Effect.gen(function* () {
        for (let round = 0; round < 4; round++) {
          const all = yield* sockets(server.port, 250)
          all.forEach((socket, index) => socket.write(requests[index % requests.length] ?? ""))
          yield* others(server)
          for (const socket of all) socket.resetAndDestroy()
        }
      })
      yield* survives(server, attack)
    }).pipe(Effect.scoped)
  )
})
