/** The structured log is an interface: every line of stdout fits its schema, and nothing else gets there. */
import { stripVTControlCharacters } from "node:util"
import { expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type { SettingsValues } from "../../src/host/Settings.ts"
import { reportDefects } from "../../src/telemetry/defects.ts"
import { LogEvent, LogEventName, logEvent } from "../../src/telemetry/LogEvent.ts"
import { fieldMaxChars, layerLogger } from "../../src/telemetry/Logger.ts"

const record = (
  effect: Effect.Effect<void>,
  settings: Partial<Pick<SettingsValues, "logFormat" | "logLevel">> = {}
) =>
  Effect.gen(function* () {
    const stdout: Array<string> = []
    const stderr: Array<string> = []
    const sink = {
      stdout: (line: string) => void stdout.push(line),
      stderr: (line: string) => void stderr.push(line)
    }
    yield* Effect.provide(effect, layerLogger({ logFormat: "json", logLevel: "info", ...settings }, sink))
    return { stdout, stderr }
  })

const decodeLine = (line: string | undefined) =>
  Schema.decodeSync(Schema.fromJsonString(LogEvent))(line ?? "")

it.effect("every event of the closed list is one line that fits the schema, named fields first", () =>
  Effect.gen(function* () {
    const { stdout, stderr } = yield* record(
      Effect.forEach(
        LogEventName.literals,
        (event) => logEvent(event, "a sentence", { instance_id: "a", from: "Running", duration_ms: 1.5 }),
        { discard: true }
      )
    )
    expect(stdout.map((line) => decodeLine(line).event)).toEqual([...LogEventName.literals])
    expect(stderr).toEqual([])
    for (const line of stdout) {
      expect(line).not.toContain("\n")
      expect(Object.keys(JSON.parse(line)).slice(0, 4)).toEqual(["time", "level", "event", "message"])
    }
    expect(decodeLine(stdout.at(-1))).toMatchObject({ event: "defect", level: "error", instance_id: "a" })
  })
)

it.effect("what is not an event goes to stderr, and so does an event that is not on the list", () =>
  Effect.gen(function* () {
    const { stdout, stderr } = yield* record(
      Effect.andThen(
        Effect.logInfo("free text").pipe(Effect.annotateLogs({ instance_id: "a" })),
        Effect.logInfo("made up").pipe(Effect.annotateLogs({ event: "instance.teleported" }))
      )
    )
    expect(stdout).toEqual([])
    expect(stderr).toHaveLength(2)
    expect(stderr[0]).toMatch(/ info free text instance_id=a$/u)
  })
)

it.effect("fields are plain: secrets, objects and names that are the line's own are not written", () =>
  Effect.gen(function* () {
    const { stdout } = yield* record(
      logEvent("vmm.spawned", "started", { pid: 7 }).pipe(
        Effect.annotateLogs({
          token: Redacted.make("hunter2"),
          env: { PASSWORD: "hunter2" },
          time: "hunter2",
          "Bad-Name": "hunter2",
          list: ["hunter2"],
          nan: Number.NaN
        })
      )
    )
    expect(stdout[0]).not.toContain("hunter2")
    expect(decodeLine(stdout[0])).toMatchObject({ pid: 7 })
    expect(Object.keys(JSON.parse(stdout[0] ?? ""))).toEqual(["time", "level", "event", "message", "pid"])
  })
)

it.effect("long texts are cut and control characters stay inside their line", () =>
  Effect.gen(function* () {
    const { stdout } = yield* record(
      logEvent("instance.exit", "x".repeat(3 * fieldMaxChars), { reason: `a\nb\u2028${"y".repeat(9000)}` })
    )
    expect(stdout).toHaveLength(1)
    expect(stdout[0]?.length).toBeLessThan(3 * fieldMaxChars)
    expect(stdout[0]?.split("\n")).toHaveLength(1)
  })
)

it.effect("the level filters, and a terminal gets the same events as sentences", () =>
  Effect.gen(function* () {
    const some = Effect.andThen(
      logEvent("network.lease", "leased", { ip: "192.168.100.2" }, "Debug"),
      logEvent("vmm.exited", "gone", { reason: "signal" }, "Warn")
    )
    expect((yield* record(some, { logLevel: "debug" })).stdout).toHaveLength(2)
    expect((yield* record(some, { logLevel: "warn" })).stdout).toHaveLength(1)
    expect((yield* record(some, { logLevel: "error" })).stdout).toHaveLength(0)
    const { stdout } = yield* record(some, { logFormat: "pretty" })
    expect(stripVTControlCharacters(stdout[0] ?? "")).toMatch(
      /^\d\d:\d\d:\d\d\.\d{3} vmm\.exited gone reason=signal$/u
    )
  })
)

it.effect("a defect says what happened; a schema's refusal does not repeat the value that it refused", () =>
  Effect.gen(function* () {
    const refused = yield* Effect.flip(
      Schema.decodeUnknownEffect(Schema.Struct({ password: Schema.Int }), { reportInput: true })({
        password: "hunter2"
      })
    )
    const { stdout } = yield* record(
      Effect.andThen(
        reportDefects(Cause.die(refused), "a request failed"),
        reportDefects(Cause.die(new Error("disk is on fire")), "a request failed")
      )
    )
    expect(stdout).toHaveLength(2)
    expect(stdout[0]).not.toContain("hunter2")
    expect(decodeLine(stdout[1])).toMatchObject({ event: "defect", level: "error" })
    expect(decodeLine(stdout[1])["reason"]).toContain("disk is on fire")
  })
)
