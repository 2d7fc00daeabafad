/**
 * The identifiers of the domain. Each is branded, so that an image id can never stand where an instance id is meant,
 * and each carries its own bounds: whatever passed its schema is safe as a file name and as a path segment.
 */
import * as Schema from "effect/Schema"

/** Contract §2: 1 to 63 characters, a DNS label. Safe as a file name, a TAP hint and a host name. */
const idPattern = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/u
const Id = Schema.String.check(
  Schema.isPattern(idPattern, { expected: "1 to 63 of a-z, 0-9 and inner dashes" })
)

export const InstanceId = Id.annotate({
  identifier: "InstanceId",
  description: "Names an instance on this host.",
  examples: ["my-instance"]
}).pipe(Schema.brand("InstanceId"))
export type InstanceId = typeof InstanceId.Type

export const ImageId = Id.annotate({
  identifier: "ImageId",
  description: "Names an image on this host.",
  examples: ["img-nginx"]
}).pipe(Schema.brand("ImageId"))
export type ImageId = typeof ImageId.Type

export const VolumeId = Id.annotate({
  identifier: "VolumeId",
  description: "Names a volume on this host.",
  examples: ["vol-data"]
}).pipe(Schema.brand("VolumeId"))
export type VolumeId = typeof VolumeId.Type

/** An OCI content digest (image-spec, descriptor.md); sha256 is the one algorithm that the dataplane accepts. */
export const Digest = Schema.String.check(
  Schema.isPattern(/^sha256:[0-9a-f]{64}$/u, { expected: "sha256: and 64 hexadecimal digits" })
)
  .annotate({ identifier: "Digest", description: "An OCI content digest." })
  .pipe(Schema.brand("Digest"))
export type Digest = typeof Digest.Type

/** The 64 hexadecimal digits of a digest: a file name. */
export const digestHex = (digest: Digest): string => digest.slice("sha256:".length)

/** A moment, RFC 3339 in UTC with milliseconds. A string on purpose: views are encoded once per generation. */
export const Timestamp = Schema.String.check(
  Schema.isPattern(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/u, { expected: "an RFC 3339 time in UTC" })
)
  .annotate({ identifier: "Timestamp", format: "date-time", examples: ["2026-01-31T12:00:00.000Z"] })
  .pipe(Schema.brand("Timestamp"))
export type Timestamp = typeof Timestamp.Type

/** Milliseconds since the epoch as a Timestamp. */
export const timestamp = (epochMs: number): Timestamp => Timestamp.make(new Date(epochMs).toISOString())

/** Grows by one with every durable change of a record, and never otherwise. */
export const Generation = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0)).annotate({
  identifier: "Generation",
  description: "Grows with every durable change; the ETag of an instance."
})
