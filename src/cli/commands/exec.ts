/** A command in a running guest, with a terminal where one is asked for; ends with the command's own exit code. */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { signalCode } from "../ending.ts"
import type { ExecEnd, ExecRequest } from "../ExecSession.ts"
import { Failure, failure } from "../Failure.ts"
import { findInstance } from "../names.ts"
import { remote } from "../Remote.ts"
import { environmentPair } from "../request.ts"
import { instance } from "./list.ts"

/** What timeout(1) ends with. */
const timedOutCode = 124

const codeOf = (end: ExecEnd): number => {
  if ("code" in end) return end.code
  return "signal" in end ? signalCode(end.signal) : timedOutCode
}

const onOff = (name: string, alias: string, description: string) =>
  Flag.Boolean(name).pipe(
    Flag.withAlias(alias),
    Flag.withDescription(description),
    Flag.withDefault(false),
    Flag.withoutNegation
  )

const optionalText = (name: string, alias: string, metavar: string, description: string) =>
  Flag.String(name).pipe(
    Flag.withAlias(alias),
    Flag.withMetavar(metavar),
    Flag.withDescription(description),
    Flag.optional
  )

export const exec = Command.make(
  "exec",
  {
    instance,
    command: Argument.String("COMMAND").pipe(
      Argument.withDescription("A program of the guest and its arguments; no shell is involved"),
      Argument.variadic({ min: 1 })
    ),
    interactive: onOff("interactive", "i", "Hand stdin on"),
    tty: onOff("tty", "t", "Give it a terminal: this one"),
    env: Flag.String("env").pipe(
      Flag.withAlias("e"),
      Flag.withMetavar("NAME=VALUE"),
      Flag.withDescription("Environment; a name alone takes the value that it has here"),
      Flag.atLeast(0)
    ),
    workdir: optionalText("workdir", "w", "PATH", "Working directory in the guest"),
    user: optionalText("user", "u", "USER[:GROUP]", "Who it runs as"),
    timeout: Flag.Finite("timeout").pipe(
      Flag.withMetavar("SECONDS"),
      Flag.withDescription(`Killed after so long, and the exit code is ${timedOutCode}`),
      Flag.optional
    )
  },
  Effect.fnUntraced(function* (given) {
    if (given.tty && !(process.stdin.isTTY && process.stdout.isTTY))
      return yield* failure("--tty takes a terminal on stdin and stdout; leave it out in a pipe.", "usage")
    const service = yield* remote
    const pairs = (yield* Effect.forEach(given.env, environmentPair)).flat()
    const term = given.tty ? [["TERM", process.env["TERM"] ?? "xterm"] as const] : []
    const timeoutS = Option.getOrUndefined(given.timeout)
    const { id } = yield* findInstance(service, given.instance)
    const { execute, windowSize } = yield* Effect.promise(() => import("../ExecSession.ts"))
    const request: ExecRequest = {
      command: given.command,
      env: Object.fromEntries([...term, ...pairs]),
      ...(Option.isSome(given.workdir) ? { cwd: given.workdir.value } : {}),
      ...(Option.isSome(given.user) ? { user: given.user.value } : {}),
      ...(given.tty ? { tty: windowSize() } : {}),
      ...(timeoutS === undefined ? {} : { timeout_ms: Math.round(timeoutS * 1000) })
    }
    const end = yield* execute({
      url: service.url,
      headers: service.headers,
      path: `/instances/${id}/exec`,
      request,
      interactive: given.interactive
    })
    const exitCode = codeOf(end)
    const sentence = "timeout" in end ? `The command was killed after ${timeoutS ?? 0} s.` : ""
    if (exitCode !== 0) return yield* new Failure({ sentence, exitCode })
  })
).pipe(Command.withDescription("Run a command in a running guest; ends with its exit code"))
