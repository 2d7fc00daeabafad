/** A process that a client runs in a guest beside the image's own (exec): as it is asked for, what it says, how it ends. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/** The most arguments, and the most variables, of one exec. */
const listMax = 1024
/** A NUL ends a string for the guest's kernel. */
const Text = Schema.String.check(
  Schema.isPattern(/^[^\0]*$/u, { expected: "text without NUL" }),
  Schema.isMaxCodePoints(32_768)
)
const EnvName = Schema.String.check(
  Schema.isPattern(/^[^=\0]{1,256}$/u, { expected: "an environment name without = and NUL" })
)
/** A day; what runs for longer is the image's own process, or asks for no bound. */
const timeoutMaxMs = 86_400_000
const sideMax = 4096
/** stdin of a POST comes in its JSON body, which is at most 1 MiB. */
const stdinMaxChars = 1024 * 1024

/** An absolute path in a guest; `..` means what it means to the guest, whose root it cannot leave. */
export const GuestPath = Schema.String.check(
  Schema.isPattern(/^\/[^\0]{0,4095}$/u, { expected: "an absolute path" })
).annotate({ identifier: "GuestPath", examples: ["/etc/hosts"] })

/** The names that `kill -l` knows, without SIG. */
export const SignalName = Schema.Literals([
  "HUP",
  "INT",
  "QUIT",
  "KILL",
  "USR1",
  "USR2",
  "TERM",
  "CONT",
  "STOP",
  "TSTP",
  "WINCH"
]).annotate({ identifier: "SignalName" })
export type SignalName = typeof SignalName.Type

const Side = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: sideMax }))
export const WindowSize = Schema.Struct({ rows: Side, cols: Side }).annotate({ identifier: "WindowSize" })
export type WindowSize = typeof WindowSize.Type

/** What is run, and how. What is left out is as the image says. */
export const ExecRequest = Schema.Struct({
  command: Schema.Array(Text)
    .check(Schema.isMinLength(1), Schema.isMaxLength(listMax))
    .annotate({ description: "The program, looked for in PATH, and its arguments. No shell is involved." }),
  env: Schema.optionalKey(
    Schema.Record(EnvName, Text)
      .check(Schema.isMaxProperties(listMax))
      .annotate({ description: "Set over the environment of the image." })
  ),
  cwd: Schema.optionalKey(GuestPath),
  user: Schema.optionalKey(
    Schema.String.check(Schema.isPattern(/^[^\0\n]{0,256}$/u, { expected: "user, or user:group" })).annotate({
      description: "A name or number, and a group behind a colon."
    })
  ),
  tty: Schema.optionalKey(
    WindowSize.annotate({ description: "Runs it on a terminal of this size; stderr is then part of stdout." })
  ),
  timeout_ms: Schema.optionalKey(
    Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: timeoutMaxMs })).annotate({
      description: "Killed, with all that it started, after so many milliseconds."
    })
  )
}).annotate({ identifier: "ExecRequest" })
export type ExecRequest = typeof ExecRequest.Type

export const ExecEncoding = Schema.Literals(["utf8", "base64"]).annotate({
  identifier: "ExecEncoding",
  description:
    "How bytes are written as text, in `stdin` as in `stdout` and `stderr`. With utf8, what is no UTF-8 arrives as U+FFFD."
})
export type ExecEncoding = typeof ExecEncoding.Type

/** The body of POST /instances/{id}/exec: the whole of stdin is known before. */
export const ExecCall = Schema.Struct({
  ...ExecRequest.fields,
  stdin: Schema.optionalKey(Schema.String.check(Schema.isMaxLength(stdinMaxChars))),
  encoding: ExecEncoding.pipe(Schema.withDecodingDefaultKey(Effect.succeed("utf8" as const)))
}).annotate({ identifier: "ExecCall" })
export type ExecCall = typeof ExecCall.Type

/** How a process ended: by itself, by a signal, or by its `timeout_ms`. */
export const ExecExit = Schema.Union([
  Schema.Struct({ code: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 })) }),
  Schema.Struct({
    signal: Schema.String.check(
      Schema.isPattern(/^[A-Z0-9+-]{1,16}$/u, { expected: "a signal's name without SIG" })
    )
  }),
  Schema.Struct({ timeout: Schema.Literal(true) })
]).annotate({ identifier: "ExecExit" })
export type ExecExit = typeof ExecExit.Type

/** What a process says, in the order in which the guest sent it; `Exit` is the last. */
export type ExecOutput =
  | { readonly _tag: "Stdout" | "Stderr"; readonly bytes: Uint8Array }
  | { readonly _tag: "Exit"; readonly exit: ExecExit }
