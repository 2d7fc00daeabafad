/**
 * A loopback server with the parts of the API that need a guest: exec over a WebSocket, files as tar, volumes. It plays a
 * guest whose programs do what a test wants to see, and keeps what it was asked.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { buffer } from "node:stream/consumers"
import { type RawData, type WebSocket, WebSocketServer } from "@effect/platform-node/NodeWS"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { problemBase } from "../../src/domain/problems.ts"
import { Bundle, type CommandOptions, startCommand } from "./commandLine.ts"
import { fakeInstance } from "./fakeServices.ts"

const Request = Schema.Struct({
  command: Schema.Array(Schema.String),
  env: Schema.Record(Schema.String, Schema.String),
  cwd: Schema.optionalKey(Schema.String),
  user: Schema.optionalKey(Schema.String),
  tty: Schema.optionalKey(Schema.Struct({ rows: Schema.Int, cols: Schema.Int })),
  timeout_ms: Schema.optionalKey(Schema.Int)
})
type Request = typeof Request.Type
const decodeRequest = Schema.decodeUnknownSync(Schema.fromJsonString(Request), { onExcessProperty: "error" })

const Order = Schema.fromJsonString(
  Schema.Union([
    Schema.Struct({ resize: Schema.Struct({ rows: Schema.Int, cols: Schema.Int }) }),
    Schema.Struct({ signal: Schema.String }),
    Schema.Struct({ stdin_end: Schema.Literal(true) })
  ])
)
const decodeOrder = Schema.decodeUnknownSync(Order, { onExcessProperty: "error" })

export interface GuestStub {
  readonly url: string
  /** Each request that is no WebSocket: method, path with query, body. */
  readonly asked: Array<readonly [method: string, path: string, body: Buffer]>
  readonly execs: Array<{ readonly request: Request; readonly authorization: string | undefined }>
  /** What GET files answers, by path. */
  readonly archives: Map<string, Buffer>
}

const bytes = (data: RawData): Buffer => (Buffer.isBuffer(data) ? data : Buffer.alloc(0))

const out = (socket: WebSocket, text: string | Buffer, kind = 1) =>
  socket.send(Buffer.concat([Buffer.from([kind]), Buffer.from(text)]))

const end = (socket: WebSocket, last: object) => {
  socket.send(JSON.stringify(last))
  socket.close()
}

export const floodBytes = 3 * 1024 * 1024

/** Programs of the guest, by their names. */
const programs: Readonly<Record<string, (socket: WebSocket, request: Request) => void>> = {
  exit: (socket, { command }) => {
    out(socket, "out\n")
    out(socket, "err\n", 2)
    end(socket, { exit: { code: Number(command[1]) } })
  },
  killed: (socket) => end(socket, { exit: { signal: "TERM" } }),
  slow: (socket) => end(socket, { exit: { timeout: true } }),
  broken: (socket) =>
    end(socket, {
      error: {
        type: `${problemBase}guest-refused`,
        status: 422,
        title: "Refused",
        detail: "There is no program x."
      }
    }),
  dropped: (socket) => socket.terminate(),
  flood: (socket) => {
    for (let sent = 0; sent < floodBytes; sent += 64 * 1024) out(socket, Buffer.alloc(64 * 1024, "x"))
    end(socket, { exit: { code: 0 } })
  },
  cat: (socket) =>
    socket.on("message", (data, isBinary) => {
      if (isBinary) out(socket, bytes(data))
      else if ("stdin_end" in decodeOrder(bytes(data).toString("utf8"))) end(socket, { exit: { code: 0 } })
    }),
  /** Says each signal, and ends with 7 at an interrupt. */
  signals: (socket) => {
    out(socket, "waiting\n")
    socket.on("message", (data) => {
      const order = decodeOrder(bytes(data).toString("utf8"))
      if (!("signal" in order)) return
      out(socket, `${order.signal}\n`)
      if (order.signal === "INT") end(socket, { exit: { code: 7 } })
    })
  },
  /** Says its size, each change of it and each key; ends at q. */
  terminal: (socket, { tty }) => {
    out(socket, `size ${tty?.rows}x${tty?.cols}\r\n`)
    socket.on("message", (data, isBinary) => {
      if (!isBinary) {
        const order = decodeOrder(bytes(data).toString("utf8"))
        if ("resize" in order) out(socket, `resized ${order.resize.rows}x${order.resize.cols}\r\n`)
        return
      }
      const keys = bytes(data).toString("utf8")
      out(socket, `keys ${JSON.stringify(keys)}\r\n`)
      if (keys.includes("q")) end(socket, { exit: { code: 3 } })
    })
  }
}

