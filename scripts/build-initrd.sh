#!/usr/bin/env bash
# Makes the guest's kernel and initrd: fetches Debian's or Ubuntu's cloud kernel, builds the guest agent with cargo, and
# packs it with the kernel modules that it loads. Safe to repeat; a second run only looks.
#
#   scripts/build-initrd.sh [--data-dir DIR]     default: DATA_DIR, else /var/lib/cloud-hypervisor-dataplane
#
# KERNEL_PATH names a kernel of your own, with its modules in a directory `modules` beside it.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# A checkout has the sources, a package what is built of them.
program=$repository/src/guest/buildInitrd.ts
[ -e "$program" ] || program=$repository/dist/build-initrd.mjs
# Node comes with the dependencies, below or beside this; cargo may be where rustup puts it.
PATH="$repository/node_modules/.bin:$repository/../.bin:$PATH:/usr/sbin:/sbin${HOME:+:$HOME/.cargo/bin}" \
  exec node "$program" "$@"
