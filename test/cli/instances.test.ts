/** The commands on instances and images, as processes against a real server on the simulated driver. */
import { assert, describe, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { InstanceEvent } from "../../src/domain/Event.ts"
import { Image } from "../../src/domain/Image.ts"
import { Instance } from "../../src/domain/Instance.ts"
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
      yield* commandLine(server.url)("image", "import", archive, "--id", "img-demo")
      return { ...server, archive }
    })
  ).pipe(Layer.provideMerge(Bundle.layer))
}

const run = (...words: ReadonlyArray<string>) =>
  Effect.flatMap(Ground, ({ url }) => commandLine(url)(...words))

/** What a command printed, where it must succeed. */
const printed = (...words: ReadonlyArray<string>) =>
  Effect.map(run(...words), ({ code, out, err }) => {
    assert.strictEqual(code, 0, `${words.join(" ")}: ${err}`)
    return out
  })

const json = <A, I>(schema: Schema.Codec<A, I>, ...words: ReadonlyArray<string>) =>
  Effect.flatMap(printed(...words), (out) =>
    Schema.decodeUnknownEffect(Schema.fromJsonString(schema), { onExcessProperty: "error" })(out)
  )

/** A refusal: its code, and its one sentence on stderr with nothing on stdout. */
const refused = (code: number, says: RegExp, ...words: ReadonlyArray<string>) =>
  Effect.map(run(...words), (ended) => {
    assert.match(ended.err, says)
    assert.strictEqual(ended.code, code, ended.err)
    assert.strictEqual(ended.out, "")
  })

const small = ["-m", "256", "-c", "1", "--overlay", "128"]

