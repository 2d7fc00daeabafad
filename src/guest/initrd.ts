/**
 * The guest's initrd: the agent as /init, the kernel modules that it loads, and nothing else.
 *
 *   DATA_DIR/system/initrd        a cpio archive, not compressed: under software emulation inflating costs more than reading
 *   DATA_DIR/system/initrd.json   the stamp of what it was made of; where that is unchanged, nothing is done
 */
import { createHash } from "node:crypto"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { run } from "../host/Command.ts"
import { type CommandFault, FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import { type CpioEntry, encodeCpio } from "./cpio.ts"
import { ensureKernel, type GuestKernel, type KernelUnavailable, type Say } from "./kernel.ts"
import { guestModules, type GuestModule, readModules } from "./modules.ts"

/** Changes with the layout below, so that an initrd of an older layout is made again. */
const layoutVersion = 1
const buildTimeoutMs = 15 * 60_000
const target = "x86_64-unknown-linux-gnu"

/** Where the agent's sources are: beside this file. */
export const agentSource = path.join(import.meta.dirname, "agent")

/** The archive. Pure: the same agent and modules, the same bytes. */
export const encodeInitrd = (agent: Uint8Array, modules: ReadonlyArray<GuestModule>): Buffer => {
  const order = modules.map((it) =>
    [`${it.name}.ko`, ...(it.virtioDevice === undefined ? [] : [it.virtioDevice])].join(" ")
  )
  const directory = (name: string): CpioEntry => ({ _tag: "Directory", path: name, mode: 0o755 })
  return encodeCpio([
    directory("dev"),
    // The kernel opens it for init's standard streams, before anything is mounted (kernel Documentation, devices.txt).
    { _tag: "CharacterDevice", path: "dev/console", mode: 0o600, major: 5, minor: 1 },
    directory("proc"),
    directory("sys"),
    directory("modules"),
    { _tag: "File", path: "modules/order", mode: 0o644, content: Buffer.from(`${order.join("\n")}\n`) },
    ...modules.map((it): CpioEntry => ({
      _tag: "File",
      path: `modules/${it.name}.ko`,
      mode: 0o644,
      content: it.content
    })),
    { _tag: "File", path: "init", mode: 0o755, content: agent }
  ])
}

const Stamp = Schema.fromJsonString(Schema.Struct({ stamp: Schema.String, size: Schema.Int }))

const attempt = <A>(operation: string, target: string, body: () => Promise<A>) =>
  Effect.tryPromise({
    try: body,
    catch: (cause) => new FileFault({ operation, path: target, code: "UNKNOWN", cause })
  })

/** A digest of all that the agent is built from. */
const sourceDigest = (source: string) =>
  attempt("read", source, async () => {
    const below = await fs.readdir(path.join(source, "src"), { recursive: true, withFileTypes: true })
    const sources = below
      .filter((it) => it.isFile())
      .map((it) => path.relative(source, path.join(it.parentPath, it.name)))
      .toSorted()
    const hash = createHash("sha256")
    for (const name of ["Cargo.toml", "Cargo.lock", ".cargo/config.toml", ...sources]) {
      hash.update(`${name}\0`).update(await fs.readFile(path.join(source, name)))
    }
    return hash.digest("hex")
  })

/** Builds the agent with cargo and gives the binary. Cargo itself does nothing where nothing changed. */
export const buildAgent = (source: string): Effect.Effect<Buffer, CommandFault | FileFault> =>
  Effect.gen(function* () {
    const output = path.join(source, "target")
    yield* run(
      "cargo",
      ["build", "--release", "--locked", "--quiet", "--target", target, "--target-dir", output],
      {
        cwd: source,
        timeoutMs: buildTimeoutMs,
        // A RUSTFLAGS of the user's would win over the crate's own, and the binary would want a loader.
        env: { RUSTFLAGS: "-C target-feature=+crt-static" }
      }
    )
    const binary = path.join(output, target, "release", "dataplane-agent")
    return yield* attempt("read", binary, () => fs.readFile(binary))
  })

const stampOf = (sources: string, kernel: GuestKernel): string =>
  createHash("sha256")
    .update(JSON.stringify([layoutVersion, sources, kernel.identity, guestModules]))
    .digest("hex")

const isFresh = (initrd: string, stamp: string) =>
  Effect.gen(function* () {
    const files = yield* Files
    const known = Option.flatMap(yield* files.readText(`${initrd}.json`), Schema.decodeUnknownOption(Stamp))
    const size = Option.map(yield* files.stat(initrd), (it) => it.size)
    return Option.exists(known, (it) => it.stamp === stamp && Option.exists(size, (is) => is === it.size))
  })

export interface GuestFiles {
  readonly kernel: GuestKernel
  readonly initrd: string
}

export interface InitrdRequest {
  /** DATA_DIR/system. */
  readonly system: string
  readonly kernelPath: string
  readonly initrdPath: string
  readonly say: Say
  readonly source?: string
}

/** Makes sure that kernel and initrd are there and belong together. Milliseconds where an earlier run left them. */
export const ensureInitrd = (
  request: InitrdRequest
): Effect.Effect<GuestFiles, KernelUnavailable | CommandFault | FileFault, Files> =>
  Effect.gen(function* () {
    const files = yield* Files
    const { system, initrdPath: initrd, say, source = agentSource } = request
    const kernel = yield* ensureKernel(system, request.kernelPath, say)
    const stamp = stampOf(yield* sourceDigest(source), kernel)
    if (yield* isFresh(initrd, stamp)) return { kernel, initrd }
    yield* say("initrd: building the guest agent")
    const agent = yield* buildAgent(source)
    const modules = kernel.modules === null ? [] : yield* readModules(kernel.modules)
    const archive = encodeInitrd(agent, modules)
    yield* files.makeDirectory(path.dirname(initrd))
    yield* files.remove(`${initrd}.json`)
    yield* files.write(initrd, archive)
    yield* files.write(`${initrd}.json`, JSON.stringify({ stamp, size: archive.length }))
    yield* say(
      `initrd: ${initrd}, ${modules.length} modules, ${(archive.length / 1024 / 1024).toFixed(1)} MiB`
    )
    return { kernel, initrd }
  })
