/**
 * The driver of a virtual machine monitor. It knows processes, disks and wires; it knows no instance states and keeps no
 * record. Whoever calls it owns the order: spawn, persist the identity, attach, boot.
 *
 *   spawn ─────────────► prelaunch ──boot──► running ◄──resume/pause──► paused
 *   spawnRestoring ────────────────────────────────────────────────────► paused
 *   running ──guest goes off──► off (the VMM stays until `quit`, so the reason can still be asked for) ──quit──► gone
 *
 * A process outlives the service: it is detached, its console and log are files, its death is seen through a FIFO whose
 * write end it holds. A session (`attach`) is the service's one connection to it and belongs to a scope.
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { InstanceId } from "../domain/Ids.ts"
import type { Accelerator, RestoreMode, VmmKind } from "../domain/Instance.ts"
import type { InterfaceName, Mac } from "../domain/Network.ts"
import type { ProcessExit, ProcessIdentity } from "../domain/Process.ts"
import type { SnapshotFile } from "../domain/Snapshot.ts"

/** A disk, named by serial (virtio-blk: at most 20 bytes), never by letter. The serial names its device as well. */
export interface Disk {
  readonly serial: string
  readonly path: string
  readonly readonly: boolean
  /** It may be removed while the guest runs, as a volume may. A disk that `addDisk` brought always is. */
  readonly removable?: boolean
}

export interface Nic {
  readonly tap: InterfaceName
  readonly mac: Mac
}

/** Where the agent listens from the host's side. */
export type AgentEndpoint =
  | { readonly _tag: "UnixSocket"; readonly path: string }
  | { readonly _tag: "HybridVsock"; readonly path: string; readonly port: number }

/** All that a VMM needs to know of one VM. Paths are absolute. */
export interface VmConfig {
  readonly id: InstanceId
  readonly vcpus: number
  readonly memoryMb: number
  /** The ceiling of live memory growth; equal to `memoryMb` where none is wanted. */
  readonly memoryMaxMb: number
  readonly kernel: string
  readonly initrd: string
  /** What the guest asks of its kernel; the driver adds the console. */
  readonly cmdline: string
  readonly disks: ReadonlyArray<Disk>
  readonly nic: Nic | null
  /** A new file per run: the serial console, written by the VMM. */
  readonly consolePath: string
  /** A new file per run: what the VMM itself says. */
  readonly logPath: string
  /** An existing directory for this VM's sockets and FIFO; short (Paths.ts). Its path is in the VMM's command line. */
  readonly runDirectory: string
}

/** A VMM that runs, or ran: enough to adopt it after a restart of the service. */
export interface VmmRef {
  readonly id: InstanceId
  readonly process: ProcessIdentity
  readonly runDirectory: string
}

/** What the VMM says of its guest now. */
export type VmmStatus =
  | { readonly _tag: "Prelaunch" }
  | { readonly _tag: "Running" }
  | { readonly _tag: "Paused" }
  | { readonly _tag: "Off" }
  | { readonly _tag: "Panicked" }
  | { readonly _tag: "Broken"; readonly status: string }

/** What happens without being asked for. */
export type VmmEvent =
  | { readonly _tag: "GuestOff"; readonly cause: "poweroff" | "reset" }
  | { readonly _tag: "GuestPanicked" }

