/** Which Cloud Hypervisors are here, and whether KVM can run their guests: asked once, when the driver starts. */
import { createHash } from "node:crypto"
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"
import { run } from "../../host/Command.ts"
import { type KvmState, probeKvm } from "../../host/Kvm.ts"
import { VmmFault } from "../Vmm.ts"
import { type Release, releaseOf, versionIn, versionObstacle } from "./Release.ts"

/** `--version` takes some 10 ms. */
const askBoundMs = 10_000

export interface Installed {
  readonly program: string
  readonly release: Release
}

export interface Found {
  /** In the order of CLOUD_HYPERVISOR_BIN; the first one starts new VMs. No version twice. */
  readonly installed: readonly [Installed, ...ReadonlyArray<Installed>]
  /** What a guest sees as CPU is the host's own: a digest of it binds a snapshot to it. */
  readonly cpu: string
  readonly kvm: KvmState
}

const refused = (reason: string, cause?: unknown) => new VmmFault({ operation: "discover", reason, cause })

const ask = Effect.fnUntraced(function* (program: string) {
  const said = yield* run(program, ["--version"], { timeoutMs: askBoundMs }).pipe(
    Effect.mapError((fault) =>
      refused(
        fault.outcome === "missing"
          ? `${program} is not installed; get a release of Cloud Hypervisor, or set CLOUD_HYPERVISOR_BIN`
          : `${program} --version ${fault.outcome}`,
        fault
      )
    )
  )
  const version = said.startsWith("cloud-hypervisor ") ? versionIn(said) : undefined
  if (version === undefined) return yield* refused(`${program} does not say that it is Cloud Hypervisor`)
  const obstacle = versionObstacle(version)
  if (obstacle !== null) return yield* refused(`${program}: ${obstacle}`)
  const installed: Installed = { program, release: releaseOf(version) }
  return installed
})

/** Model and features; two hosts that differ in one of them do not exchange snapshots. */
const hostCpu = Effect.promise(async () => {
  const info = await fs.readFile("/proc/cpuinfo", "utf8").catch(() => "")
  const lines = ["model name", "flags"].map((key) => new RegExp(`^${key}\\s*:.*$`, "m").exec(info)?.[0] ?? "")
  return createHash("sha256").update(lines.join("\n")).digest("hex").slice(0, 16)
})

/** Fails with a sentence for an operator where one of the programs is missing, too old or something else. */
export const discover = Effect.fnUntraced(function* (programs: ReadonlyArray<string>) {
  const [first, ...others] = yield* Effect.forEach(programs, ask, { concurrency: programs.length })
  if (first === undefined) return yield* refused("CLOUD_HYPERVISOR_BIN names no program")
  const seen = new Set([first.release.version])
  const rest = others.filter(({ release }) => {
    const fresh = !seen.has(release.version)
    seen.add(release.version)
    return fresh
  })
  const kvm = yield* probeKvm
  if (kvm._tag === "NoDevice")
    return yield* refused("there is no /dev/kvm, and Cloud Hypervisor cannot do without; set VMM to qemu")
  if (kvm._tag === "NoAccess")
    return yield* refused(`/dev/kvm does not open (${kvm.code}): run as root, or as a member of its group`)
  const found: Found = { installed: [first, ...rest], cpu: yield* hostCpu, kvm }
  return found
})
