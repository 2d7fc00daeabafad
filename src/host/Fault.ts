/**
 * What the host does wrong: a file that cannot be written, a command that fails, a socket that does not answer. Faults
 * keep their cause for the log; they never reach a client as they are (see `domain/problems.ts`).
 */
import * as Schema from "effect/Schema"

/** A system call on a file failed. `code` is the errno name, such as ENOSPC. */
export class FileFault extends Schema.TaggedError<FileFault>()("FileFault", {
  operation: Schema.String,
  path: Schema.String,
  code: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.operation} failed with ${this.code} on ${this.path}`
  }
}

/** A host tool is missing, failed, or took longer than its bound. */
export class CommandFault extends Schema.TaggedError<CommandFault>()("CommandFault", {
  command: Schema.String,
  args: Schema.Array(Schema.String),
  outcome: Schema.Literals(["missing", "failed", "timed-out"]),
  exitCode: Schema.NullOr(Schema.Int),
  stderr: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    const said = this.stderr.trim() === "" ? "" : `: ${this.stderr.trim()}`
    if (this.outcome === "missing") return `${this.command} is not installed`
    return `${this.command} ${this.outcome}${this.exitCode === null ? "" : ` with exit code ${this.exitCode}`}${said}`
  }
}
