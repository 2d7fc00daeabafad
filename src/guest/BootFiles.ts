/** The kernel and the initrd that guests boot from, and what they are, for snapshots that need the very same ones. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { sha256Remembered } from "../host/Checksum.ts"
import type { FileFault } from "../host/Fault.ts"
import { Settings } from "../host/Settings.ts"

export interface BootChecksums {
  readonly kernel_sha256: string
  readonly initrd_sha256: string
}

export class BootFiles extends Context.Service<
  BootFiles,
  {
    readonly kernel: string
    readonly initrd: string
    /** Cheap after the first time: remembered until a file changes. */
    readonly checksums: Effect.Effect<BootChecksums, FileFault>
  }
>()("dataplane/guest/BootFiles") {
  static readonly layer = Layer.effect(
    BootFiles,
    Effect.map(Settings, ({ kernelPath, initrdPath }) => ({
      kernel: kernelPath,
      initrd: initrdPath,
      checksums: Effect.all({
        kernel_sha256: sha256Remembered(kernelPath),
        initrd_sha256: sha256Remembered(initrdPath)
      })
    }))
  )

  /** Simulated guests boot from nothing. */
  static readonly layerSimulated = Layer.effect(
    BootFiles,
    Effect.map(Settings, ({ kernelPath, initrdPath }) => ({
      kernel: kernelPath,
      initrd: initrdPath,
      checksums: Effect.succeed({ kernel_sha256: "0".repeat(64), initrd_sha256: "0".repeat(64) })
    }))
  )
}
