/**
 * Host tools, run through execa: arguments as arrays, never a shell, output bounded, time bounded, ended when the fiber
 * that asked for them is interrupted.
 */
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { type Options, type ResultPromise, execa, ExecaError } from "execa"
import { CommandFault } from "./Fault.ts"

/** Ample for `ip`, `nft`, `mkfs` on a busy host; long work passes its own bound. */
const commandTimeoutMs = 30_000
const outputMaxBytes = 8 * 1024 * 1024
const stderrKeptBytes = 2_000
const killAfterMs = 2_000

/**
 * What stands before every command: nothing, or `ip netns exec NAME`, so that a test can put all of them into a network
 * namespace that it made while its own process stays outside.
 */
export const CommandPrefix = Context.Reference<ReadonlyArray<string>>("dataplane/host/CommandPrefix", {
  defaultValue: () => []
})

export interface CommandOptions {
  /** Written to standard input, which is closed after it. */
  readonly input?: string | Uint8Array
  readonly timeoutMs?: number
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
}

const baseOptions = {
  reject: true,
  cleanup: true,
  forceKillAfterDelay: killAfterMs,
  preferLocal: false
} satisfies Options

/** The fault behind whatever execa rejected with. */
export const commandFault = (command: string, args: ReadonlyArray<string>, cause: unknown): CommandFault => {
  const error = cause instanceof ExecaError ? cause : undefined
  return new CommandFault({
    command,
    args,
    outcome: error?.code === "ENOENT" ? "missing" : error?.timedOut === true ? "timed-out" : "failed",
    exitCode: error?.exitCode ?? null,
    stderr:
      Predicate.hasProperty(cause, "stderr") && Predicate.isString(cause.stderr)
        ? cause.stderr.slice(-stderrKeptBytes)
        : "",
    cause
  })
}

const prefixed = (
  prefix: ReadonlyArray<string>,
  command: string,
  args: ReadonlyArray<string>
): readonly [string, ReadonlyArray<string>] => {
  const [file, ...before] = prefix
  return file === undefined ? [command, args] : [file, [...before, command, ...args]]
}

/**
 * Runs a tool to its end and gives what it printed on standard output. Fails with CommandFault when it is missing, exits
 * with another code than 0, prints more than 8 MiB or exceeds its bound (30 s unless told).
 */
export const run = (command: string, args: ReadonlyArray<string>, options: CommandOptions = {}) =>
  Effect.flatMap(CommandPrefix, (prefix) => {
    const [file, rest] = prefixed(prefix, command, args)
    return Effect.tryPromise({
      try: (signal) =>
        execa(file, rest, {
          ...baseOptions,
          timeout: options.timeoutMs ?? commandTimeoutMs,
          maxBuffer: outputMaxBytes,
          cancelSignal: signal,
          ...(options.input === undefined ? { stdin: "ignore" as const } : { input: options.input }),
          ...(options.env === undefined ? {} : { env: options.env }),
          ...(options.cwd === undefined ? {} : { cwd: options.cwd })
        }),
      catch: (cause) => commandFault(command, args, cause)
    })
  }).pipe(
    Effect.map((result) => result.stdout),
    // Arguments may name files of guests: the trace has the tool alone.
    Effect.withSpan(`host ${path.basename(command)}`, { kind: "client" }, { captureStackTrace: false })
  )

export type Child = ResultPromise<{
  buffer: false
  stdin: "pipe"
  stdout: "pipe"
  stderr: "pipe"
  reject: true
}>

/**
 * Starts a tool whose standard streams the caller reads and writes (`child.stdin`, `child.stdout`), for pipelines.
 * The child is ended when the scope closes. Awaiting `child` gives its exit; use `commandFault` on its rejection.
 */
export const spawnPiped = (
  command: string,
  args: ReadonlyArray<string>,
  options: Pick<CommandOptions, "cwd"> = {}
) =>
  Effect.acquireRelease(
    Effect.map(CommandPrefix, (prefix): Child => {
      const [file, rest] = prefixed(prefix, command, args)
      const child = execa(file, rest, {
        ...baseOptions,
        ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
        buffer: false,
        stdin: "pipe",
        stdout: "pipe",
        stderr: "pipe",
        reject: true
      })
      // It may fail before its caller comes to await it; that is the caller's to see, not the process's.
      child.catch(() => undefined)
      return child
    }),
    (child) =>
      Effect.promise(() => {
        const { exitCode, signalCode } = child.nodeChildProcess
        if (exitCode === null && signalCode === null) child.kill("SIGKILL")
        return child.then(
          () => undefined,
          () => undefined
        )
      })
  )
