/** Processes as a VMM is one, with programs that need no hypervisor. */
import * as fs from "node:fs"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { InstanceId } from "../../src/domain/Ids.ts"
import { layout } from "../../src/host/Paths.ts"
import { identify } from "../../src/host/Proc.ts"
import { VmmProcesses, type VmmRef } from "../../src/vmm/Vmm.ts"
import { exitFifoName, instanceOf, VmmLauncher, vmmProcessesLayer } from "../../src/vmm/VmmProcess.ts"
import { temporaryDirectory } from "../support/temporary.ts"
import { pathsLayer } from "../support/vmmHost.ts"

const soonMs = 5_000
const soon = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.timeout(effect, soonMs)

/** A launcher, the watch of the same service, and the watch of one that comes after it. */
const bench = Effect.gen(function* () {
  const root = yield* temporaryDirectory("proc")
  const of = layout(path.join(root, "data"), path.join(root, "run"))
  const id = InstanceId.make("vm")
  const runDirectory = of.instance(id).run
  fs.mkdirSync(runDirectory, { recursive: true })
  const build = Layer.build(Layer.fresh(vmmProcessesLayer).pipe(Layer.provide(pathsLayer(of))))
  const context = yield* build
  const processes = Context.get(context, VmmProcesses)
  const heir = Context.get(yield* build, VmmProcesses)
  yield* Effect.addFinalizer(() =>
    Effect.orDie(
      Effect.flatMap(processes.scan, (left) => Effect.forEach(left, processes.kill, { discard: true }))
    )
  )
  const launcher = Context.get(context, VmmLauncher)
  const logPath = path.join(root, "vmm.log")
  /** The run directory is an argument, as a VMM's is. */
  const plan = (program: string, ...args: ReadonlyArray<string>) => ({
    id,
    program,
    args: [...args, `${runDirectory}/sock`],
    logPath,
    runDirectory
  })
  const sh = (script: string) =>
    Effect.map(launcher.launch(plan("sh", "-c", script, "sh")), (process): VmmRef => ({
      id,
      process,
      runDirectory
    }))
  return { root, runDirectory, logPath, launcher, processes, heir, plan, sh }
})

/** Waits until the program has said a word in its log. */
const untilSaid = (logPath: string, word: string) =>
  Effect.suspend(() =>
    Effect.delay(
      Effect.sync(() => fs.readFileSync(logPath, "utf8").includes(word)),
      2
    )
  ).pipe(Effect.repeat({ until: (said) => said }), Effect.timeout(soonMs))

const statField = (pid: number, field: number) =>
  fs.readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ")[field - 3]

describe("a launched VMM", () => {
  it.live("is alone: own session, no input, log appended, nothing inherited but the FIFO", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { sh, logPath, runDirectory, processes } = yield* bench
        fs.writeFileSync(logPath, "the run before\n")
        const vmm = yield* sh("env >&2; echo said; exec sleep 60")
        yield* untilSaid(logPath, "said")
        const { pid } = vmm.process
        assert.strictEqual(statField(pid, 6), `${pid}`, "session")
        assert.strictEqual(fs.readlinkSync(`/proc/${pid}/fd/0`), "/dev/null")
        assert.strictEqual(fs.readlinkSync(`/proc/${pid}/fd/2`), logPath)
        assert.strictEqual(fs.readlinkSync(`/proc/${pid}/fd/3`), path.join(runDirectory, exitFifoName))
        const log = fs.readFileSync(logPath, "utf8")
        assert.isTrue(log.startsWith("the run before\n"))
        const names = [...log.matchAll(/^([A-Z_]+)=/gm)].map((it) => it[1]).filter((name) => name !== "PWD")
        assert.includeMembers(["LANG", "OLDPWD", "PATH", "SHLVL", "_"], names)
        yield* processes.kill(vmm)
      })
    )
  )

  it.live("ends with its code or signal for its parent, and without for who came after", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { sh, processes, heir } = yield* bench
        for (const [script, code, signal] of [
          ["read -r line < /proc/self/fd/3 & kill $!; sleep 0.2; exit 7", 7, null],
          ["sleep 0.2; kill -KILL $$", null, "SIGKILL"]
        ] as const) {
          const vmm = yield* sh(script)
          const ends = [processes.exit(vmm), heir.exit(vmm)]
          assert.deepStrictEqual(yield* soon(Effect.all(ends, { concurrency: 2 })), [
            { code, signal },
            { code: null, signal: null }
          ])
          assert.deepStrictEqual(yield* soon(Effect.all(ends)), [
            { code, signal },
            { code: null, signal: null }
          ])
        }
      })
    )
  )

  it.live("that closes its FIFO, or whose FIFO is gone, is not dead by that", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { sh, logPath, runDirectory, heir } = yield* bench
        const closing = yield* sh("exec 3>&-; echo closed; exec sleep 60")
        yield* untilSaid(logPath, "closed")
        const exit = yield* Effect.forkChild(heir.exit(closing))
        assert.isTrue(Option.isNone(yield* Effect.timeoutOption(Fiber.join(exit), 100)))
        // It holds no FIFO any more, so a scan does not take it for a VMM.
        assert.deepStrictEqual(yield* heir.scan, [])
        yield* heir.kill(closing)
        const other = yield* sh("echo open; read -r never <&3")
        yield* untilSaid(logPath, "open")
        fs.rmSync(path.join(runDirectory, exitFifoName))
        assert.deepStrictEqual(yield* heir.scan, [other])
        const gone = yield* Effect.forkChild(heir.exit(other))
        process.kill(other.process.pid, "SIGKILL")
        yield* soon(Fiber.join(gone))
      })
    )
  )

  it.live("that ends at once fails the launch, or whatever races it, with its last words", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { launcher, plan, sh, logPath } = yield* bench
        const absent = yield* Effect.flip(launcher.launch(plan("/nowhere/vmm")))
        assert.include(absent.reason, "/nowhere/vmm")
        const fault = yield* sh("echo no memory for that >&2; exit 3").pipe(
          Effect.flatMap((vmm) => launcher.untilDeath(vmm, logPath, "spawn")),
          Effect.flip,
          soon
        )
        assert.strictEqual(fault.message, "spawn: the VMM ended with exit code 3: no memory for that")
      })
    )
  )
})

