/**
 * A release of Cloud Hypervisor: which ones are supported, and what each of them can do. An unknown field in a request is
 * silently ignored by an older release, so what it does not know is never sent to it.
 */
import type { RestoreMode } from "../../domain/Instance.ts"
import { cloudHypervisorMinimum, compareVersions } from "../../host/version.ts"

export interface Release {
  /** Such as 53.0. */
  readonly version: string
  /** `--no-shutdown`: the VMM stays when its guest goes off (52.0). */
  readonly staysWithoutGuest: boolean
  /** `memory_actual_size` counts what the guest has taken of virtio-mem (52.0); before, what it was asked to take. */
  readonly countsPluggedMemory: boolean
  /**
   * `memory_restore_mode` OnDemand, with a refusal of snapshots until all is loaded (53.0). 52.0 knows the mode, and a
   * snapshot that is taken meanwhile is silently corrupt.
   */
  readonly loadsOnDemand: boolean
}

/** The version in what `--version` prints and in `build_version`, such as `v53.0` and `v51.2-12-gabcdef`. */
export const versionIn = (text: string): string | undefined => /\bv(\d+\.\d+(?:\.\d+)?)/u.exec(text)?.[1]

export const releaseOf = (version: string): Release => {
  const isSince = (first: string) => compareVersions(version, first) >= 0
  return {
    version,
    staysWithoutGuest: isSince("52.0"),
    countsPluggedMemory: isSince("52.0"),
    loadsOnDemand: isSince("53.0")
  }
}

/** Why this version is not taken, as a sentence; null where it is. */
export const versionObstacle = (version: string): string | null =>
  compareVersions(version, cloudHypervisorMinimum) >= 0
    ? null
    : `Cloud Hypervisor ${version} is too old: at least ${cloudHypervisorMinimum} is needed, which closes holes that let a guest read files of the host`

/**
 * Whether the memory of a snapshot is read in whole before the guest goes on. `auto` is: a copy is proven to the last
 * byte, needs no privilege beyond the file and lets the next snapshot begin at once.
 */
export const isCopied = (mode: RestoreMode): boolean => mode !== "on_demand"

/** Why a restore in this mode cannot be, as a sentence; null where it can. */
export const modeObstacle = (release: Release, mode: RestoreMode): string | null =>
  isCopied(mode) || release.loadsOnDemand
    ? null
    : `Cloud Hypervisor ${release.version} cannot load memory on demand without danger to later snapshots: restore with copy, or run 53.0 or later.`
