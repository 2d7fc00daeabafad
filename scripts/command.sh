# shellcheck shell=bash
# Sourced by the scripts that are front ends of `dataplane`: how they start it, and how they complain.
#
# DATAPLANE_URL and DATAPLANE_TOKEN say where the service is, as for the command itself.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The Node of the dependencies comes first, in a checkout or in a package: the system's may be older.
PATH="$repository/node_modules/.bin:$repository/../.bin:$PATH"
# A checkout has the sources, a package what is built of them.
program=$repository/src/main.ts
[ -e "$program" ] || program=$repository/dist/dataplane.mjs

dataplane() { node "$program" "$@"; }

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# usage: the comment at the head of the script that was started.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
