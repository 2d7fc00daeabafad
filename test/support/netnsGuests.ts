/**
 * A host in a network namespace, its real network, and guests without VMs: one end of a veth pair is a port of the
 * bridge under the TAP's name, set up by the same lines as a TAP, and the other end is "the guest", in a namespace of
 * its own where it may do whatever a hostile guest's root may.
 */
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { InstanceId } from "../../src/domain/Ids.ts"
import { Cidr, InterfaceName, Ipv4, type Lease, type Subnet } from "../../src/domain/Network.ts"
import { CommandPrefix } from "../../src/host/Command.ts"
import { decodeSettings, Settings } from "../../src/host/Settings.ts"
import { pin } from "../../src/network/Firewall.ts"
import { bridge, ip, links } from "../../src/network/iproute.ts"
import { Network } from "../../src/network/Network.ts"
import { forwardingLine, portLines } from "../../src/network/Tap.ts"
import { inside, type Namespace, namespace, start, succeeds, within } from "./netns.ts"

export const subnet: Subnet = {
  bridge: InterfaceName.make("vmbr0"),
  cidr: Cidr.make("192.168.100.0/24"),
  gateway: Ipv4.make("192.168.100.1"),
  dns: Ipv4.make("1.1.1.1")
}
export const id = (name: string) => InstanceId.make(name)

const settings = (of: Subnet) =>
  Layer.effect(
    Settings,
    Effect.fromResult(decodeSettings({}, false)).pipe(Effect.map((it) => ({ ...it, subnet: of })))
  )

/** The service, with its commands in the namespace: a new one each time, as after a restart. */
export const service = (host: Namespace, of: Subnet = subnet) =>
  Layer.build(
    Network.layer.pipe(Layer.provide(settings(of)), Layer.provide(Layer.succeed(CommandPrefix, host.prefix)))
  ).pipe(Effect.map((context) => Context.get(context, Network)))

/** A TAP as a guest's VMM finds it once its guest runs: made and pinned. */
export const connect = (network: Network["Service"], name: InstanceId, lease: Lease) =>
  Effect.andThen(network.attach(name, lease), network.pin(lease))

export const taps = (host: Namespace) =>
  inside(host)(links).pipe(
    Effect.map((all) => all.filter((link) => link.linkinfo?.info_kind === "tun").map((link) => link.ifname))
  )

/** Everything of the host that may grow: interfaces, forwarding entries, neighbours, rules with their elements. */
export const kernelState = (host: Namespace) =>
  Effect.all({
    links: inside(host)(links).pipe(Effect.map((all) => all.map((link) => link.ifname).toSorted())),
    fdb: within(host, "bridge", "fdb", "show").pipe(Effect.map((text) => text.split("\n").toSorted())),
    neighbours: within(host, "ip", "neigh", "show", "nud", "permanent"),
    rules: within(host, "nft", "-s", "list", "ruleset")
  })

/** A guest without a VM: its end of the wire is `eth0` in a namespace of its own. */
export const guest = (host: Namespace, name: string, lease: Lease) =>
  Effect.gen(function* () {
    const inner = yield* namespace
    yield* within(
      host,
      "ip",
      "link",
      "add",
      lease.tap,
      "type",
      "veth",
      "peer",
      "name",
      "eth0",
      "netns",
      inner.name
    )
    yield* inside(host)(pin(subnet, lease))
    yield* inside(host)(ip(portLines(subnet, id(name), lease)))
    yield* inside(host)(bridge([forwardingLine(lease)]))
    yield* within(inner, "ip", "link", "set", "eth0", "address", lease.mac, "up")
    yield* within(inner, "ip", "addr", "add", `${lease.ip}/24`, "dev", "eth0")
    yield* within(inner, "ip", "route", "add", "default", "via", subnet.gateway)
    return inner
  })

/** The host with the network set up, and a guest per name, leased by the real pool. */
export const stage = <const Names extends ReadonlyArray<string>>(names: Names) =>
  Effect.gen(function* () {
    const host = yield* namespace
    const network = yield* service(host)
    yield* network.reconcile(new Map())
    const guests = yield* Effect.forEach(names, (name) =>
      Effect.gen(function* () {
        const lease = yield* network.lease(id(name))
        return { lease, inner: yield* guest(host, name, lease) }
      })
    )
    const guestNamed = (name: Names[number]) => {
      const found = guests[names.indexOf(name)]
      return found ?? assert.fail(`no guest ${name}`)
    }
    return { host, guestNamed }
  })

const Received = Schema.fromJsonString(
  Schema.Array(Schema.Struct({ stats64: Schema.Struct({ rx: Schema.Struct({ packets: Schema.Int }) }) }))
)
export const received = (shown: string): number | undefined =>
  Schema.decodeSync(Received)(shown)[0]?.stats64.rx.packets

export const hexOf = (address: string): string => Buffer.from(address.split(".").map(Number)).toString("hex")

const counted = (host: Namespace, family: string, name: string) =>
  within(host, "nft", "list", "counter", family, "chd_vmbr0", name).pipe(
    Effect.map((text) => Number(/packets (\d+)/u.exec(text)?.[1]))
  )

/** Runs the body and says by how much a counter of drops grew: the proof that the frames arrived and were refused. */
export const dropsDuring = <A, E, R>(
  host: Namespace,
  family: string,
  name: string,
  body: Effect.Effect<A, E, R>
) =>
  Effect.gen(function* () {
    const before = yield* counted(host, family, name)
    const value = yield* body
    return { value, drops: (yield* counted(host, family, name)) - before }
  })

/** One echo request, and a second for its answer. */
export const pings = (from: Namespace, ...args: ReadonlyArray<string>) =>
  succeeds(from, "busybox", "ping", "-c", "1", "-W", "1", ...args)

/** Whether an address answers an echo request, on however busy a machine. */
export const answers = (from: Namespace, address: string) =>
  succeeds(from, "busybox", "ping", "-c", "1", "-W", "10", address)

/** Opens a TAP as a VMM would, and holds it until the scope closes. `struct ifreq`: name, then IFF_TAP|IFF_NO_PI. */
export const hold = (host: Namespace, tap: string) =>
  start(
    host,
    "perl",
    "-e",
    `$| = 1; sysopen(F, "/dev/net/tun", 2) or die $!;
     $request = pack("a16 s x22", "${tap}", 0x5002); ioctl(F, 0x400454ca, $request) or die $!;
     print "held\n"; select(undef, undef, undef, undef)`
  )

/** Sends one frame as it is, given in hexadecimal, out of the guest's eth0 (packet(7)). */
export const sendFrame = (from: Namespace, hex: string) =>
  within(
    from,
    "perl",
    "-e",
    `open(I, "/sys/class/net/eth0/ifindex"); $index = <I> + 0;
     socket(S, 17, 3, 0x0300) or die $!;
     send(S, pack("H*", "${hex}"), 0, pack("S n i S C C a8", 17, 3, $index, 0, 0, 6, "")) or die $!`
  )
