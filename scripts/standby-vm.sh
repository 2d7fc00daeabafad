#!/usr/bin/env bash
# Snapshots instances to disk and gives their memory back: they go on with restore-vm.sh where they were.
#
#   scripts/standby-vm.sh INSTANCE...     ids, names, or beginnings of ids
set -euo pipefail
# shellcheck source=scripts/command.sh
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

case "${1:-}" in -h | --help) usage && exit 0 ;; esac
[ $# -gt 0 ] || { usage >&2 && exit 2; }
dataplane standby "$@"
