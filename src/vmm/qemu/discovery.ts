/** Which QEMU is here, what machine it offers, and what accelerates it: asked once, when the driver starts. */
import { createHash } from "node:crypto"
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"
import { run } from "../../host/Command.ts"
import { accelerator, probeKvm } from "../../host/Kvm.ts"
import { compareVersions } from "../../host/version.ts"
import { VmmFault } from "../Vmm.ts"
import type { QemuHost } from "./args.ts"

const minimum = [7, 2] as const
/** `--version` and `-machine help` take some 30 ms. */
const askBoundMs = 10_000

const refused = (reason: string, cause?: unknown) => new VmmFault({ operation: "discover", reason, cause })

/** The version in what `--version` prints, such as 7.2.22. */
export const versionOf = (text: string): string | undefined =>
  /^QEMU emulator version (\d+\.\d+(?:\.\d+)?)/m.exec(text)?.[1]

/** The newest versioned q35 type in what `-machine help` prints; distributions' own types are left alone. */
export const newestMachine = (help: string): string | undefined => {
  const versions = [...help.matchAll(/^pc-q35-(\d+(?:\.\d+)+)\s/gm)].flatMap((found) => found[1] ?? [])
  const newest = versions.toSorted(compareVersions).at(-1)
  return newest === undefined ? undefined : `pc-q35-${newest}`
}

/** `-cpu host` shows the guest this host's CPU: model and features bind a snapshot to it. */
const hostCpu = Effect.promise(async () => {
  const info = await fs.readFile("/proc/cpuinfo", "utf8").catch(() => "")
  const lines = ["model name", "flags"].map((key) => new RegExp(`^${key}\\s*:.*$`, "m").exec(info)?.[0] ?? "")
  return `host-${createHash("sha256").update(lines.join("\n")).digest("hex").slice(0, 16)}`
})

const ask = (program: string, args: ReadonlyArray<string>) =>
  run(program, args, { timeoutMs: askBoundMs }).pipe(
    Effect.mapError((fault) =>
      refused(
        fault.outcome === "missing"
          ? `${program} is not installed; on Debian and Ubuntu: apt-get install qemu-system-x86`
          : `${program} ${args.join(" ")} ${fault.outcome}`,
        fault
      )
    )
  )

/**
 * Fails with a sentence for an operator where QEMU is missing, older than 7.2, or of another architecture.
 * `accel`: as QEMU_ACCEL says; `auto` takes KVM only where the CPU has vmx or svm and /dev/kvm opens.
 */
export const discover = Effect.fnUntraced(function* (program: string, accel: "auto" | "kvm" | "tcg") {
  const [versionText, help, kvm] = yield* Effect.all(
    [ask(program, ["--version"]), ask(program, ["-machine", "help"]), probeKvm],
    { concurrency: 3 }
  )
  const version = versionOf(versionText)
  if (version === undefined) return yield* refused(`${program} does not say that it is QEMU`)
  if (compareVersions(version, minimum.join(".")) < 0)
    return yield* refused(`${program} is version ${version}; at least ${minimum.join(".")} is needed`)
  const machine = newestMachine(help)
  if (machine === undefined)
    return yield* refused(`${program} has no q35 machine; qemu-system-x86_64 is needed`)
  const chosen = accelerator(accel, kvm)
  if (chosen === "kvm" && kvm._tag === "NoVirtualization")
    return yield* refused(
      "QEMU_ACCEL is kvm, but this host's CPU has neither vmx nor svm; set QEMU_ACCEL to auto or tcg"
    )
  if (chosen === "kvm" && kvm._tag !== "Usable")
    return yield* refused("QEMU_ACCEL is kvm, but /dev/kvm does not open on this host")
  const host: QemuHost = {
    program,
    version,
    machine,
    accelerator: chosen,
    cpu: chosen === "kvm" ? yield* hostCpu : "max"
  }
  return host
})
