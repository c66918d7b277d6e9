#!/usr/bin/env bash
# Makes every fault of the matrix, one after the other, and writes docs/reliability.md from what was measured.
#
#   tests/faults.sh                  all of them
#   tests/faults.sh disk web::ten    those whose names begin so; the page is not written then
set -uo pipefail
cd "$(dirname "$0")/.."
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
export CONTROLPLANE_EXPORTER_CACHE=$cache

log=$(mktemp)
trap 'rm -f "$log"' EXIT
from=$SECONDS failed=0
cargo test --locked --test it --no-run || exit 1
it=$(cargo test --locked --test it --no-run 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
names=("$@")
if [ $# = 0 ]; then names=(""); fi
for name in "${names[@]}"; do
  # What shares a loaded machine with real daemons gets a second try, which the page shows.
  while read -r test; do
    for try in 1 2; do
      if "$it" --exact "$test" --include-ignored --nocapture 2>&1 < /dev/null |
        tee /dev/stderr | sed -n "s/^.*fault: |\(.*\)$/$test $try |\1/p" > "$log.one" &&
        [ -s "$log.one" ]; then
        cat "$log.one" >> "$log"
        break
      fi
      echo "== $test failed at try $try" >&2
      if [ $try = 2 ]; then failed=$((failed + 1)); fi
    done
  done < <("$it" --list "faults::$name" | sed -n 's/: test$//p')
done
rm -f "$log.one"
rows=$(wc -l < "$log") again=$(grep -c '^[^ ]* 2 |' "$log")
echo "long: $rows faults made and survived, $failed failed, $again at the second try; in $((SECONDS - from)) s"
if [ $# != 0 ]; then exit $((failed > 0)); fi

revision=$(git rev-parse --short HEAD)
git diff --quiet HEAD -- src tests Cargo.lock || revision="$revision, with changes that are not committed"
topic() {
  grep "^faults::$1::" "$log" > "$log.topic" || return 0
  printf '\n## %s\n\n' "$2"
  printf '%s\n' '| fault | what was done | slowest scrape | recovered after | threads | files | memory, MB | what held besides |' \
    '|---|---|---|---|---|---|---|---|'
  sed 's/^[^ ]* 1 |/|/; s/^[^ ]* 2 | \([^|]*\) |/| \1 (second try) |/' "$log.topic"
  rm "$log.topic"
}
{
  cat << 'TEXT'
# Faults, and what the agent does in them

Written by `tests/faults.sh`, a part of `make test-long`; the figures are those of one run. Ten of the faults are made by
every `make test`.

Each fault is real: a loop device on a file whose reads, writes and flushes fail or hang, etcd and dqlite that are killed,
stopped or cut off in network namespaces, systemd, D-Bus and journald in a container, the machine's own kernel log,
cgroups and limits of processes. For each fault this must hold, and the test fails when it does not:

- Every scrape is answered within **1 s**, one each 200 ms from before the fault until after it, on a machine that runs
  the fault and its causes as well. Where another bound holds, the last column says so. Where no answer is possible,
  because the agent itself is stopped or has no descriptors left, scrapes are not judged during the fault.
- No counter goes back while the agent lives, and what is counted is counted once.
- The figures are right during the fault and after it. What was checked is in the last column; the time until all of
  that was true again is "recovered after", from the end of the fault.
- Afterwards the agent and its children have no more threads, file descriptors and processes than before: "before → after".
- Its resident memory grows by less than 32 MiB: "before → most". The build is a debug build, which needs more than a release.

TEXT
  printf 'Date %s, revision %s, %s cores. %s faults, %s at the second try, %s failed.\n' \
    "$(date -u +%Y-%m-%d)" "$revision" "$(nproc)" "$rows" "$again" "$failed"
  topic disk 'Disks'
  topic datastore 'etcd and dqlite'
  topic node 'systemd, D-Bus, journald and the kernel'
  topic process 'The agent itself'
  topic web 'Its port'
} > docs/reliability.md.new
mv docs/reliability.md.new docs/reliability.md
echo "wrote docs/reliability.md"
exit $((failed > 0))
