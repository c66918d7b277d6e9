#!/usr/bin/env bash
# Makes every fault of the matrix, one after the other, and writes docs/reliability.md from what was measured.
#
#   tests/faults.sh                  all of them
#   tests/faults.sh disk web::ten    those whose names begin so; only their rows are written then
set -uo pipefail
cd "$(dirname "$0")/.."
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
export CONTROLPLANE_EXPORTER_CACHE=$cache

page=docs/reliability.md
log=$(mktemp)
trap 'rm -f "$log" "$log.one"' EXIT
from=$SECONDS failed=0
cargo test --locked --test it --no-run || exit 1
it=$(cargo test --locked --test it --no-run 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')
revision=$(git rev-parse --short HEAD)
git diff --quiet HEAD -- src tests Cargo.lock || revision="$revision and changes"
when="$(date -u +%Y-%m-%d), $revision"
names=("$@")
if [ $# = 0 ]; then names=(""); fi
for name in "${names[@]}"; do
  # What shares a loaded machine with real daemons gets a second try, which the page shows.
  while read -r test; do
    for try in 1 2; do
      if "$it" --exact "$test" --include-ignored --nocapture 2>&1 < /dev/null |
        tee >(cat >&2) | sed -n 's/^.*fault: | \(.*\)$/\1/p' > "$log.one" && [ -s "$log.one" ]; then
        again=; if [ $try = 2 ]; then again=' (second try)'; fi
        IFS= read -r row < "$log.one"
        printf '%s\t%s\t| %s%s | %s %s |\n' "$test" "${row%% |*}" "${row%% |*}" "$again" "${row#* | }" "$when" >> "$log"
        break
      fi
      echo "== $test failed at try $try" >&2
    done
    if [ ! -s "$log.one" ] || ! grep -q "^$test	" "$log"; then
      failed=$((failed + 1))
      printf '%s\t%s\t| `%s` | FAILED | | | | | | | %s |\n' "$test" "$test" "$test" "$when" >> "$log"
    fi
  done < <("$it" --list "faults::$name" | sed -n '/^faults::soak::/d; s/: test$//p')
done
made=$(($(wc -l < "$log") - failed)) again=$(grep -c '(second try) |' "$log")
echo "long: $made faults made and survived, $failed failed, $again at the second try; in $((SECONDS - from)) s"

# Rows of the page by title and name: those that are there, unless all are made anew, and those of this run.
declare -A titles=([disk]='Disks' [datastore]='etcd and dqlite' [node]='systemd, D-Bus, journald and the kernel'
  [process]='The agent itself' [web]='Its port')
declare -A rows=()
keys=()
if [ $# != 0 ] && [ -f $page ]; then
  while IFS=$'\t' read -r title row; do
    name=${row#| } name=${name%% |*} name=${name%" (second try)"} name=${name//\`/}
    keys+=("$title	$name") rows["$title	$name"]=$row
  done < <(awk '/^## / { title = substr($0, 4) } /^\| / && !/^\| fault \|/ { print title "\t" $0 }' $page)
fi
while IFS=$'\t' read -r test name row; do
  module=${test#faults::} title=${titles[${module%%::*}]}
  unset "rows[$title	$test]"
  if [ -z "${rows["$title	$name"]:-}" ]; then keys+=("$title	$name"); fi
  rows["$title	$name"]=$row
done < "$log"
topic() {
  local title=${titles[$1]} key
  printf '\n## %s\n\n' "$title"
  printf '%s\n' '| fault | what was done | slowest scrape | recovered after | threads | files | memory, MB | what held besides | date, revision |' \
    '|---|---|---|---|---|---|---|---|---|'
  for key in "${keys[@]}"; do
    if [ "${key%%	*}" = "$title" ] && [ -n "${rows[$key]:-}" ]; then printf '%s\n' "${rows[$key]}"; fi
  done
}
{
  cat << 'TEXT'
# Faults, and what the agent does in them

Written by `tests/faults.sh`, a part of `make test-long`; the figures of a row are those of one run. Ten of the faults are made by
every `make test`, the others by the script; with names it makes only those and writes their rows anew.

Each fault is real: a loop device on a file whose reads, writes and flushes fail or hang, etcd and dqlite that are killed,
stopped or cut off in network namespaces, systemd, D-Bus and journald in a container, the machine's own kernel log,
cgroups and limits of processes. For each fault this must hold, and the test fails when it does not:

- Every scrape is answered within **1 s**, one each 200 ms from before the fault until after it, on a machine that runs
  the fault and its causes as well. Where another bound holds, the last column says so. Where no answer is possible,
  because the agent itself is stopped or has no descriptors left, scrapes are not judged during the fault.
- No counter goes back while the agent lives, and what is counted is counted once.
- The figures are right during the fault and after it. What was checked is in the last column; the time until all of
  that was true again is "recovered after", from the end of the fault.
- Afterwards the agent and its children have no more file descriptors and processes than before, and at most three more
  threads, which the runtime keeps for blocking work: "before → after".
- Its resident memory grows by less than 32 MiB: "before → most". The build is a debug build, which needs more than a release.

TEXT
  for module in disk datastore node process web; do topic $module; done
} > $page.new
mv $page.new $page
echo "wrote $page"
exit $((failed > 0))
