# shellcheck shell=bash
# Sourced by the other scripts: says what goes on in one line per step.
#
#   step TITLE COMMAND...   runs the command with its output in a log; shows the log only where the command failed
#   say TEXT, fail TEXT     a line; a line on standard error and the end of the script
#
# On a terminal a step that takes longer than a second spins; elsewhere it says so once, and again every 15 s, so that a
# reader of a log sees that it lives. What the command writes into the file `stepProgress` stands beside it. The caller
# sets `logDirectory`, and calls `stopStep` where it traps signals itself.

logDirectory=${logDirectory:-.artifacts/log}
stepProgress=''
stepPid=''

stillAliveS=15

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
  bold='' dim='' red='' green='' plain=''
fi

say() { printf '%s\n' "$*"; }
title() { printf '%s%s%s\n' "$bold" "$*" "$plain"; }
fail() {
  printf '%s%s%s\n' "$red" "$*" "$plain" >&2
  exit 1
}

# Shows that the process lives until it ends.
watchStep() {
  local pid=$1 what=$2 from=$SECONDS said=0 frame=0 frames='-+*+' seconds doing
  while kill -0 "$pid" 2>/dev/null; do
    seconds=$((SECONDS - from))
    doing=''
    [ -z "$stepProgress" ] || doing=" $(cat "$stepProgress" 2>/dev/null || true)"
    if [ -t 1 ] && [ "$seconds" -ge 1 ]; then
      printf '\r\e[K  %s  %s%s %s%s s%s' "${frames:frame++%4:1}" "$what" "$doing" "$dim" "$seconds" "$plain"
    elif [ ! -t 1 ] && [ "$seconds" -ge "$((said == 0 ? 1 : said + stillAliveS))" ]; then
      printf '  ... %s%s (%s s)\n' "$what" "$doing" "$seconds"
      said=$seconds
    fi
    sleep 0.2
  done
  [ -t 1 ] && printf '\r\e[K'
  return 0
}

# Ends the step that runs, with all that it started.
stopStep() { [ -z "$stepPid" ] || kill -TERM -- "-$stepPid" 2>/dev/null || true; }
trap 'stopStep; exit 130' INT
trap 'stopStep; exit 143' TERM

step() {
  local what=$1 from=$SECONDS log pid code=0
  shift
  mkdir -p "$logDirectory"
  log="$logDirectory/$(printf '%s' "$what" | tr -cs 'a-zA-Z0-9' '-' | cut -c1-60).log"
  # In a process group of its own, so that all of it can be ended.
  set -m
  ("$@") >"$log" 2>&1 </dev/null &
  pid=$!
  set +m
  stepPid=$pid
  watchStep "$pid" "$what"
  wait "$pid" || code=$?
  stepPid=''
  local took=''
  [ $((SECONDS - from)) -ge 1 ] && took=" ${dim}$((SECONDS - from)) s${plain}"
  if [ "$code" -eq 0 ]; then
    printf '  %sok%s %s%s\n' "$green" "$plain" "$what" "$took"
  else
    printf '  %sFAILED%s %s%s (exit code %s), its last words:\n' "$red" "$plain" "$what" "$took" "$code" >&2
    tail -n 60 "$log" | sed 's/^/    /' >&2
    printf '  all of it: %s\n' "$log" >&2
    return "$code"
  fi
}
