/** What the doctor looks at, as plain data: `probe.ts` fills it from the host, `evaluate.ts` judges it. */
import type { KvmState } from "../Kvm.ts"

/** A host tool. `version` is null where the tool does not say it on standard output. */
export type ToolFound =
  | { readonly _tag: "Missing" }
  | { readonly _tag: "Broken"; readonly reason: string }
  | { readonly _tag: "Found"; readonly version: string | null }

/** Tools of the distribution that every image or instance needs, with Debian's package for each. */
export const requiredTools = {
  skopeo: "skopeo",
  tar2sqfs: "squashfs-tools-ng",
  "mkfs.ext4": "e2fsprogs",
  ip: "iproute2",
  bridge: "iproute2",
  nft: "nftables",
  fallocate: "util-linux"
} as const
export type RequiredTool = keyof typeof requiredTools

export type BootFile =
  | { readonly _tag: "Missing" }
  | { readonly _tag: "Unreadable"; readonly code: string }
  /** `head`: the first bytes, enough for its magic numbers. */
  | { readonly _tag: "Found"; readonly bytes: number; readonly head: Uint8Array }

/** Enough for the magic number of a bzImage, at 0x202 (kernel.org, x86 boot protocol). */
export const bootFileHeadBytes = 1024

export type DataDirectory =
  | { readonly _tag: "Usable"; readonly freeBytes: number }
  | { readonly _tag: "Unusable"; readonly code: string }

export interface Route {
  /** `default`, a network in CIDR form, or a single address. */
  readonly destination: string
  readonly device: string
}

export interface Survey {
  readonly isRoot: boolean
  readonly qemu: ToolFound
  /** One for each program of CLOUD_HYPERVISOR_BIN. */
  readonly cloudHypervisor: ReadonlyArray<ToolFound>
  readonly kvm: KvmState
  readonly tools: Readonly<Record<RequiredTool, ToolFound>>
  /** net.ipv4.ip_forward; null where the kernel does not say. */
  readonly forwarding: { readonly on: boolean; readonly writable: boolean } | null
  /** The interface with the bridge's name; null where there is none. `kind` as `ip -d link` says it. */
  readonly bridge: { readonly kind: string } | null
  readonly routes: ReadonlyArray<Route>
  readonly dataDirectory: DataDirectory
  readonly kernel: BootFile
  readonly initrd: BootFile
}