layer(Ground.layer, { timeout: 120_000 })("the commands", (it) => {
  describe("on images", () => {
    it.effect("import one, list it, show it, keep it while it is used, and remove it", () =>
      Effect.gen(function* () {
        const { archive } = yield* Ground
        const image = yield* json(Image, "image", "import", archive, "--id", "img-other", "--json")
        assert.deepStrictEqual([String(image.id), image.status], ["img-other", "ready"])
        const all = yield* json(Schema.Array(Image), "image", "ls", "--json")
        assert.sameMembers(
          all.map(({ id }): string => id),
          ["img-demo", "img-other"]
        )
        assert.match(
          yield* printed("image", "ls"),
          /^ID +NAME +STATUS +SIZE +CREATED\n(img-\w+ .* ready .*\n){2}$/u
        )
        const inspected = yield* json(Image, "image", "inspect", "img-o")
        assert.strictEqual(inspected.id, image.id)
        assert.strictEqual(yield* printed("image", "rm", "img-other"), "img-other deleted\n")
        yield* refused(
          3,
          /No image has the id.*"img-other".*dataplane image ls/u,
          "image",
          "inspect",
          "img-other"
        )
        yield* refused(2, /./u, "image", "import", "/dev/null", "--id", "img-bad")
      })
    )
  })

  describe("on an instance", () => {
    it.effect("carry it through its life, verb by verb", () =>
      Effect.gen(function* () {
        const made = yield* json(
          Instance,
          "create",
          "img-demo",
          "--id",
          "life",
          ...small,
          "-e",
          "A=b=c",
          "-l",
          "tier=web",
          "--restart",
          "on-failure",
          "--json",
          "--",
          "/bin/x",
          "-f"
        )
        const { id, name, state, memory_mb, vcpus, restart_policy } = made
        const facts: ReadonlyArray<unknown> = [id, name, state, memory_mb, vcpus, restart_policy]
        assert.deepStrictEqual(facts, ["life", "life", "Created", 256, 1, "on-failure"])
        assert.deepStrictEqual(made.env, { A: "b=c" })
        assert.deepStrictEqual(made.command, ["/bin/x", "-f"])
        assert.deepStrictEqual(made.labels, { tier: "web" })
        const states = [
          "start Running",
          "pause Paused",
          "resume Running",
          "standby Standby",
          "restore Running",
          "shutdown Shutdown",
          "start Running",
          "stop Stopped"
        ]
        for (const step of states) {
          const [verb = "", state = ""] = step.split(" ")
          assert.strictEqual(yield* printed(verb, "life"), `life ${state}\n`)
        }
        yield* refused(4, /A Stopped instance cannot pause/u, "pause", "life")
        assert.strictEqual(yield* printed("wait", "life", "--state", "Stopped"), "life Stopped\n")
        yield* refused(7, /life/u, "wait", "life", "--state", "Running", "--timeout", "0.05")
        assert.strictEqual(yield* printed("rm", "life"), "life deleted\n")
        yield* refused(3, /No instance/u, "start", "life")
      })
    )

    it.effect("find it by name and by the beginning of its id, and say what fits where several do", () =>
      Effect.gen(function* () {
        yield* printed("create", "img-demo", "--id", "web-1", "--name", "Front \u001b[31mdoor", ...small)
        yield* printed("create", "img-demo", "--id", "web-2", "--name", "front", ...small)
        yield* printed("create", "img-demo", "--id", "front", "--name", "web-1", ...small)
        const idOf = (reference: string) =>
          Effect.map(json(Instance, "inspect", reference), ({ id }): string => id)
        // An id goes before a name, a name before a beginning.
        assert.strictEqual(yield* idOf("front"), "front")
        assert.strictEqual(yield* idOf("web-1"), "web-1")
        assert.strictEqual(yield* idOf("fro"), "front")
        assert.strictEqual(yield* idOf("Front \u001b[31mdoor"), "web-1")
        yield* refused(
          2,
          /"web" fits several instances: .*web-1 \(Front \?\[31mdoor\).*web-2 \(front\)/u,
          "stop",
          "web"
        )
        const table = yield* printed("ps", "--state", "Created")
        assert.match(
          table,
          /^web-1 +Front \?\[31mdoor +img-demo +Created +no +192\.168\.\d+\.\d+ +256 MiB +1 +\d+ s ago$/mu
        )
        assert.strictEqual(
          (yield* printed("ps", "-q"))
            .trim()
            .split("\n")
            .filter((id) => id !== "life").length,
          3
        )
        assert.deepStrictEqual(yield* json(Schema.Array(Instance), "ps", "--label", "no=such", "--json"), [])
        // One that fails stops no other, and the code tells of it.
        const ended = yield* run("rm", "web-1", "no-such", "web-2", "front")
        assert.deepStrictEqual([ended.code, ended.out], [3, "web-1 deleted\nweb-2 deleted\nfront deleted\n"])
        assert.match(ended.err, /^no-such: No instance .*"no-such"/u)
      })
    )

    it.effect("run it, show its log, tell what happened, and take it away again", () =>
      Effect.gen(function* () {
        const ready = yield* json(
          Instance,
          "run",
          "img-demo",
          "--id",
          "runs",
          ...small,
          "--json",
          "sh",
          "-c",
          "sleep 1 --true"
        )
        assert.deepInclude(ready, { state: "Running", ready: true })
        assert.deepStrictEqual(ready.command, ["sh", "-c", "sleep 1 --true"])
        const lines = (yield* printed("logs", "runs")).split("\n")
        assert.include(lines, "init: ready")
        assert.strictEqual((yield* printed("logs", "runs", "--tail", "1")).split("\n").length, 2)
        const Line = Schema.fromJsonString(
          Schema.Struct({ cursor: Schema.Int, time: Schema.String, line: Schema.String })
        )
        const logged = (yield* printed("logs", "runs", "--json")).trim().split("\n")
        const decoded = yield* Effect.forEach(logged, (line) => Schema.decodeEffect(Line)(line))
        assert.deepStrictEqual(
          decoded.map(({ line }) => line),
          lines.slice(0, -1)
        )
        assert.include(yield* printed("logs", "runs", "--source", "dataplane"), "Booting to Running")

        const { url } = yield* Ground
        const watching = startCommand(
          yield* Bundle,
          ["events", "--since", "0", "--instance", "runs", "--json"],
          { env: { DATAPLANE_URL: url } }
        )
        yield* Effect.promise(() => watching.until(/"to":"Running"/u))
        yield* printed("rm", "runs")
        yield* Effect.promise(() => watching.until(/instance\.deleted/u))
        watching.signal("SIGINT")
        const { code, out } = yield* Effect.promise(() => watching.ended)
        assert.strictEqual(code, 130)
        const Event = Schema.fromJsonString(Schema.toCodecJson(InstanceEvent))
        const events = yield* Effect.forEach(out.trim().split("\n"), (line) =>
          Schema.decodeEffect(Event)(line)
        )
        assert.deepInclude(events.at(-1), { type: "instance.deleted", to: null })
        assert.isTrue(events.every(({ instance_id }) => instance_id === "runs"))
      })
    )

    it.effect("stay with it until it ends, and delete it then or when interrupted", () =>
      Effect.gen(function* () {
        const { url } = yield* Ground
        const start = (id: string) =>
          Effect.map(Bundle, (command) =>
            startCommand(command, ["run", "img-demo", "--rm", "--id", id, "-l", "end=test", ...small], {
              env: { DATAPLANE_URL: url }
            })
          )
        const ending = yield* start("ends")
        yield* Effect.promise(() => ending.until(/init: ready/u))
        yield* printed("stop", "ends")
        const ended = yield* Effect.promise(() => ending.ended)
        assert.strictEqual(ended.code, 0, ended.err)
        assert.match(ended.out, /Power down\n$/u)
        const broken = yield* start("broken")
        yield* Effect.promise(() => broken.until(/init: ready/u))
        broken.signal("SIGINT")
        assert.strictEqual((yield* Effect.promise(() => broken.ended)).code, 130)
        assert.deepStrictEqual(yield* json(Schema.Array(Instance), "ps", "--label", "end=test", "--json"), [])
      })
    )
  })

  describe("that cannot work", () => {
    const lines: ReadonlyArray<readonly [code: number, says: RegExp, ...words: ReadonlyArray<string>]> = [
      [2, /Unknown subcommand "nonsense"/u, "nonsense"],
      [2, /INSTANCE[^]*dataplane start --help/u, "start"],
      [2, /--nonsense/u, "ps", "--nonsense"],
      [2, /--state/u, "ps", "--state", "Sleeping"],
      [2, /--label takes NAME=VALUE/u, "ps", "--label", "tier"],
      [2, /--timeout takes 0 to 600 seconds/u, "wait", "x", "--timeout", "601"],
      [2, /--tail takes 0 to 100000 lines/u, "logs", "x", "--tail", "100001"],
      [2, /--memory takes MiB.*"lots"/u, "create", "img-demo", "--memory", "lots"],
      [2, /128/u, "create", "img-demo", "--memory", "1"],
      [2, /--env NOT_SET_HERE is not set/u, "create", "img-demo", "-e", "NOT_SET_HERE"],
      [2, /--volume takes VOLUME:PATH/u, "create", "img-demo", "-v", "data"],
      [2, /a-z, 0-9/u, "create", "img-demo", "--id", "Not An Id"],
      [2, /http or https URL/u, "--url", "ftp://x", "ps"],
      [3, /img-no/u, "create", "img-no", "--pull", "never"],
      [
        5,
        /Nothing answers as a dataplane at http:\/\/127\.0\.0\.1:1 \(ECONNREFUSED\); start it with/u,
        "--url",
        "http://127.0.0.1:1",
        "ps"
      ]
    ]
    it.effect("say why in a sentence, and end with the code that tells it apart", () =>
      Effect.forEach(lines, ([code, says, ...words]) => refused(code, says, ...words), { concurrency: 2 })
    )
  })
})
