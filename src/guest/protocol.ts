/**
 * What host and agent say to each other; the guest's twin is `agent/src/protocol.rs`, which shows an exchange. Pure.
 *
 * Stream 0 carries requests and their answers. A stream above it is opened by a request that names it (`exec`,
 * `read_files`, `write_files`) and carries bytes both ways, each direction within the credit that its receiver gave:
 *
 *   host   {"type":"exec","id":7,"stream":3,"command":["cat"]}      on stream 0
 *   guest  {"type":"done","id":7}                                   on stream 0; refused: the stream never was
 *   host   data, end                                                on stream 3, also signal, resize, cancel
 *   guest  data, stderr, credit ... {"type":"exit","code":0}        on stream 3; the last frame of the stream
 */
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { ExecRequest, SignalName } from "../domain/Exec.ts"
import { ExecExit } from "../domain/Exec.ts"
import { MountHolder } from "../domain/Volume.ts"
import { controlKind, creditKind, encodeFrame, endKind, type Frame } from "./frame.ts"

export const protocolVersion = 2
/** The first one, which guests speak that booted under an earlier service: it has no streams and no volumes. */
export const oldestVersion = 1

/** What each end of a new stream takes before it gives more credit. stdout and stderr share it. */
export const windowBytes = 256 * 1024
export const streamsMax = 64

const Kib = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
const Milli = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))
const holdersMax = 64
const holderMaxChars = 256

/** What the guest says on stream 0. `done` of `memory` and `load` carries the figures. */
export const GuestMessage = Schema.Union([
  Schema.Struct({
    type: Schema.Literal("hello"),
    version: Schema.Int,
    nonce: Schema.String,
    ready: Schema.Boolean
  }),
  Schema.Struct({ type: Schema.Literal("ready") }),
  Schema.Struct({
    type: Schema.Literal("done"),
    id: Schema.Int,
    total_kib: Schema.optionalKey(Kib),
    available_kib: Schema.optionalKey(Kib),
    /** Load averages over one, five and fifteen minutes, in thousandths. */
    load_milli: Schema.optionalKey(Schema.Tuple([Milli, Milli, Milli]))
  }),
  Schema.Struct({
    type: Schema.Literal("refused"),
    id: Schema.Int,
    reason: Schema.String,
    /** Of `unmount`: EBUSY where the mount is in use, also where nobody can be named for it (a mount below, a loop). */
    code: Schema.optionalKey(Schema.String),
    /** Of `unmount`: who holds the mount. */
    holders: Schema.optionalKey(Schema.Array(MountHolder))
  }),
  /** The guest says that the host broke the protocol: the session is over. */
  Schema.Struct({ type: Schema.Literal("broken"), reason: Schema.String })
])
export type GuestMessage = typeof GuestMessage.Type

/** The last frame of a stream. A process whose time was over ended by a signal as well. */
export const Last = Schema.Union([
  Schema.Struct({ type: Schema.Literal("exit"), timeout: Schema.Literal(true) }),
  Schema.Struct({ type: Schema.Literal("exit"), code: Schema.Int }),
  Schema.Struct({ type: Schema.Literal("exit"), signal: Schema.String }),
  Schema.Struct({ type: Schema.Literal("ended") }),
  Schema.Struct({ type: Schema.Literal("failed"), reason: Schema.String })
])
export type Last = typeof Last.Type

/** Asks for a stream. */
export type Opening =
  | ({ readonly type: "exec" } & ExecRequest)
  | { readonly type: "read_files" | "write_files"; readonly path: string }

/** What the host asks. */
export type Request =
  | { readonly type: "ping" | "sync" | "memory" | "load" }
  | { readonly type: "shutdown"; readonly grace_ms: number }
  /** `epoch_ns` as decimal digits, since a number would lose the last ones; `entropy` as hexadecimal digits. */
  | { readonly type: "awaken"; readonly epoch_ns: string; readonly entropy: string }
  | { readonly type: "mount"; readonly serial: string; readonly path: string; readonly readonly: boolean }
  | { readonly type: "unmount"; readonly path: string; readonly lazy: boolean }
  | { readonly type: "grow"; readonly path: string; readonly size_bytes: number }
  | (Opening & { readonly stream: number })

/** What the host says to one stream. */
export type Told =
  | { readonly type: "signal"; readonly signal: SignalName }
  | { readonly type: "resize"; readonly rows: number; readonly cols: number }
  | { readonly type: "cancel" }

const decodeMessage = Schema.decodeUnknownOption(Schema.fromJsonString(GuestMessage))
const decodeLast = Schema.decodeUnknownOption(Schema.fromJsonString(Last))
const decodeExit = Schema.decodeUnknownOption(ExecExit)

/** None for what is no message. */
export const parseMessage = (frame: Frame): Option.Option<GuestMessage> =>
  frame.kind === controlKind && frame.stream === 0
    ? decodeMessage(frame.payload.toString("utf8"))
    : Option.none()

/** None for what ends no stream. */
export const parseLast = (payload: Buffer): Option.Option<Last> => decodeLast(payload.toString("utf8"))

/** How a process ended; none where the guest names an end that no process has. */
export const exitOf = (last: Last): Option.Option<ExecExit> =>
  last.type === "exit" ? decodeExit(last) : Option.none()

/** A guest's sentence as it may be shown: one line, bounded. */
const reasonMaxChars = 300
export const sentence = (said: string): string =>
  said
    .slice(0, reasonMaxChars)
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, " ")
    .trim()

/** Who holds a mount, bounded. */
export const holdersOf = (said: ReadonlyArray<MountHolder>): ReadonlyArray<MountHolder> =>
  said
    .slice(0, holdersMax)
    .map(({ pid, command }) => ({ pid, command: sentence(command.slice(0, holderMaxChars)) }))

const json = (stream: number, message: object): Buffer =>
  encodeFrame({ kind: controlKind, stream, payload: Buffer.from(JSON.stringify(message)) })

/** Behind a zero byte, which ends whatever of an earlier session the guest may hold half of. */
export const encodeHello = (nonce: string, version: number): Buffer =>
  Buffer.concat([Buffer.alloc(1), json(0, { type: "hello", version, nonce })])

/** What a request takes of a frame's payload, whatever its id. */
export const requestBytes = (request: Request): number =>
  Buffer.byteLength(JSON.stringify({ id: Number.MAX_SAFE_INTEGER, ...request }))

export const encodeRequest = (id: number, request: Request): Buffer => json(0, { id, ...request })

export const encodeTold = (stream: number, told: Told): Buffer => json(stream, told)

export const encodeEnd = (stream: number): Buffer =>
  encodeFrame({ kind: endKind, stream, payload: Buffer.alloc(0) })

export const encodeCredit = (stream: number, bytes: number): Buffer => {
  const payload = Buffer.alloc(4)
  payload.writeUInt32LE(bytes)
  return encodeFrame({ kind: creditKind, stream, payload })
}
