/**
 * What runs inside a simulated guest: read from the instance's disks when it boots, and reported on them when it ends.
 * The format of those disks belongs to `guest/`; this is the hole in the world that it fills.
 */
import * as Context from "effect/Context"
import type { Disk } from "./disk.ts"
import type { End, Mount } from "./guest.ts"

/** What the guest does to itself after init answered; the times are guest milliseconds after that. */
export interface Program {
  /** Lines that the console shows when the image's process starts. */
  readonly greeting: ReadonlyArray<string>
  /** Ends so, after a time. */
  readonly fate: { readonly afterMs: number; readonly end: End } | null
  /** Init cannot start the image's process, and says why. */
  readonly failure: string | null
  /** Ignores every request to end. */
  readonly deaf: boolean
  /** Mount paths that a process of the guest keeps in use. */
  readonly holds: ReadonlyArray<string>
  /** What init mounts; it fails where a disk is not there. */
  readonly mounts: ReadonlyArray<Mount>
}

export const idleProgram: Program = {
  greeting: [],
  fate: null,
  failure: null,
  deaf: false,
  holds: [],
  mounts: []
}

export interface GuestDisk {
  readonly serial: string
  readonly path: string
  readonly readonly: boolean
}

export const GuestInit = Context.Reference<{
  readonly read: (disk: Disk, disks: ReadonlyArray<GuestDisk>) => Program
  readonly report: (disk: Disk, disks: ReadonlyArray<GuestDisk>, end: End) => void
}>("dataplane/host/simulated/GuestInit", {
  defaultValue: () => ({ read: () => idleProgram, report: () => undefined })
})
