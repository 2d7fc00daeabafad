#!/usr/bin/env bash
# Makes this machine able to run the dataplane: host tools, node modules, guest kernel and initrd. Safe to repeat; a
# second run only looks.
#
#   scripts/setup.sh [--tests]     --tests adds what only the tests and the benchmark need
#
# DATA_DIR says where kernel and initrd go (DATA_DIR/system). On Debian and Ubuntu, as root, missing tools are installed
# with apt; elsewhere they are named, and nothing is changed.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$repository"
# shellcheck source=scripts/progress.sh
. scripts/progress.sh
logDirectory=$repository/.artifacts/log

forTests=no
for argument in "$@"; do
  case $argument in
    --tests) forTests=yes ;;
    -h | --help)
      sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail "setup.sh: unknown argument $argument (known: --tests)" ;;
  esac
done

DATA_DIR=${DATA_DIR:-/var/lib/cloud-hypervisor-dataplane}
export DATA_DIR
# Tools for administrators live in sbin, rustup's in the home directory; neither need be on the caller's PATH.
export PATH="$PATH:/usr/sbin:/sbin${HOME:+:$HOME/.cargo/bin}"

# What the agent is proven with; whether QEMU is new enough is `dataplane doctor`'s to say.
cargoMinimum=1.63

# ---- what is missing ------------------------------------------------------------------------------------------------

has() { command -v "$1" >/dev/null 2>&1; }
atLeast() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }
hasStaticBusybox() { has busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }
hasStaticLibc() { [ -n "$(find /usr/lib /usr/lib64 -maxdepth 2 -name libc.a -print -quit 2>/dev/null)" ]; }
hasCargo() { has cargo && atLeast "$cargoMinimum" "$(cargo --version | cut -d ' ' -f 2)"; }
hasVenv() { has python3 && python3 -c 'import ensurepip, venv' >/dev/null 2>&1; }
hasCertificates() { [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ]; }

# need PACKAGES WHAT TEST...: remembers what the test does not find.
need() {
  local names=$1 what=$2
  shift 2
  "$@" && return 0
  missing+=("$what")
  read -ra names <<<"$names"
  packages+=("${names[@]}")
}

look() {
  missing=() packages=()
  need npm npm has npm
  need nodejs node has node
  need qemu-system-x86 qemu-system-x86_64 has qemu-system-x86_64
  need skopeo skopeo has skopeo
  need squashfs-tools-ng tar2sqfs has tar2sqfs
  need iproute2 ip has ip
  need iproute2 bridge has bridge
  need nftables nft has nft
  need e2fsprogs mkfs.ext4 has mkfs.ext4
  need util-linux "fallocate, flock" has flock
  need curl curl has curl
  need ca-certificates "CA certificates" hasCertificates
  need xz-utils xz has xz
  need busybox-static "a static busybox" hasStaticBusybox
  need "cargo rustc" "cargo >= $cargoMinimum" hasCargo
  need "gcc libc6-dev" cc has cc
  need libc6-dev "libc.a" hasStaticLibc
  if [ "$forTests" = yes ]; then
    need umoci umoci has umoci
    need docker-registry docker-registry has docker-registry
    need "containerd runc" containerd has containerd
    need "containerd runc" ctr has ctr
    need erofs-utils mkfs.erofs has mkfs.erofs
    need shellcheck shellcheck has shellcheck
    need python3-venv "python3 with venv" hasVenv
  fi
}

# Debian 12's own cargo is 1.65, which clones the whole crate index with git; its cargo-web (kept up for browsers) reads
# only what it needs.
cargoPackages() {
  if apt-cache show cargo-web >/dev/null 2>&1; then echo cargo-web rustc-web; else echo cargo rustc; fi
}

install() {
  export DEBIAN_FRONTEND=noninteractive
  local -a names=("$@")
  # An index that is there may still be good: fetching it takes longer than all the rest.
  compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null || apt-get update
  if [[ " $* " == *" cargo "* ]]; then
    read -ra names <<<"$(cargoPackages) $(printf '%s\n' "$@" | grep -vx 'cargo\|rustc' | tr '\n' ' ')"
  fi
  apt-get install -y --no-install-recommends "${names[@]}" && return 0
  apt-get update && apt-get install -y --no-install-recommends "${names[@]}"
}

installMissing() {
  local list
  list=$(printf '%s, ' "${missing[@]}")
  has apt-get || fail "Missing: ${list%, }. Install them with this system's package manager; Debian's names are: ${packages[*]}"
  [ "$(id -u)" -eq 0 ] || fail "Missing: ${list%, }. Run this as root, or: sudo apt-get install ${packages[*]}"
  step "installing ${packages[*]}" install "${packages[@]}"
  look
  list=$(printf '%s, ' "${missing[@]}")
  [ ${#missing[@]} -eq 0 ] || fail "Still missing after the installation, so this system's packages are too old: ${list%, }"
}

# ---- node modules -----------------------------------------------------------------------------------------------------

stamp=node_modules/.setup-stamp
# Node itself is one of the modules, so the lock file says everything.
lockHash() { sha256sum <package-lock.json | cut -d ' ' -f 1; }
modulesAreCurrent() { [ -x node_modules/.bin/node ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(lockHash)" ]; }
installModules() {
  npm ci --no-audit --no-fund --loglevel=error
  node_modules/.bin/node --version
  lockHash >"$stamp"
}

# ---- the fuzzer ---------------------------------------------------------------------------------------------------------

fuzzerVersion=4.32.5
python=.artifacts/python
fuzzerIsCurrent() { [ -x "$python/bin/schemathesis" ] && "$python/bin/schemathesis" --version | grep -qF "$fuzzerVersion"; }
installFuzzer() {
  python3 -m venv "$python"
  "$python/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$fuzzerVersion"
}

# ---- all of it ----------------------------------------------------------------------------------------------------------

mkdir -p .artifacts
if has flock; then
  # Two set-ups at once would install over each other.
  exec 9>.artifacts/setup.lock
  flock 9
fi
title "Set-up"
look
if [ ${#missing[@]} -gt 0 ]; then
  installMissing
else
  say "  ${green}ok${plain} host tools"
fi
if modulesAreCurrent; then
  say "  ${green}ok${plain} node modules"
else
  step "node modules (npm ci)" installModules
fi
if [ "$forTests" = yes ]; then
  if fuzzerIsCurrent; then
    say "  ${green}ok${plain} fuzzer"
  else
    # Without it, its test is skipped and says so.
    step "fuzzer (schemathesis)" installFuzzer || say "  skipped: the fuzzer cannot be installed here"
  fi
fi
step "guest kernel and initrd" bash scripts/build-initrd.sh