const problem = (response: ServerResponse, status: number, name: string, detail: string) => {
  response.writeHead(status, { "content-type": "application/problem+json" })
  response.end(JSON.stringify({ type: `${problemBase}${name}`, status, title: name, detail }))
}

const json = (response: ServerResponse, value: unknown, status = 200) => {
  response.writeHead(status, { "content-type": "application/json" })
  response.end(JSON.stringify(value))
}

export const stubVolume = {
  id: "vol-data",
  name: "data",
  size_gb: 2,
  attachments: [{ instance_id: "vm-1", mount_path: "/data", readonly: false }],
  created_at: "2026-01-31T12:00:00.000Z"
}

const answer = async (stub: GuestStub, request: IncomingMessage, response: ServerResponse) => {
  const body = await buffer(request)
  const { method = "", url = "" } = request
  stub.asked.push([method, url, body])
  const { pathname, searchParams } = new URL(url, "http://stub")
  const instance = fakeInstance("vm-1", 0)
  if (pathname === "/instances/vm-1/files") {
    if (method === "PUT") return response.writeHead(204).end()
    const archive = stub.archives.get(searchParams.get("path") ?? "")
    if (archive === undefined)
      return problem(response, 422, "guest-refused", "There is no such file in the guest.")
    response.writeHead(200, { "content-type": "application/x-tar" })
    return response.end(archive)
  }
  if (pathname === "/instances/vm-1") return json(response, instance)
  if (pathname === "/instances") return json(response, [instance])
  if (pathname.startsWith("/instances/vm-1/volumes/")) return json(response, instance)
  if (pathname === "/volumes" && method === "GET") return json(response, [stubVolume])
  if (pathname === "/volumes" || pathname === "/volumes/import") return json(response, stubVolume, 201)
  if (pathname === "/volumes/vol-data" && method === "DELETE")
    return problem(response, 409, "volume-in-use", "The volume vol-data is used by vm-1; detach it first.")
  if (pathname === "/volumes/vol-data") return json(response, { ...stubVolume, size_gb: 5 })
  return problem(response, 404, "route-not-found", `There is no ${pathname}.`)
}

/** The stub on a free port of loopback, until the scope closes. */
export const startGuestStub = Effect.acquireRelease(
  Effect.promise(async () => {
    const server = createServer((request, response) => void answer(stub, request, response))
    const sockets = new WebSocketServer({ noServer: true })
    server.on("upgrade", (request, connection, head) => {
      if (request.url !== "/instances/vm-1/exec" || request.headers.authorization === "Bearer read-only") {
        const text = JSON.stringify({
          status: 403,
          title: "Not allowed",
          detail: "The token's scope does not allow this."
        })
        connection.end(
          `HTTP/1.1 403 Forbidden\r\ncontent-type: application/problem+json\r\ncontent-length: ${text.length}\r\nconnection: close\r\n\r\n${text}`
        )
        return
      }
      sockets.handleUpgrade(request, connection, head, (socket) => {
        socket.once("message", (data) => {
          const asked = decodeRequest(bytes(data).toString("utf8"))
          stub.execs.push({ request: asked, authorization: request.headers.authorization })
          programs[asked.command[0] ?? ""]?.(socket, asked)
        })
      })
    })
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    const address: AddressInfo | string | null = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    const stub: GuestStub = { url: `http://127.0.0.1:${port}`, asked: [], execs: [], archives: new Map() }
    return { stub, server, sockets }
  }),
  ({ server, sockets }) =>
    Effect.promise(async () => {
      for (const socket of sockets.clients) socket.terminate()
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    })
).pipe(Effect.map(({ stub }) => stub))

export class Stub extends Context.Service<Stub, GuestStub>()("test/GuestStub") {}
export const layerStub = Layer.effect(Stub, startGuestStub).pipe(Layer.provideMerge(Bundle.layer))

/** Starts a command against the stub. */
export const start = (
  words: ReadonlyArray<string>,
  options: CommandOptions & { readonly open?: boolean } = {}
) =>
  Effect.gen(function* () {
    const { url } = yield* Stub
    return startCommand(yield* Bundle, words, { ...options, env: { DATAPLANE_URL: url, ...options.env } })
  })

/** Runs a command against the stub, to its end. */
export const run = (words: ReadonlyArray<string>, options: CommandOptions = {}) =>
  Effect.flatMap(start(words, options), ({ ended }) => Effect.promise(() => ended))
