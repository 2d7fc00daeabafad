/** How a guest ended, from what the VMM saw and what the guest's init left on its config disk. Pure. */
import * as Option from "effect/Option"
import { timestamp } from "../domain/Ids.ts"
import type { InstanceExit } from "../domain/Instance.ts"
import type { ProcessExit } from "../domain/Process.ts"
import type { GuestReport } from "../guest/GuestConfig.ts"
import type { VmmEvent } from "../vmm/Vmm.ts"

/** POSIX signal numbers (signal(7), x86 and ARM) of the signals that end processes in practice. */
const signalNames: Readonly<Record<number, string>> = {
  1: "SIGHUP",
  2: "SIGINT",
  3: "SIGQUIT",
  4: "SIGILL",
  6: "SIGABRT",
  7: "SIGBUS",
  8: "SIGFPE",
  9: "SIGKILL",
  11: "SIGSEGV",
  13: "SIGPIPE",
  14: "SIGALRM",
  15: "SIGTERM"
}

/** How a guest ended, from what the VMM saw and what init left on the config disk. */
export const exitFrom = (
  event: VmmEvent | { readonly _tag: "VmmExited"; readonly exit: ProcessExit },
  report: Option.Option<GuestReport>,
  epochMs: number
): InstanceExit => {
  const at = timestamp(epochMs)
  if (event._tag === "GuestPanicked")
    return { reason: "guest-panic", message: "The guest's kernel panicked; its console says why.", at }
  if (Option.isSome(report)) {
    const said = report.value
    switch (said.kind) {
      case "exited":
        return { reason: "exited", code: said.code, at }
      case "signaled":
        return { reason: "exited", signal: signalNames[said.signal] ?? `signal ${said.signal}`, at }
      case "failed":
        return { reason: "boot-failed", message: said.message, at }
      case "stopped":
        if (event._tag !== "VmmExited") return { reason: "guest-poweroff", at }
    }
  }
  if (event._tag === "VmmExited") {
    const { code, signal } = event.exit
    return {
      reason: "vmm-died",
      ...(code === null ? {} : { code }),
      ...(signal === null ? {} : { signal }),
      message: "The VMM process ended without being asked to.",
      at
    }
  }
  return { reason: event.cause === "reset" ? "guest-reset" : "guest-poweroff", at }
}
