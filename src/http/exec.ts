/**
 * A process in the guest over one request: its stdin is in the body, its output is the answer, one JSON object a line.
 * Nothing is held for a slow client: output is pulled only as fast as the socket takes it, and the guest's process waits.
 * The process belongs to the request: it is killed where the client goes away.
 */
import * as Effect from "effect/Effect"
import type * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Stream from "effect/Stream"
import type { ExecLine } from "../api/Exec.ts"
import type { ExecCall, ExecEncoding, ExecOutput } from "../domain/Exec.ts"
import type { InstanceId } from "../domain/Ids.ts"
import { Busy, InvalidRequest } from "../domain/problems.ts"
import type { Instances } from "../instance/Instances.ts"
import type { HttpBounds } from "./Bounds.ts"
import type { Drain } from "./Drain.ts"
import { cutUnread } from "./slowClient.ts"

export interface GuestServices {
  readonly instances: Instances["Service"]
  readonly bounds: HttpBounds
  readonly drain: Drain["Service"]
}

/** Ends a stream of the guest with the service. */
export const whileServing =
  (drain: Drain["Service"]) =>
  <A, E>(stream: Stream.Stream<A, E>): Stream.Stream<A, E | Busy> =>
    Stream.interruptWhen(
      stream,
      Effect.andThen(
        drain.begun,
        Effect.fail(new Busy({ detail: "The service is stopping; try again in a moment." }))
      )
    )

/** A problem as it stands in a stream. */
export const lateProblem = ({
  type,
  title,
  status,
  detail
}: Extract<ExecLine, { readonly error: unknown }>["error"]): Extract<
  ExecLine,
  { readonly error: unknown }
> => ({
  error: { type, title, status, detail }
})

const base64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/u

const stdinOf = ({ stdin = "", encoding }: ExecCall): Effect.Effect<Buffer, InvalidRequest> => {
  if (encoding === "utf8") return Effect.succeed(Buffer.from(stdin, "utf8"))
  return base64.test(stdin)
    ? Effect.succeed(Buffer.from(stdin, "base64"))
    : Effect.fail(
        new InvalidRequest({
          detail: "stdin is not base64, as `encoding` says that it is.",
          errors: [{ path: ["payload", "stdin"], message: "Expected base64" }]
        })
      )
}

/** Bytes as text. With utf8 a character may come in two pieces, so each of the two outputs has a decoder of its own. */
const makeLines = (encoding: ExecEncoding): ((output: ExecOutput) => ReadonlyArray<ExecLine>) => {
  // A byte order mark is output like any other.
  const decoder = () => new TextDecoder("utf-8", { ignoreBOM: true })
  const decoders = { Stdout: decoder(), Stderr: decoder() }
  const line = (kind: "Stdout" | "Stderr", text: string): ReadonlyArray<ExecLine> => {
    if (text === "") return []
    return kind === "Stdout" ? [{ stdout: text }] : [{ stderr: text }]
  }
  return (output) => {
    if (output._tag === "Exit") {
      return [
        ...line("Stdout", decoders.Stdout.decode()),
        ...line("Stderr", decoders.Stderr.decode()),
        { exit: output.exit }
      ]
    }
    const { _tag: kind, bytes } = output
    if (encoding === "base64") return line(kind, Buffer.from(bytes).toString("base64"))
    return line(kind, decoders[kind].decode(bytes, { stream: true }))
  }
}

/** Starts the process, whose lines end with its exit or a problem. The scope owns it. */
export const execLines = Effect.fnUntraced(function* (
  { instances, drain }: Pick<GuestServices, "instances" | "drain">,
  id: InstanceId,
  call: ExecCall
) {
  const stdin = yield* stdinOf(call)
  const { stdin: _, encoding, ...asked } = call
  const running = yield* instances.exec(id, asked)
  // A process that reads nothing answers all the same; what it did not read goes with the request.
  yield* running.write(stdin).pipe(Effect.andThen(running.endInput), Effect.ignore, Effect.forkScoped)
  const toLines = makeLines(encoding)
  return running.output.pipe(
    whileServing(drain),
    Stream.map(toLines),
    Stream.catch((problem) => Stream.make([lateProblem(problem)]))
  )
})

export const execResponse = Effect.fnUntraced(function* (
  guest: GuestServices,
  id: InstanceId,
  call: ExecCall,
  request: HttpServerRequest.HttpServerRequest
) {
  const pieces = yield* execLines(guest, id, call)
  cutUnread(request, guest.bounds.stalledClientMs)
  const lines = pieces.pipe(
    Stream.map((some) => some.map((line) => `${JSON.stringify(line)}\n`).join("")),
    // The empty first piece sends the headers at once.
    (rest) => Stream.prepend(rest, [""])
  )
  return HttpServerResponse.stream(Stream.encodeText(lines), {
    contentType: "application/x-ndjson",
    headers: { "cache-control": "no-store", "x-accel-buffering": "no" }
  })
})