describe("the end of a VMM", () => {
  it.live("comes with SIGTERM, or with SIGKILL where it does not listen", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { sh, processes, logPath } = yield* bench
        const polite = yield* sh("exec sleep 60")
        yield* processes.kill(polite)
        assert.deepStrictEqual(yield* processes.exit(polite), { code: null, signal: "SIGTERM" })
        const deaf = yield* sh("trap '' TERM; echo deaf; while true; do sleep 1; done")
        yield* untilSaid(logPath, "deaf")
        yield* processes.kill(deaf)
        assert.deepStrictEqual(yield* processes.exit(deaf), { code: null, signal: "SIGKILL" })
        yield* processes.kill(deaf)
      })
    )
  )

  it.live("is seen in a zombie, and its number is not another process", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { sh, processes, heir, logPath, runDirectory } = yield* bench
        // A child whose parent never waits for it: sleep knows nothing of it.
        const parent = yield* sh("sh -c 'echo child $$; read -r never' < /proc/self/fd/3 & exec sleep 60")
        yield* untilSaid(logPath, "child")
        const pid = Number(/child (\d+)/.exec(fs.readFileSync(logPath, "utf8"))?.[1])
        const child = Option.getOrThrow(yield* identify(pid))
        const ref: VmmRef = { ...parent, process: child }
        // Its parent holds the FIFO as well, so that it tells nothing of the child.
        fs.rmSync(path.join(runDirectory, exitFifoName))
        assert.isTrue(yield* processes.isAlive(child))
        const exit = yield* Effect.forkChild(heir.exit(ref))
        process.kill(pid, "SIGKILL")
        yield* soon(Fiber.join(exit))
        assert.strictEqual(statField(pid, 3), "Z")
        assert.isFalse(yield* processes.isAlive(child))
        // Neither an older process of that number, nor one of another boot, is touched.
        for (const change of [{ start_time: "1" }, { boot_id: "another" }]) {
          const stale: VmmRef = { ...parent, process: { ...parent.process, ...change } }
          assert.deepStrictEqual(yield* soon(processes.exit(stale)), { code: null, signal: null })
          yield* processes.kill(stale)
        }
        assert.isTrue(yield* processes.isAlive(parent.process))
        yield* processes.kill(parent)
      })
    )
  )
})

describe("the instance that a command line names", () => {
  const of = (...argv: ReadonlyArray<string>) => Option.getOrNull(instanceOf(argv, "/run/chd/0a"))
  it("is found inside an argument, and only as a valid id", () => {
    assert.strictEqual(of("qemu", "socket,id=qmp,path=/run/chd/0a/web-1/qmp.sock,server=on"), "web-1")
    assert.strictEqual(of("ch", "--api-socket", "/run/chd/0a/web/api.sock"), "web")
    for (const argument of [
      "/run/chd/0a/",
      "/run/chd/0a/../x/y",
      "/run/chd/0b/web/x",
      "/run/chd/0a/UPPER/x",
      "/run/chd/0a/web,a/x"
    ])
      assert.isNull(of("qemu", argument), argument)
  })
})
