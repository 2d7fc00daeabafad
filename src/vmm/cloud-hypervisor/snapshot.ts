/**
 * A snapshot is a directory that the VMM writes: `config.json`, `state.json` and `memory-ranges`, the guest's memory in one
 * piece. It syncs none of them, and its answer is the only proof that they are whole; so what is there after the answer is
 * made sparse, synced and checked here.
 *
 *   paused ──vm.snapshot──► paused            (memory of zeros becomes a hole, before it reaches the disk)
 *   a process without a VM ──vm.restore──► paused
 *
 * There is no bound on the whole, which depends on memory and disk: there is one on standing still.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { SnapshotFile } from "../../domain/Snapshot.ts"
import { run } from "../../host/Command.ts"
import type { Files } from "../../host/Files.ts"
import { parseExact } from "../exactJson.ts"
import { type RestoreWish, type VmConfig, VmmFault } from "../Vmm.ts"
import { asVmmFault, type Client, says } from "./Client.ts"
import { diskId, vsockSocket } from "./config.ts"
import { type Machine as Vm, status } from "./machine.ts"
import { Machine } from "./protocol.ts"
import { isCopied } from "./Release.ts"

/** A snapshot or a load that has not moved for so long has broken somewhere. */
const stallBoundMs = 30_000
const stallPollMs = 500
/** Devices and file system overhead beside the memory itself. */
const spaceMarginBytes = 64 * 1024 * 1024
/** Memory that is loaded on demand is all there within seconds (53.0 fetches the rest by itself). */
const loadingPollMs = 500
const loadingTries = 240
const digBoundMs = 10 * 60_000

export const configName = "config.json"
const stateName = "state.json"
const memoryName = "memory-ranges"
const names = [configName, stateName, memoryName]

const fault = (operation: string, reason: string, cause?: unknown) =>
  new VmmFault({ operation, reason, cause })

/** Bytes that the file system holds for what is in a directory. */
const allocated = (directory: string): Effect.Effect<number> =>
  Effect.promise(async () => {
    const sizes = await Promise.all(
      names.map((name) =>
        fs.stat(path.join(directory, name)).then(
          (it) => it.blocks,
          () => 0
        )
      )
    )
    return sizes.reduce((sum, blocks) => sum + blocks, 0)
  })

/** Fails when the measure has not moved for `stallBoundMs`; never ends otherwise. */
const stalled = (operation: string, measure: Effect.Effect<number>): Effect.Effect<never, VmmFault> =>
  Effect.gen(function* () {
    let [seen, stillMs] = [-1, 0]
    while (stillMs < stallBoundMs) {
      const now = yield* measure
      stillMs = now === seen ? stillMs + stallPollMs : 0
      seen = now
      yield* Effect.sleep(stallPollMs)
    }
    return yield* fault(operation, `the guest's state has not moved for ${stallBoundMs} ms`)
  })

const checkSpace = Effect.fnUntraced(function* (client: Client, files: Files["Service"], directory: string) {
  const { memory_actual_size } = yield* client.info.pipe(Effect.mapError(asVmmFault("snapshot")))
  const needed = memory_actual_size + spaceMarginBytes
  const free = yield* files
    .freeBytes(directory)
    .pipe(Effect.mapError((cause) => fault("snapshot", "the snapshot's directory cannot be used", cause)))
  if (free < needed)
    return yield* fault("snapshot", `a snapshot needs up to ${needed} bytes of disk, ${free} are free`)
})

/** The order itself; false where an earlier restore still brings memory in, and nothing was written. */
const writeOnce = (client: Client, directory: string) =>
  client.order("vm.snapshot", { destination_url: `file://${directory}` }, null).pipe(
    Effect.as(true),
    Effect.catchIf(
      (cause) => says(cause, "restore is still in progress"),
      () => Effect.delay(Effect.succeed(false), loadingPollMs)
    ),
    Effect.mapError(asVmmFault("snapshot")),
    Effect.raceFirst(stalled("snapshot", allocated(directory)))
  )

