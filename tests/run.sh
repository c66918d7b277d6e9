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
group() { # NAME COMMAND…
  local name=$1 from=$SECONDS verdict=ok
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  "$@" || { verdict=FAILED; failed=1; }
  table+=("$(printf '%-14s %5d s  %s' "$name" $((SECONDS - from)) "$verdict")")
}

lint() {
  group fmt cargo fmt --check
  group fmt-samplers cargo fmt --check -- src/samplers/*.rs
  group clippy cargo clippy --locked --all-targets -- -D warnings
  group deny "$cache/cargo-deny/bin/cargo-deny" --log-level error check bans licenses sources
}

case ${1:-all} in
  lint) lint ;;
  all)
    lint
    group build cargo test --locked --no-run
    group unit cargo test --locked --lib --bins
    group size cargo build --locked --release
    for module in $(sed -n 's/^mod \([a-z_]*\);$/\1/p' tests/it/main.rs); do
      if [ "$module" != lab ]; then group "it $module" cargo test --locked --test it -- "$module::"; fi
    done
    ;;
  *) echo "usage: tests/run.sh [lint]" >&2; exit 2 ;;
esac

printf '\n%s\n' "${table[@]}"
exit $failed
