/**
 * A real guest's agent and hosts that behave badly: pid 1 goes on, answers the next host, and leaves nothing of the last
 * one behind. One guest for all.
 */
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { writeConfig } from "../../src/guest/configDisk.ts"
import { creditKind, dataKind, endKind } from "../../src/guest/frame.ts"
import { GuestConfig } from "../../src/guest/GuestConfig.ts"
import { ensureInitrd } from "../../src/guest/initrd.ts"
import { guestCmdline } from "../../src/guest/kernel.ts"
import { streamsMax, windowBytes } from "../../src/guest/protocol.ts"
import { Files } from "../../src/host/Files.ts"
import { busyboxEntries, makeExt4, makeLayer, startMachine } from "../support/guestMachine.ts"
import { shared } from "../support/live.ts"
import { credit, rawHost, type RawHost, saidOf, shell, untilLast } from "../support/rawHost.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const testMaxMs = 120_000
const system = path.resolve(import.meta.dirname, "../../.artifacts/system")
/** QEMU makes its sockets a moment after it started, and says so nowhere. */
const socketRetryMs = 50
const socketRetries = 200
const sessions = 34
const seeds = 40

const machine = Effect.gen(function* () {
  const directory = yield* temporaryDirectory("hostile")
  const at = (name: string) => path.join(directory, name)
  yield* makeLayer(at("layer"), busyboxEntries())
  yield* makeExt4(at("overlay"), 64)
  const config = Schema.decodeSync(GuestConfig)({
    version: 1,
    hostname: "tiny",
    argv: ["sleep", "1000000"],
    env: {},
    working_dir: "/",
    user: "",
    layers: ["layer"],
    overlay: "overlay",
    network: null,
    volumes: []
  })
  yield* writeConfig(at("config"), config)
  const { kernel, initrd } = yield* ensureInitrd({
    system,
    kernelPath: process.env["KERNEL_PATH"] ?? path.join(system, "vmlinuz"),
    initrdPath: path.join(system, "initrd"),
    say: () => Effect.void
  })
  return yield* startMachine({
    directory,
    kernel: kernel.vmlinuz,
    initrd,
    cmdline: guestCmdline,
    disks: [
      { serial: "overlay", file: at("overlay") },
      { serial: "config", file: at("config") },
      { serial: "layer", file: at("layer"), readonly: true }
    ]
  })
}).pipe(Effect.provide(Files.layer), Effect.orDie)

const connect = (agent: string) =>
  rawHost(agent).pipe(Effect.retry({ schedule: Schedule.spaced(socketRetryMs), times: socketRetries }))

/** A host that has said hello. */
const greet = (agent: string) => connect(agent).pipe(Effect.tap((host) => Effect.promise(() => host.hello())))

/** What commands left running, but the image's own process. */
const left = async (host: RawHost, stream: number) =>
  (await shell(host, stream, "busybox ps -o args | grep '^sleep ' | grep -v ' 1000000'")).text

const sleeper = (script = "sleep 5000") => ["sh", "-c", `trap "" HUP; ${script} & echo up; wait`]

const start = async (host: RawHost, stream: number, command: ReadonlyArray<string>) => {
  assert.strictEqual((await host.ask("exec", { stream, command }))["type"], "done")
  await host.take((it) => it.stream === stream && it.kind === dataKind)
}

/** A generator of its own for each seed (mulberry32), so that a found case can be run again. */
const random = (seed: number) => {
  let state = seed
  return (below: number) => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) % below
  }
}

