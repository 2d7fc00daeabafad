/** Processes in a guest: one request with its stdin, or a WebSocket for interactive use. */
import * as Schema from "effect/Schema"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import { ExecCall, ExecExit, SignalName, WindowSize } from "../domain/Exec.ts"
import { GuestLost, GuestNotReady, GuestRefused } from "../domain/guestProblems.ts"
import { InstanceId } from "../domain/Ids.ts"
import { Busy, InstanceNotFound, InvalidState } from "../domain/problems.ts"
import { RequiredScope } from "./Authorization.ts"
import { JsonBody } from "./Validation.ts"

const id = { id: InstanceId }

/** Of everything that is done inside of a guest. */
export const guestProblems = [
  InstanceNotFound,
  InvalidState,
  GuestNotReady,
  GuestRefused,
  GuestLost,
  Busy
] as const

/** A problem that comes when the status of the answer is sent already. */
export const LateProblem = Schema.Struct({
  type: Schema.String,
  title: Schema.String,
  status: Schema.Int,
  detail: Schema.String
}).annotate({ identifier: "LateProblem", description: "An RFC 9457 problem in the middle of a stream." })

/** One line of the answer to an exec. */
export const ExecLine = Schema.Union([
  Schema.Struct({ stdout: Schema.String }),
  Schema.Struct({ stderr: Schema.String }),
  Schema.Struct({ exit: ExecExit }),
  Schema.Struct({ error: LateProblem })
]).annotate({
  identifier: "ExecLine",
  description:
    "A piece of output; at last how the process ended, or the problem that kept this from being known."
})
export type ExecLine = typeof ExecLine.Type

/** A text message of a WebSocket client, behind its first one. */
export const ExecOrder = Schema.Union([
  Schema.Struct({ resize: WindowSize }),
  Schema.Struct({ signal: SignalName }),
  Schema.Struct({ stdin_end: Schema.Literal(true) })
]).annotate({ identifier: "ExecOrder" })
export type ExecOrder = typeof ExecOrder.Type

/** The first byte of a WebSocket server's binary message says what the rest is. */
export const execSocketKinds = { Stdout: 1, Stderr: 2 } as const

export const execEndpoints = [
  HttpApiEndpoint.post("exec", "/:id/exec", {
    params: id,
    payload: ExecCall,
    success: HttpApiSchema.StreamNdjson({ schema: ExecLine }),
    error: guestProblems
  })
    .middleware(JsonBody)
    .annotateMerge(
      OpenApi.annotations({
        summary: "Run a process in the guest",
        description:
          "Answers at once with one JSON object a line, each with exactly one of `stdout`, `stderr`, `exit` and `error`; the last is `exit` or `error`. A client that reads slowly slows the process; one that goes away ends it. stdin is what the request says, then its end."
      })
    ),
  HttpApiEndpoint.get("execSocket", "/:id/exec", {
    params: id,
    success: HttpApiSchema.Empty(101).annotate({ description: "The connection is a WebSocket now." }),
    error: guestProblems
  })
    .annotate(RequiredScope, "write")
    .annotateMerge(
      OpenApi.annotations({
        summary: "Run a process in the guest, interactively (WebSocket)",
        description:
          'Takes a WebSocket handshake and the scope of a write. The client\'s first message is text: the request, as in POST but for `stdin` and `encoding`. Then its binary messages are stdin, its text messages `{"resize":{"rows":24,"cols":80}}`, `{"signal":"INT"}` or `{"stdin_end":true}`. The server\'s binary messages are one byte, 1 for stdout and 2 for stderr, and the data; its last message is text, `{"exit":...}` or `{"error":problem}`, and then it closes. No message is larger than 1 MiB.'
      })
    )
] as const
