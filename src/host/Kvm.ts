/**
 * Whether KVM can run a guest's kernel here. A device node alone says little: some machines offer /dev/kvm without vmx
 * or svm, and an unpatched guest kernel never reaches its userspace there (KVM then interprets it).
 */
import { constants } from "node:fs"
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import type { Accelerator } from "../domain/Instance.ts"

export type KvmState =
  | { readonly _tag: "Usable" }
  | { readonly _tag: "NoDevice" }
  | { readonly _tag: "NoAccess"; readonly code: string }
  | { readonly _tag: "NoVirtualization" }

const device = "/dev/kvm"

/** The CPU has Intel's vmx or AMD's svm (proc(5), /proc/cpuinfo, `flags`). */
export const hasVirtualization = (cpuinfo: string): boolean => /^flags\s*:.*\b(vmx|svm)\b/m.test(cpuinfo)

const openDevice = async (): Promise<KvmState> => {
  try {
    const handle = await fs.open(device, constants.O_RDWR)
    await handle.close()
    return { _tag: "Usable" }
  } catch (cause) {
    const code = Predicate.hasProperty(cause, "code") ? String(cause.code) : "UNKNOWN"
    return code === "ENOENT" ? { _tag: "NoDevice" } : { _tag: "NoAccess", code }
  }
}

/** Opens the device and looks at the CPU; never fails. */
export const probeKvm: Effect.Effect<KvmState> = Effect.promise(async () => {
  const state = await openDevice()
  if (state._tag !== "Usable") return state
  return hasVirtualization(await fs.readFile("/proc/cpuinfo", "utf8")) ? state : { _tag: "NoVirtualization" }
})

/** The accelerator that QEMU_ACCEL comes to here: `auto` takes KVM only where it is usable. */
export const accelerator = (wish: "auto" | "kvm" | "tcg", kvm: KvmState): Exclude<Accelerator, "none"> => {
  if (wish !== "auto") return wish
  return kvm._tag === "Usable" ? "kvm" : "tcg"
}
