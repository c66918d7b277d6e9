#!/usr/bin/env bash
# Everything of `make test-long`, one after the other. Each part writes its row of docs/long-tests.md.
#
#   tests/long.sh                    all of it
#   tests/long.sh polls fuzz         some of it
#   SOAK=600 SOAK_SEED=7 tests/long.sh soak   its seconds, and the faults of another run
set -uo pipefail
cd "$(dirname "$0")/.."
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
export CONTROLPLANE_EXPORTER_CACHE=$cache
fuzz_seconds=${FUZZ_SECONDS:-180}
page=docs/long-tests.md
revision=$(git rev-parse --short HEAD)
git diff --quiet HEAD -- src tests alerts deploy Cargo.lock || revision="$revision and changes"
failed=0

# The page with this row in place of the part's older one, in the order of `parts`.
write_row() {
  local name=$1 row=$2 other rows=()
  for other in "${all[@]}"; do
    if [ "$other" = "$name" ]; then
      rows+=("$row")
    elif [ -f $page ]; then
      mapfile -t -O ${#rows[@]} rows < <(grep "^| $other |" $page)
    fi
  done
  {
    printf '# The long tests\n\nWritten by `make test-long`, row by row; the figures are those of one run on %s cores.\n\n' "$(nproc)"
    printf '%s\n' '| part | what | figures | time | date, revision | |' '|---|---|---|---|---|---|' "${rows[@]}"
  } > $page.new
  mv $page.new $page
}

# part NAME WHAT COMMAND…: runs it, and keeps the lines of its output that begin with `long: `.
part() {
  local name=$1 what=$2 from=$SECONDS verdict=ok log said
  shift 2
  printf '\n== %s: %s\n' "$name" "$*"
  log=$(mktemp)
  "$@" 2>&1 | tee "$log" || { verdict=FAILED failed=1; }
  said=$(sed -n 's/^.*long: //p' "$log" | sed ':a;N;$!ba;s/\n/<br>/g')
  rm "$log"
  write_row "$name" "| $name | $what | $said | $((SECONDS - from)) s | $(date -u +%Y-%m-%d), $revision | $verdict |"
}

polls() { cargo test --locked --test it -- --ignored --nocapture --test-threads=1 polls_do_not_hurt; }
month() { MONTH=1 cargo test --locked --test it -- days_of_a_healthy_cluster_page_nobody; }
# The optimised binary: memory is what is measured.
flood() { FLOOD=100000x60 cargo test --release --locked --test it -- --nocapture journal::a_flood; }
soak() { cargo test --locked --test it -- --ignored --nocapture --test-threads=1 faults::soak::; }

all=(polls month fuzz static fentry flood faults soak incidents)
parts=("$@")
if [ $# = 0 ]; then parts=("${all[@]}"); fi
for name in "${parts[@]}"; do
  case $name in
    polls) part polls "dqlite 1.11 and 1.18 asked ten thousand times each; both go on, and their logs are clean" polls ;;
    month) part month "a month of a healthy cluster through all alert rules" month ;;
    fuzz) part fuzz "each fuzz target for $fuzz_seconds s, with the samples as first inputs" tests/fuzz.sh "$fuzz_seconds" ;;
    static)
      tests/setup.sh static aarch64 &&
        part static "the static binary built in two folders, and for aarch64" tests/reproducible.sh || failed=1
      ;;
    fentry) part fentry "the datastore's own syncs through fentry on Debian's stock kernel, and locked down" tests/fentry.sh ;;
    flood) part flood "100,000 lines a second offered to journald for a minute, followed by the agent" flood ;;
    faults) part faults "each fault of the matrix: [reliability.md](reliability.md)" tests/faults.sh ;;
    soak) part soak "faults at random, two at times, at eighty times the default rates; what the agent is and shows afterwards" soak ;;
    incidents) part incidents "the incidents in their long form: [incidents.md](incidents.md)" tests/incidents.sh ;;
    *) echo "usage: tests/long.sh [${all[*]}]" >&2; exit 2 ;;
  esac
done
printf '\n'
cat $page
exit $failed
