/** What people see: tables as wide as the terminal, bars that leave nothing, colours where they are wanted, completion; and
 * connections that drop. */
import { once } from "node:events"
import { createServer, connect, type AddressInfo, type Socket } from "node:net"
import { assert, describe, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { execa } from "execa"
import {
  Bundle,
  commandLine,
  demoArchive,
  type Server,
  startCommand,
  startServer
} from "../support/commandLine.ts"

class Ground extends Context.Service<Ground, Server & { readonly archive: string }>()("test/Ground") {
  static readonly layer = Layer.effect(
    Ground,
    Effect.gen(function* () {
      const server = yield* startServer()
      const archive = yield* demoArchive
      const run = commandLine(server.url)
      yield* run("image", "import", archive, "--id", "img-demo")
      yield* run(
        "run",
        "img-demo",
        "--id",
        "one",
        "--name",
        "A name of quite some length, 名前も長い",
        "-m",
        "256"
      )
      return { ...server, archive }
    })
  ).pipe(Layer.provideMerge(Bundle.layer))
}

const run = (...words: ReadonlyArray<string>) =>
  Effect.flatMap(Ground, ({ url }) => commandLine(url)(...words))

const quoted = (word: string): string => `'${word.replaceAll("'", String.raw`'\''`)}'`

/** A command on a terminal of so many columns (script(1)); gives all that the terminal got. */
const onTerminal = (
  columns: number,
  words: ReadonlyArray<string>,
  env: Readonly<Record<string, string>> = {}
) =>
  Effect.gen(function* () {
    const { url } = yield* Ground
    const command = [process.execPath, yield* Bundle, "--url", url, ...words].map(quoted).join(" ")
    const { stdout } = yield* Effect.promise(() =>
      execa("script", ["-qec", `stty rows 24 cols ${columns}; ${command}`, "/dev/null"], {
        env: { TERM: "xterm", NO_COLOR: "", LANG: "C.UTF-8", ...env }
      })
    )
    return stdout.replaceAll("\u001b", escape)
  })

/** How the tests write it. */
const escape = "<ESC>"

/** Passes connections on, until it cuts them all. */
const startProxy = (url: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const sockets = new Set<Socket>()
      const port = Number(new URL(url).port)
      const server = createServer((client) => {
        const upstream = connect(port, "127.0.0.1")
        for (const [from, to] of [
          [client, upstream],
          [upstream, client]
        ] as const) {
          sockets.add(from)
          from.pipe(to)
          from.on("error", () => {})
          from.on("close", () => to.destroy())
        }
      })
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
      const address: AddressInfo | string | null = server.address()
      const cut = () => {
        for (const socket of sockets) socket.destroy()
        sockets.clear()
      }
      return {
        url: `http://127.0.0.1:${typeof address === "object" ? (address?.port ?? 0) : 0}`,
        cut,
        server
      }
    }),
    ({ server, cut }) =>
      Effect.promise(async () => {
        cut()
        await new Promise((resolve) => server.close(resolve))
      })
  )