describe("a guest's agent", { timeout: testMaxMs }, () => {
  const common = shared(machine)

  const scenario = (name: string, body: (agent: string) => Effect.Effect<void, unknown, Scope.Scope>) =>
    it.live(name, () => Effect.flatMap(common, ({ agent }) => body(agent)))

  scenario("serves many commands at once, none of them behind one that floods", (agent) =>
    Effect.gen(function* () {
      const host = yield* greet(agent)
      yield* Effect.promise(async () => {
        await start(host, 1000, ["sh", "-c", "echo up; exec busybox yes"])
        credit(host, 1000, 0xffff_ffff)
        const outcomes = await Promise.all(
          Array.from({ length: sessions }, (_, at) =>
            shell(host, at + 1, `echo ${at}; head -c 5000 /bin/busybox`)
          )
        )
        for (const [at, { bytes, last }] of outcomes.entries()) {
          assert.deepStrictEqual(last, { type: "exit", code: 0 })
          assert.strictEqual(bytes, `${at}\n`.length + 5_000)
        }
        // Many streams, one after the other: what one occupied the next one has.
        host.tell(1000, { type: "cancel" })
        assert.deepStrictEqual((await untilLast(host, 1000)).last, { type: "exit", signal: "HUP" })
      })
    })
  )

  scenario("takes as many streams as it says, and then no more", (agent) =>
    Effect.gen(function* () {
      const host = yield* greet(agent)
      yield* Effect.promise(async () => {
        const ask = (stream: number) => host.ask("exec", { stream, command: ["sleep", "6000"] })
        const answers = await Promise.all(Array.from({ length: streamsMax }, (_, at) => ask(at + 1)))
        assert.isTrue(answers.every((it) => it["type"] === "done"))
        assert.strictEqual((await ask(streamsMax + 1))["type"], "refused")
        assert.strictEqual((await ask(1))["type"], "refused")
        host.tell(1, { type: "signal", signal: "TERM" })
        assert.deepStrictEqual((await untilLast(host, 1)).last, { type: "exit", signal: "TERM" })
        assert.strictEqual((await ask(streamsMax + 2))["type"], "done")
      })
    })
  )

  scenario("sends what it has credit for, and answers meanwhile", (agent) =>
    Effect.gen(function* () {
      const host = yield* greet(agent)
      yield* Effect.promise(async () => {
        const command = ["sh", "-c", "head -c 400000 /bin/busybox >&2"]
        assert.strictEqual((await host.ask("exec", { stream: 1, command }))["type"], "done")
        let bytes = 0
        while (bytes < windowBytes) bytes += (await host.take((it) => it.stream === 1)).payload.length
        await host.ask("ping")
        assert.strictEqual(bytes, windowBytes)
        assert.deepStrictEqual(host.left(), [])
        credit(host, 1, windowBytes)
        const rest = await untilLast(host, 1)
        assert.strictEqual(bytes + rest.bytes, 400_000)
        assert.deepStrictEqual(rest.last, { type: "exit", code: 0 })
      })
    })
  )

  scenario("ends the session of a host that breaks the protocol, and all its commands", (agent) =>
    Effect.gen(function* () {
      const crimes: ReadonlyArray<(host: RawHost) => void> = [
        (host) => {
          // The pipe behind it takes some, for which there is credit again.
          const piece = Buffer.alloc(16_384)
          for (let sent = 0; sent <= 2 * windowBytes; sent += piece.length) host.send(dataKind, 1, piece)
        },
        (host) => {
          host.send(endKind, 1, Buffer.alloc(0))
          host.send(dataKind, 1, Buffer.from("late"))
        },
        (host) => host.send(creditKind, 1, Buffer.from([1, 2, 3]))
      ]
      for (const crime of crimes) {
        const host = yield* greet(agent)
        yield* Effect.promise(async () => {
          await start(host, 1, sleeper())
          await start(host, 2, sleeper("sleep 5001"))
          crime(host)
          const broken = await host.take((it) => it.stream === 0 && saidOf(it)["type"] === "broken")
          assert.isString(saidOf(broken)["reason"])
          host.tell(0, { type: "ping", id: 999 })
          await host.hello()
          // Whoever ignored SIGHUP is killed a moment later.
          for (let stream = 10; (await left(host, stream)) !== ""; stream += 1);
          assert.isFalse(host.left().some((it) => it.stream === 0 && saidOf(it)["id"] === 999))
        })
        host.socket.destroy()
      }
    })
  )

  scenario("ends what the last host began when it leaves, or when another one says hello", (agent) =>
    Effect.gen(function* () {
      const first = yield* greet(agent)
      yield* Effect.promise(() => start(first, 1, sleeper("sleep 7000")))
      first.socket.destroy()
      const second = yield* greet(agent)
      yield* Effect.promise(async () => {
        for (let stream = 1; (await left(second, stream)) !== ""; stream += 1);
        await start(second, 900, sleeper("sleep 7001"))
        // The same nonce again is the same session; another one is not.
        await second.hello("again")
        await start(second, 901, sleeper("sleep 7002"))
        await second.hello("again")
        // What the second session began dies, what the third began does not.
        let lives = ""
        for (let stream = 902; (lives = await left(second, stream)).includes("7001"); stream += 1);
        assert.strictEqual(lives, "sleep 7002\n")
        await second.hello("new")
        for (let stream = 1; (await left(second, stream)) !== ""; stream += 1);
      })
    })
  )

  scenario("outlives a host that asks and does not listen", (agent) =>
    Effect.gen(function* () {
      const deaf = yield* greet(agent)
      yield* Effect.promise(() => start(deaf, 1, ["sh", "-c", "echo up; exec busybox yes"]))
      deaf.socket.pause()
      credit(deaf, 1, 0xffff_ffff)
      for (let id = 0; id < 20_000; id += 1) deaf.tell(0, { type: "memory", id })
      deaf.socket.destroy()
      const host = yield* greet(agent)
      yield* Effect.promise(async () => {
        assert.strictEqual((await host.ask("ping"))["type"], "done")
        assert.isBelow(
          Number((await shell(host, 1, "grep VmRSS /proc/1/status")).text.replace(/\D/g, "")),
          8 * 1024
        )
      })
    })
  )

  scenario("outlives noise", (agent) =>
    Effect.gen(function* () {
      const host = yield* greet(agent)
      yield* Effect.promise(() => start(host, 1, ["sh", "-c", "echo up; exec cat"]))
      for (let seed = 0; seed < seeds; seed += 1) {
        const next = random(seed)
        for (let frame = 0; frame < 50; frame += 1) {
          const payload = Buffer.from(Array.from({ length: next(64) }, () => next(256)))
          if (next(4) === 0) host.socket.write(payload)
          else if (next(2) === 0) host.send(next(8), next(3), payload)
          else
            host.tell(next(3), {
              type: ["exec", "mount", "resize", "hello", "grow", 7][next(6)],
              id: next(9),
              stream: next(3)
            })
        }
      }
      yield* Effect.promise(async () => {
        await host.hello()
        assert.strictEqual((await shell(host, 1, "echo well")).text, "well\n")
      })
    })
  )
})
