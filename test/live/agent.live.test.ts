/**
 * Processes and files in one real guest, over HTTP and WebSocket: everything that a client sees of them, through a pause,
 * a restart of the service, standby and restore.
 */
import { createHash, randomFillSync } from "node:crypto"
import { buffer } from "node:stream/consumers"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import * as tar from "tar-stream"
import { InstanceId } from "../../src/domain/Ids.ts"
import { createInstance, importImage } from "../support/guests.ts"
import { shared } from "../support/live.ts"
import { execLines, readFiles, run, sh, terminal, writeFiles } from "../support/liveExec.ts"
import { guestImage, refused, untilReady } from "../support/liveGuest.ts"
import { startService } from "../support/Service.ts"

const id = InstanceId.make("guest")
const to = { params: { id } }
const mebibyte = 1024 * 1024
const catBytes = 64 * mebibyte
const sessions = 32
const clockToleranceS = 2

const ground = Effect.gen(function* () {
  const service = yield* startService({ env: { QEMU_ACCEL: "tcg" } })
  const image = yield* importImage(service, "img-guest", guestImage)
  yield* createInstance(service, {
    id,
    name: "Guest",
    image: image.id,
    memory_mb: 256,
    env: { TOKEN: "from the request" },
    network: { enabled: false }
  })
  yield* untilReady(service, { id })
  return service
})

interface Entry extends Partial<tar.Header> {
  readonly name: string
}

const pidOf = (line: string) => Number(/\d+/u.exec(line)?.[0])

