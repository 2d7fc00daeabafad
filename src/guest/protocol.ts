/**
 * What host and agent say to each other on stream 0; the guest's twin is `agent/src/protocol.rs`, which shows an
 * exchange. Pure.
 */
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { controlKind, encodeFrame, type Frame } from "./frame.ts"

export const protocolVersion = 1

const Kib = Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))

/** What the guest says. `done` of `memory` carries the figures. */
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
    available_kib: Schema.optionalKey(Kib)
  }),
  Schema.Struct({ type: Schema.Literal("refused"), id: Schema.Int, reason: Schema.String })
])
export type GuestMessage = typeof GuestMessage.Type

/** What the host asks. */
export type Request =
  | { readonly type: "ping" }
  | { readonly type: "sync" }
  | { readonly type: "memory" }
  | { readonly type: "shutdown"; readonly grace_ms: number }
  /** `epoch_ns` as decimal digits, since a number would lose the last ones; `entropy` as hexadecimal digits. */
  | { readonly type: "awaken"; readonly epoch_ns: string; readonly entropy: string }

const decodeJson = Schema.decodeUnknownOption(Schema.fromJsonString(GuestMessage))

/** None for what is no message. */
export const parseMessage = (frame: Frame): Option.Option<GuestMessage> =>
  frame.kind === controlKind && frame.stream === 0
    ? decodeJson(frame.payload.toString("utf8"))
    : Option.none()

const control = (message: object): Buffer =>
  encodeFrame({ kind: controlKind, stream: 0, payload: Buffer.from(JSON.stringify(message)) })

/** Behind a zero byte, which ends whatever of an earlier session the guest may hold half of. */
export const encodeHello = (nonce: string): Buffer =>
  Buffer.concat([Buffer.alloc(1), control({ type: "hello", version: protocolVersion, nonce })])

export const encodeRequest = (id: number, request: Request): Buffer => control({ id, ...request })
