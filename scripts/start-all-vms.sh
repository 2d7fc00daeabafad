#!/usr/bin/env bash
# Starts every instance that can be started: those that are off are booted, those in Standby are restored, paused ones go
# on. One that fails stops no other; the exit code tells of it.
#
#   scripts/start-all-vms.sh
set -euo pipefail
# shellcheck source=scripts/command.sh
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

case "${1:-}" in -h | --help) usage && exit 0 ;; esac
[ $# -eq 0 ] || { usage >&2 && exit 2; }

code=0
# each STATE VERB: the verb on all instances in the state.
each() {
  local ids
  mapfile -t ids < <(dataplane ps --quiet --state "$1")
  [ ${#ids[@]} -eq 0 ] || dataplane "$2" "${ids[@]}" || code=$?
}
# Asked once, so that a service that does not answer is a failure and not an empty list.
dataplane ps --quiet >/dev/null
each Created start
each Stopped start
each Shutdown start
each Standby restore
each Paused resume
exit "$code"
