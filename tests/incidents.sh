#!/usr/bin/env bash
# Replays the incidents in their long form and writes docs/incidents.md from what they measured.
#
#   tests/incidents.sh            all of them
#   tests/incidents.sh i1 i3      some of them; the page is not written then
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
export CONTROLPLANE_EXPORTER_CACHE=$cache

# What is built now, and not what is there at the end.
revision=$(git rev-parse --short HEAD)
git diff --quiet HEAD -- src tests alerts Cargo.lock || revision="$revision, with changes that are not committed"
report=$(mktemp -d)
trap 'rm -rf "$report"' EXIT
export INCIDENTS=full INCIDENTS_REPORT=$report
names=("$@")
if [ $# = 0 ]; then names=(""); fi
for name in "${names[@]}"; do
  cargo test --locked --test it -- "incidents::$name" --nocapture --test-threads=1
done
if [ $# != 0 ]; then exit; fi

{
  cat << 'EOF'
# The incidents, replayed

Written by `make incidents`; the figures are those of one run.

Each incident is replayed with real components: etcd clusters over TLS, a dqlite cluster, systemd as PID 1 of a container, a loop device
that fails and stalls, the shipped rules in Prometheus, the shipped routes in Alertmanager, and a webhook that keeps
what arrives and when. The stock rules are those of the public etcd and node mixins that could speak about the fault
([tests/data/stock.rules.yaml](../tests/data/stock.rules.yaml)), in the same Prometheus, with etcd's own metrics and
node_exporter scraped for them.

Rules wait for minutes. So every length of time in rules and routes, every interval of scrapes, of evaluations and of the
agent (which takes none below 0.1 s) is divided by one factor, and a second of the replay counts as that many seconds of a
real node. Thresholds are not touched. What cannot be divided is not: the length of a sync, etcd's elections, the start
of a process, time-outs. It counts as many seconds too, so that our pages look later here than they would be. The stock
rules are divided by the same factor.

`12.3 s = 6 min` means 12.3 s after the fault in the replay, which stand for six minutes. "Silent" is said of the
rules and of the time until the repair in the replay. What people noticed, and when, is from the published reports.

EOF
  printf 'Date %s, revision %s, %s cores.\n' "$(date -u +%Y-%m-%d)" "$revision" "$(nproc)"
  for file in "$report"/*.md; do printf '\n'; cat "$file"; done
} > docs/incidents.md.new
mv docs/incidents.md.new docs/incidents.md
echo "wrote docs/incidents.md"
