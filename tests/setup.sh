#!/usr/bin/env bash
# Installs what `make test` needs beyond rust, gcc, git, make and python3 with pip. Run as root on Debian.
#
# Everything that is not a Debian package goes to a cache outside the clone, one folder per version, so
# a second run only looks (well below a second). Change a version below and the next run builds it anew.
#
#   CONTROLPLANE_EXPORTER_CACHE          the cache (default: controlplane-exporter-tests in the user's cache)
#   CONTROLPLANE_EXPORTER_DEBIAN_MIRROR  a Debian archive (default: the one apt uses)
set -euo pipefail

CARGO_DENY=0.20.2
PROMETHEUS_CLIENT=0.26.0
GRAFANA_SDK=0.0.21            # exactly: other builds of it have higher numbers and make other boards
ECHARTS=6.1.0                # draws the boards where no Grafana is
ROOT=bookworm-1              # suite of the container's root, and a number to raise when its packages change
ETCD34=bookworm ETCD35=trixie   # the Debian suites that carry these versions of etcd
PROMETHEUS3=forky            # the Debian suite that carries Prometheus 3
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
PACKAGES=(
  protobuf-compiler libprotobuf-dev              # etcd-client compiles its protos, which import protobuf's own
  prometheus prometheus-alertmanager             # with promtool and amtool
  prometheus-node-exporter                       # what other people's alert rules look at
  debootstrap debian-archive-keyring systemd-container dbus    # systemd as PID 1, busctl
  e2fsprogs xfsprogs mount util-linux            # disks: mkfs, losetup, setpriv, unshare, nsenter
  iproute2 strace procps
  chromium fonts-dejavu-core                     # draws pages
)

cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
step=start
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: FAILED at %s: %s\n' "$step" "$*" >&2; exit 1; }
trap 'fail "command ended with $? at line $LINENO: $BASH_COMMAND"' ERR
set -E

# Runs a command quietly; shows its last lines when it fails. The log stays in the cache.
logged() {
  local log=$cache/log/$1; shift
  "$@" > "$log" 2>&1 || { tail -n 25 "$log" >&2; fail "$* (whole output: $log)"; }
}

# timed NAME FUNCTION: runs it and prints the seconds it took.
timed() {
  step=$1
  local from=$SECONDS
  "$2"
  say "$1 ready after $((SECONDS - from)) s"
}

missing_packages() {
  local known
  known=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "${PACKAGES[@]}" 2>/dev/null || true)
  for package in "${PACKAGES[@]}"; do
    grep -qx "ii *$package" <<< "$known" || echo "$package"
  done
  # Whoever has Node.js from elsewhere has npm with it, and Debian's would not go beside it.
  command -v npm > /dev/null || echo npm
}

# A daemon's package starts the daemon where systemd runs; the tests start their own, on their own ports.
install_packages() {
  local policy=/usr/sbin/policy-rc.d ours=
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' > $policy; chmod 755 $policy; ours=1
  fi
  say "apt-get install $missing"
  # A third-party source may be out of reach; what counts is whether the install works.
  apt-get update > "$cache/log/apt-update" 2>&1 || say "apt-get update complained (see $cache/log/apt-update)"
  local status=0
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing \
    > "$cache/log/apt-install" 2>&1 || status=$?
  if [ -n "$ours" ]; then rm -f $policy; fi
  [ $status = 0 ] || { tail -n 25 "$cache/log/apt-install" >&2; fail "apt-get install $missing"; }
}

mirror() {
  if [ -n "${CONTROLPLANE_EXPORTER_DEBIAN_MIRROR:-}" ]; then
    echo "$CONTROLPLANE_EXPORTER_DEBIAN_MIRROR"
    return
  fi
  apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Identifier: Packages' |
    awk '$1 == "Debian" && $2 == "Debian" && !seen++ { print $3 }'
}

need_mirror() {
  archive=$(mirror)
  [ -n "$archive" ] || { apt-get update > "$cache/log/apt-update" 2>&1 || true; archive=$(mirror); }
  [ -n "$archive" ] || fail "apt has no Debian archive; set CONTROLPLANE_EXPORTER_DEBIAN_MIRROR"
}

