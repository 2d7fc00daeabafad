/** What this machine lacks for tests with real guests. Such a test is skipped, and says why. */
import { accessSync, constants, existsSync } from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { beforeEach } from "vitest"
import { namespacesMissing } from "./netns.ts"

const repository = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..")

/** The guest's kernel and initrd, where `scripts/test.sh` has them built; KERNEL_PATH and INITRD_PATH name others. */
export const guestSystem = () => ({
  kernel: process.env["KERNEL_PATH"] ?? path.join(repository, ".artifacts/system/vmlinuz"),
  initrd: process.env["INITRD_PATH"] ?? path.join(repository, ".artifacts/system/initrd")
})

const onPath = (command: string): boolean =>
  `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin`.split(":").some((directory) => {
    try {
      accessSync(path.join(directory, command), constants.X_OK)
      return true
    } catch {
      return false
    }
  })

/** Null where real guests can run here; else a sentence. `tools` are asked for besides those that every guest needs. */
export const liveObstacle = (tools: ReadonlyArray<string> = []): string | null => {
  if (process.getuid?.() !== 0) return "needs root, for network namespaces and TAPs"
  if (namespacesMissing !== undefined) return namespacesMissing
  const missing = ["ip", "nft", "qemu-system-x86_64", "tar2sqfs", "mkfs.ext4", "busybox", ...tools].filter(
    (tool) => !onPath(tool)
  )
  if (missing.length > 0) return `needs ${missing.join(", ")}: scripts/setup.sh --tests installs them`
  const { kernel, initrd } = guestSystem()
  if (!existsSync(kernel) || !existsSync(initrd))
    return "needs the guest kernel and initrd: scripts/build-initrd.sh makes them"
  return null
}

/** Called in a `describe`: skips each of its tests, with the reason, where there is one. */
export const skipWhere = (obstacle: string | null | undefined): void => {
  beforeEach((context) => {
    if (obstacle !== null && obstacle !== undefined) context.skip(obstacle)
  })
}

/** The same for tests with real guests. */
export const needsLiveHost = (tools: ReadonlyArray<string> = []): void => skipWhere(liveObstacle(tools))
