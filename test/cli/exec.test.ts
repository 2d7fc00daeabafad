/** exec and the commands on volumes, as processes against a stub of the endpoints that need a guest. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, describe, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { execa } from "execa"
import { Volume } from "../../src/domain/Volume.ts"
import { Bundle } from "../support/commandLine.ts"
import { floodBytes, layerStub, run, start, Stub } from "../support/guestStub.ts"
import { temporaryDirectory } from "../support/temporary.ts"

/** A path for `sh -c` and for script(1), which runs on a terminal of its own. */
const quoted = (word: string): string => `'${word.replaceAll("'", String.raw`'\''`)}'`

layer(layerStub, { timeout: 120_000 })("with a guest", (it) => {
  describe("exec", () => {
    it.effect("passes on output, codes and signals, and the service's own words", () =>
      Effect.gen(function* () {
        assert.deepStrictEqual(yield* run(["exec", "vm-1", "exit", "42"]), {
          code: 42,
          out: "out\n",
          err: "err\n"
        })
        assert.deepStrictEqual(yield* run(["exec", "vm-1", "exit", "0"]), {
          code: 0,
          out: "out\n",
          err: "err\n"
        })
        assert.strictEqual((yield* run(["exec", "vm-1", "killed"])).code, 143)
        const slow = yield* run(["exec", "--timeout", "1.5", "vm-1", "slow"])
        assert.deepStrictEqual([slow.code, slow.err], [124, "The command was killed after 1.5 s.\n"])
        const broken = yield* run(["exec", "vm-1", "broken"])
        assert.deepStrictEqual([broken.code, broken.err], [1, "There is no program x.\n"])
        const dropped = yield* run(["exec", "vm-1", "dropped"])
        assert.strictEqual(dropped.code, 5)
        assert.match(dropped.err, /connection to the service was lost/u)
        const forbidden = yield* run(["exec", "vm-1", "cat"], { env: { DATAPLANE_TOKEN: "read-only" } })
        assert.deepStrictEqual(
          [forbidden.code, forbidden.err],
          [6, "The token's scope does not allow this.\n"]
        )
        assert.strictEqual((yield* run(["exec", "vm-1", "flood"])).out.length, floodBytes)
      })
    )

    it.effect("hands the request on to the letter, and leaves the guest's flags to the guest", () =>
      Effect.gen(function* () {
        const { execs } = yield* Stub
        const words = [
          "exec",
          "-e",
          "A=b=c",
          "-e",
          "HERE",
          "-w",
          "/srv",
          "-u",
          "7:8",
          "--timeout",
          "2",
          "vm-1",
          "exit",
          "0",
          "-it",
          "--json",
          "--",
          "x"
        ]
        yield* run(words, { env: { HERE: "there", DATAPLANE_TOKEN: "t.o.k" } })
        assert.deepStrictEqual(execs.at(-1), {
          authorization: "Bearer t.o.k",
          request: {
            command: ["exit", "0", "-it", "--json", "--", "x"],
            env: { A: "b=c", HERE: "there" },
            cwd: "/srv",
            user: "7:8",
            timeout_ms: 2000
          }
        })
      })
    )

    it.effect("hands stdin on, all of it, and only where it is asked to", () =>
      Effect.gen(function* () {
        const input = Buffer.alloc(5 * 1024 * 1024, "0123456789")
        const echoed = yield* run(["exec", "-i", "vm-1", "cat"], { input })
        assert.strictEqual(echoed.code, 0, echoed.err)
        assert.isTrue(Buffer.from(echoed.out).equals(input))
        assert.deepStrictEqual(yield* run(["exec", "vm-1", "cat"], { input: "unread" }), {
          code: 0,
          out: "",
          err: ""
        })
        const open = yield* start(["exec", "-i", "vm-1", "cat"], { open: true })
        open.write("one\n")
        yield* Effect.promise(() => open.until(/one\n/u))
        open.closeInput()
        assert.strictEqual((yield* Effect.promise(() => open.ended)).code, 0)
      })
    )

    it.effect("hands signals on, and ends like the guest's command", () =>
      Effect.gen(function* () {
        const running = yield* start(["exec", "vm-1", "signals"])
        yield* Effect.promise(() => running.until(/waiting/u))
        running.signal("SIGTERM")
        yield* Effect.promise(() => running.until(/TERM/u))
        running.signal("SIGINT")
        assert.deepStrictEqual(yield* Effect.promise(() => running.ended), {
          code: 7,
          out: "waiting\nTERM\nINT\n",
          err: ""
        })
      })
    )

    it.effect("gives the guest a terminal: raw, of its size, and gives it back", () =>
      Effect.gen(function* () {
        const refused = yield* run(["exec", "-it", "vm-1", "terminal"])
        assert.deepStrictEqual([refused.code, refused.out], [2, ""])
        assert.match(refused.err, /--tty takes a terminal/u)
        const { url } = yield* Stub
        const command = [process.execPath, yield* Bundle, "--url", url, "exec", "-it", "vm-1", "terminal"]
        const line = `stty rows 33 cols 77; ${command.map(quoted).join(" ")}; echo "code $?"; stty -a | grep -o -- '-\\?icanon'`
        const terminal = execa("script", ["-qec", line, "/dev/null"], {
          reject: false,
          env: { TERM: "vt100" }
        })
        let seen = ""
        const until = (text: string) =>
          new Promise<void>((resolve) => {
            const look = (piece: Buffer) => {
              seen += String(piece)
              if (seen.includes(text)) resolve()
            }
            terminal.stdout.on("data", look)
            if (seen.includes(text)) resolve()
          })
        yield* Effect.promise(() => until("size 33x77"))
        // An interrupt is a key like others on a raw terminal, and nothing is echoed here.
        terminal.stdin.write("\u0003a")
        yield* Effect.promise(() => until(String.raw`keys "\u0003a"`))
        terminal.stdin.write("q")
        const { stdout } = yield* Effect.promise(() => terminal)
        assert.match(stdout, /code 3\r?\nicanon/u)
        const { execs } = yield* Stub
        assert.strictEqual(execs.at(-1)?.request.env["TERM"], "vt100")
      })
    )
  })

  describe("volumes", () => {
    it.effect("are made, listed, grown, filled, attached and detached", () =>
      Effect.gen(function* () {
        const { asked } = yield* Stub
        const root = yield* temporaryDirectory("volume")
        const file = path.join(root, "data.tar")
        yield* Effect.promise(() => fs.writeFile(file, "archive"))
        const last = () => {
          const [method, url, body] = asked.at(-1) ?? ["", "", Buffer.alloc(0)]
          return `${method} ${url} ${String(body)}`
        }
        const steps: ReadonlyArray<readonly [words: string, out: string, request: string]> = [
          [
            "volume create data -s 2 --id vol-data",
            "vol-data 2 GiB\n",
            'POST /volumes {"name":"data","size_gb":2,"id":"vol-data"}'
          ],
          ["volume grow data 5", "vol-data 5 GiB\n", 'PATCH /volumes/vol-data {"size_gb":5}'],
          [
            `volume import data ${file} -s 2`,
            "vol-data 2 GiB\n",
            "POST /volumes/import?name=data&size_gb=2 archive"
          ],
          [
            "attach vm-1 vol /data --readonly",
            "vol-data at /data of vm-1\n",
            'POST /instances/vm-1/volumes/vol-data {"mount_path":"/data","readonly":true}'
          ],
          [
            "detach vm-1 data --force",
            "vol-data detached from vm-1\n",
            "DELETE /instances/vm-1/volumes/vol-data?force=true "
          ]
        ]
        for (const [words, out, request] of steps) {
          const ended = yield* run(words.split(" "))
          assert.deepStrictEqual([ended.code, ended.out], [0, out], ended.err)
          assert.strictEqual(last(), request)
        }
        const listing = yield* run(["volume", "ls"])
        assert.match(
          listing.out,
          /^ID +NAME +SIZE +ATTACHED TO +CREATED\nvol-data +data +2 GiB +vm-1:\/data +\d+ d ago\n$/u
        )
        const { out } = yield* run(["volume", "ls", "--json"])
        yield* Schema.decodeEffect(Schema.fromJsonString(Schema.Array(Volume)))(out)
        const inUse = yield* run(["volume", "rm", "data"])
        assert.deepStrictEqual(
          [inUse.code, inUse.err],
          [4, "The volume vol-data is used by vm-1; detach it first.\n"]
        )
      })
    )
  })
})
