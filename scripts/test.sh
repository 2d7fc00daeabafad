#!/usr/bin/env bash
# Sets everything up and runs every check and every test. The last line is `N passed, N failed, N skipped`, by the test
# runners' own reports; the exit code is 0 only where nothing failed.
#
#   scripts/test.sh [VITEST ARGUMENT...]     arguments narrow the vitest run down, e.g. test/network
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=scripts/progress.sh
. scripts/progress.sh
logDirectory=$PWD/.artifacts/log
# A run that hangs must still end with a verdict. An idle machine of two cores needs about a third of it.
vitestBudgetS=1800

export DATA_DIR=$PWD/.artifacts
export PATH="$PWD/node_modules/.bin:$PATH:/usr/sbin:/sbin${HOME:+:$HOME/.cargo/bin}"
broken=()
passed=0 failed=0 skipped=0

verdict() {
  [ ${#broken[@]} -eq 0 ] || printf '%sfailed besides tests: %s%s\n' "$red" "${broken[*]}" "$plain"
  printf '%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" -eq 0 ] && [ ${#broken[@]} -eq 0 ] && [ "$passed" -gt 0 ]
  exit
}

# Adds up what cargo says of each test binary: `test result: ok. 12 passed; 0 failed; 1 ignored; ...`
countCargo() {
  local line
  while read -r line; do
    [[ $line =~ ([0-9]+)\ passed\;\ ([0-9]+)\ failed\;\ ([0-9]+)\ ignored ]] || continue
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
    skipped=$((skipped + BASH_REMATCH[3]))
  done < <(grep '^test result:' "$1")
}

testAgent() {
  local report=.artifacts/agent-tests.txt before=$failed
  mkdir -p .artifacts
  if (cd src/guest/agent && cargo test) >"$report" 2>&1; then
    say "  ${green}ok${plain} guest agent: cargo test"
    countCargo "$report"
  else
    tail -n 60 "$report"
    countCargo "$report"
    # Counted failures say it already; without any, it did not get as far as running.
    [ "$failed" -gt "$before" ] || broken+=(cargo-test)
  fi
}

# shellcheck disable=SC2317
lintAgent() { cd src/guest/agent && cargo clippy --all-targets -- -D warnings && cargo fmt --check; }
# Distributions pack both apart from cargo; what they find is style, so their absence stops nothing.
hasLints() { cargo clippy --version && cargo fmt --version; }

bash scripts/setup.sh --tests || {
  broken+=(set-up)
  verdict
}

title "Checks"
bash scripts/check.sh || broken+=(check)
if hasLints >/dev/null 2>&1; then
  step "guest agent: clippy, rustfmt" lintAgent || broken+=(clippy)
else
  say "  skipped: guest agent's clippy and rustfmt (not both installed)"
fi

title "Tests"
testAgent
report=$PWD/.artifacts/verdict.txt
rm -f "$report"
# timeout leaves the terminal's foreground by default, and a ^C would not reach the tests.
bound=(timeout --kill-after=30)
[ ! -t 1 ] || bound+=(--foreground)
VERDICT=$report "${bound[@]}" "$vitestBudgetS" \
  vitest run --reporter=default --reporter=./scripts/Verdict.ts "$@" </dev/null
code=$?
if [ -s "$report" ]; then
  read -r p f s <"$report"
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
else
  broken+=("vitest (no report, exit code $code)")
fi
[ "$code" -eq 0 ] || [ "$failed" -gt 0 ] || broken+=("vitest (exit code $code)")
verdict