# unpack NAME SUITE PROGRAM PACKAGE…: unpacks packages of a suite into the cache as NAME-SUITE and runs
# PROGRAM --version there. Nothing is installed: no service, and the same whatever the host's suite is.
unpack() {
  local name=$1 suite=$2 runs=$3 apt=$cache/apt-$1-$2 target=$cache/$1-$2
  shift 3
  need_mirror
  rm -rf "$apt"; mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  echo "deb [signed-by=$KEYRING] $archive $suite main" > "$apt/sources.list"
  local options=(-o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
  say "downloading $name from Debian's $suite"
  logged "$name-$suite-update" apt-get "${options[@]}" update
  rm -rf "$target" "$target.new"; mkdir -p "$target.new"
  (cd "$target.new" && logged "$name-$suite" apt-get "${options[@]}" download "${@/%//$suite}")
  for package in "$target.new"/*.deb; do dpkg -x "$package" "$target.new"; done
  rm "$target.new"/*.deb
  "$target.new/usr/bin/$runs" --version > "$cache/log/$name-$suite-version" 2>&1 ||
    fail "$runs of $suite does not run here"
  say "$(head -n 1 "$cache/log/$name-$suite-version")"
  mv "$target.new" "$target"
  rm -rf "$apt"
}

install_etcd() {
  local suite
  for suite in $ETCD34 $ETCD35; do unpack etcd "$suite" etcd etcd-server etcd-client; done
}

install_prometheus3() { unpack prometheus "$PROMETHEUS3" promtool prometheus promtool; }

# A Debian whose PID 1 is systemd, for systemd-nspawn. The tests boot it under an overlay and never write to it.
install_root() {
  need_mirror
  local target=$cache/root-$ROOT
  rm -rf "$target.new"
  say "debootstrap of ${ROOT%-*}: systemd as PID 1"
  logged debootstrap debootstrap --variant=minbase --keyring="$KEYRING" \
    --include=systemd,systemd-sysv,dbus "${ROOT%-*}" "$target.new" "$archive"
  rm -rf "$target.new"/var/cache/apt/archives/*.deb "$target.new"/var/lib/apt/lists/*
  mv "$target.new" "$target"
}

install_python() {
  local target=$cache/python-prometheus-client-$PROMETHEUS_CLIENT
  rm -rf "$target" "$target.new"
  say "pip install prometheus_client $PROMETHEUS_CLIENT"
  logged pip python3 -m pip install --disable-pip-version-check --no-input --no-deps \
    --target "$target.new" "prometheus_client==$PROMETHEUS_CLIENT"
  mv "$target.new" "$target"
}

install_grafana_sdk() {
  local target=$cache/grafana-sdk-$GRAFANA_SDK
  rm -rf "$target" "$target.new"
  say "pip install grafana-foundation-sdk $GRAFANA_SDK"
  logged grafana-sdk python3 -m pip install --disable-pip-version-check --no-input --no-deps \
    --target "$target.new" "grafana-foundation-sdk==$GRAFANA_SDK"
  mv "$target.new" "$target"
}

install_echarts() {
  local target=$cache/echarts-$ECHARTS
  rm -rf "$target" "$target.new"; mkdir -p "$target.new"
  say "npm pack echarts $ECHARTS"
  logged echarts npm pack --silent --pack-destination "$target.new" "echarts@$ECHARTS"
  tar -xzf "$target.new/echarts-$ECHARTS.tgz" -C "$target.new" --strip-components=2 package/dist/echarts.min.js
  rm "$target.new/echarts-$ECHARTS.tgz"
  mv "$target.new" "$target"
}

# Unoptimised: it is built in a third of the time, and checks this tree in two seconds all the same.
install_cargo_deny() {
  local target=$cache/cargo-deny-$CARGO_DENY
  say "cargo install cargo-deny $CARGO_DENY"
  CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_TARGET_DIR=$cache/build/cargo-deny \
    logged cargo-deny cargo install --locked --version "$CARGO_DENY" --root "$target.new" cargo-deny
  rm -rf "$cache/build" "$target"
  mv "$target.new" "$target"
}

[ "$(id -u)" = 0 ] || fail "needs root: it installs packages, and the tests mount disks and boot containers"
command -v apt-get > /dev/null || fail "needs Debian's apt-get"
mkdir -p "$cache/log"
exec 9> "$cache/lock"
flock 9    # two clones may set up at the same time

missing=$(missing_packages | tr '\n' ' ')
if [ -n "${missing// }" ]; then timed packages install_packages; fi
if [ ! -d "$cache/etcd-$ETCD34" ] || [ ! -d "$cache/etcd-$ETCD35" ]; then timed etcd install_etcd; fi
if [ ! -d "$cache/prometheus-$PROMETHEUS3" ]; then timed "Prometheus 3" install_prometheus3; fi
if [ ! -d "$cache/python-prometheus-client-$PROMETHEUS_CLIENT" ]; then timed prometheus_client install_python; fi
if [ ! -d "$cache/grafana-sdk-$GRAFANA_SDK" ]; then timed "Grafana's SDK" install_grafana_sdk; fi
if [ ! -d "$cache/echarts-$ECHARTS" ]; then timed echarts install_echarts; fi
if [ ! -d "$cache/root-$ROOT" ]; then timed "container root" install_root; fi
if [ ! -d "$cache/cargo-deny-$CARGO_DENY" ]; then timed cargo-deny install_cargo_deny; fi

# The tests find everything under names without versions.
links() {
  ln -sfnT "etcd-$ETCD34" "$cache/etcd-3.4"
  ln -sfnT "etcd-$ETCD35" "$cache/etcd-3.5"
  ln -sfnT "prometheus-$PROMETHEUS3" "$cache/prometheus-3"
  ln -sfnT "root-$ROOT" "$cache/root"
  ln -sfnT "python-prometheus-client-$PROMETHEUS_CLIENT" "$cache/python"
  ln -sfnT "grafana-sdk-$GRAFANA_SDK" "$cache/grafana-sdk"
  ln -sfnT "echarts-$ECHARTS" "$cache/echarts"
  ln -sfnT "cargo-deny-$CARGO_DENY" "$cache/cargo-deny"
}
links
say "ready in $SECONDS s, cache $cache"
