#!/usr/bin/env bash
# Brings instances back from their snapshots, where they were at standby-vm.sh.
#
#   scripts/restore-vm.sh INSTANCE...     ids, names, or beginnings of ids
set -euo pipefail
# shellcheck source=scripts/command.sh
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

case "${1:-}" in -h | --help) usage && exit 0 ;; esac
[ $# -gt 0 ] || { usage >&2 && exit 2; }
dataplane restore "$@"
