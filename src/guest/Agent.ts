/**
 * The host's end of the agent channel. The guest is hostile: every length is bounded, every wait ends, a lie closes the
 * channel and nothing else (dialogue.ts says what a lie is).
 *
 * Bytes are handled as they arrive: they answer a waiting request or they are nothing; none are queued. libuv reads once
 * per turn of the event loop, so a guest that floods takes no turn from the others.
 *
 * On QEMU the channel is a virtio-serial port behind a socket that serves one client at a time: a second one, and one
 * that comes before the guest has opened its port, connects and waits for its hello. On Cloud Hypervisor it is a vsock
 * port behind one socket for all ports (the Firecracker convention: `CONNECT <port>\n`, answered by `OK <number>\n`),
 * which turns a client away while the guest does not listen.
 */
import { randomBytes } from "node:crypto"
import * as net from "node:net"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { durations, timed } from "../host/Measure.ts"
import { type Heard, makeDialogue } from "./dialogue.ts"
import type { GuestMessage, Request } from "./protocol.ts"

/** Until the socket, and on vsock the port behind it, takes us. */
const connectTimeoutMs = 5_000
/** Until the guest's hello: a boot under software emulation on a busy host takes that long. */
const handshakeTimeoutMs = 120_000
/** A hello that the guest's side lost is said again so often. */
const helloIntervalMs = 1_000
/** For what the guest does at once. */
const requestTimeoutMs = 15_000
/** For flushing file systems to a slow disk. */
const syncTimeoutMs = 60_000
/** Bytes that a guest which does not read may make us hold. */
const unsentMaxBytes = 64 * 1024
/** Enough for 256 bits twice over. */
const entropyBytes = 64
/** The longest answer of a vsock multiplexer, `OK <u32>\n`. */
const vsockAnswerMaxBytes = 32

const roundTripSeconds = durations(
  "dataplane_agent_round_trip_seconds",
  "How long guests' agents took to answer, by request."
)

export class AgentFault extends Schema.TaggedError<AgentFault>()("AgentFault", {
  operation: Schema.String,
  reason: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.operation}: ${this.reason}`
  }
}

/** The same as vmm/Vmm.ts says (AgentEndpoint); said again since neither folder imports the other. */
export type Endpoint =
  | { readonly _tag: "UnixSocket"; readonly path: string }
  | { readonly _tag: "HybridVsock"; readonly path: string; readonly port: number }

export interface AgentSession {
  /** Ends when the guest's init has answered and its image's process is started. Fails when the channel closes. */
  readonly ready: Effect.Effect<void, AgentFault>
  /** Asks init for an orderly end: SIGTERM to the image's process, sync, unmount, power off. Answers when accepted. */
  readonly shutdown: (graceMs: number) => Effect.Effect<void, AgentFault>
  /** After a restore: sets the guest's wall clock and reseeds its entropy pool; ends when the guest has done both. */
  readonly awaken: Effect.Effect<void, AgentFault>
  /** Flushes the guest's file systems. */
  readonly sync: Effect.Effect<void, AgentFault>
  /** Ends when the channel is closed, for whatever reason. */
  readonly closed: Effect.Effect<void>
}

/** What the guest's kernel says of its memory. */
export interface GuestMemory {
  readonly totalKib: number
  readonly availableKib: number
}

/** What a real guest's agent answers besides. */
export interface GuestSession extends AgentSession {
  /** A round trip through the guest's init. */
  readonly ping: Effect.Effect<void, AgentFault>
  readonly memory: Effect.Effect<GuestMemory, AgentFault>
}

const faultOf = (operation: string, reason: string, cause?: unknown): AgentFault =>
  new AgentFault({ operation, reason, cause })

const ignoreError = (): void => undefined

/** A socket that is destroyed with its scope. */
const dial = (path: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const socket = net.connect({ path })
      // An error that comes when nobody listens any more is no defect of the service.
      return socket.on("error", ignoreError)
    }),
    (socket) => Effect.sync(() => socket.destroy())
  ).pipe(Effect.tap(untilConnected))

const untilConnected = (socket: net.Socket) =>
  Effect.callback<void, AgentFault>((resume) => {
    const finish = (result: Effect.Effect<void, AgentFault>): void => {
      socket.off("connect", onConnect).off("error", onError)
      resume(result)
    }
    const onConnect = () => finish(Effect.void)
    const onError = (cause: Error) => finish(Effect.fail(faultOf("connect", cause.message, cause)))
    socket.on("connect", onConnect).on("error", onError)
    return Effect.sync(() => socket.off("connect", onConnect).off("error", onError))
  })

/**
 * Asks a vsock multiplexer for a port of the guest. Reads its answer byte by byte: what comes behind it is the guest's,
 * and stays in the socket.
 */
const openVsockPort = (socket: net.Socket, port: number) =>
  Effect.callback<void, AgentFault>((resume) => {
    const stop = () => socket.off("readable", onReadable).off("close", onClose)
    const finish = (result: Effect.Effect<void, AgentFault>): void => {
      stop()
      resume(result)
    }
    const refuse = (reason: string) => finish(Effect.fail(faultOf("connect", reason)))
    let answer = ""
    const onReadable = () => {
      for (let byte: unknown = socket.read(1); Buffer.isBuffer(byte); byte = socket.read(1)) {
        answer += byte.toString("latin1")
        if (answer.endsWith("\n")) {
          return answer.startsWith("OK ") ? finish(Effect.void) : refuse(`vsock port ${port} was refused`)
        }
        if (answer.length > vsockAnswerMaxBytes) return refuse("the vsock socket does not speak its protocol")
      }
    }
    const onClose = () => refuse(`nobody listens on the guest's vsock port ${port}`)
    socket.on("readable", onReadable).on("close", onClose)
    socket.write(`CONNECT ${port}\n`)
    return Effect.sync(stop)
  })

