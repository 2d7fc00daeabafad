/** The rules of a restore that all drivers with one installed version and one way to load memory share. */
import type { RestoreWish } from "./Vmm.ts"

/** For a VMM that reads all memory before the guest goes on, and whose one version is this. */
export const copyOnly =
  (kind: string, version: string) =>
  (wish: RestoreWish): string | null => {
    if (wish.version !== version)
      return `The snapshot needs ${kind} ${wish.version}; ${version} is installed.`
    return wish.mode === "on_demand"
      ? `${kind} ${version} cannot load memory on demand: restore with copy.`
      : null
  }
