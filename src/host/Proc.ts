/** Processes by kernel truth: /proc (proc(5)). See `domain/Process.ts` for what makes an identity. */
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { ProcessIdentity } from "../domain/Process.ts"

/** State and start time of a process: fields 3 and 22 of /proc/PID/stat, counted behind the last `)` of the name. */
export const parseStat = (
  stat: string
): { readonly state: string; readonly startTime: string } | undefined => {
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  const [state, startTime] = [fields[0], fields[19]]
  return state === undefined || startTime === undefined ? undefined : { state, startTime }
}

const orUndefined = <A>(body: () => Promise<A>): Effect.Effect<A | undefined> =>
  Effect.promise(() => body().catch(() => undefined))

/** The kernel's id of this boot; pids and start times mean nothing across it. */
export const bootId: Effect.Effect<string> = Effect.promise(() =>
  fs.readFile("/proc/sys/kernel/random/boot_id", "utf8").then((text) => text.trim())
)

const statOf = (pid: number) =>
  orUndefined(() => fs.readFile(`/proc/${pid}/stat`, "utf8")).pipe(
    Effect.map((text) => (text === undefined ? undefined : parseStat(text)))
  )

/** The identity of a live process; none for one that is gone or a zombie. */
export const identify = (pid: number): Effect.Effect<Option.Option<ProcessIdentity>> =>
  Effect.gen(function* () {
    const stat = yield* statOf(pid)
    if (stat === undefined || stat.state === "Z" || stat.state === "X") return Option.none()
    return Option.some({ pid, start_time: stat.startTime, boot_id: yield* bootId })
  })

/** True only for the very process that the identity names. A zombie is dead: it holds no file, lock or device. */
export const isAlive = (process: ProcessIdentity): Effect.Effect<boolean> =>
  identify(process.pid).pipe(
    Effect.map(
      Option.exists((now) => now.start_time === process.start_time && now.boot_id === process.boot_id)
    )
  )

/** Signals the process if it still is the one that the identity names; says whether it did. */
export const signal = (target: ProcessIdentity, name: NodeJS.Signals): Effect.Effect<boolean> =>
  isAlive(target).pipe(
    Effect.map((alive) => {
      if (!alive) return false
      try {
        return process.kill(target.pid, name)
      } catch {
        return false
      }
    })
  )

/** All live processes with their command lines, as argument arrays. */
export const processes: Effect.Effect<
  ReadonlyArray<{ readonly pid: number; readonly argv: ReadonlyArray<string> }>
> = Effect.promise(async () => {
  const pids = (await fs.readdir("/proc")).filter((name) => /^\d+$/.test(name)).map(Number)
  const found = await Promise.all(
    pids.map((pid) =>
      fs.readFile(`/proc/${pid}/cmdline`, "utf8").then(
        (text) => ({ pid, argv: text.split("\0").slice(0, -1) }),
        () => ({ pid, argv: [] })
      )
    )
  )
  return found.filter((it) => it.argv.length > 0)
})
