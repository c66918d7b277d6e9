#!/usr/bin/env bash
# Runs the groups of tests, prints the seconds of each, and ends with a table.
#
#   tests/run.sh         everything of `make test`
#   tests/run.sh lint    formatting, clippy, licences
set -uo pipefail
cd "$(dirname "$0")/.."
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
export CONTROLPLANE_EXPORTER_CACHE=$cache

table=()
failed=0
# group TRIES NAME COMMAND…: tests that share a loaded machine with real daemons get a second try, which
# the table shows.
group() {
  local tries=$1 name=$2 from=$SECONDS verdict=ok try=1
  shift 2
  printf '\n== %s: %s\n' "$name" "$*"
  until "$@"; do
    if [ $((try += 1)) -gt "$tries" ]; then
      verdict=FAILED failed=1
      break
    fi
    printf '\n== %s failed; once more\n' "$name"
    verdict='ok at the second try: see the failure above'
  done
  table+=("$(printf '%-20s %5d s  %s' "$name" $((SECONDS - from)) "$verdict")")
}

lint() {
  group 1 fmt cargo fmt --all --check
  group 1 fmt-samplers cargo fmt --check -- src/samplers/*.rs
  group 1 clippy cargo clippy --locked --workspace --all-targets -- -D warnings
  group 1 deny "$cache/cargo-deny/bin/cargo-deny" --log-level error check bans licenses sources
}

# finished PID LOG: waits for a command in the background, and shows what it said.
finished() {
  local status=0
  wait "$1" || status=$?
  cat "$2"
  rm "$2"
  return $status
}

case ${1:-all} in
  lint) lint ;;
  all)
    # Its dependencies are the same for every clone, and take minutes.
    mkdir -p target "$cache/static"
    if [ ! -e target/static ]; then ln -s "$cache/static" target/static; fi
    # The longest of all, and most of it one thread that optimises: it goes on beside what is not a matter of time.
    log=$(mktemp)
    { deploy/package.sh static && deploy/package.sh instructions; } > "$log" 2>&1 &
    static=$!
    lint
    group 1 build cargo test --locked --no-run
    group 2 unit cargo test --locked --lib --bins
    group 2 "it alerts" cargo test --locked --test it -- alerts::
    group 1 static finished "$static" "$log"
    group 1 instructions benches/instructions.sh
    for module in $(sed -n 's/^mod \([a-z_]*\);$/\1/p' tests/it/main.rs); do
      case $module in
        alerts | lab) ;;
        # Each a story of its own: what failed is told again, and not all of them.
        incidents)
          for story in $(sed -n 's/^mod \([a-z0-9_]*\);$/\1/p' tests/incidents/mod.rs); do
            group 2 "it incidents $story" cargo test --locked --test it -- "incidents::$story::"
          done ;;
        *) group 2 "it $module" cargo test --locked --test it -- "$module::" ;;
      esac
    done
    ;;
  *) echo "usage: tests/run.sh [lint]" >&2; exit 2 ;;
esac

printf '\n%s\n' "${table[@]}"
exit $failed
