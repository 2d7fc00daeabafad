#!/usr/bin/env bash
# From a checkout to a running virtual machine and back: sets up, starts the dataplane in a network namespace of its
# own, makes an image, boots it, fetches the page that the guest serves, and takes everything away again.
#
#   scripts/quickstart.sh                what is said above, with a demo image made of this machine's busybox
#   scripts/quickstart.sh --image REF    with an image from a registry, e.g. docker.io/library/nginx:alpine
#   scripts/quickstart.sh --keep         leaves server and instance running and says how to reach them
#   scripts/quickstart.sh --stop NAME    ends one that was kept
#
# Nothing outside the namespace, its temporary directory and .artifacts/ is changed.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/progress.sh
. scripts/progress.sh
logDirectory=$PWD/.artifacts/log
export PATH="$PATH:/usr/sbin:/sbin"

# Bounds, for a busy machine without KVM.
startBoundS=60
imageBoundS=600
pageBoundS=120
stopBoundS=60

image='' keep=no stop=''
while [ $# -gt 0 ]; do
  case $1 in
    --image)
      image=${2:?--image needs a reference}
      shift
      ;;
    --keep) keep=yes ;;
    --stop)
      stop=${2:?--stop needs the name of a namespace}
      shift
      ;;
    -h | --help)
      sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail "quickstart.sh: unknown argument $1 (known: --image REF, --keep, --stop NAME)" ;;
  esac
  shift
done
[ "$(id -u)" -eq 0 ] || fail "quickstart.sh needs root, for a network namespace and TAPs: sudo $0"

# ---- what one quickstart owns, and its end ----------------------------------------------------------------------------

namespace=${stop:-chd-quickstart-$$}
# Found again by --stop; readable by root only.
work=${TMPDIR:-/tmp}/$namespace
data=$work/data
api=http://127.0.0.1:8080
id=my-instance
node=$PWD/node_modules/.bin/node
server='' console='' run=/nonexistent

