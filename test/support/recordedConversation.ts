/**
 * A VMM that says again what a real one said: a conversation, recorded verbatim, replayed over a unix socket. Each request
 * must be the next one of the record, byte for byte in its first line and its body; any other ends the conversation.
 */
import { readFileSync } from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { temporaryDirectory } from "./temporary.ts"

export interface Exchange {
  readonly method: string
  readonly call: string
  readonly body: string
  /** Status line, headers and body as they came. */
  readonly answer: string
  readonly status: number
  readonly answerBody: string
}

const recorded = path.resolve(import.meta.dirname, "../vmm/cloud-hypervisor/recorded")

export const recordedText = (name: string): string => readFileSync(path.join(recorded, `${name}.txt`), "utf8")

/** `>>> METHOD call body`, the answer, `<<<`. */
export const conversation = (version: string): ReadonlyArray<Exchange> =>
  recordedText(`conversation-${version}`)
    .split("\n<<<\n")
    .filter((part) => part.startsWith(">>> "))
    .map((part) => {
      const at = part.indexOf("\n")
      const [, method = "", call = "", body = ""] = /^>>> (\S+) (\S+) ?(.*)$/u.exec(part.slice(0, at)) ?? []
      const [head = "", ...rest] = part.slice(at + 1).split("\n\n")
      const answerBody = rest.join("\n\n").trimEnd()
      return {
        method,
        call,
        body,
        answer: `${head.replaceAll("\n", "\r\n")}\r\n\r\n${answerBody}`,
        status: Number(/^HTTP\/1\.1 (\d+)/u.exec(head)?.[1]),
        answerBody
      }
    })

export interface Heard {
  readonly line: string
  readonly headers: ReadonlyArray<string>
  readonly body: string
}

export interface Replay {
  readonly socket: string
  readonly heard: ReadonlyArray<Heard>
  /** Connections that were ever made. */
  readonly connections: () => number
}

/** One whole request out of what has come; null while a part of it is missing. */
const requestIn = (text: string): { readonly heard: Heard; readonly rest: string } | null => {
  const end = text.indexOf("\r\n\r\n")
  if (end === -1) return null
  const [line = "", ...headers] = text.slice(0, end).split("\r\n")
  const length = Number(headers.find((it) => /^content-length:/iu.test(it))?.split(":")[1] ?? 0)
  const body = text.slice(end + 4, end + 4 + length)
  return body.length < length ? null : { heard: { line, headers, body }, rest: text.slice(end + 4 + length) }
}

/** A server on a unix socket that answers each request as told; `answer` gives raw bytes, or hangs up with null. */
export const rawServer = (answer: (heard: Heard, client: net.Socket) => string | null | undefined) =>
  Effect.gen(function* () {
    const socket = path.join(yield* temporaryDirectory("api"), "api.sock")
    const heard: Array<Heard> = []
    const open = new Set<net.Socket>()
    let connections = 0
    const server = net.createServer((client) => {
      connections++
      open.add(client)
      let text = ""
      client.on("error", () => undefined).on("close", () => open.delete(client))
      client.on("data", (bytes) => {
        text += bytes.toString("utf8")
        for (let it = requestIn(text); it !== null; it = requestIn(text)) {
          text = it.rest
          heard.push(it.heard)
          const said = answer(it.heard, client)
          if (said === null) return client.destroy()
          if (said !== undefined) client.write(said)
        }
      })
    })
    yield* Effect.acquireRelease(
      Effect.promise(() => new Promise<void>((resolve) => server.listen(socket, resolve))),
      () =>
        Effect.promise(
          () =>
            new Promise<void>((resolve) => {
              for (const client of open) client.destroy()
              server.close(() => resolve())
            })
        )
    )
    const replay: Replay = { socket, heard, connections: () => connections }
    return replay
  })

export const replay = (exchanges: ReadonlyArray<Exchange>) => {
  let at = 0
  return rawServer((heard) => {
    const next = exchanges[at++]
    const isNext =
      next !== undefined &&
      heard.line === `${next.method} /api/v1/${next.call} HTTP/1.1` &&
      heard.body === next.body
    return isNext ? next.answer : null
  })
}

/** An answer as micro-http writes it. */
export const answer = (status: number, body = ""): string =>
  [
    `HTTP/1.1 ${status} `,
    "Server: Cloud Hypervisor API",
    "Connection: keep-alive",
    ...(status === 204
      ? []
      : ["Content-Type: application/json", `Content-Length: ${Buffer.byteLength(body)}`]),
    "",
    body
  ].join("\r\n")
