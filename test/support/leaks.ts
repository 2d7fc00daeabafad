/**
 * The ledger of what a service holds on its host. Two entries are compared: what is in the later one only has no owner,
 * unless the test says which instance owns it.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { processes } from "../../src/host/Proc.ts"
import type { Service } from "./Service.ts"

/** Every holding by its kind, each a line that a person can read, sorted. */
export interface Ledger {
  /** Processes whose command line names the service's directories, and all others inside its namespace. */
  readonly processes: ReadonlyArray<string>
  readonly links: ReadonlyArray<string>
  /** Static forwarding entries of the bridge and permanent neighbours: pinned per TAP. */
  readonly neighbours: ReadonlyArray<string>
  readonly nftables: ReadonlyArray<string>
  readonly files: ReadonlyArray<string>
  readonly sockets: ReadonlyArray<string>
  readonly mounts: ReadonlyArray<string>
  readonly loopDevices: ReadonlyArray<string>
  /** What of DATA_DIR and run directory the service's process holds open: descriptors leak as well. */
  readonly descriptors: ReadonlyArray<string>
}

const orEmpty = <A>(body: Promise<ReadonlyArray<A>>): Promise<ReadonlyArray<A>> => body.catch(() => [])

/** Every path below a directory, relative to it. */
const tree = async (directory: string): Promise<ReadonlyArray<string>> =>
  (await orEmpty(fs.readdir(directory, { recursive: true }))).toSorted()

const holders = (service: Service) =>
  Effect.gen(function* () {
    const inside = new Set(yield* service.namespace.pids)
    const owned = (yield* processes).filter(
      ({ pid, argv }) =>
        pid !== service.pid() &&
        (inside.has(pid) ||
          argv.some((it) => it.includes(service.dataDir) || it.includes(service.runDirectory)))
    )
    return owned.map(({ pid, argv }) => `${pid} ${argv.join(" ")}`).toSorted()
  })

const lines = (service: Service, command: string, args: ReadonlyArray<string>) =>
  Effect.orDie(service.namespace.run(command, args)).pipe(
    Effect.map((text) =>
      text
        .split("\n")
        .map((line) => line.trim())
        .filter(Boolean)
    )
  )

/** Counters and handles change with time and order; what is meant by a rule does not. */
const ruleset = (service: Service) =>
  lines(service, "nft", ["--stateless", "list", "ruleset"]).pipe(Effect.map((text) => text.toSorted()))

const mountsOf = async (pid: number, directories: ReadonlyArray<string>) =>
  (await fs.readFile(`/proc/${pid}/mountinfo`, "utf8").catch(() => ""))
    .split("\n")
    .filter((line) => directories.some((it) => line.includes(it)))
    .toSorted()

const loopDevices = async (dataDir: string) => {
  const devices = await orEmpty(fs.readdir("/sys/block"))
  const backed = await Promise.all(
    devices
      .filter((name) => name.startsWith("loop"))
      .map(async (name) => ({
        name,
        file: await fs.readFile(`/sys/block/${name}/loop/backing_file`, "utf8").catch(() => "")
      }))
  )
  return backed.filter(({ file }) => file.includes(dataDir)).map(({ name, file }) => `${name} ${file.trim()}`)
}

const descriptors = async (pid: number, directories: ReadonlyArray<string>) => {
  const open = await orEmpty(fs.readdir(`/proc/${pid}/fd`))
  const targets = await Promise.all(open.map((fd) => fs.readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")))
  return targets.filter((target) => directories.some((it) => target.startsWith(it))).toSorted()
}

/** What the service holds now. */
export const ledger = (service: Service): Effect.Effect<Ledger> =>
  Effect.gen(function* () {
    const directories = [service.dataDir, service.runDirectory]
    const links = yield* lines(service, "ip", ["-brief", "link", "show"])
    const fdb = yield* lines(service, "bridge", ["fdb", "show"])
    const neighbours = yield* lines(service, "ip", ["neighbour", "show", "nud", "permanent"])
    return {
      processes: yield* holders(service),
      links: links.map((line) => line.split(/\s+/)[0] ?? "").toSorted(),
      neighbours: [...fdb.filter((line) => line.includes("static")), ...neighbours].toSorted(),
      nftables: yield* ruleset(service),
      files: yield* Effect.promise(() => tree(service.dataDir)),
      // FIFOs made ahead for VMMs to come are the service's own, and go with it.
      sockets: (yield* Effect.promise(() => tree(service.runDirectory))).filter(
        (name) => !name.startsWith(".fifo-")
      ),
      mounts: yield* Effect.promise(() => mountsOf(service.pid(), directories)),
      loopDevices: yield* Effect.promise(() => loopDevices(service.dataDir)),
      descriptors: yield* Effect.promise(() => descriptors(service.pid(), directories))
    }
  })

const kinds = [
  "processes",
  "links",
  "neighbours",
  "nftables",
  "files",
  "sockets",
  "mounts",
  "loopDevices",
  "descriptors"
] as const satisfies ReadonlyArray<keyof Ledger>

/** What `after` holds beyond `before`, kind by kind; a line that is there twice as often counts once more. */
export const surplus = (before: Ledger, after: Ledger): ReadonlyArray<string> =>
  kinds.flatMap((kind) => {
    const known = [...before[kind]]
    return after[kind]
      .filter((line) => {
        const at = known.indexOf(line)
        if (at === -1) return true
        known.splice(at, 1)
        return false
      })
      .map((line) => `${kind}: ${line}`)
  })

/** Fails with every holding that has no owner. Strict and at once: an answered DELETE promises that all is gone. */
export const expectNoLeaks = (
  service: Service,
  before: Ledger,
  owned: (line: string) => boolean = () => false
): Effect.Effect<void> =>
  Effect.map(ledger(service), (after) => {
    assert.deepStrictEqual(
      surplus(before, after).filter((line) => !owned(line)),
      [],
      "left over on the host"
    )
  })

/** Paths under DATA_DIR that exist, for tests that look at single ones. */
export const inDataDir = (service: Service, ...segments: ReadonlyArray<string>): string =>
  path.join(service.dataDir, ...segments)
