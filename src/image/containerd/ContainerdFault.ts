/** What containerd, or the way to it, said no with. `detail` is containerd's own text, which may hold paths of the host. */
import * as Data from "effect/Data"

export type ContainerdFaultCode = "unavailable" | "not-found" | "exists" | "timeout" | "failed"

export class ContainerdFault extends Data.TaggedError("ContainerdFault")<{
  readonly code: ContainerdFaultCode
  readonly detail: string
  readonly cause?: unknown
}> {
  override get message(): string {
    return `containerd: ${this.detail}`
  }
}

/** Status codes of gRPC (grpc/status.md) that decide anything here. */
const codes: Readonly<Record<number, ContainerdFaultCode>> = {
  4: "timeout",
  5: "not-found",
  6: "exists",
  14: "unavailable"
}

/** The fault behind whatever a call ended with. */
export const containerdFault = (cause: unknown): ContainerdFault => {
  if (cause instanceof ContainerdFault) return cause
  const code =
    cause instanceof Error && "code" in cause && typeof cause.code === "number" ? cause.code : undefined
  return new ContainerdFault({
    code: (code === undefined ? undefined : codes[code]) ?? "failed",
    detail: cause instanceof Error ? cause.message : String(cause),
    cause
  })
}
