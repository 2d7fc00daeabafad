/**
 * Whether the Cloud Hypervisors of this host do here what the driver needs: each of them is led through ping, create, boot,
 * pause, snapshot, restore and shutdown, with the counting guest (counterGuest.ts), in a directory of its own that is gone
 * afterwards. It touches no instance, no network and no image.
 */
import * as fs from "node:fs/promises"
import * as os from "node:os"
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { InstanceId } from "../../domain/Ids.ts"
import type { SnapshotFile } from "../../domain/Snapshot.ts"
import { type Check, exitCode, failed, formatChecks, passed } from "../../host/doctor/Check.ts"
import { Files } from "../../host/Files.ts"
import { layout, Paths } from "../../host/Paths.ts"
import { Settings } from "../../host/Settings.ts"
import { type VmConfig, Vmm, VmmFault, VmmProcesses, type VmmRef, type VmmSession } from "../Vmm.ts"
import { vmmProcessesLayer } from "../VmmProcess.ts"
import { connect } from "./Client.ts"
import { apiSocket } from "./config.ts"
import { counterGuest } from "./counterGuest.ts"
import { cloudHypervisorLayer } from "./driver.ts"

const memoryMb = 128
/** The guest counts some hundred numbers a second on a quiet host. */
const lookEveryMs = 20
const looks = 500

const fault = (operation: string, reason: string) => new VmmFault({ operation, reason, cause: undefined })

interface Bench {
  readonly vmm: Vmm["Service"]
  readonly processes: VmmProcesses["Service"]
  readonly configure: (run: number) => VmConfig
  readonly snapshot: string
}

const refOf = (config: VmConfig, process: VmmRef["process"]): VmmRef => ({
  id: config.id,
  process,
  runDirectory: config.runDirectory
})

const newest = (config: VmConfig): Effect.Effect<number> =>
  Effect.promise(async () => {
    const text = await fs.readFile(config.consolePath, "latin1").catch(() => "")
    return Number([...text.matchAll(/tick (\d+)\n/g)].at(-1)?.[1] ?? 0)
  })

const first = (config: VmConfig): Effect.Effect<number> =>
  Effect.promise(async () => {
    const text = await fs.readFile(config.consolePath, "latin1").catch(() => "")
    return Number(/tick (\d+)\n/.exec(text)?.[1] ?? 0)
  })

/** Waits until the guest has counted beyond a number, and gives where it is. */
const beyond = (config: VmConfig, number: number) =>
  newest(config).pipe(
    Effect.filterOrFail(
      (now) => now > number,
      () => fault("count", `the guest has not counted beyond ${number}`)
    ),
    Effect.retry({ schedule: Schedule.spaced(lookEveryMs), times: looks })
  )

/** What the VMM says of itself, asked directly. */
const introduce = Effect.fnUntraced(function* (config: VmConfig) {
  const client = yield* connect(apiSocket(config.runDirectory))
  const { build_version } = yield* client.ping
  const { config: machine } = yield* client.info
  const confined =
    machine.landlock_enable === true ? "Landlock and seccomp" : "seccomp; this kernel has no Landlock"
  return { version: `${build_version} answers`, confined: `confined by ${confined}` }
}, Effect.scoped)

/** Steps that are tried in order; what cannot be tried without an earlier one says so. */
class Findings {
  readonly checks: Array<Check> = []
  private readonly program: string

  constructor(program: string) {
    this.program = program
  }

  /** Runs a step; none where it failed, or where what it builds on did. */
  step<A, E extends { readonly message: string }, R>(
    name: string,
    body: Effect.Effect<readonly [A, string], E, R> | null
  ): Effect.Effect<A | null, never, R> {
    if (body === null) {
      this.checks.push(failed(name, "not tried", "mend what failed before it"))
      return Effect.succeed(null)
    }
    return Effect.map(Effect.result(body), (result) => {
      if (Result.isFailure(result)) {
        this.checks.push(failed(name, result.failure.message, `see what ${this.program} needs of this host`))
        return null
      }
      this.checks.push(passed(name, result.success[1]))
      return result.success[0]
    })
  }
}

const frozen = Effect.fnUntraced(function* (bench: Bench, config: VmConfig, session: VmmSession) {
  yield* makeDirectory(bench.snapshot)
  const files = yield* session.snapshot(bench.snapshot)
  const last = yield* newest(config)
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0)
  return [{ files, last }, `${files.length} files, ${Math.round(bytes / 1024 ** 2)} MiB`] as const
})

const makeDirectory = (directory: string) => Effect.promise(() => fs.mkdir(directory, { recursive: true }))

const ended = Effect.fnUntraced(function* (bench: Bench, ref: VmmRef, session: VmmSession) {
  yield* session.quit
  const exit = yield* bench.processes.exit(ref)
  if (exit.code !== 0) return yield* fault("shutdown", `it ended with ${exit.code ?? exit.signal}`)
  return [exit, "ends when told, with code 0"] as const
})

