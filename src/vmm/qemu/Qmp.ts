/**
 * QMP, QEMU's control protocol: JSON objects, one a line, over a unix socket (docs/interop/qmp-spec).
 *
 *   connect ──► greeting ──► qmp_capabilities ──► commands ⇄ answers, by id
 *                                            └──► events ──► listeners
 *
 * A QEMU monitor serves one client at a time: a second one connects and hears nothing until the first leaves, so a
 * connection is kept long and closed for certain. The kernel closes QEMU's sockets with its process, so every call
 * that races against the end of the socket races against the end of QEMU; one that hangs without ending (a stopped
 * process) is caught by the bound of each command.
 *
 * Nothing here waits for a reader: an answer completes its one waiter, an event is handed to the listeners of that
 * moment, who must not block. What a listener does not take is gone. Whatever is not QMP (no JSON, no known shape, a
 * line beyond `lineMaxBytes`) closes the connection, since nothing behind it can be trusted.
 */
import * as net from "node:net"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { parseExact } from "../exactJson.ts"

/** The longest answer is the list of all PCI devices: some hundred KiB with 150 disks. */
const lineMaxBytes = 4 * 1024 * 1024
/** QEMU answers within milliseconds, but may wait for its main loop while it flushes disks on a busy host. */
export const commandBoundMs = 10_000
const connectBoundMs = 10_000
/** A driver has a handful in flight; more means that QEMU has stopped to answer. */
const inFlightMax = 64

const Version = Schema.Struct({ major: Schema.Int, minor: Schema.Int, micro: Schema.Int })
const Greeting = Schema.Struct({ QMP: Schema.Struct({ version: Schema.Struct({ qemu: Version }) }) })
const Answer = Schema.Struct({ id: Schema.Int, return: Schema.Unknown })
const Refusal = Schema.Struct({
  id: Schema.optionalKey(Schema.Int),
  error: Schema.Struct({ class: Schema.String, desc: Schema.String })
})
const Event = Schema.Struct({
  event: Schema.String,
  data: Schema.optionalKey(Schema.Record(Schema.String, Schema.Unknown))
})
const Message = Schema.Union([Answer, Refusal, Event])
const decodeGreeting = Schema.decodeUnknownOption(Greeting)
const decodeMessage = Schema.decodeUnknownOption(Message)

export interface QmpEvent {
  readonly name: string
  readonly data: Readonly<Record<string, unknown>>
}

export class QmpFault extends Schema.TaggedError<QmpFault>()("QmpFault", {
  command: Schema.String,
  /** `refused`: QEMU's own error. The others: it could not be asked, or did not answer, or not in QMP. */
  kind: Schema.Literals(["refused", "closed", "silent", "garbage"]),
  /** QMP error class where QEMU refused, such as GenericError or DeviceNotFound. */
  errorClass: Schema.NullOr(Schema.String),
  reason: Schema.String
}) {
  override get message(): string {
    return `${this.command}: ${this.reason}`
  }
}

/** What a command takes; no bigint, since nothing that is sent is beyond 2^53. */
export type Json = null | boolean | number | string | ReadonlyArray<Json> | { readonly [key: string]: Json }

export interface Qmp {
  /**
   * Runs a command and decodes its answer. Fails where QEMU refuses, answers in another shape, does not answer within
   * the bound (10 s unless told), or ends. A command that was given up may still be carried out.
   */
  readonly execute: <A>(
    command: string,
    args: { readonly [key: string]: Json },
    answer: Schema.Decoder<A>,
    boundMs?: number
  ) => Effect.Effect<A, QmpFault>
  /** A command whose answer says nothing. */
  readonly order: (
    command: string,
    args?: { readonly [key: string]: Json },
    boundMs?: number
  ) => Effect.Effect<void, QmpFault>
  /** Calls `take` with every event from now on, until the scope closes. It must not throw and not block. */
  readonly listen: (take: (event: QmpEvent) => void) => Effect.Effect<void, never, Scope.Scope>
  /**
   * Listens from now on; the effect inside waits for the first event that is selected. To be asked for before the
   * command that causes the event, so that it cannot be missed.
   */
  readonly first: <A>(
    select: (event: QmpEvent) => Option.Option<A>
  ) => Effect.Effect<Effect.Effect<A, QmpFault>, never, Scope.Scope>
  /** Ends when the connection does. */
  readonly closed: Effect.Effect<void>
}

const fault = (
  command: string,
  kind: QmpFault["kind"],
  reason: string,
  errorClass: string | null = null
): QmpFault => new QmpFault({ command, kind, errorClass, reason })

/** One connection's state; everything in it happens on the event loop, in the order of the socket. */
interface Wire {
  readonly socket: net.Socket
  readonly greeting: Deferred.Deferred<void, QmpFault>
  readonly end: Deferred.Deferred<QmpFault>
  readonly inFlight: Map<
    number,
    { readonly command: string; readonly answer: Deferred.Deferred<unknown, QmpFault> }
  >
  readonly listeners: Set<(event: QmpEvent) => void>
  partial: Array<Buffer>
  partialBytes: number
  greeted: boolean
  nextId: number
}

const close = (wire: Wire, kind: QmpFault["kind"], reason: string): void => {
  wire.socket.destroy()
  wire.partial = []
  Deferred.doneUnsafe(wire.greeting, Effect.fail(fault("connect", kind, reason)))
  for (const { command, answer } of wire.inFlight.values())
    Deferred.doneUnsafe(answer, Effect.fail(fault(command, kind, reason)))
  wire.inFlight.clear()
  Deferred.doneUnsafe(wire.end, Effect.succeed(fault("connection", kind, reason)))
}