const write = Effect.fnUntraced(function* (client: Client, directory: string) {
  for (let tries = 0; tries < loadingTries; tries++) if (yield* writeOnce(client, directory)) return
  return yield* fault("snapshot", "the guest's memory is still being loaded from its snapshot")
})

/** A file as it goes into the manifest: durable, with its checksum. */
const settle = Effect.fnUntraced(function* (files: Files["Service"], directory: string, name: string) {
  const file = path.join(directory, name)
  // Zeros are most of a fresh guest's memory. A file system without holes keeps them, and the content is the same.
  if (name === memoryName)
    yield* Effect.ignore(run("fallocate", ["--dig-holes", file], { timeoutMs: digBoundMs }))
  yield* files.sync(file)
  const stat = yield* files.stat(file)
  if (Option.isNone(stat)) return yield* fault("snapshot", `the VMM wrote no ${name}`)
  const written: SnapshotFile = {
    name,
    bytes: stat.value.size,
    checksum: `sha256:${yield* files.sha256(file)}`
  }
  return written
})

/** Half a snapshot is none. */
const removeFiles = (directory: string) =>
  Effect.promise(() => Promise.all(names.map((name) => fs.rm(path.join(directory, name), { force: true }))))

/**
 * Writes the three files, synced with their names. The guest must be paused and is so afterwards. After a failure or an
 * interruption they are gone again; an interrupted VMM goes on writing into nothing, and what it is asked next waits.
 */
export const snapshot = (
  { client, ...vm }: Vm,
  files: Files["Service"],
  directory: string
): Effect.Effect<ReadonlyArray<SnapshotFile>, VmmFault> =>
  Effect.gen(function* () {
    const now = yield* status({ client, ...vm })
    if (now._tag !== "Paused")
      return yield* fault("snapshot", `the guest is not paused but ${now._tag.toLowerCase()}`)
    yield* checkSpace(client, files, directory)
    return yield* write(client, directory).pipe(
      Effect.andThen(Effect.forEach(names, (name) => settle(files, directory, name))),
      Effect.tap(() => files.sync(directory)),
      Effect.onError(() => removeFiles(directory))
    )
  }).pipe(
    Effect.mapError((cause) =>
      cause instanceof VmmFault ? cause : fault("snapshot", "the snapshot could not be made durable", cause)
    )
  )

/** Whether these are the files that a snapshot of this driver has. */
export const filesProblem = (files: ReadonlyArray<SnapshotFile>): string | null =>
  files.length === names.length && names.every((name) => files.some((file) => file.name === name))
    ? null
    : "the snapshot's files are not those that Cloud Hypervisor writes"

interface DiskView {
  readonly id: string
  readonly path: string
  readonly readonly: boolean
}

const sorted = (disks: ReadonlyArray<DiskView>) =>
  JSON.stringify(disks.toSorted((left, right) => (left.id < right.id ? -1 : 1)))

const savedDisks = (saved: Machine) =>
  (saved.disks ?? []).map((disk) => ({
    id: disk.id ?? "",
    path: disk.path ?? "",
    readonly: disk.readonly ?? false
  }))

/**
 * A restored VM is what its snapshot says, down to the paths of its disks: so the snapshot must say what this VM is. A
 * sentence where it does not, else null.
 */
export const machineProblem = (saved: Machine, config: VmConfig): string | null => {
  const disks = config.disks.map((disk) => ({
    id: diskId(disk.serial),
    path: disk.path,
    readonly: disk.readonly
  }))
  if (sorted(savedDisks(saved)) !== sorted(disks)) return "the snapshot's disks are not those of this VM"
  const [net] = saved.net ?? []
  if ((net?.tap ?? null) !== (config.nic?.tap ?? null) || (net?.mac ?? null) !== (config.nic?.mac ?? null))
    return "the snapshot's network device is not that of this VM"
  if (saved.vsock?.socket !== vsockSocket(config.runDirectory))
    return "the snapshot's sockets are in another run directory than this VM's"
  if (saved.serial.mode !== "Tty") return "the snapshot's console is not this VM's"
  return null
}

