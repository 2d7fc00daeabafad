/**
 * One list of scenarios for every driver: the life of a guest that counts, told in steps that build on each other. A driver
 * gives its ground (how a VM is made, how its count is read); the story does the rest, and its table says for each step and
 * driver whether it passed, or why it was not tried.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { SnapshotFile } from "../../src/domain/Snapshot.ts"
import type { Disk, VmConfig, Vmm, VmmProcesses, VmmRef, VmmSession, VmmStatus } from "../../src/vmm/Vmm.ts"

export interface Ground {
  readonly vmm: Vmm["Service"]
  readonly processes: VmmProcesses["Service"]
  /** The same VM each time, with a console and a log of its next run. */
  readonly configure: (disks: ReadonlyArray<Disk>) => Effect.Effect<VmConfig>
  /** All that the guest has counted in this run. */
  readonly counted: (config: VmConfig) => ReadonlyArray<number>
  /** Waits until it has counted on. */
  readonly goesOn: (config: VmConfig) => Effect.Effect<void>
  readonly disk: Disk
  /** An empty directory for a snapshot. */
  readonly directory: Effect.Effect<string>
  /** Changes one byte in the middle of a file; null where another test does that. */
  readonly damage: ((directory: string, name: string) => Effect.Effect<void>) | null
}

/** What the steps hand on to each other. */
interface Tale {
  readonly ground: Ground
  config: VmConfig
  ref: VmmRef
  session: VmmSession
  scope: Scope.Closeable
  disks: ReadonlyArray<Disk>
  snapshot: { readonly directory: string; readonly files: ReadonlyArray<SnapshotFile> }
  /** The last number before the guest was frozen. */
  last: number
}

type Told = "passed" | { readonly skipped: string }

const passed = Effect.succeed<Told>("passed")

const expectStatus = ({ session }: Tale, wanted: VmmStatus["_tag"]) =>
  Effect.map(session.status, (status) => assert.strictEqual(status._tag, wanted))

const attach = (tale: Tale) =>
  Effect.gen(function* () {
    yield* Scope.close(tale.scope, Exit.void)
    tale.scope = yield* Scope.make()
    tale.session = yield* tale.ground.vmm.attach(tale.ref).pipe(Scope.provide(tale.scope))
  })

const adopt = (tale: Tale, process: VmmRef["process"]) => {
  tale.ref = { id: tale.config.id, process, runDirectory: tale.config.runDirectory }
  return attach(tale)
}

const newest = ({ ground, config }: Tale): number => ground.counted(config).at(-1) ?? 0

