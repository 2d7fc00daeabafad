/**
 * A network namespace of a test's own. Bridges, TAPs, rules and traffic of a test stay inside; deleting it removes them
 * all. The test itself stays outside and reaches in through a door (`namespaceDoor.ts`), for HTTP as well.
 */
import { type ChildProcess, spawn } from "node:child_process"
import * as http from "node:http"
import * as https from "node:https"
import * as net from "node:net"
import * as path from "node:path"
import type { Duplex } from "node:stream"
import { fileURLToPath } from "node:url"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as HttpClient from "effect/http/HttpClient"
import { run } from "../../src/host/Command.ts"
import type { CommandFault } from "../../src/host/Fault.ts"
import { namespace, within } from "./netns.ts"
import { temporaryDirectory } from "./temporary.ts"

export interface Namespace {
  readonly name: string
  /** Runs a tool inside and gives its standard output. */
  readonly run: (command: string, args: ReadonlyArray<string>) => Effect.Effect<string, CommandFault>
  /** Pids of all processes inside, the door's excepted. */
  readonly pids: Effect.Effect<ReadonlyArray<number>>
  /** An HTTP client whose connections are made inside. */
  readonly http: HttpClient.HttpClient
  /** A TCP connection made inside. Rejects with the error code where it is refused. */
  readonly dial: (host: string, port: number) => Promise<net.Socket>
}

const answerMaxBytes = 64

/** Asks the door for a connection and hands it over as soon as the door has it. */
const dialThrough =
  (door: string) =>
  (host: string, port: number): Promise<net.Socket> =>
    new Promise((resolve, reject) => {
      const socket = net.connect({ path: door, allowHalfOpen: false })
      let said = ""
      // Read, not listened to: the socket must be handed over neither flowing nor paused.
      const listen = () => {
        const chunk: unknown = socket.read()
        if (Buffer.isBuffer(chunk)) said += chunk.toString("latin1")
        const end = said.indexOf("\n")
        if (end === -1 && said.length < answerMaxBytes) return
        socket.off("readable", listen)
        socket.off("error", reject)
        if (said.startsWith("ok\n")) {
          if (end + 1 < said.length) socket.unshift(Buffer.from(said.slice(end + 1), "latin1"))
          resolve(socket)
        } else {
          socket.destroy()
          reject(
            Object.assign(new Error(`${host}:${port}: ${said.trim()}`), { code: said.trim().split(" ")[1] })
          )
        }
      }
      socket.once("error", reject)
      socket.once("end", () => reject(new Error(`${host}:${port}: the namespace's door closed`)))
      socket.on("readable", listen)
      socket.write(`${host} ${port}\n`)
    })

class NamespaceAgent extends http.Agent {
  readonly #dial: Namespace["dial"]

  constructor(dial: Namespace["dial"]) {
    super({ keepAlive: false })
    this.#dial = dial
  }

  override createConnection(
    options: { readonly host?: string | null; readonly port?: number | string | null },
    connected?: (error: Error | null, socket: Duplex) => void
  ): undefined {
    void this.#dial(options.host ?? "127.0.0.1", Number(options.port ?? 80)).then(
      (socket) => connected?.(null, socket),
      // Node looks at the error first and never at the socket beside it; its types want one all the same.
      (error: Error) => connected?.(error, new net.Socket())
    )
  }
}

const clientThrough = (dial: Namespace["dial"]) =>
  HttpClient.HttpClient.pipe(
    Effect.provide(
      NodeHttpClient.layerNodeHttpNoAgent.pipe(
        Layer.provide(
          Layer.succeed(NodeHttpClient.HttpAgent, {
            http: new NamespaceAgent(dial),
            https: new https.Agent()
          })
        )
      )
    )
  )

const doorProgram = path.join(path.dirname(fileURLToPath(import.meta.url)), "namespaceDoor.ts")

/** Ends once the door listens; fails where it ends before. */
const opened = (child: ChildProcess): Promise<void> =>
  new Promise((resolve, reject) => {
    child.once("error", reject)
    child.once("exit", (code) => reject(new Error(`the namespace's door ended with ${code}`)))
    child.stdout?.once("data", () => resolve())
  })

const gone = (child: ChildProcess): Promise<void> =>
  new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) resolve()
    else child.once("exit", () => resolve())
  })

const openDoor = (name: string, socket: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const child = spawn("ip", ["netns", "exec", name, process.execPath, doorProgram, socket], {
        stdio: ["pipe", "pipe", "inherit"]
      })
      await opened(child)
      return child
    }),
    (child) =>
      Effect.promise(() => {
        child.stdin?.end()
        child.kill("SIGKILL")
        return gone(child)
      })
  )

/**
 * A new namespace with loopback up and a door. When the scope closes, every process inside is killed, then it is
 * deleted. Needs root (ip-netns(8)).
 */
export const makeNamespace = Effect.gen(function* () {
  const where = yield* namespace
  const { name } = where
  const directory = yield* temporaryDirectory("door")
  const socket = path.join(directory, "door")
  const pidsInside = Effect.orDie(run("ip", ["netns", "pids", name])).pipe(
    Effect.map((text) => text.split("\n").filter(Boolean).map(Number))
  )
  yield* Effect.addFinalizer(() =>
    pidsInside.pipe(
      Effect.map((pids) => {
        for (const pid of pids) {
          try {
            process.kill(pid, "SIGKILL")
          } catch {
            // Gone since it was listed.
          }
        }
      })
    )
  )
  const door = yield* openDoor(name, socket)
  const dial = dialThrough(socket)
  return {
    name,
    run: (command, args) => within(where, command, ...args),
    pids: Effect.map(pidsInside, (pids) => pids.filter((pid) => pid !== door.pid)),
    http: yield* clientThrough(dial),
    dial
  } satisfies Namespace
})
