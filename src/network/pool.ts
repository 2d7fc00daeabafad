/**
 * Which addresses, MACs and TAP names are free. Pure, and a function of its history only: no clock, no randomness.
 *
 * An instance's MAC and TAP name come from its id, never from a counter, so a restart cannot give a name twice. Its
 * address is looked for from a place in the subnet that its id chooses, in this order:
 *
 *   1. the address that this very instance gave back, where it is still free
 *   2. the first address behind the chosen place that nobody gave back yet
 *   3. the address that was given back longest ago: peers' caches and firewalls forget in the meantime
 *
 * Network and broadcast address, the gateway, and a DNS server inside of the subnet are never leased.
 */
import { createHash } from "node:crypto"
import * as HashMap from "effect/HashMap"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import type { InstanceId } from "../domain/Ids.ts"
import { type Cidr, InterfaceName, Ipv4, type Lease, Mac, type Subnet } from "../domain/Network.ts"

interface Returned {
  readonly id: InstanceId
  /** Grows with every release: the smaller, the longer ago. */
  readonly order: number
}

export interface Pool {
  readonly cidr: Cidr
  /** The network address as a number. */
  readonly network: number
  /** Addresses of the subnet, network and broadcast address included; 4 to 65536. */
  readonly size: number
  readonly reserved: ReadonlySet<string>
  readonly leases: HashMap.HashMap<InstanceId, Lease>
  /** Who holds an address, a MAC or a TAP name; their spellings never meet. */
  readonly holders: HashMap.HashMap<string, InstanceId>
  readonly returned: HashMap.HashMap<Ipv4, Returned>
  readonly releases: number
}

/** Every address is leased: `leased` of them. */
export interface Exhausted {
  readonly cidr: Cidr
  readonly leased: number
}

/** Somebody else, or nobody at all, may hold the address, the MAC or the TAP. */
export interface Clash {
  readonly holder: string
}

const numberOf = (ip: string): number => ip.split(".").reduce((sum, octet) => sum * 256 + Number(octet), 0)

const addressOf = (value: number): Ipv4 =>
  Ipv4.make([2 ** 24, 2 ** 16, 2 ** 8, 1].map((unit) => Math.floor(value / unit) % 256).join("."))

/** First address and number of addresses of a network; host bits are ignored. */
export const span = (cidr: Cidr): { readonly first: number; readonly size: number } => {
  const [ip = "", prefix = ""] = cidr.split("/")
  const size = 2 ** (32 - Number(prefix))
  const address = numberOf(ip)
  return { first: address - (address % size), size }
}

export const prefixLength = (cidr: Cidr): number => Number(cidr.split("/")[1])

/** Whether the address lies in the network. */
export const contains = (cidr: Cidr, ip: string): boolean => {
  const { first, size } = span(cidr)
  return numberOf(ip) >= first && numberOf(ip) < first + size
}

/** Whether two networks share an address; either may be of any length, also a single address without one. */
export const overlap = (one: string, other: string): boolean => {
  const range = (network: string) => {
    const [ip = "", prefix = "32"] = network.split("/")
    const size = 2 ** (32 - Number(prefix))
    const first = numberOf(ip) - (numberOf(ip) % size)
    return { first, end: first + size }
  }
  const [a, b] = [range(one), range(other)]
  return a.first < b.end && b.first < a.end
}

/** A pool with nothing leased. */
export const make = (subnet: Subnet): Pool => {
  const { first, size } = span(subnet.cidr)
  const own = [addressOf(first), addressOf(first + size - 1), subnet.gateway, subnet.dns]
  return {
    cidr: subnet.cidr,
    network: first,
    size,
    reserved: new Set(own.filter((ip) => contains(subnet.cidr, ip))),
    leases: HashMap.empty(),
    holders: HashMap.empty(),
    returned: HashMap.empty(),
    releases: 0
  }
}

/** Addresses that instances can have, and how many do. */
export const usage = (pool: Pool): { readonly total: number; readonly leased: number } => ({
  total: pool.size - pool.reserved.size,
  leased: HashMap.size(pool.leases)
})

/** Hexadecimal digits that depend on the id and on how often the names before them were taken. */
const digits = (id: InstanceId, attempt: number): string =>
  createHash("sha256")
    .update(attempt === 0 ? id : `${id}/${attempt}`)
    .digest("hex")

/** 48 bits of the id: 14 of the 15 characters that a name may have. */
export const tapName = (id: InstanceId, attempt = 0): InterfaceName =>
  InterfaceName.make(`vm${digits(id, attempt).slice(0, 12)}`)

