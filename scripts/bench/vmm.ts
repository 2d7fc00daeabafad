/**
 * What the QEMU driver adds to QEMU: its operations beside the same command line and the same QMP commands by hand
 * (byHand.ts), in the same run, in turns, on the same guest. No API, no network, no image.
 *
 *   node scripts/bench/vmm.ts [cycles]
 */
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import * as Effect from "effect/Effect"
import type { SnapshotFile } from "../../src/domain/Snapshot.ts"
import type { VmConfig } from "../../src/vmm/Vmm.ts"
import { args, migrationSocket, qmpSocket } from "../../src/vmm/qemu/args.ts"
import { discover } from "../../src/vmm/qemu/discovery.ts"
import { ticks, untilConsole } from "../../test/support/vmmGuest.ts"
import { type VmmHost, vmmHost } from "../../test/support/vmmHost.ts"
import type { HandAnswer, HandOrder, HandVm } from "./byHand.ts"
import { atMost, type Row, spread } from "./table.ts"

export interface VmmBenchOptions {
  /** Guests that are started, saved and restored, on each side. */
  readonly cycles?: number
  readonly memoryMb?: number
}

const cyclesDefault = 5
const memoryMbDefault = 256
/** Project aims: a start at most 1.15 times and 20 ms of the bare commands, standby and restore at most 1.15 and 30. */
const factorAim = 1.15
const startAimMs = 20
const moveAimMs = 30

type Part = "start" | "standby" | "restore"
type Times = Readonly<Record<Part, Array<number>>>

const program = "qemu-system-x86_64"

const order = (hand: ChildProcess, what: HandOrder) =>
  Effect.promise(async () => {
    const said = once(hand, "message")
    hand.send(what)
    const [answer]: Array<HandAnswer> = await said
    if (answer === undefined || answer._tag === "failed")
      throw new Error(`by hand, ${what._tag}: ${answer?.reason ?? "no answer"}`)
    return answer.endedAt - answer.startedAt
  })

const handProcess = Effect.acquireRelease(
  Effect.sync(() => fork(fileURLToPath(new URL("./byHand.ts", import.meta.url)))),
  (hand) =>
    Effect.promise(async () => {
      const exit = once(hand, "exit")
      hand.disconnect()
      await exit
    })
)

/** Its kernel runs and its userspace counts: a guest with something in its memory. */
const settled = (config: VmConfig) =>
  untilConsole(config.consolePath, "counting", (text) => ticks(text).length >= 5)

const timed = <A, E, R>(into: Array<number>, work: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const begin = performance.now()
    const result = yield* work
    into.push(performance.now() - begin)
    return result
  })

const driverCycle = Effect.fnUntraced(function* (
  host: VmmHost,
  config: VmConfig,
  round: number,
  times: Times
) {
  const { vmm, processes } = host
  const directory = host.directory(`snapshot-${round}`)
  const opened = (process: Effect.Success<ReturnType<typeof vmm.spawn>>) => {
    const ref = host.ref(config, process)
    return Effect.map(vmm.attach(ref), (session) => ({ ref, session }))
  }
  const first = yield* timed(
    times.start,
    vmm.spawn(config).pipe(
      Effect.flatMap(opened),
      Effect.tap(({ session }) => session.boot)
    )
  )
  yield* settled(config)
  const files: ReadonlyArray<SnapshotFile> = yield* timed(
    times.standby,
    Effect.gen(function* () {
      yield* first.session.pause
      const written = yield* first.session.snapshot(directory)
      yield* first.session.quit
      yield* processes.exit(first.ref)
      return written
    })
  )
  const second = yield* timed(
    times.restore,
    vmm.spawnRestoring(config, directory, files).pipe(
      Effect.flatMap(opened),
      Effect.tap(({ session }) => session.resume)
    )
  )
  yield* processes.kill(second.ref)
})

const handCycle = Effect.fnUntraced(function* (
  hand: ChildProcess,
  vm: HandVm,
  config: VmConfig,
  times: Times
) {
  times.start.push(yield* order(hand, { _tag: "start", vm }))
  yield* settled(config)
  times.standby.push(yield* order(hand, { _tag: "standby", vm }))
  times.restore.push(yield* order(hand, { _tag: "restore", vm }))
  yield* order(hand, { _tag: "end" })
})

const measure = Effect.fnUntraced(function* (cycles: number, memoryMb: number) {
  const host = yield* vmmHost
  const hand = yield* handProcess
  const qemu = yield* discover(program, "tcg")
  const times = (): Times => ({ start: [], standby: [], restore: [] })
  const [ours, theirs] = [times(), times()]
  for (let round = 0; round < cycles; round++) {
    const size = { memoryMb, memoryMaxMb: memoryMb }
    yield* Effect.scoped(driverCycle(host, host.configure("driver", size), round, ours))
    const config = host.configure("hand", size)
    const vm: HandVm = {
      argv: [program, ...args(qemu, config)],
      log: config.logPath,
      qmp: qmpSocket(config.runDirectory),
      migration: migrationSocket(config.runDirectory),
      state: path.join(host.directory(`hand-${round}`), "state")
    }
    yield* handCycle(hand, vm, config, theirs)
  }
  return { ours, theirs }
}, Effect.scoped)

/** Measures and gives one row for each operation. Takes about 15 s for each cycle under software emulation. */
export const benchVmm = async (options: VmmBenchOptions = {}): Promise<ReadonlyArray<Row>> => {
  const { ours, theirs } = await Effect.runPromise(
    measure(options.cycles ?? cyclesDefault, options.memoryMb ?? memoryMbDefault)
  )
  const row = (part: Part, what: string, plusMs: number): Row =>
    atMost(
      {
        part: "vmm",
        what,
        unit: "ms",
        ours: spread(ours[part]),
        baseline: { name: "by hand", spread: spread(theirs[part]) }
      },
      factorAim,
      plusMs
    )
  return [
    row("start", "driver: spawn, attach, boot to running", startAimMs),
    row("standby", "driver: pause, snapshot, quit, exit", moveAimMs),
    row("restore", "driver: restore, attach, resume", moveAimMs)
  ]
}

if (import.meta.main) {
  const cycles = Number(process.argv[2] ?? cyclesDefault)
  for (const { what, ours, baseline, aim, met } of await benchVmm({ cycles })) {
    const ratio = ours.median / baseline.spread.median
    console.log(
      `${what}: ${ours.median.toFixed(0)} ms (${ours.min.toFixed(0)}-${ours.max.toFixed(0)}), ` +
        `${baseline.name} ${baseline.spread.median.toFixed(0)} ms (${baseline.spread.min.toFixed(0)}-` +
        `${baseline.spread.max.toFixed(0)}), ${ratio.toFixed(2)}x; aim ${aim}: ${met === true ? "met" : "not met"}`
    )
  }
}
