#!/usr/bin/env bash
# Fuzzes the parsers of what others wrote, each target for so many seconds. Needs a nightly compiler.
#
#   tests/fuzz.sh [SECONDS] [TARGET…]     600 seconds and every target of tests/fuzz/Cargo.toml unless given
#
# The samples of the tests are the first inputs (src/fuzzing.rs); what it finds is kept below tests/fuzz/corpus, which is not
# committed. As many targets as there are processors run at a time, or FUZZ_JOBS. Prints a line for each target: inputs
# tried, inputs a second, branches reached. A crash stays in tests/fuzz/artifacts, and the others go on. `make test` gives the same
# functions some thousand inputs without any of this.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
jobs=${FUZZ_JOBS:-$(nproc)}
seconds=${1:-600}
shift || true
targets=("$@")
if [ $# = 0 ]; then mapfile -t targets < <(sed -n '/^\[\[bin\]\]/,$s/^name = "\(.*\)"/\1/p' tests/fuzz/Cargo.toml); fi
PATH=$cache/cargo-fuzz/bin:$PATH

log=$(mktemp -d)
# All at once when all are wanted: a change of the sources meanwhile builds nothing anew.
wanted=("$@")
if [ $# = 0 ]; then wanted=(""); fi
for target in "${wanted[@]}"; do
  echo "building ${target:-${#targets[@]} targets}"
  cargo +nightly fuzz build --fuzz-dir tests/fuzz --sanitizer none ${target:+"$target"} > "$log/build" 2>&1 ||
    { tail -n 40 "$log/build" >&2; exit 1; }
done

fuzz() {
  local target=$1 corpus=tests/fuzz/corpus/$1 inputs rate branches
  mkdir -p "$corpus" "tests/fuzz/artifacts/$target"
  if ! SEEDS=$corpus "tests/fuzz/target/$(uname -m)-unknown-linux-gnu/release/$target" "$corpus" \
    -max_total_time="$seconds" -max_len=65536 -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="tests/fuzz/artifacts/$target/" > "$log/$target" 2>&1; then
    tail -n 40 "$log/$target" >&2
    echo "fuzz: $target FAILED (whole output: $log/$target)" >&2
    touch "$log/failed"
    return
  fi
  inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log/$target")
  rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log/$target")
  branches=$(grep -oE 'cov: [0-9]+' "$log/$target" | tail -n 1 | cut -c6-)
  echo "long: $target: $seconds s, $inputs inputs, $rate a second, $branches branches, no failure"
}

running=0
for target in "${targets[@]}"; do
  if [ $((running += 1)) -gt "$jobs" ]; then wait -n; fi
  fuzz "$target" &
done
wait
[ ! -e "$log/failed" ]