const receive = (wire: Wire, message: typeof Message.Type): void => {
  if ("event" in message) {
    const event: QmpEvent = { name: message.event, data: message.data ?? {} }
    for (const take of wire.listeners) take(event)
    return
  }
  if (message.id === undefined) return close(wire, "garbage", "QEMU did not understand what it was sent")
  const waiting = wire.inFlight.get(message.id)
  // One that was given up.
  if (waiting === undefined) return
  wire.inFlight.delete(message.id)
  Deferred.doneUnsafe(
    waiting.answer,
    "error" in message
      ? Effect.fail(fault(waiting.command, "refused", message.error.desc, message.error.class))
      : Effect.succeed(message.return)
  )
}

const receiveLine = (wire: Wire, line: string): void => {
  if (line.trim() === "") return
  let value: unknown
  try {
    value = parseExact(line)
  } catch {
    return close(wire, "garbage", "what came is not JSON")
  }
  if (!wire.greeted) {
    if (Option.isNone(decodeGreeting(value))) return close(wire, "garbage", "what greets is not QEMU")
    wire.greeted = true
    return void Deferred.doneUnsafe(wire.greeting, Effect.void)
  }
  const message = decodeMessage(value)
  if (Option.isNone(message)) return close(wire, "garbage", "what came is not QMP")
  receive(wire, message.value)
}

const receiveBytes = (wire: Wire, bytes: Buffer): void => {
  let rest = bytes
  for (;;) {
    const at = rest.indexOf(0x0a)
    const length = wire.partialBytes + (at === -1 ? rest.length : at)
    if (length > lineMaxBytes) return close(wire, "garbage", `a line is longer than ${lineMaxBytes} bytes`)
    if (at === -1) break
    const line = Buffer.concat([...wire.partial, rest.subarray(0, at)]).toString("utf8")
    wire.partial = []
    wire.partialBytes = 0
    rest = rest.subarray(at + 1)
    receiveLine(wire, line)
    if (wire.socket.destroyed) return
  }
  if (rest.length === 0) return
  wire.partial.push(rest)
  wire.partialBytes += rest.length
}

const openWire = (socketPath: string): Wire => {
  const wire: Wire = {
    socket: net.createConnection({ path: socketPath }),
    greeting: Deferred.makeUnsafe(),
    end: Deferred.makeUnsafe(),
    inFlight: new Map(),
    listeners: new Set(),
    partial: [],
    partialBytes: 0,
    greeted: false,
    nextId: 1
  }
  wire.socket
    .on("data", (bytes) => receiveBytes(wire, bytes))
    .once("error", (cause) => close(wire, "closed", cause.message))
    .once("close", () => close(wire, "closed", "QEMU closed the connection"))
  return wire
}

const executeOn = (wire: Wire): Qmp["execute"] =>
  Effect.fnUntraced(function* (command, args, schema, boundMs = commandBoundMs) {
    if (wire.socket.destroyed) return yield* fault(command, "closed", "the connection to QEMU has ended")
    if (wire.inFlight.size >= inFlightMax)
      return yield* fault(command, "silent", `QEMU owes ${inFlightMax} answers`)
    const id = wire.nextId++
    const answer = Deferred.makeUnsafe<unknown, QmpFault>()
    wire.inFlight.set(id, { command, answer })
    wire.socket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`)
    const value = yield* Deferred.await(answer).pipe(
      Effect.timeoutOrElse({
        duration: boundMs,
        orElse: () => Effect.fail(fault(command, "silent", `QEMU did not answer within ${boundMs} ms`))
      }),
      Effect.ensuring(Effect.sync(() => wire.inFlight.delete(id)))
    )
    return yield* Schema.decodeUnknownEffect(schema)(value).pipe(
      Effect.mapError((error) => fault(command, "garbage", `QEMU answers in another shape: ${error.message}`))
    )
  })

const listenOn = (wire: Wire, take: (event: QmpEvent) => void): Effect.Effect<void, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.sync(() => {
      wire.listeners.add(take)
      return undefined
    }),
    () => Effect.sync(() => wire.listeners.delete(take))
  )

const firstOn = <A>(wire: Wire, select: (event: QmpEvent) => Option.Option<A>) =>
  Effect.gen(function* () {
    const found = Deferred.makeUnsafe<A, QmpFault>()
    yield* listenOn(wire, (event) => {
      const selected = select(event)
      if (Option.isSome(selected)) Deferred.doneUnsafe(found, Effect.succeed(selected.value))
    })
    return Effect.raceFirst(Deferred.await(found), Effect.flatMap(Deferred.await(wire.end), Effect.fail))
  })

/**
 * Connects, waits for the greeting and negotiates capabilities; the scope closes the connection. Fails where nobody
 * listens, the greeting is not QEMU's, or it does not come within 10 s, as when another client holds the monitor.
 */
export const connect = Effect.fnUntraced(function* (socketPath: string, boundMs: number = connectBoundMs) {
  const wire = yield* Effect.acquireRelease(
    Effect.sync(() => openWire(socketPath)),
    (it) => Effect.sync(() => close(it, "closed", "the connection was closed by this service"))
  )
  const execute = executeOn(wire)
  const qmp: Qmp = {
    execute,
    order: (command, args = {}, bound = commandBoundMs) =>
      Effect.asVoid(execute(command, args, Schema.Unknown, bound)),
    listen: (take) => listenOn(wire, take),
    first: (select) => firstOn(wire, select),
    closed: Effect.asVoid(Deferred.await(wire.end))
  }
  yield* Deferred.await(wire.greeting).pipe(
    Effect.timeoutOrElse({
      duration: boundMs,
      orElse: () => Effect.fail(fault("connect", "silent", `QEMU did not greet within ${boundMs} ms`))
    })
  )
  yield* qmp.order("qmp_capabilities", {}, boundMs)
  return qmp
})
