#!/bin/sh
# Sets up the bridge, NAT and the firewall rules of the guests' network on this host, from BRIDGE_NAME, SUBNET_CIDR,
# SUBNET_GATEWAY and DNS_SERVER. With --remove, takes them away again. Needs root, iproute2 and nftables. Idempotent.
set -eu
cd "$(dirname "$0")/.."
case "${1:-}" in
  "" | --remove) ;;
  *)
    echo "usage: $0 [--remove]" >&2
    exit 2
    ;;
esac
# A checkout has the sources, a package what is built of them.
program=src/network/setupHost.ts
[ -e "$program" ] || program=dist/setup-host-network.mjs
# The Node of the dependencies comes first: the system's may be older than the sources need.
PATH="$PWD/node_modules/.bin:$PWD/../.bin:$PATH" exec node "$program" "$@"
