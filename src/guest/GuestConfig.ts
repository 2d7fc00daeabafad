/**
 * What the guest's init reads from the config disk at boot, and the report that it leaves there when it ends.
 *
 * config.raw, fixed size (`configDiskBytes`), no file system, all numbers little endian:
 *
 *   0        8 bytes   "CHDCONF1"
 *   8        4 bytes   length of the JSON that follows
 *   12       n bytes   GuestConfig as JSON, UTF-8
 *   ...      zeros
 *   last 4 KiB:        "CHDREPT1", 4 bytes length, GuestReport as JSON: written by init, synced, before it powers off
 *
 * The report survives the service and the VMM, so an exit code is never lost. The host reads nothing else of it back.
 */
import * as Schema from "effect/Schema"
import { Ipv4, Mac } from "../domain/Network.ts"

export const configDiskBytes = 4 * 1024 * 1024
export const reportBytes = 4096
export const configMagic = "CHDCONF1"
export const reportMagic = "CHDREPT1"

export const GuestConfig = Schema.Struct({
  version: Schema.Literal(1),
  hostname: Schema.String,
  /** Entrypoint and command, resolved; argv[0] is searched in PATH of `env` where it holds no slash. */
  argv: Schema.Array(Schema.String),
  env: Schema.Record(Schema.String, Schema.String),
  working_dir: Schema.String,
  /** As in an OCI config: user, user:group, uid, uid:gid; resolved inside the guest. Empty: root. */
  user: Schema.String,
  /** Serials of the layer disks, bottom first. */
  layers: Schema.Array(Schema.String),
  overlay: Schema.String,
  network: Schema.NullOr(
    Schema.Struct({
      mac: Mac,
      ip: Ipv4,
      prefix: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 32 })),
      gateway: Ipv4,
      dns: Schema.Array(Ipv4)
    })
  ),
  volumes: Schema.Array(
    Schema.Struct({ serial: Schema.String, mount_path: Schema.String, readonly: Schema.Boolean })
  )
})
export type GuestConfig = typeof GuestConfig.Type

/** How the guest ended, in its own words. `failed`: init could not start the image's process; `message` says why. */
export const GuestReport = Schema.Union([
  Schema.Struct({ kind: Schema.Literal("exited"), code: Schema.Int }),
  Schema.Struct({ kind: Schema.Literal("signaled"), signal: Schema.Int }),
  Schema.Struct({ kind: Schema.Literal("stopped") }),
  Schema.Struct({ kind: Schema.Literal("failed"), message: Schema.String })
])
export type GuestReport = typeof GuestReport.Type