const connected = (endpoint: Endpoint) =>
  dial(endpoint.path).pipe(
    Effect.tap((socket) =>
      endpoint._tag === "HybridVsock" ? openVsockPort(socket, endpoint.port) : Effect.void
    ),
    Effect.timeoutOrElse({
      duration: connectTimeoutMs,
      orElse: () => Effect.fail(faultOf("connect", `no answer in ${connectTimeoutMs} ms`))
    })
  )

type Done = Extract<GuestMessage, { readonly type: "done" }>

interface Asker {
  readonly verb: string
  readonly answer: Deferred.Deferred<Done, AgentFault>
}

/** The conversation over one socket. It ends once, for one reason, and takes every waiting request with it. */
const makeChannel = (socket: net.Socket) => {
  const dialogue = makeDialogue(randomBytes(16).toString("hex"))
  const established = Deferred.makeUnsafe<void, AgentFault>()
  const ready = Deferred.makeUnsafe<void, AgentFault>()
  const closed = Deferred.makeUnsafe<void>()
  const waiting = new Map<number, Asker>()
  let over: AgentFault | undefined

  const end = (fault: AgentFault): void => {
    over ??= fault
    Deferred.doneUnsafe(established, Effect.fail(fault))
    Deferred.doneUnsafe(ready, Effect.fail(fault))
    for (const { answer } of waiting.values()) Deferred.doneUnsafe(answer, Effect.fail(fault))
    Deferred.doneUnsafe(closed, Effect.void)
    socket.destroy()
  }

  const take = (heard: Heard): void => {
    if (heard._tag === "Established") Deferred.doneUnsafe(established, Effect.void)
    else if (heard._tag === "Ready") Deferred.doneUnsafe(ready, Effect.void)
    else if (heard._tag === "Violation") {
      end(faultOf("agent", `the guest broke the protocol: ${heard.reason}`))
    } else answered(waiting.get(heard.id), heard)
  }

  socket.on("data", (chunk: Buffer) => dialogue.hear(chunk).forEach(take))
  socket.on("error", (cause) => end(faultOf("agent", cause.message, cause)))
  socket.on("close", () => end(faultOf("agent", "the channel is closed")))

  const say = (verb: string, request: Request) =>
    Effect.suspend(() => {
      if (over !== undefined) return Effect.fail(over)
      if (socket.writableLength > unsentMaxBytes) return Effect.fail(faultOf(verb, "the guest does not read"))
      const asked = dialogue.ask(request)
      if (Option.isNone(asked)) return Effect.fail(faultOf(verb, "the guest owes too many answers"))
      const { id, bytes } = asked.value
      const answer = Deferred.makeUnsafe<Done, AgentFault>()
      waiting.set(id, { verb, answer })
      socket.write(bytes)
      return Deferred.await(answer).pipe(Effect.ensuring(Effect.sync(() => waiting.delete(id))))
    })

  return {
    established: Deferred.await(established),
    ready: Deferred.await(ready),
    closed: Deferred.await(closed),
    greet: Effect.sync(() => {
      if (socket.writableLength === 0) socket.write(dialogue.hello)
    }),
    say,
    end
  }
}
type Channel = ReturnType<typeof makeChannel>

