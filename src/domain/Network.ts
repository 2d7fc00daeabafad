/**
 * Addresses, and the lease that gives an instance its own. A lease is a value: it is part of the instance's record,
 * sticky from create to delete, and the allocator's pool is rebuilt from records after a restart.
 */
import * as Schema from "effect/Schema"

export const Ipv4 = Schema.String.check(
  Schema.isPattern(/^((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)$/u, {
    expected: "an IPv4 address"
  })
)
  .annotate({ identifier: "Ipv4", format: "ipv4", examples: ["192.168.100.2"] })
  .pipe(Schema.brand("Ipv4"))
export type Ipv4 = typeof Ipv4.Type

/** An IPv4 network in CIDR form with no host bits set (RFC 4632); /16 to /30, so that a pool is bounded. */
export const Cidr = Schema.String.check(
  Schema.isPattern(/^\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\/(1[6-9]|2\d|30)$/u, {
    expected: "an IPv4 network, /16 to /30"
  })
)
  .annotate({ identifier: "Cidr", examples: ["192.168.100.0/24"] })
  .pipe(Schema.brand("Cidr"))
export type Cidr = typeof Cidr.Type

export const Mac = Schema.String.check(
  Schema.isPattern(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/u, { expected: "a lower-case MAC address" })
)
  .annotate({ identifier: "Mac", examples: ["52:54:00:12:34:56"] })
  .pipe(Schema.brand("Mac"))
export type Mac = typeof Mac.Type

/** IFNAMSIZ is 16 with the closing NUL (linux/if.h). */
export const InterfaceName = Schema.String.check(
  Schema.isPattern(/^[a-z][a-z0-9-]{0,14}$/u, { expected: "an interface name of at most 15 characters" })
)
  .annotate({ identifier: "InterfaceName", examples: ["vmbr0"] })
  .pipe(Schema.brand("InterfaceName"))
export type InterfaceName = typeof InterfaceName.Type

/** What the allocator hands out: one address, one MAC and one TAP name, all unique on this host. */
export const Lease = Schema.Struct({ ip: Ipv4, mac: Mac, tap: InterfaceName }).annotate({
  identifier: "Lease"
})
export type Lease = typeof Lease.Type

/** The network that all instances of a host share. */
export const Subnet = Schema.Struct({ bridge: InterfaceName, cidr: Cidr, gateway: Ipv4, dns: Ipv4 })
export type Subnet = typeof Subnet.Type
