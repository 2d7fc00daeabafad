/**
 * The config disk's host side: writes what init reads, reads what init left. `GuestConfig.ts` says how it is laid out.
 * The report was written by the guest: nothing in it is believed before its schema says so.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type { FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import {
  configDiskBytes,
  configMagic,
  GuestConfig,
  GuestReport,
  reportBytes,
  reportMagic
} from "./GuestConfig.ts"

/** Magic and length before each of the two JSON texts. */
const headerBytes = 12
export const configMaxBytes = configDiskBytes - reportBytes - headerBytes
const reportOffset = configDiskBytes - reportBytes

/** The environment and arguments together are larger than the disk. */
export class ConfigTooLarge extends Schema.TaggedError<ConfigTooLarge>()("ConfigTooLarge", {
  bytes: Schema.Int,
  maxBytes: Schema.Int
}) {
  override get message(): string {
    return `the guest's configuration has ${this.bytes} bytes, ${this.maxBytes} at most`
  }
}

const encodeJson = Schema.encodeSync(Schema.fromJsonString(GuestConfig))
const decodeReportJson = Schema.decodeUnknownOption(Schema.fromJsonString(GuestReport), {
  onExcessProperty: "error"
})

/** The whole disk, without a report. */
export const encodeConfig = (config: GuestConfig): Result.Result<Buffer, ConfigTooLarge> => {
  const json = Buffer.from(encodeJson(config))
  if (json.length > configMaxBytes) {
    return Result.fail(new ConfigTooLarge({ bytes: json.length, maxBytes: configMaxBytes }))
  }
  const disk = Buffer.alloc(configDiskBytes)
  disk.write(configMagic, 0, "latin1")
  disk.writeUInt32LE(json.length, configMagic.length)
  json.copy(disk, headerBytes)
  return Result.succeed(disk)
}

const strictText = new TextDecoder("utf-8", { fatal: true })

/** The report in the last bytes of a config disk; none where there is none, or where it lies about itself. */
export const decodeReport = (disk: Uint8Array): Option.Option<GuestReport> =>
  disk.length === configDiskBytes ? decodeReportArea(disk.subarray(reportOffset)) : Option.none()

const decodeReportArea = (bytes: Uint8Array): Option.Option<GuestReport> => {
  if (bytes.length !== reportBytes) return Option.none()
  const area = Buffer.from(bytes.buffer, bytes.byteOffset, reportBytes)
  const length = area.readUInt32LE(reportMagic.length)
  if (area.toString("latin1", 0, reportMagic.length) !== reportMagic) return Option.none()
  if (length > reportBytes - headerBytes) return Option.none()
  return Option.liftThrowable((bytes: Uint8Array) => strictText.decode(bytes))(
    area.subarray(headerBytes, headerBytes + length)
  ).pipe(Option.flatMap(decodeReportJson))
}

/** Replaces the disk, durably and sparse. Only while no VMM has it open: it would keep the old one. */
export const writeConfig = (
  path: string,
  config: GuestConfig
): Effect.Effect<void, ConfigTooLarge | FileFault, Files> =>
  Effect.gen(function* () {
    const files = yield* Files
    const disk = yield* Effect.fromResult(encodeConfig(config))
    const used = headerBytes + disk.readUInt32LE(configMagic.length)
    const temporary = `${path}.tmp`
    yield* files.remove(temporary)
    yield* files.createSparse(temporary, configDiskBytes)
    yield* files.overwrite(temporary, 0, disk.subarray(0, used))
    yield* files.rename(temporary, path)
  })

/**
 * The configuration put right in place, for a VMM that has the disk open and whose guest is off; the report of an earlier
 * boot goes. Nothing is written where all is right already.
 */
export const rewriteConfig = (
  path: string,
  config: GuestConfig
): Effect.Effect<void, ConfigTooLarge | FileFault, Files> =>
  Effect.gen(function* () {
    const files = yield* Files
    const disk = yield* Effect.fromResult(encodeConfig(config))
    const used = headerBytes + disk.readUInt32LE(configMagic.length)
    const wanted = disk.subarray(0, used)
    const present = yield* files.readAt(path, 0, used)
    if (!Option.exists(present, (it) => wanted.equals(it))) yield* files.overwrite(path, 0, wanted)
    yield* clearReport(path)
  })

/** The last bytes of the disk, where there is one of the right size. */
const readArea = (path: string) =>
  Effect.gen(function* () {
    const files = yield* Files
    const stat = yield* files.stat(path)
    if (Option.isNone(stat) || stat.value.size !== configDiskBytes) return Option.none<Uint8Array>()
    return yield* files.readAt(path, reportOffset, reportBytes)
  })

/** Removes the report of an earlier boot, in place: a VMM may have the disk open already. */
export const clearReport = (path: string): Effect.Effect<void, FileFault, Files> =>
  Effect.gen(function* () {
    const files = yield* Files
    const area = yield* readArea(path)
    const written = Option.exists(area, (it) => it.some((byte) => byte !== 0))
    if (written) yield* files.overwrite(path, reportOffset, Buffer.alloc(reportBytes))
  })

/** What the guest left when it ended; none while it runs, and none after it died without a word. */
export const readReport = (path: string): Effect.Effect<Option.Option<GuestReport>, FileFault, Files> =>
  Effect.map(readArea(path), Option.flatMap(decodeReportArea))