/** One who has given up is not there any more. */
const answered = (
  asker: Asker | undefined,
  heard: Extract<Heard, { readonly _tag: "Done" | "Refused" }>
): void => {
  if (asker === undefined) return
  Deferred.doneUnsafe(
    asker.answer,
    heard._tag === "Done"
      ? Effect.succeed(heard.message)
      : Effect.fail(faultOf(asker.verb, `the guest refused: ${heard.reason}`))
  )
}

/** Greets until the guest has answered, or for too long. */
const shakeHands = (channel: Channel) =>
  channel.greet.pipe(
    Effect.repeat(Schedule.spaced(helloIntervalMs)),
    Effect.raceFirst(channel.established),
    Effect.timeoutOrElse({
      duration: handshakeTimeoutMs,
      orElse: () => Effect.sync(() => channel.end(faultOf("agent", `no hello in ${handshakeTimeoutMs} ms`)))
    }),
    Effect.ignore
  )

/** The bound covers the handshake as well: a caller never waits for longer, whatever state the channel is in. */
const ask = (channel: Channel, verb: string, timeoutMs: number, request: Effect.Effect<Request>) =>
  channel.established.pipe(
    Effect.andThen(request),
    Effect.flatMap((it) => channel.say(verb, it)),
    Effect.timeoutOrElse({
      duration: timeoutMs,
      orElse: () => Effect.fail(faultOf(verb, `no answer of the guest in ${timeoutMs} ms`))
    }),
    timed(roundTripSeconds({ request: verb }))
  )

const awakening: Effect.Effect<Request> = Effect.map(Clock.currentTimeMillis, (now) => ({
  type: "awaken",
  epoch_ns: `${BigInt(now) * 1_000_000n}`,
  entropy: randomBytes(entropyBytes).toString("hex")
}))

/** Connects to a guest's agent. The scope owns the connection; when it closes, what waits on it fails. */
export const connectAgent = (endpoint: Endpoint): Effect.Effect<GuestSession, AgentFault, Scope.Scope> =>
  Effect.gen(function* () {
    const socket = yield* connected(endpoint)
    const channel = yield* Effect.acquireRelease(
      Effect.sync(() => makeChannel(socket)),
      (it) => Effect.sync(() => it.end(faultOf("agent", "the session is over")))
    )
    yield* Effect.forkScoped(shakeHands(channel))
    const plain = (type: "ping" | "sync" | "memory", timeoutMs: number) =>
      ask(channel, type, timeoutMs, Effect.succeed({ type }))
    return {
      ready: channel.ready,
      closed: channel.closed,
      shutdown: (graceMs) =>
        ask(
          channel,
          "shutdown",
          requestTimeoutMs,
          Effect.succeed({ type: "shutdown", grace_ms: Math.trunc(graceMs) })
        ).pipe(Effect.asVoid),
      awaken: ask(channel, "awaken", requestTimeoutMs, awakening).pipe(Effect.asVoid),
      sync: plain("sync", syncTimeoutMs).pipe(Effect.asVoid),
      ping: plain("ping", requestTimeoutMs).pipe(Effect.asVoid),
      memory: plain("memory", requestTimeoutMs).pipe(
        Effect.map((it) => ({ totalKib: it.total_kib ?? 0, availableKib: it.available_kib ?? 0 }))
      )
    }
  })

export class Agent extends Context.Service<
  Agent,
  {
    /** Connects and shakes hands in the background; reconnects are the caller's. The scope owns the connection. */
    readonly connect: (endpoint: Endpoint) => Effect.Effect<AgentSession, AgentFault, Scope.Scope>
  }
>()("dataplane/guest/Agent") {
  static readonly layer = Layer.succeed(Agent, { connect: connectAgent })
}