const steps: ReadonlyArray<readonly [string, (tale: Tale) => Effect.Effect<Told, unknown>]> = [
  [
    "spawns with its guest not begun",
    Effect.fnUntraced(function* (tale: Tale) {
      yield* expectStatus(tale, "Prelaunch")
      assert.strictEqual(newest(tale), 0)
      return yield* passed
    })
  ],
  [
    "boots, and its guest counts",
    Effect.fnUntraced(function* (tale: Tale) {
      yield* tale.session.boot
      yield* tale.ground.goesOn(tale.config)
      yield* expectStatus(tale, "Running")
      return yield* passed
    })
  ],
  [
    "pauses, counts no further, and goes on at the next number",
    Effect.fnUntraced(function* (tale: Tale) {
      yield* tale.session.pause
      yield* expectStatus(tale, "Paused")
      const before = newest(tale)
      yield* tale.session.pause
      assert.strictEqual(newest(tale), before)
      yield* tale.session.resume
      yield* tale.ground.goesOn(tale.config)
      assert.isAbove(newest(tale), before)
      return yield* passed
    })
  ],
  [
    "is found again by another session, undisturbed",
    Effect.fnUntraced(function* (tale: Tale) {
      yield* attach(tale)
      yield* expectStatus(tale, "Running")
      const found = yield* tale.ground.processes.scan
      assert.deepStrictEqual(
        found.map((it) => it.process),
        [tale.ref.process]
      )
      yield* tale.ground.goesOn(tale.config)
      return yield* passed
    })
  ],
  [
    "says how much memory it has, and takes no less than at boot",
    Effect.fnUntraced(function* (tale: Tale) {
      assert.strictEqual(yield* tale.session.memoryMb, tale.config.memoryMb)
      yield* Effect.flip(tale.session.resizeMemory(tale.config.memoryMb - 1))
      return yield* passed
    })
  ],
  [
    "gets a disk while it runs",
    Effect.fnUntraced(function* (tale: Tale) {
      yield* tale.session.addDisk(tale.ground.disk)
      yield* Effect.flip(tale.session.addDisk(tale.ground.disk))
      tale.disks = [...tale.disks, tale.ground.disk]
      return yield* passed
    })
  ],
  [
    "is frozen to disk, paused only",
    Effect.fnUntraced(function* (tale: Tale) {
      const directory = yield* tale.ground.directory
      yield* Effect.flip(tale.session.snapshot(directory))
      yield* tale.session.pause
      tale.snapshot = { directory, files: yield* tale.session.snapshot(directory) }
      assert.isNotEmpty(tale.snapshot.files)
      yield* expectStatus(tale, "Paused")
      tale.last = newest(tale)
      return yield* passed
    })
  ],
  [
    "quits when told; the kernel says so",
    Effect.fnUntraced(function* (tale: Tale) {
      yield* tale.session.quit
      assert.deepStrictEqual(yield* tale.ground.processes.exit(tale.ref), { code: 0, signal: null })
      assert.deepStrictEqual(yield* tale.ground.processes.scan, [])
      return yield* passed
    })
  ],
  [
    "does not start from a damaged snapshot",
    Effect.fnUntraced(function* (tale: Tale) {
      const { damage, vmm, processes } = tale.ground
      if (damage === null) return { skipped: "test/instance/damagedSnapshot.test.ts does it" }
      const { directory, files } = tale.snapshot
      for (const { name } of files) {
        yield* damage(directory, name)
        const again = yield* tale.ground.configure(tale.disks)
        yield* Effect.flip(vmm.spawnRestoring(again, directory, files))
        assert.deepStrictEqual(yield* processes.scan, [], name)
        // The same bytes again: the damage is its own inverse.
        yield* damage(directory, name)
      }
      return yield* passed
    })
  ],
  [
    "is restored, paused, and goes on at exactly the next number",
    Effect.fnUntraced(function* (tale: Tale) {
      const { directory, files } = tale.snapshot
      tale.config = yield* tale.ground.configure(tale.disks)
      yield* adopt(tale, yield* tale.ground.vmm.spawnRestoring(tale.config, directory, files))
      yield* expectStatus(tale, "Paused")
      yield* tale.session.resume
      yield* tale.ground.goesOn(tale.config)
      assert.strictEqual(tale.ground.counted(tale.config)[0], tale.last + 1)
      return yield* passed
    })
  ],
  [
    "is switched off and keeps its VMM, then boots again",
    Effect.fnUntraced(function* (tale: Tale) {
      yield* tale.session.powerOff
      yield* expectStatus(tale, "Off")
      yield* tale.session.boot
      yield* tale.ground.goesOn(tale.config)
      yield* expectStatus(tale, "Running")
      return yield* passed
    })
  ],
  [
    "is killed, and nothing of it is alive",
    Effect.fnUntraced(function* (tale: Tale) {
      yield* tale.ground.processes.kill(tale.ref)
      assert.deepStrictEqual(yield* tale.ground.processes.scan, [])
      yield* Effect.flip(tale.session.status)
      yield* Scope.close(tale.scope, Exit.void)
      return yield* passed
    })
  ]
]

/** What became of each step, by driver. */
const outcomes = new Map<string, Map<string, string>>()

const outcomesOf = (driver: string): Map<string, string> => {
  const known = outcomes.get(driver) ?? new Map<string, string>()
  outcomes.set(driver, known)
  return known
}

/** A driver that cannot run here. */
export const skipDriver = (driver: string, why: string): void => {
  for (const [step] of steps) outcomesOf(driver).set(step, `skipped: ${why}`)
}

/** Tells the whole story; fails with the first step that does. */
export const tell = (driver: string, ground: Ground) =>
  Effect.gen(function* () {
    const told = outcomesOf(driver)
    for (const [step] of steps) told.set(step, "not reached")
    const config = yield* ground.configure([])
    const process = yield* ground.vmm.spawn(config)
    const ref: VmmRef = { id: config.id, process, runDirectory: config.runDirectory }
    const scope = yield* Scope.make()
    const session = yield* ground.vmm.attach(ref).pipe(Scope.provide(scope))
    const tale: Tale = {
      ground,
      config,
      ref,
      session,
      scope,
      disks: [],
      snapshot: { directory: "", files: [] },
      last: 0
    }
    for (const [step, body] of steps) {
      told.set(step, "failed")
      const outcome = yield* body(tale)
      told.set(step, outcome === "passed" ? "passed" : `skipped: ${outcome.skipped}`)
    }
  })

/** The table, for a terminal and for the README. */
export const table = (): string => {
  const drivers = [...outcomes.keys()]
  const row = (cells: ReadonlyArray<string>) => `| ${cells.join(" | ")} |`
  return [
    row(["scenario", ...drivers]),
    row(["---", ...drivers.map(() => "---")]),
    ...steps.map(([step]) => row([step, ...drivers.map((driver) => outcomes.get(driver)?.get(step) ?? "-")]))
  ].join("\n")
}