describe("inside a guest", { timeout: 180_000 }, () => {
  const common = shared(ground)

  it.live("a process ends as it ends: code, signal, its time, or not at all", () =>
    Effect.gen(function* () {
      const service = yield* common
      const both = yield* run(service, id, { command: ["sh", "-c", "echo out; echo err >&2; exit 7"] })
      assert.deepStrictEqual(both, { stdout: "out\n", stderr: "err\n", end: { code: 7 } })
      const killed = yield* run(service, id, { command: ["sh", "-c", "kill -TERM $$"] })
      assert.deepStrictEqual(killed.end, { signal: "TERM" })
      const late = yield* run(service, id, {
        command: ["sh", "-c", "echo begun; sleep 1000 & wait"],
        timeout_ms: 1_500
      })
      assert.deepStrictEqual(late, { stdout: "begun\n", stderr: "", end: { timeout: true } })
      assert.strictEqual(yield* sh(service, id, "pgrep -f 'sleep 1000' || echo none"), "none\n")
      const none = yield* refused(service, "POST", `/instances/${id}/exec`, { command: ["/bin/nope"] })
      assert.deepStrictEqual([none.status, none.name], [422, "guest-refused"])
    })
  )

  it.live("a process has the user, the environment, the directory and the input that it was given", () =>
    Effect.gen(function* () {
      const service = yield* common
      const seen = yield* run(service, id, {
        command: ["sh", "-c", 'id -u; id -g; pwd; echo "$TOKEN, $EXTRA, $GREETING"; cat'],
        user: "33:34",
        env: { EXTRA: "mine", GREETING: "other" },
        cwd: "/www",
        stdin: "grüße\n"
      })
      assert.deepStrictEqual(seen, {
        stdout: "33\n34\n/www\nfrom the request, mine, other\ngrüße\n",
        stderr: "",
        end: { code: 0 }
      })
      const nobody = yield* refused(service, "POST", `/instances/${id}/exec`, {
        command: ["id"],
        user: "nobody-of-that-name"
      })
      assert.strictEqual(nobody.name, "guest-refused")
    })
  )

  it.live("a terminal has a size, changes it, takes signals and keys", () =>
    Effect.gen(function* () {
      const service = yield* common
      const lines = `trap : INT; while read -r line; do eval "$line"; done`
      const shell = yield* terminal(service, id, {
        command: ["sh", "-c", lines],
        tty: { rows: 24, cols: 80 }
      })
      yield* shell.input("stty size\n")
      yield* shell.until(/24 80\r\n/u)
      yield* shell.order({ resize: { rows: 50, cols: 132 } })
      yield* shell.input("stty size\n")
      yield* shell.until(/50 132\r\n/u)
      yield* shell.input("echo wait''ing; cat; echo code $?\n")
      yield* shell.until(/waiting\r\n/u)
      yield* shell.input("typed\n")
      // What the terminal echoes, and what cat says.
      yield* shell.until(/typed\r\ntyped\r\n/u)
      yield* shell.input("\u0003")
      yield* shell.until(/code 130\r\n/u)
      yield* shell.input("echo wait''ing; cat; echo code $?\n")
      yield* shell.until(/waiting\r\n/u)
      yield* shell.order({ signal: "INT" })
      yield* shell.until(/code 130\r\n/u)
      yield* shell.input("exit 5\n")
      assert.deepStrictEqual(yield* shell.end, { exit: { code: 5 } })
    }).pipe(Effect.scoped)
  )

  it.live(
    `of ${sessions} processes at once none waits for one that floods, nor for one that nobody reads`,
    () =>
      Effect.gen(function* () {
        const service = yield* common
        let flood = 0
        yield* terminal(service, id, { command: ["yes"] }, (bytes) => void (flood += bytes.length))
        const unread = yield* execLines(service, id, { command: ["yes", "unread"] }).pipe(Stream.toPull)
        yield* unread
        const others = Array.from({ length: sessions - 2 }, (_, at) =>
          Effect.map(run(service, id, { command: ["echo", `${at}`] }), ({ stdout, end }) => [stdout, end])
        )
        const answers = yield* Effect.all(others, { concurrency: "unbounded" })
        assert.deepStrictEqual(
          answers,
          answers.map((_, at) => [`${at}\n`, { code: 0 }])
        )
        assert.isAbove(flood, 0)
      }).pipe(Effect.scoped)
  )

  it.live("64 MiB go through cat and back unharmed", () =>
    Effect.gen(function* () {
      const service = yield* common
      const back = createHash("sha256")
      let bytes = 0
      const cat = yield* terminal(service, id, { command: ["cat"] }, (piece) => {
        back.update(piece)
        bytes += piece.length
      })
      const sent = createHash("sha256")
      const piece = randomFillSync(Buffer.alloc(256 * 1024))
      const startedAt = performance.now()
      for (let at = 0; at < catBytes; at += piece.length) {
        piece.writeUInt32LE(at)
        sent.update(piece)
        yield* cat.input(Buffer.from(piece))
      }
      yield* cat.order({ stdin_end: true })
      assert.deepStrictEqual(yield* cat.end, { exit: { code: 0 } })
      const seconds = (performance.now() - startedAt) / 1000
      console.log(`64 MiB through cat and back: ${(catBytes / mebibyte / seconds).toFixed(1)} MiB/s each way`)
      assert.strictEqual(bytes, catBytes)
      assert.strictEqual(back.digest("hex"), sent.digest("hex"))
    }).pipe(Effect.scoped)
  )

  it.live("files come back as they went in: contents, owners, modes, times, links", () =>
    Effect.gen(function* () {
      const service = yield* common
      const mtime = new Date("2020-02-02T02:02:02Z")
      const owned = { uid: 33, gid: 34, mtime }
      const big = randomFillSync(Buffer.alloc(3 * mebibyte + 17))
      const entries: ReadonlyArray<Entry & { readonly content?: string | Buffer }> = [
        { ...owned, name: "d", type: "directory", mode: 0o2750 },
        { ...owned, name: "d/secret", mode: 0o600, content: "s3cret" },
        { ...owned, name: "d/program", mode: 0o4755, content: "#!/bin/sh\necho run\n" },
        { ...owned, name: "d/big", mode: 0o644, content: big },
        { ...owned, name: "d/empty", mode: 0o444, content: "" },
        { ...owned, name: "d/link", type: "symlink", linkname: "../elsewhere" },
        { ...owned, name: `d/${"long-".repeat(40)}name`, mode: 0o640, content: "long" },
        { ...owned, name: "d/hard", type: "link", linkname: "d/secret" }
      ]
      const pack = tar.pack()
      for (const { content, ...header } of entries) pack.entry(header, content ?? "")
      pack.finalize()
      const archive = new Uint8Array(yield* Effect.promise(() => buffer(pack)))
      const answer = yield* writeFiles(service, id, "/srv/in", Stream.make(archive))
      assert.strictEqual(answer.status, 204, answer.text)
      assert.strictEqual(yield* sh(service, id, "/srv/in/d/program; stat -c %h /srv/in/d/secret"), "run\n2\n")

      const out = yield* readFiles(service, id, "/srv/in/d")
      assert.deepStrictEqual([out.status, out.type], [200, "application/x-tar"])
      const extract = tar.extract()
      extract.end(out.body)
      const found = new Map<string, object>()
      const bodies = new Map<string, Buffer>()
      yield* Effect.promise(async () => {
        for await (const entry of extract) {
          const name = entry.header.name.replace(/\/$/u, "")
          bodies.set(name, await buffer(entry))
          found.set(name, entry.header)
        }
      })
      const sharing = [bodies.get("d/secret"), bodies.get("d/hard")].map((it) => it?.toString())
      assert.sameMembers(sharing, ["s3cret", ""], "one of the two is a link to the other")
      for (const { content, linkname, name, mode, type } of entries) {
        const header = found.get(name)
        assert.isDefined(header, name)
        if (type === "link" || name === "d/secret") continue
        assert.deepInclude(header, { ...owned, ...(mode === undefined ? {} : { mode }) }, name)
        if (linkname !== undefined) assert.propertyVal(header, "linkname", linkname)
        if (content !== undefined) assert.isTrue(bodies.get(name)?.equals(Buffer.from(content)), name)
      }
      assert.strictEqual(found.size, entries.length)
      const none = yield* refused(service, "GET", `/instances/${id}/files?path=/nowhere`)
      assert.strictEqual(none.name, "guest-refused")
    })
  )

  it.live("nothing is written outside of the directory, whatever the archive names", () =>
    Effect.gen(function* () {
      const service = yield* common
      const hostile: ReadonlyArray<ReadonlyArray<Entry>> = [
        [{ name: "../escaped" }],
        [{ name: "/tmp/escaped" }],
        [{ name: "out", type: "symlink", linkname: "/tmp" }, { name: "out/escaped" }],
        [{ name: "out", type: "symlink", linkname: ".." }, { name: "out/escaped" }]
      ]
      for (const headers of hostile) {
        const pack = tar.pack()
        for (const header of headers) pack.entry(header, header.type === "symlink" ? "" : "x")
        pack.finalize()
        const archive = new Uint8Array(yield* Effect.promise(() => buffer(pack)))
        yield* writeFiles(service, id, "/srv/jail", Stream.make(archive))
        const escaped = yield* sh(service, id, "ls /tmp/escaped /srv/escaped 2> /dev/null; rm -rf /srv/jail")
        assert.strictEqual(escaped, "", JSON.stringify(headers))
      }
      const cut = yield* writeFiles(service, id, "/srv/cut", Stream.make(new Uint8Array(700).fill(7)))
      assert.strictEqual(cut.status, 422, cut.text)
    })
  )

  it.live("a process in a paused guest waits; none is begun there", () =>
    Effect.gen(function* () {
      const service = yield* common
      const shell = yield* terminal(service, id, { command: ["cat"] })
      yield* shell.input("before\n")
      yield* shell.until(/before/u)
      yield* service.client.instances.pause(to)
      const denied = yield* refused(service, "POST", `/instances/${id}/exec`, { command: ["true"] })
      assert.deepStrictEqual([denied.status, denied.name], [409, "invalid-state"])
      assert.strictEqual((yield* refused(service, "GET", `/instances/${id}/files?path=/etc`)).status, 409)
      yield* shell.input("while it is paused\n")
      yield* service.client.instances.resume(to)
      yield* shell.until(/while it is paused/u)
      yield* shell.order({ stdin_end: true })
      assert.deepStrictEqual(yield* shell.end, { exit: { code: 0 } })
    }).pipe(Effect.scoped)
  )

  it.live("a client that goes away, and a service that does, leave no process behind in the guest", () =>
    Effect.gen(function* () {
      const service = yield* common
      const gone = (pid: number) =>
        sh(
          service,
          id,
          `for i in $(seq 100); do [ -e /proc/${pid} ] || { echo gone; exit; }; sleep 0.1; done; echo there`
        )
      const first = yield* Effect.scoped(
        Effect.gen(function* () {
          const shell = yield* terminal(service, id, {
            command: ["sh", "-c", "echo pid $$; exec sleep 5000"]
          })
          return pidOf(yield* shell.until(/pid \d+\n/u))
        })
      )
      assert.strictEqual(yield* gone(first), "gone\n")
      const shell = yield* terminal(service, id, { command: ["sh", "-c", "echo pid $$; exec sleep 6000"] })
      const second = pidOf(yield* shell.until(/pid \d+\n/u))
      yield* service.restart("SIGKILL")
      yield* untilReady(service, { id })
      assert.strictEqual(yield* gone(second), "gone\n")
      assert.strictEqual(yield* sh(service, id, "echo again"), "again\n")
    }).pipe(Effect.scoped)
  )

  it.live("standby ends a process with a word, and after a restore the next one has the right clock", () =>
    Effect.gen(function* () {
      const service = yield* common
      const lines = yield* execLines(service, id, {
        command: ["sh", "-c", "echo begun; exec sleep 7000"]
      }).pipe(Stream.toPull)
      yield* lines
      const last = yield* Effect.forkChild(lines)
      yield* service.client.instances.standby(to)
      const [said] = yield* Fiber.join(last)
      assert.nestedPropertyVal(said, "error.status", 503)
      yield* service.client.instances.restore({ ...to, query: {} })
      yield* untilReady(service, { id })
      const clock = Number(yield* sh(service, id, "date +%s"))
      assert.approximately(clock, Date.now() / 1000, clockToleranceS)
      assert.strictEqual(yield* sh(service, id, "pgrep -f 'sleep 7000' || echo none"), "none\n")
    }).pipe(Effect.scoped)
  )
})
