/** The rule set as text; what it does to packets is in test/live/network.live.test.ts. */
import { assert, it } from "@effect/vitest"
import { Cidr, InterfaceName, Ipv4 } from "../../src/domain/Network.ts"
import { ruleset, tableName } from "../../src/network/Firewall.ts"

const subnet = (bridge: string) => ({
  bridge: InterfaceName.make(bridge),
  cidr: Cidr.make("10.0.0.0/24"),
  gateway: Ipv4.make("10.0.0.1"),
  dns: Ipv4.make("1.1.1.1")
})

it("firewall: bridges never share a table, and a dash is none in a name of nftables", () => {
  const names = ["br0", "br-0", "b-r0"].map((bridge) => tableName(subnet(bridge)))
  assert.strictEqual(new Set(names).size, names.length)
  assert.isTrue(names.every((name) => /^chd_[a-z0-9_]+$/u.test(name)))
})

it("firewall: the rules are renewed without touching the elements of running guests", () => {
  const lines = ruleset(subnet("br0"))
  assert.deepStrictEqual(lines.slice(0, 4), [
    "add table bridge chd_br0",
    "add table inet chd_br0",
    "flush table bridge chd_br0",
    "flush table inet chd_br0"
  ])
  assert.notMatch(lines.join("\n"), /flush (set|ruleset)|delete/u)
})
