/** The pool against a reference that shares no code with it, and its edges one by one. */
import { assert, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { InstanceId } from "../../src/domain/Ids.ts"
import { Cidr, InterfaceName, Ipv4, type Lease, Mac, type Subnet } from "../../src/domain/Network.ts"
import * as pool from "../../src/network/pool.ts"

const subnetOf = (cidr: string, gateway: string, dns = "1.1.1.1"): Subnet => ({
  bridge: InterfaceName.make("vmbr0"),
  cidr: Cidr.make(cidr),
  gateway: Ipv4.make(gateway),
  dns: Ipv4.make(dns)
})
/** Six addresses, of which the gateway and the DNS server are two: small enough to be full all the time. */
const small = subnetOf("10.0.0.0/29", "10.0.0.1", "10.0.0.6")
const free = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]
const ids = ["a", "b", "c", "d", "e", "f"].map((name) => InstanceId.make(name))

const leased = (from: pool.Pool, id: InstanceId) => {
  const made = pool.lease(from, id)
  return Result.isSuccess(made) ? made.success : assert.fail(`no address for ${id}`)
}

const step = Arbitrary.schema(
  Schema.Struct({
    verb: Schema.Literals(["lease", "lease", "release", "adopt", "steal"]),
    id: Schema.Literals(ids),
    other: Schema.Literals(ids)
  })
)

/** Who has which address, and in which order addresses came back; says what may be leased, and shares no code. */
class Reference {
  readonly held = new Map<string, Lease>()
  readonly back: Array<{ readonly ip: string; readonly id: string }> = []

  allowed(id: string): ReadonlyArray<string> {
    const taken = new Set([...this.held.values()].map((lease): string => lease.ip))
    const open = free.filter((ip) => !taken.has(ip))
    const own = this.back.filter((it) => it.id === id && !taken.has(it.ip)).map((it) => it.ip)
    if (own.length > 0) return own
    const fresh = open.filter((ip) => !this.back.some((it) => it.ip === ip))
    if (fresh.length > 0) return fresh
    const oldest = this.back.find((it) => !taken.has(it.ip))
    return oldest === undefined ? [] : [oldest.ip]
  }

  take(id: string, lease: Lease): void {
    this.held.set(id, lease)
    this.forget(lease.ip)
  }

  give(id: string): void {
    const lease = this.held.get(id)
    if (lease === undefined) return
    this.held.delete(id)
    this.forget(lease.ip)
    this.back.push({ ip: lease.ip, id })
  }

  private forget(ip: string): void {
    const at = this.back.findIndex((it) => it.ip === ip)
    if (at >= 0) this.back.splice(at, 1)
  }
}

type Step = { readonly verb: string; readonly id: InstanceId; readonly other: InstanceId }

const leaseStep = (now: pool.Pool, reference: Reference, id: InstanceId): pool.Pool => {
  const had = reference.held.get(id)
  const made = pool.lease(now, id)
  if (Result.isFailure(made)) {
    assert.strictEqual(reference.held.size, free.length)
    assert.deepStrictEqual(made.failure, { cidr: small.cidr, leased: free.length })
    return now
  }
  if (had === undefined) assert.include(reference.allowed(id), made.success.lease.ip)
  else assert.deepStrictEqual(made.success.lease, had)
  reference.take(id, made.success.lease)
  return made.success.pool
}

/** A lease as a record may hold it: of another instance, of the same, or with one part of another's. */
const recorded = (reference: Reference, { verb, id, other }: Step): Lease => ({
  ip: Ipv4.make(free[ids.indexOf(other) % free.length] ?? "10.0.0.2"),
  mac: pool.macAddress(id),
  tap: verb === "steal" ? (reference.held.get(other)?.tap ?? pool.tapName(id)) : pool.tapName(id)
})

const adoptStep = (now: pool.Pool, reference: Reference, it: Step): pool.Pool => {
  const lease = reference.held.get(it.id) ?? recorded(reference, it)
  const adopted = pool.adopt(now, it.id, lease)
  const clash = [...reference.held].find(
    ([holder, held]) =>
      holder !== it.id && (held.ip === lease.ip || held.mac === lease.mac || held.tap === lease.tap)
  )
  assert.strictEqual(Result.isFailure(adopted), clash !== undefined)
  if (Result.isFailure(adopted)) return now
  reference.take(it.id, lease)
  return adopted.success
}

it.prop(
  "pool: any history agrees with the reference, and no two instances share anything",
  { steps: Arbitrary.array(step, { maxLength: 40 }) },
  ({ steps }) => {
    const reference = new Reference()
    let now = pool.make(small)
    for (const it of steps) {
      if (it.verb === "lease") now = leaseStep(now, reference, it.id)
      else if (it.verb === "release") {
        now = pool.release(now, it.id)
        reference.give(it.id)
      } else now = adoptStep(now, reference, it)
      const held = [...reference.held.values()]
      assert.deepStrictEqual(pool.usage(now), { total: free.length, leased: held.length })
      for (const part of ["ip", "mac", "tap"] as const) {
        assert.strictEqual(new Set(held.map((lease) => lease[part])).size, held.length)
      }
    }
  }
)

