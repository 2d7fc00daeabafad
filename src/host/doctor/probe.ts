/** Looks at the host and changes nothing on it. Never fails: what cannot be seen is part of what was found. */
import { constants } from "node:fs"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import { run } from "../Command.ts"
import type { CommandFault } from "../Fault.ts"
import { probeKvm } from "../Kvm.ts"
import { Settings } from "../Settings.ts"
import {
  type BootFile,
  bootFileHeadBytes,
  type DataDirectory,
  type Survey,
  type ToolFound
} from "./Survey.ts"

/** A program that does not say its version in this time hangs. */
const versionTimeoutMs = 10_000
const forwardingSwitch = "/proc/sys/net/ipv4/ip_forward"

const errnoOf = (cause: unknown): string =>
  Predicate.hasProperty(cause, "code") && Predicate.isString(cause.code) ? cause.code : "UNKNOWN"

/** The first dotted number of what a program says of itself. */
export const versionIn = (text: string): string | null => /\d+(\.\d+)+/.exec(text)?.[0] ?? null

const toolFault = (fault: CommandFault): ToolFound =>
  fault.outcome === "missing" ? { _tag: "Missing" } : { _tag: "Broken", reason: fault.message }

const tool = (command: string, args: ReadonlyArray<string>): Effect.Effect<ToolFound> =>
  run(command, args, { timeoutMs: versionTimeoutMs }).pipe(
    Effect.map((said): ToolFound => ({ _tag: "Found", version: versionIn(said) })),
    Effect.catch((fault) => Effect.succeed(toolFault(fault)))
  )

const tools = Effect.all(
  {
    skopeo: tool("skopeo", ["--version"]),
    tar2sqfs: tool("tar2sqfs", ["--version"]),
    "mkfs.ext4": tool("mkfs.ext4", ["-V"]),
    ip: tool("ip", ["-V"]),
    bridge: tool("bridge", ["-V"]),
    nft: tool("nft", ["--version"]),
    fallocate: tool("fallocate", ["--version"])
  },
  { concurrency: "unbounded" }
)

const canWrite = (target: string): Promise<boolean> =>
  fs.access(target, constants.W_OK).then(
    () => true,
    () => false
  )

const forwarding: Effect.Effect<Survey["forwarding"]> = Effect.promise(async () => {
  const value = await fs.readFile(forwardingSwitch, "utf8").catch(() => null)
  return value === null ? null : { on: value.trim() === "1", writable: await canWrite(forwardingSwitch) }
})

const Links = Schema.fromJsonString(
  Schema.Array(
    Schema.Struct({
      linkinfo: Schema.optionalKey(Schema.Struct({ info_kind: Schema.optionalKey(Schema.String) }))
    })
  )
)
const Routes = Schema.fromJsonString(
  Schema.Array(Schema.Struct({ dst: Schema.String, dev: Schema.optionalKey(Schema.String) }))
)

/** No such interface, and no `ip` to ask, come to the same: the check of `ip` says the latter. */
const bridge = (name: string): Effect.Effect<Survey["bridge"]> =>
  run("ip", ["-json", "-details", "link", "show", "dev", name]).pipe(
    Effect.flatMap(Schema.decodeUnknownEffect(Links)),
    Effect.map(([link]) => (link === undefined ? null : { kind: link.linkinfo?.info_kind ?? "device" })),
    Effect.orElseSucceed(() => null)
  )

const routes: Effect.Effect<Survey["routes"]> = run("ip", ["-json", "-4", "route", "show"]).pipe(
  Effect.flatMap(Schema.decodeUnknownEffect(Routes)),
  Effect.map((all) => all.map(({ dst, dev }) => ({ destination: dst, device: dev ?? "nowhere" }))),
  Effect.orElseSucceed((): Survey["routes"] => [])
)

/** DATA_DIR need not be there yet: then its nearest ancestor must let it be made. */
const nearestAncestor = async (target: string): Promise<string> => {
  const present = await fs.stat(target).then(
    () => true,
    () => false
  )
  return present || target === path.dirname(target) ? target : nearestAncestor(path.dirname(target))
}

const dataDirectory = (target: string): Effect.Effect<DataDirectory> =>
  Effect.promise(async () => {
    try {
      const there = await nearestAncestor(target)
      if (!(await fs.stat(there)).isDirectory()) return { _tag: "Unusable", code: "ENOTDIR" }
      await fs.access(there, constants.W_OK | constants.X_OK)
      const { bavail, bsize } = await fs.statfs(there)
      return { _tag: "Usable", freeBytes: bavail * bsize }
    } catch (cause) {
      return { _tag: "Unusable", code: errnoOf(cause) }
    }
  })

const readHead = async (target: string): Promise<BootFile> => {
  const handle = await fs.open(target, "r")
  try {
    const { size } = await handle.stat()
    const head = new Uint8Array(bootFileHeadBytes)
    const { bytesRead } = await handle.read(head, 0, head.length, 0)
    return { _tag: "Found", bytes: size, head: head.subarray(0, bytesRead) }
  } finally {
    await handle.close()
  }
}

const bootFile = (target: string): Effect.Effect<BootFile> =>
  Effect.promise(() =>
    readHead(target).catch((cause: unknown): BootFile => {
      const code = errnoOf(cause)
      return code === "ENOENT" ? { _tag: "Missing" } : { _tag: "Unreadable", code }
    })
  )

/** All that `evaluate` needs, looked at once and side by side. */
export const survey: Effect.Effect<Survey, never, Settings> = Effect.gen(function* () {
  const settings = yield* Settings
  return yield* Effect.all(
    {
      isRoot: Effect.sync(() => process.geteuid?.() === 0),
      qemu: tool(settings.qemuBin, ["--version"]),
      cloudHypervisor: Effect.forEach(
        settings.cloudHypervisorBin,
        (program) => tool(program, ["--version"]),
        { concurrency: settings.cloudHypervisorBin.length }
      ),
      kvm: probeKvm,
      tools,
      forwarding,
      bridge: bridge(settings.subnet.bridge),
      routes,
      dataDirectory: dataDirectory(settings.dataDir),
      kernel: bootFile(settings.kernelPath),
      initrd: bootFile(settings.initrdPath)
    },
    { concurrency: "unbounded" }
  )
})
