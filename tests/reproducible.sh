#!/usr/bin/env bash
# Whether the same sources give the same bytes, and whether the binary for the other processor is what it should be.
# Builds the committed sources in two folders with two target folders, and for aarch64 in one of them; prints a line for
# each. Takes three whole release builds. Before it: tests/setup.sh static && tests/setup.sh static aarch64
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
commit=$(git rev-parse HEAD)
trap 'rm -rf "$work"' EXIT
name=controlplane-exporter
failed=0
limit=$((12 << 20))

# build FOLDER ARCH: the binary's path. The folders have names of different lengths, and are no clones.
build() {
  if [ ! -d "$work/$1" ]; then
    mkdir -p "$work/$1"
    git archive "$commit" | tar -x -C "$work/$1"
  fi
  env -u REVISION -u NO_BUILD CONTROLPLANE_EXPORTER_STATIC_TARGET="$work/target-$1" \
    "$work/$1/deploy/package.sh" static "$2" > "$work/log" 2>&1 || { tail -n 25 "$work/log" >&2; exit 1; }
  echo "$work/target-$1/$2-unknown-linux-musl/release/$name"
}

# line NAME SECONDS VERDICT…
line() { printf 'long: %-22s %5d s  %s\n' "$1" "$2" "${*:3}"; }

from=$SECONDS
first=$(build a x86_64)
second=$(build another-folder x86_64)
if cmp "$first" "$second"; then
  line 'x86_64, two folders' $((SECONDS - from)) "same bytes: $(sha256sum < "$first" | cut -c 1-16)"
else
  line 'x86_64, two folders' $((SECONDS - from)) 'FAILED: the bytes differ'
  failed=1
fi

from=$SECONDS
other=$(build a aarch64)
size=$(stat -c %s "$other")
wrong=
readelf --file-header "$other" | grep -q 'Machine: *AArch64' || wrong+=' another processor;'
if readelf --program-headers "$other" | grep -qE 'INTERP|DYNAMIC'; then wrong+=' not static;'; fi
if readelf --sections --wide "$other" | grep -qE ' \.(symtab|debug)'; then wrong+=' not stripped;'; fi
[ "$size" -lt "$limit" ] || wrong+=' too large;'
if [ -z "$wrong" ]; then
  line 'aarch64' $((SECONDS - from)) "static, stripped, $size bytes"
else
  line 'aarch64' $((SECONDS - from)) "FAILED:$wrong $size bytes"
  failed=1
fi
exit $failed
