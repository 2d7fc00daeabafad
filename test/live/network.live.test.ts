/**
 * What hostile guests may and may not do, against the real kernel, in namespaces that the tests make. Every refusal is
 * proven twice: nothing comes back, and a counter of the firewall grew.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import {
  answers,
  dropsDuring,
  hexOf,
  pings,
  received,
  sendFrame,
  stage,
  subnet
} from "../support/netnsGuests.ts"
import {
  fetched,
  namespace,
  namespacesMissing,
  serve,
  serveHttp,
  staysAway,
  succeeds,
  within
} from "../support/netns.ts"

const live = it.live.skipIf(namespacesMissing !== undefined)

live("a guest reaches the world by NAT, the host reaches the guest, and answers come back", () =>
  Effect.gen(function* () {
    const { host, guestNamed } = yield* stage(["a"])
    const world = yield* namespace
    yield* within(
      host,
      "ip",
      "link",
      "add",
      "up0",
      "type",
      "veth",
      "peer",
      "name",
      "eth0",
      "netns",
      world.name
    )
    yield* within(host, "ip", "addr", "add", "10.9.0.1/24", "dev", "up0")
    yield* within(host, "ip", "link", "set", "up0", "up")
    yield* within(world, "ip", "addr", "add", "10.9.0.2/24", "dev", "eth0")
    yield* within(world, "ip", "link", "set", "eth0", "up")
    yield* serve(
      world,
      `require("node:http").createServer((request, res) => res.end(request.socket.remoteAddress))
           .listen(80, "0.0.0.0", () => console.log("ready"))`
    )
    yield* serveHttp(guestNamed("a").inner, 80)
    // The world has no route to the subnet: what it sees and answers is the host's own address.
    assert.strictEqual(yield* fetched(guestNamed("a").inner, "http://10.9.0.2/"), "10.9.0.1")
    assert.strictEqual(yield* fetched(host, `http://${guestNamed("a").lease.ip}/`), "hello")
    assert.isTrue(yield* answers(guestNamed("a").inner, subnet.gateway))
    // Nobody outside opens a connection to a guest, even with a route to it.
    yield* within(world, "ip", "route", "add", subnet.cidr, "via", "10.9.0.1")
    const opened = yield* dropsDuring(
      host,
      "inet",
      "to_guests",
      staysAway(world, `http://${guestNamed("a").lease.ip}/`)
    )
    assert.isTrue(opened.value)
    assert.isAbove(opened.drops, 0)
  }).pipe(Effect.scoped)
)

live("a guest reaches no service of the host, on no address of it, published ports included", () =>
  Effect.gen(function* () {
    const { host, guestNamed } = yield* stage(["a"])
    yield* within(host, "ip", "addr", "add", "10.8.0.1/24", "dev", "lo")
    yield* within(host, "ip", "addr", "add", "169.254.169.254/32", "dev", "lo")
    yield* serveHttp(host, 8080)
    const publish =
      "add table ip pub; add chain ip pub p { type nat hook prerouting priority dstnat; }; add rule ip pub p tcp dport 9090 redirect to 8080"
    yield* within(host, "nft", publish)
    assert.strictEqual(yield* fetched(host, "http://10.8.0.1:8080/"), "hello")
    for (const target of [
      `${subnet.gateway}:8080`,
      "10.8.0.1:8080",
      "169.254.169.254:8080",
      `${subnet.gateway}:9090`
    ]) {
      const tried = yield* dropsDuring(
        host,
        "inet",
        "to_host",
        staysAway(guestNamed("a").inner, `http://${target}/`)
      )
      assert.isTrue(tried.value, target)
      assert.isAbove(tried.drops, 0, target)
    }
  }).pipe(Effect.scoped)
)

live("guests reach each other neither bridged nor routed", () =>
  Effect.gen(function* () {
    const { host, guestNamed } = yield* stage(["a", "b"])
    const [from, to] = [guestNamed("a"), guestNamed("b")]
    yield* serveHttp(to.inner, 80)
    const url = `http://${to.lease.ip}/`
    assert.strictEqual(yield* fetched(host, url), "hello")
    // Directly: the question for the other's MAC is none for the gateway.
    const asked = yield* dropsDuring(host, "bridge", "spoofed", staysAway(from.inner, url))
    assert.isTrue(asked.value)
    assert.isAbove(asked.drops, 0)
    // With the other's MAC known, so that frames go out for it.
    yield* within(from.inner, "ip", "neigh", "replace", to.lease.ip, "lladdr", to.lease.mac, "dev", "eth0")
    const bridged = yield* within(to.inner, "ip", "-s", "-j", "link", "show", "eth0")
    assert.isTrue(yield* staysAway(from.inner, url))
    assert.strictEqual(
      received(yield* within(to.inner, "ip", "-s", "-j", "link", "show", "eth0")),
      received(bridged)
    )
    // By way of the gateway.
    yield* within(from.inner, "ip", "neigh", "del", to.lease.ip, "dev", "eth0")
    yield* within(from.inner, "ip", "route", "add", `${to.lease.ip}/32`, "via", subnet.gateway)
    const routed = yield* dropsDuring(host, "inet", "to_guests", staysAway(from.inner, url))
    assert.isTrue(routed.value)
    assert.isAbove(routed.drops, 0)
    // The firewall alone holds, too, where somebody takes the isolation away.
    for (const { lease } of [from, to])
      yield* within(host, "bridge", "link", "set", "dev", lease.tap, "isolated", "off")
    yield* within(from.inner, "ip", "route", "del", `${to.lease.ip}/32`)
    yield* within(from.inner, "ip", "neigh", "replace", to.lease.ip, "lladdr", to.lease.mac, "dev", "eth0")
    // Where the kernel has br_netfilter, the rules for routed packets see bridged ones first.
    const open = yield* dropsDuring(
      host,
      "inet",
      "to_guests",
      dropsDuring(host, "bridge", "bridged", staysAway(from.inner, url))
    )
    assert.isTrue(open.value.value)
    assert.isAbove(open.drops + open.value.drops, 0)
  }).pipe(Effect.scoped)
)

live(
  "frames with a MAC, an address, an ARP answer, a tag or a protocol that are not the lease's are dropped",
  () =>
    Effect.gen(function* () {
      const { host, guestNamed } = yield* stage(["a", "b"])
      const { inner, lease } = guestNamed("a")
      const victim = guestNamed("b").lease
      const spoofs = <A, E, R>(what: string, body: Effect.Effect<A, E, R>) =>
        Effect.map(dropsDuring(host, "bridge", "spoofed", body), (it) => assert.isAbove(it.drops, 0, what))
      const gatewayPing = answers(inner, subnet.gateway)
      assert.isTrue(yield* gatewayPing)
      const gatewayMac = (yield* within(host, "cat", "/sys/class/net/vmbr0/address")).trim()

      yield* within(inner, "ip", "addr", "add", `${victim.ip}/24`, "dev", "eth0")
      yield* within(inner, "ip", "neigh", "flush", "dev", "eth0")
      yield* spoofs("ARP in the victim's name", pings(inner, "-I", victim.ip, subnet.gateway))
      yield* within(
        inner,
        "ip",
        "neigh",
        "replace",
        subnet.gateway,
        "lladdr",
        gatewayMac,
        "dev",
        "eth0",
        "nud",
        "permanent"
      )
      yield* spoofs("the victim's address", pings(inner, "-I", victim.ip, subnet.gateway))
      yield* spoofs(
        "a gratuitous ARP for the victim's address",
        succeeds(inner, "busybox", "arping", "-U", "-c", "1", "-I", "eth0", victim.ip)
      )
      yield* within(inner, "ip", "addr", "del", `${victim.ip}/24`, "dev", "eth0")

      yield* within(inner, "ip", "link", "set", "eth0", "address", victim.mac)
      yield* spoofs("the victim's MAC", pings(inner, subnet.gateway))
      assert.include(
        yield* within(host, "bridge", "fdb", "show"),
        `${victim.mac} dev ${victim.tap} master vmbr0 static`
      )
      yield* within(inner, "ip", "link", "set", "eth0", "address", lease.mac)

      // An IPv4 packet that is right in all else: 20 bytes, ICMP, from the lease to the gateway.
      const packet = "450000140000000040010000" + hexOf(lease.ip) + hexOf(subnet.gateway)
      const own = lease.mac.replaceAll(":", "")
      const addresses = gatewayMac.replaceAll(":", "") + own
      const sent = yield* dropsDuring(
        host,
        "bridge",
        "spoofed",
        sendFrame(inner, `${addresses}0800${packet}`)
      )
      assert.strictEqual(sent.drops, 0)
      yield* spoofs("a VLAN tag", sendFrame(inner, `${addresses}810000050800${packet}`))
      yield* spoofs("two VLAN tags", sendFrame(inner, `${addresses}88a80005810000050800${packet}`))
      yield* spoofs("spanning tree", sendFrame(inner, `0180c2000000${own}0026424203${"00".repeat(35)}`))
      yield* spoofs(
        "IPv6",
        succeeds(inner, "busybox", "ping6", "-c", "1", "-W", "1", "-I", "eth0", "ff02::1")
      )
      yield* spoofs(
        "DHCP",
        within(
          inner,
          process.execPath,
          "-e",
          `const s = require("node:dgram").createSocket("udp4"); s.bind(68, () => { s.setBroadcast(true); s.send("x", 67, "255.255.255.255", () => s.close()) })`
        )
      )
      // And the guest that behaves still is at home.
      assert.isTrue(yield* gatewayPing)
    }).pipe(Effect.scoped)
)
