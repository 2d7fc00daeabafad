import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { Files } from "../../src/host/Files.ts"
import {
  clearReport,
  configMaxBytes,
  decodeReport,
  encodeConfig,
  readReport,
  writeConfig
} from "../../src/guest/configDisk.ts"
import { configDiskBytes, GuestConfig, GuestReport, reportBytes } from "../../src/guest/GuestConfig.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const small: GuestConfig = Schema.decodeSync(GuestConfig)({
  version: 1,
  hostname: "guest",
  argv: ["/bin/true"],
  env: { PATH: "/bin", GREETING: 'grüß\n"dich"' },
  working_dir: "/",
  user: "",
  layers: ["layer-0"],
  overlay: "overlay",
  network: { mac: "52:54:00:12:34:56", ip: "10.0.0.2", prefix: 24, gateway: "10.0.0.1", dns: ["1.1.1.1"] },
  volumes: [{ serial: "data", mount_path: "/data", readonly: true }]
})

const encoded = (config: GuestConfig) => Result.getOrThrow(encodeConfig(config))

/** A disk with the given bytes where a guest would have written its report. */
const reported = (area: Uint8Array): Buffer => {
  const disk = encoded(small)
  disk.set(area, configDiskBytes - reportBytes)
  return disk
}
const reportArea = (json: string | Buffer, length?: number, magic = "CHDREPT1"): Buffer => {
  const text = Buffer.from(json)
  const head = Buffer.alloc(12)
  head.write(magic, "latin1")
  head.writeUInt32LE(length ?? text.length, 8)
  return Buffer.concat([head, text])
}

it.prop(
  "config disk: a config comes back from its bytes",
  { config: GuestConfig },
  ({ config }) => {
    const disk = encoded(config)
    assert.strictEqual(disk.length, configDiskBytes)
    assert.strictEqual(disk.toString("latin1", 0, 8), "CHDCONF1")
    const json = disk.subarray(12, 12 + disk.readUInt32LE(8)).toString("utf8")
    assert.deepStrictEqual(Schema.decodeSync(Schema.fromJsonString(GuestConfig))(json), config)
    assert.isTrue(Option.isNone(decodeReport(disk)))
  },
  { arbitrary: { runs: 30 } }
)

it("config disk: what does not fit is refused by name, what just fits is not", () => {
  const filled = (bytes: number): GuestConfig => ({ ...small, env: { BIG: "x".repeat(bytes) } })
  const overhead = encoded(filled(0)).readUInt32LE(8)
  assert.isTrue(Result.isSuccess(encodeConfig(filled(configMaxBytes - overhead))))
  const refused = encodeConfig(filled(configMaxBytes - overhead + 1))
  assert.isTrue(Result.isFailure(refused))
  if (Result.isFailure(refused)) assert.strictEqual(refused.failure.bytes, configMaxBytes + 1)
})

it.prop("config disk: a report comes back from its bytes", { report: GuestReport }, ({ report }) => {
  const json = Schema.encodeSync(Schema.fromJsonString(GuestReport))(report)
  const read = Option.getOrThrow(decodeReport(reported(reportArea(json))))
  // Compared as JSON, which knows no negative zero.
  assert.strictEqual(Schema.encodeSync(Schema.fromJsonString(GuestReport))(read), json)
})

const hostile: ReadonlyArray<readonly [string, Buffer]> = [
  ["zeros", Buffer.alloc(0)],
  ["another magic", reportArea(`{"kind":"stopped"}`, undefined, "CHDREPT2")],
  ["a length beyond the area", reportArea(`{"kind":"stopped"}`, reportBytes)],
  ["the largest length", reportArea(`{"kind":"stopped"}`, 0xffff_ffff)],
  ["a length that cuts it short", reportArea(`{"kind":"stopped"}`, 5)],
  ["a length that takes zeros in", reportArea(`{"kind":"stopped"}`, 30)],
  ["no JSON", reportArea("stopped")],
  ["no UTF-8", reportArea(Buffer.from([0x22, 0xff, 0xfe, 0x22]))],
  ["an unknown kind", reportArea(`{"kind":"won"}`)],
  ["a field missing", reportArea(`{"kind":"exited"}`)],
  ["a field too many", reportArea(`{"kind":"stopped","code":0}`)],
  ["a code that is none", reportArea(`{"kind":"exited","code":"0"}`)],
  ["a code that is no integer", reportArea(`{"kind":"exited","code":0.5}`)]
]

it.each(hostile)("config disk: a report of %s is none", (_, area) => {
  assert.isTrue(Option.isNone(decodeReport(reported(area))))
})

it("config disk: a disk of another size holds no report", () => {
  assert.isTrue(Option.isNone(decodeReport(reported(reportArea(`{"kind":"stopped"}`)).subarray(0, -1))))
  assert.isTrue(Option.isNone(decodeReport(new Uint8Array())))
})

const byte = Arbitrary.schema(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 })))
it.prop(
  "config disk: no bytes in the report's place make it throw",
  { bytes: Arbitrary.array(byte, { maxLength: 60 }) },
  ({ bytes }) => {
    const magic = Buffer.from("CHDREPT1")
    assert.isTrue(Option.isNone(decodeReport(reported(Buffer.from(bytes)))))
    decodeReport(reported(Buffer.concat([magic, Buffer.from(bytes)])))
  },
  { arbitrary: { runs: 50 } }
)

it.live("config disk: written sparse, its report cleared in place, for whoever holds it open", () =>
  Effect.gen(function* () {
    const file = path.join(yield* temporaryDirectory("config"), "config.raw")
    yield* writeConfig(file, small)
    const files = yield* Files
    const stat = Option.getOrThrow(yield* files.stat(file))
    assert.strictEqual(stat.size, configDiskBytes)
    assert.isAtMost(stat.allocated, 64 * 1024)
    assert.isTrue(Option.isNone(yield* readReport(file)))
    const vmm = yield* Effect.acquireRelease(
      Effect.promise(() => fs.open(file, "r+")),
      (it) => Effect.promise(() => it.close())
    )
    const area = reportArea(`{"kind":"exited","code":7}`)
    yield* Effect.promise(() => vmm.write(area, 0, area.length, configDiskBytes - reportBytes))
    assert.deepStrictEqual(yield* readReport(file), Option.some({ kind: "exited", code: 7 }))
    yield* clearReport(file)
    assert.isTrue(Option.isNone(yield* readReport(file)))
    const seen = yield* Effect.promise(() => vmm.read(Buffer.alloc(8), 0, 8, configDiskBytes - reportBytes))
    assert.deepStrictEqual(seen.buffer, Buffer.alloc(8))
  }).pipe(Effect.provide(Files.layer))
)

it.live("config disk: no disk, no report", () =>
  Effect.gen(function* () {
    const file = path.join(yield* temporaryDirectory("config"), "none.raw")
    assert.isTrue(Option.isNone(yield* readReport(file)))
    yield* clearReport(file)
  }).pipe(Effect.provide(Files.layer))
)