export class VmmFault extends Schema.TaggedError<VmmFault>()("VmmFault", {
  /** The operation that failed: spawn, attach, boot, pause, snapshot ... */
  operation: Schema.String,
  /** What the VMM said, or what was seen; a sentence for an operator. */
  reason: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.operation}: ${this.reason}`
  }
}

/** The service's one connection to a VMM. Every call races against the end of the process and has its own bound. */
export interface VmmSession {
  readonly status: Effect.Effect<VmmStatus, VmmFault>
  /** From Prelaunch, or from Off after `shutdown`: the guest starts from its kernel. */
  readonly boot: Effect.Effect<void, VmmFault>
  readonly pause: Effect.Effect<void, VmmFault>
  readonly resume: Effect.Effect<void, VmmFault>
  /** The power button: a request to the guest, not a promise. */
  readonly powerButton: Effect.Effect<void, VmmFault>
  /** The guest off at once; the VMM stays. */
  readonly powerOff: Effect.Effect<void, VmmFault>
  /** Asks the VMM to end; the proof is `VmmProcesses.exit`. */
  readonly quit: Effect.Effect<void, VmmFault>
  /**
   * Writes the guest's memory and devices into an empty directory, synced, and gives the files that it wrote, their
   * checksums taken on the way: memory is read once and never again. The guest must be paused and stays so.
   * Interruption cancels it and leaves the guest paused, resumable.
   */
  readonly snapshot: (directory: string) => Effect.Effect<ReadonlyArray<SnapshotFile>, VmmFault>
  /** Asks for memory and waits until the guest took it, at most a bound; gives what is there now, in MiB. */
  readonly resizeMemory: (memoryMb: number) => Effect.Effect<number, VmmFault>
  /** Memory of the guest now, in MiB. */
  readonly memoryMb: Effect.Effect<number, VmmFault>
  readonly addDisk: (disk: Disk) => Effect.Effect<void, VmmFault>
  /** Ends when the guest has let go of the disk, or is off, and the file is closed. A paused guest lets nothing go. */
  readonly removeDisk: (serial: string) => Effect.Effect<void, VmmFault>
  /** Tells the guest of a disk's new size, in bytes; the file is at least that long before. A disk only grows. */
  readonly resizeDisk: (serial: string, bytes: number) => Effect.Effect<void, VmmFault>
  /** Serials of the removable disks that are there now. */
  readonly disks: Effect.Effect<ReadonlyArray<string>, VmmFault>
  /** Events since the attach, in order. Ends with the connection. */
  readonly events: Stream.Stream<VmmEvent>
  readonly agent: AgentEndpoint
}

/** What a restore is to be, besides what is restored. */
export interface RestoreWish {
  /** The VMM version that wrote the snapshot; no other one reads it. */
  readonly version: string
  readonly mode: RestoreMode
}

export interface VmmCapabilities {
  readonly snapshot: boolean
  readonly memoryGrowth: boolean
  readonly hotDisks: boolean
}

export class Vmm extends Context.Service<
  Vmm,
  {
    readonly kind: VmmKind
    /** Of the VMMs that `spawn` starts. */
    readonly version: string
    /** All that are installed: a snapshot of each of them can be restored. Holds `version`. */
    readonly versions: ReadonlyArray<string>
    readonly accelerator: Accelerator
    readonly capabilities: VmmCapabilities
    /** Starts the process with the VM configured and its guest not started. Nothing is left where it fails. */
    readonly spawn: (config: VmConfig) => Effect.Effect<ProcessIdentity, VmmFault>
    /**
     * Starts the process and loads a snapshot; ends when the guest stands paused where it was. Proves on the way that
     * the directory holds these files to the last byte, and fails before the guest could run where it does not: nobody
     * else reads their content. Memory that is loaded on demand is the exception: only its length is proven. Without a
     * wish, the snapshot is one of `version`, and the mode is `auto`.
     */
    readonly spawnRestoring: (
      config: VmConfig,
      directory: string,
      files: ReadonlyArray<SnapshotFile>,
      wish?: RestoreWish
    ) => Effect.Effect<ProcessIdentity, VmmFault>
    /** Why this wish cannot be fulfilled on this host, as a sentence for a client; null where it can. */
    readonly restoreObstacle: (wish: RestoreWish) => string | null
    /** Connects to a VMM that this or an earlier service started. The scope owns the connection, not the process. */
    readonly attach: (vmm: VmmRef) => Effect.Effect<VmmSession, VmmFault, Scope.Scope>
    /**
     * What a snapshot of this VM depends on besides its files: VMM version, machine type, CPU, accelerator, device
     * layout. A restore where it differs is refused before anything is touched.
     */
    readonly fingerprint: (config: VmConfig) => string
  }
>()("dataplane/vmm/Vmm") {}

/** Processes of VMMs, by kernel truth. One implementation for all real drivers; the simulated host has its own. */
export class VmmProcesses extends Context.Service<
  VmmProcesses,
  {
    /** Waits for the end of the process; at once where it is over. Exit code and signal only where they are known. */
    readonly exit: (vmm: VmmRef) => Effect.Effect<ProcessExit>
    readonly isAlive: (process: ProcessIdentity) => Effect.Effect<boolean>
    /**
     * SIGTERM, after a grace SIGKILL, then waits for the proof of death, all bounded. Fails only where the kernel does
     * not let go of it in time.
     */
    readonly kill: (vmm: VmmRef) => Effect.Effect<void, VmmFault>
    /** Every live VMM of this service's run directory, with or without a record: found by its command line. */
    readonly scan: Effect.Effect<ReadonlyArray<VmmRef>>
  }
>()("dataplane/vmm/VmmProcesses") {}
