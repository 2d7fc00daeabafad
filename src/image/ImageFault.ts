/**
 * Why an image cannot be had. `detail` is a sentence for the user, free of host paths; `cause` is for the log. The
 * reasons decide one thing only: whether trying again soon may help.
 */
import * as Schema from "effect/Schema"

export const ImageFaultReason = Schema.Literals([
  /** The registry has no such image, or none for this platform. */
  "unknown-image",
  "unauthorized",
  "unreachable",
  "rate-limited",
  "timeout",
  /** A digest, a size or a structure is not what it says it is. */
  "corrupt",
  "unsupported",
  /** A bound of the dataplane would be exceeded. */
  "too-large",
  "no-space",
  /** The blob was given up while it was read, and is needed once more: it has to be fetched again. */
  "spent",
  /** A tool or a file of this host failed. */
  "host"
])

export class ImageFault extends Schema.TaggedError<ImageFault>()("ImageFault", {
  reason: ImageFaultReason,
  detail: Schema.String,
  cause: Schema.optionalKey(Schema.Defect())
}) {
  override get message(): string {
    return this.detail
  }

  /** Only what may pass by itself is tried again. */
  get transient(): boolean {
    return this.reason === "unreachable" || this.reason === "rate-limited"
  }
}

const of =
  (reason: typeof ImageFaultReason.Type) =>
  (detail: string, cause?: unknown): ImageFault =>
    new ImageFault({ reason, detail, ...(cause === undefined ? {} : { cause }) })

export const corrupt = of("corrupt")
export const unsupported = of("unsupported")
export const tooLarge = of("too-large")
export const noSpace = of("no-space")
export const hostFault = of("host")
export const unknownImage = of("unknown-image")
export const timedOut = of("timeout")

/** A sentence for what a tool or a system call of this host did, without the path that it did it to. */
export const fromHost = (doing: string, cause: unknown): ImageFault => {
  const code =
    typeof cause === "object" && cause !== null && "code" in cause && typeof cause.code === "string"
      ? cause.code
      : undefined
  if (code === "ENOSPC" || code === "EDQUOT") {
    return noSpace(`${doing} failed: the disk of the data directory is full.`, cause)
  }
  return hostFault(`${doing} failed on this host${code === undefined ? "" : ` (${code})`}.`, cause)
}