inside() { ip netns exec "$namespace" "$@"; }
runDirectory() {
  "$node" -e 'import("./src/host/Paths.ts").then(({ layout }) => console.log(layout(process.argv[1]).run))' "$data"
}
# Everything that runs in the namespace or names the directories in its command line.
leftoverPids() {
  local file
  ip netns pids "$namespace" 2>/dev/null || true
  for file in /proc/[0-9]*/cmdline; do
    if tr '\0' ' ' 2>/dev/null <"$file" | grep -qF -e "$data" -e "$run/"; then
      file=${file#/proc/}
      [ "${file%/cmdline}" = $$ ] || echo "${file%/cmdline}"
    fi
  done 2>/dev/null
}
# until SECONDS COMMAND...: asks again ten times a second, since neither curl nor a pid gives an event to a shell.
within() {
  local bound=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$bound" ] || return 1
    sleep 0.1
  done
}
# A zombie is gone: not every container's first process reaps.
isGone() { ! grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null; }

stopServer() {
  [ -n "$server" ] || return 0
  kill -TERM "$server" 2>/dev/null || true
  within "$stopBoundS" isGone "$server" || kill -KILL "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  server=''
}

# What an orderly end must not leave, a line each.
leftovers() {
  local pid
  run=$(runDirectory)
  for pid in $(leftoverPids | sort -u); do
    echo "process $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)"
  done
  ip -n "$namespace" -brief link show type tun | sed 's/^/interface /'
  find "$run" "$data/instances" "$data/images" "$data/layers" -mindepth 1 ! -type d 2>/dev/null
}

# Ends what is there, in whatever state the run was left.
cleanUp() {
  local pid left=()
  stopStep
  [ -z "$console" ] || kill "$console" 2>/dev/null || true
  stopServer
  if [ -d "$work" ]; then
    run=$(runDirectory 2>/dev/null) || run=/nonexistent
    mapfile -t left < <(leftoverPids | sort -u)
    for pid in "${left[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for pid in "${left[@]}"; do within 5 isGone "$pid" || true; done
    rm -rf "$run" "$work"
  fi
  ip netns delete "$namespace" 2>/dev/null || true
}

ended() {
  local code=$?
  trap - EXIT INT TERM
  if [ "$code" -ge 128 ]; then
    printf '\nStopped; taking everything away.\n' >&2
  elif [ "$code" -ne 0 ] && [ -s "$work/server.log" ]; then
    printf '%sThe last lines of the server:%s\n' "$red" "$plain" >&2
    tail -n 20 "$work/server.log" >&2
  fi
  cleanUp
  exit "$code"
}

if [ -n "$stop" ]; then
  if ! [[ $stop =~ ^chd-quickstart-[0-9]+$ && -O $work ]]; then fail "no quickstart of the name $stop is there"; fi
  server=$(cat "$work/server.pid")
  # A pid may long belong to somebody else; one inside the namespace is ours.
  ip netns pids "$namespace" | grep -qx "$server" || server=''
  inside curl --silent --max-time 60 -X DELETE "$api/instances/$id" >/dev/null || true
  cleanUp
  say "$stop is gone."
  exit 0
fi
trap ended EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- set-up -------------------------------------------------------------------------------------------------------------

DATA_DIR=$PWD/.artifacts bash scripts/setup.sh
mkdir -m 700 "$work" || fail "$work is in the way"

# ---- server ---------------------------------------------------------------------------------------------------------------

title "Dataplane, in the network namespace $namespace"
ip netns add "$namespace" 2>"$work/netns.log" || fail "no network namespace can be made here: $(cat "$work/netns.log")"
ip -n "$namespace" link set lo up
# Not through a function, which would run in a shell of its own: the pid must be the server's.
ip netns exec "$namespace" env HOST=127.0.0.1 PORT=8080 DATA_DIR="$data" LOG_FORMAT=json \
  KERNEL_PATH="$PWD/.artifacts/system/vmlinuz" INITRD_PATH="$PWD/.artifacts/system/initrd" \
  "$node" src/main.ts serve >"$work/server.log" 2>&1 </dev/null &
server=$!
echo "$server" >"$work/server.pid"

serverAnswers() { isGone "$server" || grep -q '"event":"server.started"' "$work/server.log"; }
waitForServer() { within "$startBoundS" serverAnswers && ! isGone "$server"; }
step "starting the server" waitForServer
say "  ${dim}$(inside curl --silent "$api/health")${plain}"

# ---- image ----------------------------------------------------------------------------------------------------------------

# pick KEY...: one value out of the JSON on standard input.
pick() {
  "$node" -e 'let value = JSON.parse(require("node:fs").readFileSync(0, "utf8"))
    for (const key of process.argv.slice(1)) value = value?.[key]
    console.log(value ?? "")' "$@"
}
# call METHOD PATH [CURL ARGUMENT...]: prints the answer; fails with the problem's sentence on anything but 2xx.
call() {
  local method=$1 path=$2 answer status
  shift 2
  answer=$(inside curl --silent --show-error --max-time 120 -X "$method" "$@" -w '\n%{http_code}' "$api$path")
  status=${answer##*$'\n'}
  answer=${answer%$'\n'*}
  if [[ $status != 2* ]]; then
    printf '%s%s %s: %s %s%s\n' "$red" "$method" "$path" "$status" "$(pick detail <<<"$answer")" "$plain" >&2
    return 1
  fi
  printf '%s\n' "$answer"
}
show() { printf '  %s$ %s%s\n' "$dim" "$*" "$plain"; }

# Writes how far the image is for the step's line; fails for good with the image's own words.
imageIsReady() {
  local status error doing
  # shellcheck disable=SC2016
  IFS='|' read -r status error doing < <(call GET /images/img-demo | "$node" -e '
    const { status, error, progress } = JSON.parse(require("node:fs").readFileSync(0, "utf8"))
    const { layers_done, layers_total, bytes_done, bytes_total } = progress
    const percent = bytes_total > 0 ? `, ${Math.floor((100 * bytes_done) / bytes_total)} %` : ""
    console.log(`${status}|${(error ?? "").replaceAll("|", " ")}|${status}, layer ${layers_done} of ${layers_total}${percent}`)')
  printf '%s' "$doing" >"$work/progress"
  if [ "$status" = failed ]; then
    printf '%s\n' "$error"
    exit 1
  fi
  [ "$status" = ready ]
}
waitForImage() { within "$imageBoundS" imageIsReady; }
# The namespace has no way out, so a registry is asked from here, the host's network; what arrives takes the same way
# into the dataplane as the demo image. A dataplane in the host's network pulls by itself: POST /images {"name": REF}.
pull() {
  local verify=()
  case $image in localhost:* | 127.0.0.1:*) verify=(--src-tls-verify=false) ;; esac
  skopeo copy --quiet --override-os linux "${verify[@]}" "docker://$image" "docker-archive:$work/image.tar:demo:latest"
}

title "Image"
if [ -n "$image" ]; then
  step "pulling $image" pull
else
  step "making a demo image of busybox" "$node" scripts/demoImage.ts "$work/image.tar"
fi
show "curl --data-binary @image.tar $api/images/import?id=img-demo"
step "uploading it" call POST "/images/import?id=img-demo" -H 'content-type: application/x-tar' -T "$work/image.tar"
stepProgress=$work/progress
step "turning its layers into disks" waitForImage
stepProgress=''

# ---- instance ---------------------------------------------------------------------------------------------------------------

title "Instance"
request=$(printf '{"id":"%s","name":"Quickstart","image":"img-demo","memory_mb":256,"vcpus":1,"env":{"GREETING":"Hello from a virtual machine"}}' "$id")
show "curl --json '$request' $api/instances"
step "creating it" call POST /instances -H 'content-type: application/json' --data "$request"
say "  its console:"
ip netns exec "$namespace" curl --silent --no-buffer -H 'accept: text/plain' "$api/instances/$id/logs?follow=true" \
  > >(sed -u "s/\r\$//; s/^/  ${dim}|${plain} /") 2>/dev/null &
console=$!

ip=$(call GET "/instances/$id" | pick network ip)
pageIsThere() { inside curl --silent --fail --max-time 2 -o "$work/page.html" "http://$ip/"; }
pageOrEnd() {
  pageIsThere || [ "$(call GET "/instances/$id" | pick state)" != Running ]
}
within "$pageBoundS" pageOrEnd || true
kill "$console" 2>/dev/null || true
wait "$console" 2>/dev/null || true
console=''

if [ -s "$work/page.html" ]; then
  title "The page that the guest serves on its TAP"
  show "curl http://$ip/"
  head -n 20 "$work/page.html" | cut -c 1-160 | sed 's/^/  /'
elif [ -n "$image" ]; then
  say "Nothing answers on port 80 of $ip; not every image serves a page."
else
  fail "The guest served no page within $pageBoundS s."
fi

title "The instance, as the API shows it"
show "curl $api/instances/$id"
# shellcheck disable=SC2016
call GET "/instances/$id" | "$node" -e '
  const { id, state, ready, image, memory_mb, vcpus, network, vmm, exit, started_at } =
    JSON.parse(require("node:fs").readFileSync(0, "utf8"))
  const shown = { id, state, ready, image, memory_mb, vcpus, network, vmm, exit, started_at }
  for (const [key, value] of Object.entries(shown)) console.log(`  ${key}: ${JSON.stringify(value)}`)'

# ---- the end ------------------------------------------------------------------------------------------------------------------

if [ "$keep" = yes ]; then
  trap - EXIT INT TERM
  disown "$server"
  title "Left running"
  say "  reach it:  ip netns exec $namespace curl $api/instances"
  say "  its log:   $work/server.log"
  say "  end it:    scripts/quickstart.sh --stop $namespace"
  exit 0
fi

title "Taking it away"
show "curl -X DELETE $api/instances/$id"
step "deleting the instance" call DELETE "/instances/$id"
step "deleting the image" call DELETE /images/img-demo
kill -TERM "$server"
waitForEnd() { within "$stopBoundS" isGone "$server"; }
step "stopping the server" waitForEnd
code=0
wait "$server" || code=$?
server=''
[ "$code" -eq 0 ] || fail "The server ended with exit code $code."

found=$(leftovers || true)
[ -z "$found" ] || fail "Left over: $found"
trap - EXIT
cleanUp
if [ -e "$work" ] || [ -e "/run/netns/$namespace" ] || [ -e "$run" ]; then fail "Something is left over."; fi
say "  ${green}ok${plain} nothing is left: no process, namespace, interface, socket or file"