/** 52:54:00 is the prefix that QEMU's guests have; 24 bits of the id, so collisions are expected and probed. */
export const macAddress = (id: InstanceId, attempt = 0): Mac => {
  const [a, b, c] = [12, 14, 16].map((at) => digits(id, attempt).slice(at, at + 2))
  return Mac.make(`52:54:00:${a}:${b}:${c}`)
}

/** The first name that nobody holds. It ends: there are fewer holders than attempts that differ. */
const unheld = <Name extends string>(pool: Pool, name: (attempt: number) => Name): Name => {
  let attempt = 0
  while (HashMap.has(pool.holders, name(attempt))) attempt++
  return name(attempt)
}

const isFree = (pool: Pool, ip: Ipv4): boolean => !pool.reserved.has(ip) && !HashMap.has(pool.holders, ip)

const freeAddress = (pool: Pool, id: InstanceId): Option.Option<Ipv4> => {
  let oldest: { readonly ip: Ipv4; readonly order: number } | undefined
  for (const [ip, returned] of pool.returned) {
    if (!isFree(pool, ip)) continue
    if (returned.id === id) return Option.some(ip)
    if (oldest === undefined || returned.order < oldest.order) oldest = { ip, order: returned.order }
  }
  const start = Number.parseInt(digits(id, 0).slice(18, 26), 16)
  for (let step = 0; step < pool.size; step++) {
    const ip = addressOf(pool.network + ((start + step) % pool.size))
    if (isFree(pool, ip) && !HashMap.has(pool.returned, ip)) return Option.some(ip)
  }
  return Option.map(Option.fromUndefinedOr(oldest), ({ ip }) => ip)
}

const hold = (pool: Pool, id: InstanceId, lease: Lease): Pool => ({
  ...pool,
  leases: HashMap.set(pool.leases, id, lease),
  holders: HashMap.setMany(pool.holders, [
    [lease.ip, id],
    [lease.mac, id],
    [lease.tap, id]
  ]),
  returned: HashMap.remove(pool.returned, lease.ip)
})

/** The lease that the instance has, or a new one. */
export const lease = (
  pool: Pool,
  id: InstanceId
): Result.Result<{ readonly pool: Pool; readonly lease: Lease }, Exhausted> => {
  const own = HashMap.get(pool.leases, id)
  if (Option.isSome(own)) return Result.succeed({ pool, lease: own.value })
  const ip = freeAddress(pool, id)
  if (Option.isNone(ip)) return Result.fail({ cidr: pool.cidr, leased: HashMap.size(pool.leases) })
  const made: Lease = {
    ip: ip.value,
    mac: unheld(pool, (attempt) => macAddress(id, attempt)),
    tap: unheld(pool, (attempt) => tapName(id, attempt))
  }
  return Result.succeed({ pool: hold(pool, id, made), lease: made })
}

/** Puts back a lease that a record holds. The same lease twice is no change; any other conflict is a clash. */
export const adopt = (pool: Pool, id: InstanceId, wanted: Lease): Result.Result<Pool, Clash> => {
  const own = HashMap.get(pool.leases, id)
  if (Option.isSome(own)) {
    const { ip, mac, tap } = own.value
    const same = ip === wanted.ip && mac === wanted.mac && tap === wanted.tap
    return same ? Result.succeed(pool) : Result.fail({ holder: id })
  }
  if (!contains(pool.cidr, wanted.ip)) return Result.fail({ holder: `not in the subnet ${pool.cidr}` })
  if (pool.reserved.has(wanted.ip)) return Result.fail({ holder: `reserved in the subnet ${pool.cidr}` })
  for (const name of [wanted.ip, wanted.mac, wanted.tap]) {
    const holder = HashMap.get(pool.holders, name)
    if (Option.isSome(holder)) return Result.fail({ holder: holder.value })
  }
  return Result.succeed(hold(pool, id, wanted))
}

/** Gives the instance's address back. No change where it has none. */
export const release = (pool: Pool, id: InstanceId): Pool => {
  const own = HashMap.get(pool.leases, id)
  if (Option.isNone(own)) return pool
  const { ip, mac, tap } = own.value
  return {
    ...pool,
    leases: HashMap.remove(pool.leases, id),
    holders: HashMap.removeMany(pool.holders, [ip, mac, tap]),
    returned: HashMap.set(pool.returned, ip, { id, order: pool.releases }),
    releases: pool.releases + 1
  }
}
