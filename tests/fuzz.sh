#!/usr/bin/env bash
# Fuzzes the parsers of what others wrote, each target for so many seconds. Needs a nightly compiler.
#
#   tests/fuzz.sh [SECONDS] [TARGET…]     600 seconds and every target unless given
#
# The samples in tests/data are the first inputs; what it finds is kept below tests/fuzz/corpus, which is not committed.
# Prints a line for each target: inputs tried, inputs a second, branches reached. A crash ends it and stays in
# tests/fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
seconds=${1:-600}
shift || true
targets=("$@")
if [ $# = 0 ]; then targets=(dqlite_files dqlite_wire); fi
PATH=$cache/cargo-fuzz/bin:$PATH

# seeds TARGET FOLDER: writes the samples as files of bytes.
seeds() {
  mkdir -p "$2"
  case $1 in
    dqlite_files)
      for file in tests/data/dqlite/v*/*; do
        cp "$file" "$2/$(basename "$(dirname "$file")")-$(basename "$file")"
      done ;;
    dqlite_wire)
      # What servers said, in hexadecimal.
      grep '^< ' tests/data/dqlite/wire-captures.txt | cut -c3- | grep -E '^[0-9a-f]+$' | sort -u |
        while read -r message; do
          printf '%b' "$(sed 's/../\\x&/g' <<< "$message")" > "$2/$(md5sum <<< "$message" | cut -c1-12)"
        done ;;
  esac
}

# Built once, run side by side: a change of the sources meanwhile builds nothing anew.
log=$(mktemp -d)
for target in "${targets[@]}"; do
  echo "building $target"
  cargo +nightly fuzz build --fuzz-dir tests/fuzz --sanitizer none "$target" > "$log/build" 2>&1 ||
    { tail -n 40 "$log/build" >&2; exit 1; }
done
declare -A pids
for target in "${targets[@]}"; do
  corpus=tests/fuzz/corpus/$target
  seeds "$target" "$corpus"
  mkdir -p "tests/fuzz/artifacts/$target"
  "tests/fuzz/target/$(uname -m)-unknown-linux-gnu/release/$target" "$corpus" -max_total_time="$seconds" -max_len=65536 \
    -timeout=5 -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="tests/fuzz/artifacts/$target/" \
    > "$log/$target" 2>&1 &
  pids[$target]=$!
done
failed=0
for target in "${targets[@]}"; do
  if ! wait "${pids[$target]}"; then
    tail -n 40 "$log/$target" >&2
    echo "fuzz: $target FAILED (whole output: $log/$target)" >&2
    failed=1
    continue
  fi
  stat() { sed -n "s/^stat::$1: *//p" "$log/$target"; }
  branches=$(grep -oE 'cov: [0-9]+' "$log/$target" | tail -n 1 | cut -c6-)
  printf 'long: %s: %s s, %s inputs, %s a second, %s branches, no failure\n' "$target" "$seconds" \
    "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" "$branches"
done
exit $failed