const restored = Effect.fnUntraced(function* (
  bench: Bench,
  { files, last }: { readonly files: ReadonlyArray<SnapshotFile>; readonly last: number }
) {
  const config = bench.configure(2)
  const ref = refOf(config, yield* bench.vmm.spawnRestoring(config, bench.snapshot, files))
  const session = yield* bench.vmm.attach(ref)
  yield* session.resume
  yield* beyond(config, last)
  const next = yield* first(config)
  if (next !== last + 1) return yield* fault("restore", `after ${last} the guest counts ${next}`)
  return [{ ref, session }, `the guest goes on at exactly ${next}`] as const
})

const examine = (bench: Bench, findings: Findings) =>
  Effect.gen(function* () {
    const config = bench.configure(1)
    const ref = yield* findings.step(
      "create",
      Effect.map(bench.vmm.spawn(config), (process) => [refOf(config, process), "takes a VM"] as const)
    )
    const said = yield* findings.step(
      "ping",
      ref === null ? null : Effect.map(introduce(config), (it) => [it, it.version] as const)
    )
    if (said !== null) findings.checks.push(passed("sandbox", said.confined))
    const session = ref === null ? null : yield* Effect.orElseSucceed(bench.vmm.attach(ref), () => null)
    const counts =
      session === null
        ? null
        : Effect.map(
            Effect.andThen(session.boot, beyond(config, 2)),
            (it) => [it, "the guest counts"] as const
          )
    const running = yield* findings.step("boot", counts)
    const pause =
      session === null || running === null
        ? null
        : Effect.as(session.pause, [true, "the guest stands"] as const)
    const paused = yield* findings.step("pause", pause)
    const snapshot = session === null || paused === null ? null : frozen(bench, config, session)
    const saved = yield* findings.step("snapshot", snapshot)
    yield* findings.step("shutdown", ref === null || session === null ? null : ended(bench, ref, session))
    const back = yield* findings.step("restore", saved === null ? null : restored(bench, saved))
    if (back !== null) yield* findings.step("shutdown again", ended(bench, back.ref, back.session))
  }).pipe(Effect.scoped)

/** A driver with one program, and a VM, in a directory that goes with the scope. */
const makeBench = (program: string): Effect.Effect<Bench, VmmFault, Settings | Scope.Scope> =>
  Effect.gen(function* () {
    const settings = yield* Settings
    const root = yield* Effect.acquireRelease(
      Effect.promise(() => fs.mkdtemp(path.join(os.tmpdir(), "chd-doctor-"))),
      (directory) => Effect.promise(() => fs.rm(directory, { recursive: true, force: true }))
    )
    const paths = layout(path.join(root, "data"), path.join(root, "run"))
    const context = yield* Layer.build(
      cloudHypervisorLayer.pipe(
        Layer.provideMerge(vmmProcessesLayer),
        Layer.provide(
          Layer.mergeAll(
            Files.layer,
            Layer.succeed(Paths, paths),
            Layer.succeed(Settings, { ...settings, cloudHypervisorBin: [program] })
          )
        )
      )
    )
    const processes = Context.get(context, VmmProcesses)
    yield* Effect.addFinalizer(() =>
      processes.scan.pipe(
        Effect.flatMap((left) => Effect.forEach(left, processes.kill, { discard: true })),
        Effect.ignore
      )
    )
    const id = InstanceId.make("doctor")
    const { run: runDirectory, snapshots } = paths.instance(id)
    const [kernel, initrd] = [path.join(root, "kernel"), path.join(root, "initrd")]
    yield* Effect.promise(async () => {
      await fs.mkdir(runDirectory, { recursive: true })
      await fs.writeFile(kernel, counterGuest())
      await fs.writeFile(initrd, "the counting guest looks at none")
    })
    return {
      vmm: Context.get(context, Vmm),
      processes,
      snapshot: path.join(snapshots, "1"),
      configure: (run) => ({
        id,
        vcpus: 1,
        memoryMb,
        memoryMaxMb: memoryMb,
        kernel,
        initrd,
        cmdline: "",
        disks: [],
        nic: null,
        consolePath: path.join(root, `console-${run}`),
        logPath: path.join(root, `log-${run}`),
        runDirectory
      })
    }
  })

const conformanceOf = (program: string) =>
  Effect.gen(function* () {
    const findings = new Findings(program)
    const bench = yield* findings.step(
      "release",
      Effect.map(makeBench(program), (it) => [it, `version ${it.vmm.version} is supported`] as const)
    )
    if (bench !== null) yield* examine(bench, findings)
    return findings.checks
  }).pipe(Effect.scoped)

/** `dataplane doctor --vmm`: what to print, and the exit code; every program of CLOUD_HYPERVISOR_BIN, one after the other. */
export const conformance: Effect.Effect<
  { readonly text: string; readonly exitCode: 0 | 1 },
  never,
  Settings
> = Effect.gen(function* () {
  const { cloudHypervisorBin } = yield* Settings
  const all = yield* Effect.forEach(cloudHypervisorBin, (program) =>
    Effect.map(conformanceOf(program), (checks) => ({ program, checks }))
  )
  return {
    text: all.map(({ program, checks }) => `${program}\n${formatChecks(checks)}`).join("\n"),
    exitCode: exitCode(all.flatMap(({ checks }) => checks))
  }
})
