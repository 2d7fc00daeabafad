#!/usr/bin/env bash
# Everything about the code that needs no test run: types, Effect's diagnostics, lint, format, import arrows, house
# style, the checked-in OpenAPI document, shell syntax. All at once; prints only what fails.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export PATH="$PWD/node_modules/.bin:$PATH"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

pids=()
names=()
check() {
  local name=$1
  shift
  ("$@") >"$logs/$name" 2>&1 </dev/null &
  pids+=($!)
  names+=("$name")
}

shellSyntax() {
  local script bad=0
  for script in scripts/*.sh .ci/run; do bash -n "$script" || bad=1; done
  return "$bad"
}

check types tsc -p .
check effect effect-tsgo diagnostics --project tsconfig.json
check lint oxlint --type-aware src test scripts
check format oxfmt --check src test scripts
check architecture node scripts/architecture.ts
check style node scripts/tidy.ts
check openapi node scripts/openapi.ts --check
check shell shellSyntax

failed=()
for at in "${!pids[@]}"; do
  wait "${pids[$at]}" && continue
  failed+=("${names[$at]}")
  printf -- '--- %s\n' "${names[$at]}"
  cat "$logs/${names[$at]}"
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'check failed: %s\n' "${failed[*]}"
  exit 1
fi
printf 'checked: %s\n' "${names[*]}"
