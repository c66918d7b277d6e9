#!/usr/bin/env bash
# Everything of `make test-long`, one after the other, and docs/long-tests.md from what it came to.
#
#   tests/long.sh                    all of it
#   tests/long.sh polls fuzz         some of it; the page is not written then
set -uo pipefail
cd "$(dirname "$0")/.."
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
export CONTROLPLANE_EXPORTER_CACHE=$cache
fuzz_seconds=${FUZZ_SECONDS:-600}

rows=()
failed=0
# part NAME WHAT COMMAND…: runs it, and keeps the lines of its output that begin with `long: `.
part() {
  local name=$1 what=$2 from=$SECONDS verdict=ok log
  shift 2
  printf '\n== %s: %s\n' "$name" "$*"
  log=$(mktemp)
  "$@" 2>&1 | tee "$log" || { verdict=FAILED failed=1; }
  local said
  said=$(sed -n 's/^.*long: //p' "$log" | sed ':a;N;$!ba;s/\n/<br>/g')
  rm "$log"
  rows+=("| $name | $what | $said | $((SECONDS - from)) s | $verdict |")
}

polls() { cargo test --locked --test it -- --ignored --nocapture --test-threads=1 polls_do_not_hurt; }
fuzz() { tests/fuzz.sh "$fuzz_seconds"; }
incidents() { tests/incidents.sh; }

parts=("$@")
if [ $# = 0 ]; then parts=(polls fuzz incidents); fi
for name in "${parts[@]}"; do
  case $name in
    polls) part polls "dqlite 1.11 and 1.18 asked ten thousand times each; both go on, their logs are clean" polls ;;
    fuzz) part fuzz "each fuzz target for $fuzz_seconds s" fuzz ;;
    incidents) part incidents "the incidents in their long form: [incidents.md](incidents.md)" incidents ;;
    *) echo "usage: tests/long.sh [polls|fuzz|incidents]…" >&2; exit 2 ;;
  esac
done

table=$(printf '%s\n' '| part | what | figures | time | |' '|---|---|---|---|---|' "${rows[@]}")
printf '\n%s\n' "$table"
if [ $# = 0 ]; then
  revision=$(git rev-parse --short HEAD)
  git diff --quiet HEAD -- src tests alerts Cargo.lock ||
    revision="$revision, with changes that are not committed"
  {
    printf '# The long tests\n\nWritten by `make test-long`; the figures are those of one run.\n\n'
    printf 'Date %s, revision %s, %s cores.\n\n%s\n' "$(date -u +%Y-%m-%d)" "$revision" "$(nproc)" "$table"
  } > docs/long-tests.md
  echo "wrote docs/long-tests.md"
fi
exit $failed
