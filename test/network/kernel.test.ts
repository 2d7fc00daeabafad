/** Attach, detach, reconcile and their failures, against the real kernel, in namespaces that the tests make. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Cidr, InterfaceName } from "../../src/domain/Network.ts"
import { conflicts, foreignDrops } from "../../src/network/conflicts.ts"
import { bridgeMaxPorts, ip, links } from "../../src/network/iproute.ts"
import { removeAll, setUp } from "../../src/network/Network.ts"
import { connect, hold, id, kernelState, service, subnet, taps } from "../support/netnsGuests.ts"
import { inside, namespace, namespacesMissing, within } from "../support/netns.ts"

const live = it.live.skipIf(namespacesMissing !== undefined)

live("attach gives a port that talks to the host only; detach leaves nothing", () =>
  Effect.gen(function* () {
    const host = yield* namespace
    const network = yield* service(host)
    yield* inside(host)(setUp(subnet))
    const before = yield* kernelState(host)
    const lease = yield* network.lease(id("a"))
    yield* connect(network, id("a"), lease)
    const shown = yield* within(host, "ip", "-d", "link", "show", lease.tap)
    for (const flag of [
      "isolated on",
      "flood off",
      "learning off",
      "mcast_flood off",
      "bcast_flood off",
      "vnet_hdr on"
    ]) {
      assert.include(shown, flag)
    }
    assert.include(
      yield* within(host, "bridge", "fdb", "show"),
      `${lease.mac} dev ${lease.tap} master vmbr0 static`
    )
    yield* connect(network, id("a"), lease)
    yield* network.detach(lease)
    assert.deepStrictEqual(yield* kernelState(host), before)
    yield* network.detach(lease)
    assert.deepStrictEqual(yield* kernelState(host), before)
    yield* inside(host)(removeAll(subnet))
    const after = yield* kernelState(host)
    assert.deepStrictEqual(after.links, ["lo"])
    assert.strictEqual(after.rules, "")
  }).pipe(Effect.scoped)
)

live("twenty rounds of eight at once leave nothing", () =>
  Effect.gen(function* () {
    const host = yield* namespace
    const network = yield* service(host)
    yield* network.reconcile(new Map())
    const before = yield* kernelState(host)
    const names = Array.from({ length: 8 }, (_, index) => id(`round-${index}`))
    for (let round = 0; round < 20; round++) {
      yield* Effect.forEach(
        names,
        (name) =>
          Effect.gen(function* () {
            const lease = yield* network.lease(name)
            yield* connect(network, name, lease)
            yield* network.detach(lease)
            yield* network.release(name)
          }),
        { concurrency: "unbounded", discard: true }
      )
    }
    assert.deepStrictEqual(yield* kernelState(host), before)
    assert.strictEqual((yield* network.usage).leased, 0)
  }).pipe(Effect.scoped)
)

live("what a crash left is removed, what lives stays and is set right, what is foreign stays as it is", () =>
  Effect.gen(function* () {
    const host = yield* namespace
    const before = yield* service(host)
    const attached = (name: string) =>
      Effect.tap(before.lease(id(name)), (lease) => connect(before, id(name), lease))
    const [lives, dead, deadToo] = yield* Effect.all([
      attached("lives"),
      attached("dead"),
      attached("dead-too")
    ])
    yield* within(host, "ip", "link", "add", "other0", "type", "veth")
    yield* within(host, "ip", "link", "set", "other0", "master", "vmbr0")
    yield* within(host, "ip", "tuntap", "add", "dev", "vmforeign", "mode", "tap")
    yield* within(host, "nft", "add table inet theirs")
    yield* within(host, "bridge", "link", "set", "dev", lives.tap, "isolated", "off")

    const after = yield* service(host)
    yield* after.adopt(id("lives"), lives)
    const removed = yield* after.reconcile(new Map([[id("lives"), lives]]))
    assert.deepStrictEqual(removed.toSorted(), [dead.tap, deadToo.tap].toSorted())
    assert.deepStrictEqual((yield* taps(host)).toSorted(), [lives.tap, "vmforeign"].toSorted())
    const state = yield* kernelState(host)
    assert.include(state.links, "other0")
    assert.include(state.rules, "table inet theirs")
    for (const gone of [dead, deadToo]) {
      assert.notInclude(state.rules, gone.tap)
      assert.notInclude(state.neighbours, `${gone.ip} `)
    }
    assert.include(state.rules, `"${lives.tap}" . ${lives.mac} . ${lives.ip}`)
    assert.include(yield* within(host, "ip", "-d", "link", "show", lives.tap), "isolated on")
    assert.deepStrictEqual(yield* after.reconcile(new Map([[id("lives"), lives]])), [])

    // Nobody lives: an empty map is a statement, not a missing one.
    assert.deepStrictEqual(yield* after.reconcile(new Map()), [lives.tap])
    yield* inside(host)(removeAll(subnet))
    const end = yield* kernelState(host)
    assert.include(end.links, "vmbr0", "the bridge carries somebody else's port")
    assert.include(end.rules, "table inet theirs")
    assert.notInclude(end.rules, "chd_")
  }).pipe(Effect.scoped)
)

live("a bridge and rules that somebody removed are made anew, and running TAPs come back to it", () =>
  Effect.gen(function* () {
    const host = yield* namespace
    const network = yield* service(host)
    const [first, second] = [yield* network.lease(id("first")), yield* network.lease(id("second"))]
    yield* connect(network, id("first"), first)
    const mac = yield* within(host, "cat", "/sys/class/net/vmbr0/address")
    yield* within(host, "ip", "link", "del", "vmbr0")
    yield* within(host, "nft", "flush ruleset")
    yield* connect(network, id("second"), second)
    assert.strictEqual(yield* within(host, "cat", "/sys/class/net/vmbr0/address"), mac)
    assert.deepStrictEqual(
      yield* network.reconcile(
        new Map([
          [id("first"), first],
          [id("second"), second]
        ])
      ),
      []
    )
    const ports = (yield* inside(host)(links))
      .filter((link) => link.master === "vmbr0")
      .map((link) => link.ifname)
    assert.deepStrictEqual(ports.toSorted(), [first.tap, second.tap].toSorted())
    const rules = yield* within(host, "nft", "list", "ruleset")
    assert.include(rules, `"${first.tap}" . ${first.mac}`)
    yield* within(host, "nft", "flush ruleset")
    yield* network.detach(first)
    yield* network.detach(second)
    assert.deepStrictEqual(yield* taps(host), [])
  }).pipe(Effect.scoped)
)

live("a TAP that a dying VMM holds is waited for; one that stays held is a fault and stays untouched", () =>
  Effect.gen(function* () {
    const host = yield* namespace
    const network = yield* service(host)
    const lease = yield* network.lease(id("a"))
    yield* connect(network, id("a"), lease)
    yield* Effect.scoped(
      Effect.gen(function* () {
        yield* hold(host, lease.tap)
        const refused = yield* Effect.flip(network.attach(id("a"), lease))
        assert.include(refused.reason, "still held")
        assert.include(yield* within(host, "ip", "link", "show", lease.tap), "LOWER_UP")
        assert.include(yield* within(host, "nft", "list", "ruleset"), `"${lease.tap}" . ${lease.mac}`)
      })
    )
    yield* connect(network, id("a"), lease)
    const holder = yield* Effect.forkChild(
      Effect.scoped(Effect.andThen(hold(host, lease.tap), Effect.sleep("300 millis")))
    )
    yield* connect(network, id("a"), lease)
    yield* Fiber.join(holder)
  }).pipe(Effect.scoped)
)

live("an interface that is not ours is never taken over", () =>
  Effect.gen(function* () {
    const host = yield* namespace
    const network = yield* service(host)
    const lease = yield* network.lease(id("a"))
    yield* within(host, "ip", "link", "add", lease.tap, "type", "veth")
    yield* within(host, "ip", "link", "set", lease.tap, "alias", "theirs")
    const refused = yield* Effect.flip(network.attach(id("a"), lease))
    assert.include(refused.reason, "none of ours")
    assert.include(yield* within(host, "ip", "link", "show", lease.tap), "theirs")
    yield* within(host, "ip", "link", "add", "vmbr1", "type", "veth")
    const other = yield* service(host, { ...subnet, bridge: InterfaceName.make("vmbr1") })
    const taken = yield* Effect.flip(other.reconcile(new Map()))
    assert.include(taken.reason, "is no bridge")
  }).pipe(Effect.scoped)
)

live(
  "a subnet without a free address and a bridge without a free port say so",
  () =>
    Effect.gen(function* () {
      const host = yield* namespace
      const tiny = yield* service(host, {
        ...subnet,
        cidr: Cidr.make("192.168.100.0/30")
      })
      const only = yield* tiny.lease(id("a"))
      const refused = yield* Effect.flip(tiny.lease(id("b")))
      assert.include(refused.detail, "All 1 addresses of 192.168.100.0/30")
      const clash = yield* Effect.flip(tiny.adopt(id("b"), { ...only }))
      assert.strictEqual(clash.holder, "a")

      const network = yield* service(host)
      yield* inside(host)(setUp(subnet))
      const ports = Array.from({ length: bridgeMaxPorts }, (_, index) => `p${index}`)
      yield* inside(host)(
        ip(ports.flatMap((name) => [`link add ${name} type veth`, `link set ${name} master vmbr0`]))
      )
      const lease = yield* network.lease(id("full"))
      const full = yield* Effect.flip(network.attach(id("full"), lease))
      assert.include(full.reason, "at most 1023 ports")
      assert.deepStrictEqual(yield* taps(host), [])
      assert.notInclude(yield* within(host, "nft", "list", "ruleset"), lease.tap)
    }).pipe(Effect.scoped),
  60_000
)

live("conflicts of routes and foreign drops are found, our own are none", () =>
  Effect.gen(function* () {
    const host = yield* namespace
    yield* inside(host)(setUp(subnet))
    assert.deepStrictEqual(yield* inside(host)(conflicts(subnet)), [])
    assert.deepStrictEqual(yield* inside(host)(foreignDrops(subnet)), [])
    yield* within(host, "ip", "link", "add", "lan0", "type", "veth")
    yield* within(host, "ip", "addr", "add", "192.168.0.1/16", "dev", "lan0")
    yield* within(host, "ip", "link", "set", "lan0", "up")
    yield* within(
      host,
      "nft",
      "add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }"
    )
    const found = yield* inside(host)(conflicts(subnet))
    assert.strictEqual(found.length, 1)
    assert.include(found[0] ?? "", "192.168.0.0/16 of lan0")
    const drops = yield* inside(host)(foreignDrops(subnet))
    assert.strictEqual(drops.length, 1)
    assert.include(drops[0] ?? "", "inet fw in")
  }).pipe(Effect.scoped)
)
