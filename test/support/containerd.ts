/**
 * A real containerd with a root, a state and a socket of its own in a temporary directory, ended with the scope; killed and
 * started again at will. `ctr` stands for everybody else who uses it.
 */
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { execa } from "execa"
import { ociArchive, type TestImage } from "./layers.ts"
import { temporaryDirectory } from "./temporary.ts"

/** containerd tells nobody when it listens. */
const readyIntervalMs = 25
const readyTimes = 800

const disabled = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.aufs"
]

const configOf = (directory: string, extra: string) => `version = 2
root = "${directory}/root"
state = "${directory}/state"
disabled_plugins = ${JSON.stringify(disabled)}
[grpc]
address = "${directory}/grpc"
[ttrpc]
address = "${directory}/ttrpc"
${extra}`

export interface TestContainerd {
  /** Absolute path of the socket. */
  readonly socket: string
  /** `ctr` in a namespace; gives what it printed. */
  readonly ctr: (namespace: string, ...args: ReadonlyArray<string>) => Effect.Effect<string>
  /** Imports an image under a full name into a namespace. */
  readonly load: (namespace: string, image: TestImage, name: string) => Effect.Effect<void>
  readonly kill: Effect.Effect<void>
  readonly start: Effect.Effect<void>
}

/** Why containerd cannot be run here, if it cannot. */
export const containerdUnavailable: Effect.Effect<string | null> = Effect.promise(async () => {
  const found = await Promise.all(
    ["containerd", "ctr"].map((it) => execa(it, ["--version"], { reject: false }))
  )
  return found.some((it) => it.failed) ? "containerd is not installed (Debian package containerd)" : null
})

/** `extra` is added to its configuration (TOML). */
export const startContainerd = (extra = "") =>
  Effect.gen(function* () {
    const directory = yield* temporaryDirectory("ctrd")
    const config = path.join(directory, "config.toml")
    yield* Effect.promise(() => fs.writeFile(config, configOf(directory, extra)))
    const socket = path.join(directory, "grpc")
    let child: ReturnType<typeof spawn> | undefined
    const run = (...args: ReadonlyArray<string>) =>
      Effect.tryPromise(() => execa("ctr", ["--address", socket, ...args]))
    const kill = Effect.promise(async () => {
      if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
      child.kill("SIGKILL")
      await once(child, "exit")
    })
    const start = Effect.gen(function* () {
      child = spawn("containerd", ["--config", config], { stdio: "ignore" })
      yield* run("version").pipe(
        Effect.retry({ schedule: Schedule.spaced(readyIntervalMs), times: readyTimes }),
        Effect.orDie
      )
    })
    yield* Effect.acquireRelease(start, () => kill)
    const ctr: TestContainerd["ctr"] = (namespace, ...args) =>
      run("--namespace", namespace, ...args).pipe(
        Effect.map(({ stdout }) => stdout),
        Effect.orDie
      )
    const load: TestContainerd["load"] = (namespace, image, name) =>
      Effect.gen(function* () {
        const file = path.join(directory, "load.tar")
        yield* Effect.promise(async () => fs.writeFile(file, await ociArchive(image, name)))
        yield* ctr(namespace, "images", "import", "--no-unpack", file)
        yield* Effect.promise(() => fs.rm(file))
      })
    const containerd: TestContainerd = { socket, ctr, load, kill, start }
    return containerd
  })

export class LocalContainerd extends Context.Service<LocalContainerd, TestContainerd>()(
  "test/LocalContainerd"
) {
  static readonly layer = Layer.effect(LocalContainerd, startContainerd())
}
