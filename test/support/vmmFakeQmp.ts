/** A QEMU monitor that says what a test tells it to, on a real unix socket, one client at a time. */
import * as net from "node:net"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { temporaryDirectory } from "./temporary.ts"

export const greeting =
  '{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}\r\n'

export interface Command {
  readonly execute: string
  readonly arguments: unknown
  readonly id: number
}

export interface FakeQmp {
  readonly path: string
  /** What the client has sent, in order. */
  readonly heard: ReadonlyArray<Command>
  /** Connections that are open now. */
  readonly clients: () => number
}

/** `answer` gets every command and a way to write raw text, or to hang up. */
export const fakeQmp = (
  answer: (command: Command, client: net.Socket) => void,
  greet: (client: net.Socket) => void = (client) => client.write(greeting)
) =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("qmp")
    const socket = path.join(directory, "qmp.sock")
    const heard: Array<Command> = []
    const open = new Set<net.Socket>()
    const server = net.createServer((client) => {
      open.add(client)
      let rest = ""
      client.on("error", () => undefined)
      client.on("close", () => open.delete(client))
      client.on("data", (bytes) => {
        const lines = (rest + bytes.toString("utf8")).split("\n")
        rest = lines.pop() ?? ""
        for (const line of lines) {
          const command: Command = JSON.parse(line)
          heard.push(command)
          answer(command, client)
        }
      })
      greet(client)
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
    return { path: socket, heard, clients: () => open.size } satisfies FakeQmp
  })

export const reply = (client: net.Socket, id: number, value: unknown = {}): void => {
  client.write(`${JSON.stringify({ return: value, id })}\r\n`)
}