/** Proves one file's length and content. */
const prove = Effect.fnUntraced(function* (
  files: Files["Service"],
  directory: string,
  written: SnapshotFile
) {
  const unreadable = (cause: unknown) =>
    fault("restore", `the snapshot's ${written.name} cannot be read`, cause)
  const file = path.join(directory, written.name)
  const found = yield* files.sha256(file).pipe(Effect.mapError(unreadable))
  if (`sha256:${found}` !== written.checksum)
    return yield* fault("restore", `the snapshot's ${written.name} is not what was written: it is damaged`)
})

const proveLengths = (files: Files["Service"], directory: string, written: ReadonlyArray<SnapshotFile>) =>
  Effect.forEach(
    written,
    ({ name, bytes }) =>
      files.stat(path.join(directory, name)).pipe(
        Effect.mapError((cause) => fault("restore", `the snapshot's ${name} cannot be read`, cause)),
        Effect.flatMap((stat) =>
          Option.exists(stat, (it) => it.size === bytes)
            ? Effect.void
            : Effect.fail(fault("restore", `the snapshot's ${name} is not as long as what was written`))
        )
      ),
    { discard: true }
  )

const readMachine = (files: Files["Service"], directory: string) =>
  files.readText(path.join(directory, configName)).pipe(
    Effect.flatMap((text) =>
      Effect.try({
        try: () => parseExact(Option.getOrElse(text, () => "")),
        catch: (cause) => fault("restore", "the snapshot's configuration is not JSON", cause)
      })
    ),
    Effect.flatMap(Schema.decodeUnknownEffect(Machine)),
    Effect.mapError((cause) => fault("restore", "the snapshot's configuration cannot be read", cause))
  )

/**
 * What can be proven before a process is started for it: the files' lengths, all that describes the machine, and that it is
 * this VM's machine.
 */
export const checkSnapshot = Effect.fnUntraced(function* (
  files: Files["Service"],
  config: VmConfig,
  directory: string,
  written: ReadonlyArray<SnapshotFile>
) {
  const problem = filesProblem(written)
  if (problem !== null) return yield* fault("restore", problem)
  yield* proveLengths(files, directory, written)
  const small = written.filter((file) => file.name !== memoryName)
  yield* Effect.forEach(small, (file) => prove(files, directory, file), { discard: true })
  const mismatch = machineProblem(yield* readMachine(files, directory), config)
  if (mismatch !== null) return yield* fault("restore", mismatch)
})

/** Resident memory of a process, in pages: what grows while it loads. */
const residentPages = (pid: number): Effect.Effect<number> =>
  Effect.promise(() =>
    fs.readFile(`/proc/${pid}/statm`, "utf8").then(
      (text) => Number(text.split(" ")[1]),
      () => 0
    )
  )

/**
 * Loads a checked snapshot into a VMM without a VM; ends when the guest stands paused. The memory is proven while the VMM
 * reads it as well, unless it is to come on demand.
 */
export const load = Effect.fnUntraced(function* (
  client: Client,
  files: Files["Service"],
  pid: number,
  directory: string,
  written: ReadonlyArray<SnapshotFile>,
  { mode }: Pick<RestoreWish, "mode">
) {
  const copied = isCopied(mode)
  const order = client
    .order(
      "vm.restore",
      {
        source_url: `file://${directory}`,
        prefault: false,
        ...(copied ? {} : { memory_restore_mode: "OnDemand" })
      },
      null
    )
    .pipe(Effect.mapError(asVmmFault("restore")), Effect.raceFirst(stalled("restore", residentPages(pid))))
  const memory = written.filter((file) => copied && file.name === memoryName)
  const proof = Effect.forEach(memory, (file) => prove(files, directory, file), { discard: true })
  yield* Effect.all([order, proof], { concurrency: 2, discard: true })
  const { state } = yield* client.info.pipe(Effect.mapError(asVmmFault("restore")))
  if (state !== "Paused") return yield* fault("restore", `the restored guest is not paused but ${state}`)
})
