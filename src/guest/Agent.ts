/**
 * The host's end of the agent channel. The guest is hostile: every length is bounded, every wait ends but that for a
 * process, a lie closes the channel and nothing else.
 *
 *   connection.ts   the socket
 *   channel.ts      the conversation over it: requests, answers, streams
 *     frame.ts, protocol.ts, dialogue.ts, streams.ts     what is said, and what of it is allowed; pure
 *     AgentStream.ts, Inbox.ts, Outlet.ts                bytes in and out, with bounds
 *   exec.ts, transfer.ts                                 processes and files over streams
 */
import { randomBytes } from "node:crypto"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { durations, timed } from "../host/Measure.ts"
import {
  type AgentFault,
  AgentRefusal,
  type AgentSession,
  type Endpoint,
  type GuestMemory,
  type MountRequest,
  VolumeBusy
} from "./AgentSession.ts"
import { type Answer, type Channel, type Done, faultOf, makeChannel } from "./channel.ts"
import { openConnection } from "./connection.ts"
import { exec } from "./exec.ts"
import type { Opening, Request } from "./protocol.ts"
import { readFiles, writeFiles } from "./transfer.ts"

/** Until the guest's hello: a boot under software emulation on a busy host takes that long. */
const handshakeTimeoutMs = 120_000
/** A hello that the guest's side lost is said again so often. */
const helloIntervalMs = 1_000
/** For what the guest does at once. */
const requestTimeoutMs = 15_000
/** For flushing file systems to a slow disk, and for all that waits for that or for a disk to appear. */
const diskTimeoutMs = 60_000
/** Enough for 256 bits twice over. */
const entropyBytes = 64

const roundTripSeconds = durations(
  "dataplane_agent_round_trip_seconds",
  "How long guests' agents took to answer, by request."
)

/** What a real guest's agent answers besides. */
export interface GuestSession extends AgentSession {
  /** A round trip through the guest's init. */
  readonly ping: Effect.Effect<void, AgentFault>
  readonly memory: Effect.Effect<GuestMemory, AgentFault>
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

const inTime =
  (verb: string, timeoutMs: number) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | AgentFault, R> =>
    Effect.timeoutOrElse(effect, {
      duration: timeoutMs,
      orElse: () => Effect.fail(faultOf(verb, `no answer of the guest in ${timeoutMs} ms`))
    })

/** The bound covers the handshake as well: a caller never waits for longer, whatever state the channel is in. */
const answer = (channel: Channel, verb: string, timeoutMs: number, request: Effect.Effect<Request>) =>
  channel.established.pipe(
    Effect.andThen(request),
    Effect.flatMap((it) => channel.say(verb, it)),
    inTime(verb, timeoutMs),
    timed(roundTripSeconds({ request: verb }))
  )

const done = (verb: string, answer: Answer): Effect.Effect<Done, AgentRefusal> =>
  answer._tag === "Done"
    ? Effect.succeed(answer.message)
    : Effect.fail(new AgentRefusal({ operation: verb, reason: answer.reason }))

/** For requests that a guest has no reason to refuse: one that does is at fault. */
const asFault = (refusal: AgentRefusal): AgentFault =>
  faultOf(refusal.operation, `the guest refused: ${refusal.reason}`)

const awakening: Effect.Effect<Request> = Effect.map(Clock.currentTimeMillis, (now) => ({
  type: "awaken",
  epoch_ns: `${BigInt(now) * 1_000_000n}`,
  entropy: randomBytes(entropyBytes).toString("hex")
}))

/** A stream that its scope abandons. The wait for the guest's answer is bounded, what comes after it is not. */
const openStream = (channel: Channel) =>
  Effect.fnUntraced(function* (opening: Opening) {
    const verb = opening.type
    yield* channel.established.pipe(inTime(verb, requestTimeoutMs))
    const { stream, opened } = yield* Effect.acquireRelease(channel.open(opening), (it) => it.stream.abandon)
    yield* Effect.flatMap(opened.pipe(inTime(verb, requestTimeoutMs)), (it) => done(verb, it))
    return stream
  })

const memoryOf = ({ total_kib = 0, available_kib = 0 }: Done): GuestMemory => ({
  totalKib: total_kib,
  availableKib: available_kib
})

/** Requests and their answers, each within its bound. */
const requests = (channel: Channel) => {
  const asked = (request: Request, timeoutMs: number) =>
    Effect.flatMap(answer(channel, request.type, timeoutMs, Effect.succeed(request)), (it) =>
      done(request.type, it)
    )
  const mustDo = (request: Effect.Effect<Request>, verb: string, timeoutMs: number) =>
    answer(channel, verb, timeoutMs, request).pipe(
      Effect.flatMap((it) => done(verb, it)),
      Effect.catchTag("AgentRefusal", (refusal) => Effect.fail(asFault(refusal)))
    )
  const plain = (type: "ping" | "sync" | "memory", timeoutMs: number) =>
    mustDo(Effect.succeed({ type }), type, timeoutMs)
  return {
    shutdown: (graceMs: number) =>
      Effect.asVoid(
        mustDo(
          Effect.succeed({ type: "shutdown", grace_ms: Math.trunc(graceMs) }),
          "shutdown",
          requestTimeoutMs
        )
      ),
    awaken: Effect.asVoid(mustDo(awakening, "awaken", requestTimeoutMs)),
    sync: Effect.asVoid(plain("sync", diskTimeoutMs)),
    ping: Effect.asVoid(plain("ping", requestTimeoutMs)),
    memory: Effect.map(plain("memory", requestTimeoutMs), memoryOf),
    load: Effect.map(asked({ type: "load" }, requestTimeoutMs), (it) => {
      const [one = 0, five = 0, fifteen = 0] = (it.load_milli ?? []).map((milli) => milli / 1000)
      return { ...memoryOf(it), averages: [one, five, fifteen] as const }
    }),
    mount: ({ serial, path, readonly }: MountRequest) =>
      Effect.asVoid(asked({ type: "mount", serial, path, readonly }, diskTimeoutMs)),
    grow: (path: string, bytes: number) =>
      Effect.asVoid(asked({ type: "grow", path, size_bytes: bytes }, diskTimeoutMs)),
    unmount: (path: string, { lazy }: { readonly lazy: boolean }) =>
      Effect.flatMap(
        answer(channel, "unmount", diskTimeoutMs, Effect.succeed({ type: "unmount", path, lazy })),
        (it): Effect.Effect<void, AgentRefusal | VolumeBusy> =>
          it._tag === "Refused" && (it.busy || it.holders.length > 0)
            ? Effect.fail(new VolumeBusy({ path, reason: it.reason, holders: it.holders }))
            : Effect.asVoid(done("unmount", it))
      )
  }
}

/** Connects to a guest's agent. The scope owns the connection; when it closes, what waits on it fails. */
export const connectAgent = (endpoint: Endpoint): Effect.Effect<GuestSession, AgentFault, Scope.Scope> =>
  Effect.gen(function* () {
    const socket = yield* openConnection(endpoint)
    const channel = yield* Effect.acquireRelease(
      Effect.sync(() => makeChannel(socket)),
      (it) => Effect.sync(() => it.end(faultOf("agent", "the session is over")))
    )
    yield* Effect.forkScoped(shakeHands(channel))
    const open = openStream(channel)
    const session: GuestSession = {
      ready: channel.ready,
      closed: channel.closed,
      ...requests(channel),
      exec: (request) => exec(open, request),
      readFiles: (path) => readFiles(open, path),
      writeFiles: (path, archive) => writeFiles(open, path, archive)
    }
    return session
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