layer(Ground.layer, { timeout: 120_000 })("people", (it) => {
  describe("on a terminal", () => {
    it.effect("see tables that fit, and all of them in a pipe", () =>
      Effect.gen(function* () {
        const lines = (yield* onTerminal(60, ["ps"])).trim().split(/\r?\n/u)
        assert.strictEqual(lines.length, 2)
        assert.include(lines[1], "…")
        // Two cells for each of the wide characters, which this counts once.
        for (const line of lines) assert.isAtMost(line.length, 60)
        assert.include((yield* run("ps")).out, "A name of quite some length, 名前も長い")
      })
    )

    it.effect("see a bar while something takes time, and nothing of it afterwards", () =>
      Effect.gen(function* () {
        const { archive } = yield* Ground
        const seen = yield* onTerminal(80, ["image", "import", archive, "--id", "img-bar"])
        assert.match(seen, /\r<ESC>\[K\[[#-]{5,30}\] .*demo\.tar: sending/u)
        assert.match(seen, /\r<ESC>\[Kimg-bar ready$/u)
        const plain = yield* run("image", "import", archive, "--id", "img-bar")
        assert.notInclude(plain.err + plain.out, "\u001b")
        const verbs = yield* onTerminal(80, ["standby", "one"])
        assert.match(verbs, /one: writing the snapshot/u)
        assert.match(verbs, /\r<ESC>\[Kone Standby$/u)
        assert.match((yield* run("restore", "one")).err, /^one: reading the snapshot\n$/u)
        assert.strictEqual((yield* run("standby", "one", "--json")).err, "")
        yield* run("restore", "one")
      })
    )

    it.effect("see colours unless NO_COLOR says otherwise", () =>
      Effect.gen(function* () {
        assert.include(yield* onTerminal(80, ["--help"]), escape)
        assert.notInclude(yield* onTerminal(80, ["--help"], { NO_COLOR: "1" }), escape)
        assert.notInclude((yield* run("--help")).out, "\u001b")
      })
    )

    it.effect("end quietly when the reader of a pipe has enough", () =>
      Effect.gen(function* () {
        const { url } = yield* Ground
        const line = `${[process.execPath, yield* Bundle, "--url", url, "events", "--since", "0"].map(quoted).join(" ")} | head -n 1; echo "\${PIPESTATUS[0]}"`
        const pipeline = execa("timeout", ["-s", "INT", "60", "bash", "-c", `(${line})`], { reject: false })
        const pipe = { isOver: false }
        void pipeline.finally(() => (pipe.isOver = true))
        yield* Effect.promise(() => once(pipeline.stdout, "data"))
        // The next write tells that nobody reads any more.
        for (let round = 0; round < 10 && !pipe.isOver; round++) {
          yield* run("pause", "one")
          yield* run("resume", "one")
        }
        const { stdout, stderr } = yield* Effect.promise(() => pipeline)
        assert.match(stdout, /^\S+Z one created [^\n]*\n141$/u)
        assert.strictEqual(stderr, "")
      })
    )
  })

  it.effect("complete commands and flags in their shell", () =>
    Effect.gen(function* () {
      const scripts = yield* Effect.forEach(["bash", "zsh", "fish"], (shell) =>
        Effect.map(run("completion", shell), ({ code, out }) => {
          assert.strictEqual(code, 0)
          return out
        })
      )
      const [bash = "", zsh = "", fish = ""] = scripts
      assert.match(zsh, /^#compdef dataplane/u)
      assert.include(fish, "complete -c dataplane")
      const complete = (...words: ReadonlyArray<string>) =>
        Effect.promise(async () => {
          const typed = words.map(quoted).join(" ")
          const ask = `${bash}
            COMP_WORDS=(${typed}); COMP_CWORD=${words.length - 1}; COMP_LINE="\${COMP_WORDS[*]}"; COMP_POINT=\${#COMP_LINE}
            complete -p dataplane >/dev/null || exit 9
            "$(complete -p dataplane | sed 's/.*-F \\([^ ]*\\).*/\\1/')" dataplane "\${COMP_WORDS[COMP_CWORD]}" "\${COMP_WORDS[COMP_CWORD-1]}"
            printf '%s\\n' "\${COMPREPLY[@]}"`
          const { stdout } = await execa("bash", ["-c", ask], { reject: false })
          return stdout.split("\n")
        })
      assert.includeMembers(yield* complete("dataplane", "re"), ["resume", "restore"])
      assert.includeMembers(yield* complete("dataplane", "image", "i"), ["import", "inspect"])
      assert.includeMembers(yield* complete("dataplane", "run", "--mem"), ["--memory", "--memory-max"])
    })
  )

  it.effect("lose no line and see none twice when a connection drops", () =>
    Effect.gen(function* () {
      const { url } = yield* Ground
      const proxy = yield* startProxy(url)
      const command = yield* Bundle
      const env = { DATAPLANE_URL: proxy.url }
      const following = startCommand(command, ["logs", "-f", "one", "--source", "dataplane", "--json"], {
        env
      })
      const watching = startCommand(command, ["events", "--since", "0", "--instance", "one", "--json"], {
        env
      })
      yield* Effect.promise(() => Promise.all([following.until(/"cursor"/u), watching.until(/"id"/u)]))
      for (let round = 1; round <= 2; round++) {
        proxy.cut()
        yield* run("pause", "one")
        yield* run("resume", "one")
        const again = new RegExp(`(Connected again[^]*){${round}}`, "u")
        yield* Effect.promise(() => Promise.all([following.until(again), watching.until(again)]))
      }
      yield* run("stop", "one")
      yield* Effect.promise(() =>
        Promise.all([following.until(/to Stopped/u), watching.until(/"to":"Stopped"/u)])
      )
      following.signal("SIGINT")
      watching.signal("SIGINT")
      const [logged, told] = yield* Effect.promise(() => Promise.all([following.ended, watching.ended]))
      assert.deepStrictEqual([logged.code, told.code], [130, 130])
      // `time` is when the line was seen, and differs for lines older than the reader.
      const cursors = (text: string) => text.replace(/"time":"[^"]*","line"/gu, '"line"')
      const whole = yield* run("logs", "one", "--source", "dataplane", "--json")
      assert.strictEqual(cursors(logged.out), cursors(whole.out))
      const ids = [...told.out.matchAll(/^\{"id":(\d+),/gmu)].map(([, id]) => Number(id))
      assert.isAbove(ids.length, 5)
      assert.deepStrictEqual(
        ids,
        [...new Set(ids)].toSorted((left, right) => left - right)
      )
    })
  )
})

layer(Bundle.layer, { timeout: 120_000 })("with a secret", (it) => {
  it.effect("a token that is signed here opens the service as far as its scope, and no further", () =>
    Effect.gen(function* () {
      const secret = "0123456789abcdef0123456789abcdef"
      const { url } = yield* startServer({ JWT_SECRET: secret })
      const command = yield* Bundle
      const run = (words: ReadonlyArray<string>, env: Readonly<Record<string, string>>) =>
        Effect.promise(() => startCommand(command, words, { env: { DATAPLANE_URL: url, ...env } }).ended)
      const token = (...words: ReadonlyArray<string>) =>
        Effect.map(run(["token", ...words], { JWT_SECRET: secret }), ({ out }) => ({
          DATAPLANE_TOKEN: out.trim()
        }))
      const none = yield* run(["ps"], {})
      assert.deepStrictEqual([none.code, none.out], [6, ""])
      const reader = yield* token()
      assert.strictEqual((yield* run(["ps", "-q"], reader)).code, 0)
      assert.strictEqual((yield* run(["create", "img-x", "--pull", "never"], reader)).code, 6)
      const writer = yield* token("--scope", "write", "--expires", "5m")
      assert.strictEqual((yield* run(["create", "img-x", "--pull", "never"], writer)).code, 3)
      for (const expires of ["0s", "1y", "99999d"])
        assert.strictEqual((yield* run(["token", "--expires", expires], { JWT_SECRET: secret })).code, 2)
      const short = yield* run(["token"], { JWT_SECRET: "short" })
      assert.deepStrictEqual([short.code, short.out], [2, ""])
      assert.notInclude(short.err, "short")
    })
  )
})