it("pool: the same history gives the same leases, and an id its address again", () => {
  const run = () => ids.slice(0, 3).reduce((now, id) => leased(now, id).pool, pool.make(small))
  assert.deepStrictEqual(
    ids.slice(0, 3).map((id) => leased(run(), id).lease),
    ids.slice(0, 3).map((id) => leased(run(), id).lease)
  )
  const [first = InstanceId.make("a"), second = InstanceId.make("b")] = ids
  const before = leased(run(), second).lease
  const gone = pool.release(run(), second)
  assert.deepStrictEqual(leased(leased(gone, first).pool, second).lease, before)
})

it("pool: in a large subnet an id has its address whatever came before", () => {
  const large = pool.make(subnetOf("10.1.0.0/16", "10.1.0.1"))
  const id = InstanceId.make("web-1")
  const alone = leased(large, id).lease
  const crowd = ids.reduce((now, other) => leased(now, other).pool, large)
  assert.deepStrictEqual(leased(crowd, id).lease, alone)
})

it("pool: addresses that came back are given last, the oldest of them first", () => {
  const [a, b, c, d, e] = ids
  if (a === undefined || b === undefined || c === undefined || d === undefined || e === undefined) {
    return assert.fail("five ids")
  }
  const full = [a, b, c, d].reduce((now, id) => leased(now, id).pool, pool.make(small))
  const oldest = leased(full, b).lease.ip
  const emptied = [b, c].reduce(pool.release, full)
  return assert.strictEqual(leased(emptied, e).lease.ip, oldest)
})

it("pool: every address of every size of subnet but the subnet's own is leased, then none", () => {
  for (const [cidr, gateway, total] of [
    ["10.0.0.0/30", "10.0.0.1", 1],
    ["10.0.0.0/30", "10.0.0.2", 1],
    ["192.168.100.0/24", "192.168.100.254", 253],
    ["172.16.8.0/22", "172.16.8.1", 1021]
  ] as const) {
    const subnet = subnetOf(cidr, gateway)
    let now = pool.make(subnet)
    const given = new Set<string>()
    for (let index = 0; index < total; index++) {
      const made = leased(now, InstanceId.make(`vm-${index}`))
      now = made.pool
      given.add(made.lease.ip)
    }
    assert.strictEqual(given.size, total)
    assert.isFalse(given.has(gateway))
    const [network = ""] = cidr.split("/")
    assert.isFalse(given.has(network))
    const { first, size } = pool.span(subnet.cidr)
    const broadcast = first + size - 1
    assert.isFalse(given.has([24, 16, 8, 0].map((shift) => (broadcast >>> shift) & 255).join(".")))
    assert.isTrue([...given].every((ip) => pool.contains(subnet.cidr, ip)))
    assert.isTrue(Result.isFailure(pool.lease(now, InstanceId.make("one-more"))))
  }
})

it("pool: MAC and TAP come from the id; a taken one is passed over", () => {
  const id = InstanceId.make("a".repeat(63))
  assert.match(pool.tapName(id), /^vm[0-9a-f]{12}$/u)
  assert.match(pool.macAddress(id), /^52:54:00(:[0-9a-f]{2}){3}$/u)
  const squatter = InstanceId.make("squatter")
  const lease: Lease = { ip: Ipv4.make("10.0.0.2"), mac: pool.macAddress(id), tap: pool.tapName(id) }
  const taken = pool.adopt(pool.make(small), squatter, lease)
  if (Result.isFailure(taken)) return assert.fail("the pool was empty")
  const made = leased(taken.success, id).lease
  assert.strictEqual(made.mac, pool.macAddress(id, 1))
  return assert.strictEqual(made.tap, pool.tapName(id, 1))
})

it("pool: a lease that no record may hold is a clash that says why", () => {
  const id = InstanceId.make("a")
  const lease = (ip: string): Lease => ({
    ip: Ipv4.make(ip),
    mac: Mac.make("52:54:00:00:00:01"),
    tap: pool.tapName(id)
  })
  const holder = (ip: string) => {
    const adopted = pool.adopt(pool.make(small), id, lease(ip))
    return Result.isFailure(adopted) ? adopted.failure.holder : undefined
  }
  assert.include(holder("10.0.1.2"), "not in the subnet 10.0.0.0/29")
  for (const own of ["10.0.0.0", "10.0.0.1", "10.0.0.6", "10.0.0.7"]) assert.include(holder(own), "reserved")
  assert.isUndefined(holder("10.0.0.2"))
  const held = leased(pool.make(small), id)
  const moved = { ...held.lease, ip: Ipv4.make(free.find((ip) => ip !== held.lease.ip) ?? "10.0.0.2") }
  assert.deepStrictEqual(pool.adopt(held.pool, id, moved), Result.fail({ holder: "a" }))
})

it("pool: networks overlap where they share an address", () => {
  for (const [one, other, shared] of [
    ["10.0.0.0/8", "10.200.0.0/16", true],
    ["192.168.100.0/24", "192.168.101.0/24", false],
    ["192.168.100.7", "192.168.100.0/24", true],
    ["192.168.100.0/24", "192.168.0.0/16", true],
    ["0.0.0.0/0", "255.255.255.255", true]
  ] as const) {
    assert.strictEqual(pool.overlap(one, other), shared)
    assert.strictEqual(pool.overlap(other, one), shared)
  }
})
