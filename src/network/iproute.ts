/**
 * `ip`, `bridge` and `nft`, one process per change: batches on standard input, so that a change of many steps costs one
 * start of a program. What they print is decoded; how they refuse becomes a sentence.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { run } from "../host/Command.ts"
import type { CommandFault } from "../host/Fault.ts"
import { NetworkFault } from "./NetworkFault.ts"

/** net/bridge/br_private.h: BR_MAX_PORTS is 1024, and port number 0 is never given. */
export const bridgeMaxPorts = 1023

type Change = (lines: ReadonlyArray<string>) => Effect.Effect<void, CommandFault>

const batch =
  (command: string, args: ReadonlyArray<string>): Change =>
  (lines) =>
    lines.length === 0 ? Effect.void : Effect.asVoid(run(command, args, { input: `${lines.join("\n")}\n` }))

/** Lines of `ip` (ip(8), -batch); stops at the first that fails, and what came before stays done. */
export const ip: Change = batch("ip", ["-batch", "-"])

/** As `ip`, but goes on behind a line that fails, and fails in the end. */
export const ipForced: Change = batch("ip", ["-force", "-batch", "-"])

/** Lines of `bridge` (bridge(8)). */
export const bridge: Change = batch("bridge", ["-batch", "-"])

/** One nftables transaction (nft(8), -f): all of it, or nothing. */
export const nft: Change = batch("nft", ["-f", "-"])

const Link = Schema.Struct({
  ifname: Schema.String,
  flags: Schema.Array(Schema.String),
  group: Schema.optionalKey(Schema.String),
  ifalias: Schema.optionalKey(Schema.String),
  master: Schema.optionalKey(Schema.String),
  linkinfo: Schema.optionalKey(Schema.Struct({ info_kind: Schema.optionalKey(Schema.String) })),
  addr_info: Schema.optionalKey(
    Schema.Array(
      Schema.Struct({
        family: Schema.String,
        local: Schema.optionalKey(Schema.String),
        prefixlen: Schema.Int
      })
    )
  )
})
export type Link = typeof Link.Type

const Route = Schema.Struct({ dst: Schema.String, dev: Schema.optionalKey(Schema.String) })

const Neighbour = Schema.Struct({ dst: Schema.String, lladdr: Schema.optionalKey(Schema.String) })

const decoded = <A, I>(command: string, args: ReadonlyArray<string>, schema: Schema.Codec<A, I>) => {
  const decode = Schema.decodeEffect(Schema.fromJsonString(schema))
  return run(command, args).pipe(
    Effect.flatMap((text) => decode(text.trim() === "" ? "[]" : text)),
    // A program that answers in another form than its manual says is a defect of the host, not a case to handle.
    Effect.catchTag("SchemaError", (error) => Effect.die(error))
  )
}

/** Every interface, with its addresses. */
export const links = decoded("ip", ["-j", "-d", "addr", "show"], Schema.Array(Link))

/** IPv4 routes of the main table. */
export const routes = decoded("ip", ["-j", "-4", "route", "show"], Schema.Array(Route))

/** Permanent neighbours behind an interface. */
export const permanentNeighbours = (dev: string) =>
  decoded("ip", ["-j", "-4", "neigh", "show", "dev", dev, "nud", "permanent"], Schema.Array(Neighbour))

const sentences: ReadonlyArray<readonly [RegExp, string]> = [
  [/Exchange full/u, `the bridge is full: Linux gives a bridge at most ${bridgeMaxPorts} ports`],
  [
    /TUNSETIFF.*Device or resource busy/u,
    "an interface of this name is still held by a process, or is none of ours"
  ],
  [/^open: /mu, "/dev/net/tun does not open: load the module tun"],
  [/Operation not permitted|must be root/u, "the service lacks CAP_NET_ADMIN: run it as root"]
]

/** What a tool said, as a sentence. */
export const reasonOf = (fault: CommandFault): string => {
  if (fault.outcome === "missing") {
    return `${fault.command} is not installed: install ${fault.command === "nft" ? "nftables" : "iproute2"}`
  }
  return sentences.find(([pattern]) => pattern.test(fault.stderr))?.[1] ?? fault.message
}

/** The fault of an operation on the network. */
export const networkFault =
  (operation: string) =>
  (cause: CommandFault): NetworkFault =>
    new NetworkFault({ operation, reason: reasonOf(cause), cause })
