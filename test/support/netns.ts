/**
 * Network namespaces for tests: made with a unique name, deleted when the scope closes, and every command of the code
 * under test put into them by CommandPrefix. Nothing in here touches the machine's own network.
 */
import { execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { CommandPrefix, run } from "../../src/host/Command.ts"

export interface Namespace {
  readonly name: string
  readonly prefix: ReadonlyArray<string>
}

/** Why namespaces, TAPs and nftables cannot be had here; undefined where they can. */
export const namespacesMissing = ((): string | undefined => {
  if (process.getuid?.() !== 0) return "not root"
  if (!fs.existsSync("/dev/net/tun")) return "no /dev/net/tun"
  const probe = `chdp-${process.pid}`
  try {
    execFileSync("ip", ["netns", "add", probe], { stdio: "pipe" })
    execFileSync("ip", ["netns", "exec", probe, "nft", "list", "tables"], { stdio: "pipe" })
    return undefined
  } catch (cause) {
    return `no network namespace with nftables: ${cause instanceof Error ? cause.message : "unknown"}`
  } finally {
    try {
      execFileSync("ip", ["netns", "del", probe], { stdio: "pipe" })
    } catch {
      // There was none.
    }
  }
})()

if (namespacesMissing !== undefined) {
  console.warn(`skipped: tests in network namespaces (${namespacesMissing})`)
}

let made = 0

/** A namespace with loopback up. */
export const namespace = Effect.acquireRelease(
  Effect.gen(function* () {
    const name = `chdt-${process.pid}-${made++}`
    yield* run("ip", ["netns", "add", name])
    const prefix = ["ip", "netns", "exec", name]
    yield* run("ip", ["-n", name, "link", "set", "lo", "up"])
    return { name, prefix }
  }).pipe(Effect.orDie),
  ({ name }) => Effect.orDie(run("ip", ["netns", "del", name]))
)

/** Runs the effect's commands inside the namespace. */
export const inside =
  (where: Namespace) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.provideService(effect, CommandPrefix, where.prefix)

/** One command inside the namespace. */
export const within = (where: Namespace, command: string, ...args: ReadonlyArray<string>) =>
  inside(where)(run(command, args))

/** Whether a command inside the namespace ends with 0. */
export const succeeds = (where: Namespace, command: string, ...args: ReadonlyArray<string>) =>
  within(where, command, ...args).pipe(
    Effect.as(true),
    Effect.catchTag("CommandFault", () => Effect.succeed(false))
  )

/**
 * A program of ours that runs inside the namespace until the scope closes; ready when it has written its first line.
 * Ended by its pid: `ip netns exec` replaces itself by the program.
 */
export const start = (where: Namespace, command: string, ...args: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.callback<ReturnType<typeof spawn>>((resume) => {
      const child = spawn("ip", ["netns", "exec", where.name, command, ...args], {
        stdio: ["ignore", "pipe", "inherit"]
      })
      child.stdout.once("data", () => resume(Effect.succeed(child)))
      child.once("exit", () => resume(Effect.die(new Error(`${command} ended before it was ready`))))
      child.once("error", (error) => resume(Effect.die(error)))
    }),
    (child) =>
      Effect.callback<void>((resume) => {
        if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
        child.once("exit", () => resume(Effect.void))
        child.kill("SIGKILL")
      })
  )

/** JavaScript as such a program; it writes a line when it is ready. */
export const serve = (where: Namespace, source: string) => start(where, process.execPath, "-e", source)

const httpServer = (port: number) =>
  `require("node:http").createServer((_, res) => res.end("hello")).listen(${port}, "0.0.0.0", () => console.log("ready"))`

/** Answers `hello` over HTTP on all addresses of the namespace. */
export const serveHttp = (where: Namespace, port: number) => serve(where, httpServer(port))

/** For what has to come, on however busy a machine. */
const arrivalBoundMs = 15_000
/** For what must not come: a connection over a veth pair takes less than a millisecond, and the firewall counts. */
const refusalBoundMs = 1_500

const page = (where: Namespace, url: string, boundMs: number) =>
  within(
    where,
    process.execPath,
    "-e",
    `fetch(${JSON.stringify(url)}, { signal: AbortSignal.timeout(${boundMs}) })
       .then((it) => it.text()).then((it) => process.stdout.write(it), (why) => { console.error(why); process.exit(1) })`
  )

/** The page at an address, as seen from the namespace. */
export const fetched = (where: Namespace, url: string) => page(where, url, arrivalBoundMs)

/** Whether the page at an address stays away. */
export const staysAway = (where: Namespace, url: string) =>
  page(where, url, refusalBoundMs).pipe(
    Effect.as(false),
    Effect.catchTag("CommandFault", () => Effect.succeed(true))
  )
