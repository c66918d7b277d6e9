#!/usr/bin/env bash
# Counts the instructions of fixed work in the optimised static build and compares them with benches/instructions.txt.
# Time is too noisy to be a gate; instructions are the same within half a percent, whatever else the machine does.
#
#   benches/instructions.sh          a table; fails when a count has grown by more than 5 %
#   benches/instructions.sh update   writes benches/instructions.txt anew
set -euo pipefail
cd "$(dirname "$0")/.."
file=benches/instructions.txt
tolerance=5
triple=x86_64-unknown-linux-musl
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
[ "${1:-}" = update ] || [ -e $file ] || { echo "instructions.sh: no $file; benches/instructions.sh update writes it" >&2; exit 1; }
[ "$(uname -m)" = x86_64 ] || { echo "instructions.sh: the committed counts are of x86_64" >&2; exit 1; }

deploy/package.sh instructions
binary=${CONTROLPLANE_EXPORTER_STATIC_TARGET:-target/static}/$triple/release/controlplane-exporter-instructions
compiler=$("$cache/toolchain/bin/rustc" --version)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# collected WORK UNITS: the instructions of one run.
collected() {
  timeout 120 valgrind --tool=callgrind --callgrind-out-file="$out/$1-$2" "$binary" "$1" "$2" > "$out/$1-$2.out" 2> "$out/$1-$2.err" ||
    { cat "$out/$1-$2.err" >&2; return 1; }
  sed -n 's/^==[0-9]*== Collected : \([0-9]*\).*/\1/p' "$out/$1-$2.err"
}

# count WORK LESS MORE: the instructions of one unit, which is what a run of more units has beyond one of less.
count() {
  local less more
  less=$(collected "$1" "$2")
  more=$(collected "$1" "$3")
  echo $(((more - less) / ($3 - $2)))
}

works='encode-text encode-openmetrics encode-protobuf encode-text-gzip kernel-log signatures'
# On as many cores as there are.
export -f collected count
export out binary
for work in $works; do echo "$work"; done |
  xargs -P "$(nproc)" -I{} bash -euo pipefail -c 'count "$1" 2 6 > "$out/$1.count"' _ {}

if [ "${1:-}" = update ]; then
  {
    echo "# Instructions of one unit of each work, by benches/instructions.sh update; $compiler"
    for work in $works; do echo "$work $(cat "$out/$work.count")"; done
  } > $file
  cat $file
  exit
fi

grown=0
printf '%-20s %12s %12s %8s\n' work committed now change
for work in $works; do
  now=$(cat "$out/$work.count")
  before=$(awk -v work="$work" '$1 == work { print $2 }' $file)
  [ -n "$before" ] || { echo "instructions.sh: $file has no $work" >&2; exit 1; }
  tenths=$(((now - before) * 1000 / before))
  verdict=
  if [ $tenths -gt $((tolerance * 10)) ]; then
    verdict=grown grown=1
  elif [ $tenths -lt $((-tolerance * 10)) ]; then
    verdict='less: update the file'
  fi
  printf '%-20s %12d %12d %6s %% %s\n' "$work" "$before" "$now" "$(awk "BEGIN { printf \"%+.1f\", $tenths / 10 }")" "$verdict"
done
if [ $grown = 1 ]; then
  if ! grep -qF "$compiler" $file; then echo "This is $compiler; the committed counts are of another compiler."; fi
  echo "Work has grown by more than $tolerance %. Where: callgrind_annotate; where it must: benches/instructions.sh update, and why in the commit."
  exit 1
fi
