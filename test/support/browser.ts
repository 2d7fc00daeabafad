/**
 * A headless Chromium, spoken to by the DevTools protocol, with a profile of its own. Whatever is not for loopback, of the
 * page or of the browser's own, goes to a proxy that takes nothing: nothing leaves this machine.
 */
import { spawn } from "node:child_process"
import { accessSync, constants } from "node:fs"
import { createServer, type Server } from "node:http"
import * as path from "node:path"
import { createInterface } from "node:readline"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { temporaryDirectory } from "./temporary.ts"

const names = ["chromium", "chromium-browser", "google-chrome"]

/** The browser's path, or none. */
export const findBrowser = (): string | undefined =>
  (process.env["PATH"] ?? "")
    .split(":")
    .flatMap((directory) => names.map((name) => path.join(directory, name)))
    .find((candidate) => {
      try {
        accessSync(candidate, constants.X_OK)
        return true
      } catch {
        return false
      }
    })

const Message = Schema.Struct({
  id: Schema.optionalKey(Schema.Int),
  method: Schema.optionalKey(Schema.String),
  params: Schema.optionalKey(Schema.Record(Schema.String, Schema.Unknown)),
  result: Schema.optionalKey(Schema.Record(Schema.String, Schema.Unknown)),
  error: Schema.optionalKey(Schema.Struct({ message: Schema.String }))
})
type Message = typeof Message.Type
const decode = Schema.decodeUnknownSync(Schema.fromJsonString(Message))
const Request = Schema.Struct({ request: Schema.Struct({ url: Schema.String }) })

const listen = (server: Server): Promise<number> =>
  new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => {
      const address = server.address()
      resolve(typeof address === "object" && address !== null ? address.port : 0)
    })
  })

/** One tab's connection: commands by their answers, and every event. */
const makeTab = async (url: string) => {
  const socket = new WebSocket(url)
  const waiting = new Map<number, (message: Message) => void>()
  const events: Array<Message> = []
  const heard = new Set<(message: Message) => void>()
  socket.addEventListener("message", ({ data }) => {
    const message = decode(data)
    if (message.id !== undefined) return waiting.get(message.id)?.(message)
    events.push(message)
    for (const listener of heard) listener(message)
  })
  await new Promise((resolve) => socket.addEventListener("open", resolve, { once: true }))
  let last = 0
  const send = (method: string, params: object = {}) =>
    new Promise<Readonly<Record<string, unknown>>>((resolve, reject) => {
      const id = ++last
      waiting.set(id, ({ result, error }) =>
        error === undefined ? resolve(result ?? {}) : reject(new Error(`${method}: ${error.message}`))
      )
      socket.send(JSON.stringify({ id, method, params }))
    })
  const event = (method: string) =>
    new Promise<void>((resolve) => {
      const listener = (message: Message): void => {
        if (message.method !== method) return
        heard.delete(listener)
        resolve()
      }
      heard.add(listener)
    })
  return { send, event, events, close: () => socket.close() }
}

const Evaluated = Schema.Struct({ result: Schema.Struct({ value: Schema.optionalKey(Schema.Unknown) }) })
const Screenshot = Schema.Struct({ data: Schema.String })
const Targets = Schema.Array(Schema.Struct({ type: Schema.String, webSocketDebuggerUrl: Schema.String }))

const flags = [
  "--headless=new",
  // The tests run as root, and a container may lack what the sandbox needs; the page is our own.
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--disable-component-update",
  "--no-first-run",
  "--remote-debugging-port=0",
  "--window-size=1280,2000"
]

/** Opens a page in a browser that ends with the scope; the page has loaded. */
export const openPage = (browser: string, url: string) =>
  Effect.gen(function* () {
    const profile = yield* temporaryDirectory("browser")
    const proxy = createServer((_request, response) => response.writeHead(502).end())
    proxy.on("connect", (_request, socket) => socket.end("HTTP/1.1 502 Bad Gateway\r\n\r\n"))
    const port = yield* Effect.acquireRelease(
      Effect.promise(() => listen(proxy)),
      () => Effect.promise(() => new Promise((resolve) => proxy.close(resolve)))
    )
    const args = [
      ...flags,
      `--user-data-dir=${profile}`,
      `--proxy-server=http://127.0.0.1:${port}`,
      "about:blank"
    ]
    const child = yield* Effect.acquireRelease(
      Effect.sync(() => spawn(browser, args, { stdio: ["ignore", "ignore", "pipe"], detached: true })),
      (it) =>
        Effect.promise(async () => {
          const ended = new Promise((resolve) => it.once("close", resolve))
          // Its helpers are of its process group, and write to the profile until they are gone.
          if (it.pid !== undefined && it.exitCode === null) process.kill(-it.pid, "SIGKILL")
          await ended
        })
    )
    const debuggerUrl = yield* Effect.promise(
      () =>
        new Promise<string>((resolve, reject) => {
          const lines = createInterface(child.stderr)
          lines.on("line", (line) => {
            const found = /DevTools listening on (ws:\S+)/u.exec(line)?.[1]
            if (found !== undefined) resolve(found)
          })
          lines.on("close", () => reject(new Error("the browser ended before it listened")))
        })
    )
    const tab = yield* Effect.acquireRelease(
      Effect.promise(async () => {
        const answer = await fetch(`http://${new URL(debuggerUrl).host}/json/list`)
        const targets = Schema.decodeUnknownSync(Targets)(await answer.json())
        return makeTab(targets.find(({ type }) => type === "page")?.webSocketDebuggerUrl ?? "")
      }),
      (it) => Effect.sync(it.close)
    )
    yield* Effect.promise(async () => {
      for (const domain of ["Network", "Page", "Runtime", "Log"]) await tab.send(`${domain}.enable`)
      const loaded = tab.event("Page.loadEventFired")
      await tab.send("Page.navigate", { url })
      await loaded
    })
    return {
      /** The value of an expression in the page; a promise is waited for. */
      evaluate: (expression: string) =>
        Effect.promise(async () => {
          const answer = await tab.send("Runtime.evaluate", {
            expression,
            awaitPromise: true,
            returnByValue: true
          })
          return Schema.decodeUnknownSync(Evaluated)(answer).result.value
        }),
      screenshot: Effect.promise(async () => {
        const answer = await tab.send("Page.captureScreenshot", { captureBeyondViewport: true })
        return Buffer.from(Schema.decodeUnknownSync(Screenshot)(answer).data, "base64")
      }),
      /** Every URL that the page asked for. */
      requested: (): ReadonlyArray<string> =>
        tab.events
          .filter(({ method }) => method === "Network.requestWillBeSent")
          .map(({ params }) => Schema.decodeUnknownSync(Request)(params).request.url),
      /** Errors of the page: exceptions, and what its policy forbade. */
      errors: (): ReadonlyArray<string> =>
        tab.events
          .filter(({ method }) => method === "Runtime.exceptionThrown" || method === "Log.entryAdded")
          .map(({ params }) => JSON.stringify(params))
    }
  })
