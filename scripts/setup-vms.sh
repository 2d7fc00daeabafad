#!/usr/bin/env bash
# Creates N instances of one image and boots them: NAME-1 to NAME-N. Those that are there already stay as they are.
#
#   scripts/setup-vms.sh COUNT IMAGE [NAME] [-- FLAGS OF dataplane run]
#   scripts/setup-vms.sh 3 img-nginx web -- --memory 512 --vcpus 1
#
# IMAGE is an id or a reference; one that is not on the host is pulled. NAME is `vm` where it is not given.
set -euo pipefail
# shellcheck source=scripts/command.sh
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"

case "${1:-}" in -h | --help) usage && exit 0 ;; esac
[ $# -ge 2 ] || { usage >&2 && exit 2; }
count=$1 image=$2 name=vm
shift 2
if [ $# -gt 0 ] && [ "$1" != -- ]; then
  name=$1
  shift
fi
if [ "${1:-}" = -- ]; then shift; fi
[[ $count =~ ^[1-9][0-9]{0,3}$ ]] || fail "COUNT is a number from 1 to 9999, not \"$count\"."

present=$(dataplane ps --quiet)
for ((number = 1; number <= count; number++)); do
  if grep -qxF "$name-$number" <<<"$present"; then
    printf '%s is there already\n' "$name-$number"
  else
    dataplane run --id "$name-$number" --name "$name-$number" "$@" "$image"
  fi
done
