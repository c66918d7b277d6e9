#!/usr/bin/env bash
# What is shipped, built from the lock file. `make static`, `make tarball`, `make deb`, `make sbom` and
# `make image` come here, after tests/setup.sh has installed what each needs.
#
#   deploy/package.sh static  [ARCH]    target/static/ARCH-unknown-linux-musl/release/controlplane-exporter
#   deploy/package.sh tarball [ARCH]    target/dist/controlplane-exporter-VERSION.linux-{amd64,arm64}.tar.gz, target/dist/sha256sums.txt
#   deploy/package.sh deb     [ARCH]    target/dist/controlplane-exporter_VERSION-1_{amd64,arm64}.deb
#   deploy/package.sh sbom    [ARCH]    target/dist/controlplane-exporter-VERSION.linux-….cdx.json
#   deploy/package.sh image             a container image in buildah's storage, and its size
#   deploy/package.sh instructions      what benches/instructions.sh measures
#
# ARCH is x86_64 (as without it) or aarch64; the latter is cross-compiled. All of them use the one static build, and
# with NO_BUILD=1 take it as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
name=controlplane-exporter
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
arch=${2:-x86_64}
case $arch in
  x86_64) debian=amd64 ;;
  aarch64) debian=arm64 ;;
  *) echo "package.sh: x86_64 or aarch64, not $arch" >&2; exit 2 ;;
esac
triple=$arch-unknown-linux-musl
target=${CONTROLPLANE_EXPORTER_STATIC_TARGET:-$root/target/static}
binary=$target/$triple/release/$name
dist=$root/target/dist
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
folder=$name-$version.linux-$debian
# The same commit gives the same archives; without git, the time of this file does. It is not in the environment of
# the compilers: some crates would be built anew after each commit.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y "$0")}
unset SOURCE_DATE_EPOCH
# What cargo tells a test that comes here: ring is built anew when that differs, and all that is linked with it.
unset CARGO_MANIFEST_DIR CARGO_MANIFEST_PATH CARGO_MANIFEST_LINKS OUT_DIR "${!CARGO_PKG_@}"

# No path of this machine gets into the binary: sources, the registry's copies and generated files are
# given names of their own. The toolchain's wrapper does it, because cargo would take the flag into the
# names of all symbols.
compile() {
  local tools=$cache/toolchain upper
  upper=$(tr '[:lower:]-' '[:upper:]_' <<< "$triple")
  [ -d "$tools" ] || { echo "package.sh: run tests/setup.sh static $arch" >&2; exit 1; }
  env "CC_${triple//-/_}=$tools/bin/$arch-cc" "AR_${triple//-/_}=$tools/bin/ar" \
    "CARGO_TARGET_${upper}_LINKER=$tools/bin/$arch-cc" \
    "CARGO_TARGET_${upper}_RUSTFLAGS=-Clink-self-contained=no -Ctarget-feature=+crt-static" \
    RUSTC="$tools/bin/rustc" CARGO_TARGET_DIR="$target" \
    REMAP="$root=. ${CARGO_HOME:-$HOME/.cargo}=/cargo $target=target" \
    cargo build --locked --release --target "$triple" "$@"
}

static() {
  if [ -n "${NO_BUILD:-}" ] && [ -x "$binary" ]; then return; fi
  compile --bin $name
  ls -l "$binary"
}

# The program that benches/instructions.sh measures, with the library of the static build.
instructions() { compile --package $name-instructions; }

# One list of what the binary is linked from, without what only tests and builds on other targets use.
sbom() {
  mkdir -p "$dist"
  rm -f "$root/$folder.cdx.json"
  SOURCE_DATE_EPOCH=$epoch "$cache/cargo-cyclonedx/bin/cargo-cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 \
    --no-build-deps --target "$triple" --override-filename "$folder.cdx"
  # It names its own folder; here as elsewhere no path of this machine is shipped.
  sed "s#path+file://$root#path+file:///$name#g" "$root/$folder.cdx.json" > "$dist/$folder.cdx.json"
  # It writes one for every package of the workspace.
  rm -f "$root/$folder.cdx.json" "$root/benches/instructions/$folder.cdx.json"
  echo "$dist/$folder.cdx.json"
}

# The names are those that the Ansible roles of prometheus-community unpack: the folder like the archive,
# in it the program under its own name.
tarball() {
  static
  sbom
  rm -rf "$dist/$folder"
  install -D -m 755 "$binary" "$dist/$folder/$name"
  install -m 644 LICENSE README.md CHANGELOG.md METRICS.md deploy/config.yaml deploy/web-config.yaml "$dist/$folder/"
  install -m 644 "$dist/$folder.cdx.json" "$dist/$folder/sbom.cdx.json"
  cp -r --no-preserve=mode alerts dashboards "$dist/$folder/"
  rm -rf "$dist/$folder/dashboards/generator"
  cp -r --no-preserve=mode deploy/systemd deploy/nagios "$dist/$folder/"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" \
    --format=ustar -C "$dist" -cf - "$folder" | gzip -n -9 > "$dist/$folder.tar.gz"
  rm -rf "$dist/$folder"
  (cd "$dist" && sha256sum ./*.tar.gz | sed 's| \./| |' > sha256sums.txt)
  cat "$dist"/sha256sums.txt
}

deb() {
  static
  sbom
  cp "$dist/$folder.cdx.json" "$target/$triple/release/sbom.cdx.json"
  SOURCE_DATE_EPOCH=$epoch CARGO_TARGET_DIR=$target "$cache/cargo-deb/bin/cargo-deb" --quiet --locked --no-build --no-strip --target "$triple" \
    --output "$dist/${name}_$version-1_$debian.deb"
}

# The first stage needs a registry; a folder that holds the finished binary, and the folder of its socket, stands in for it.
image() {
  static
  rm -rf "$dist/image"
  install -D -m 755 "$binary" "$dist/image/$name"
  install -d "$dist/image/run/$name"
  # A layer's bytes contain the times of its files.
  find "$dist/image" -exec touch --no-dereference --date="@$epoch" {} +
  buildah build --isolation chroot --format docker --timestamp "$epoch" --target final \
    --build-context "build=$dist/image" --build-arg "VERSION=$version" --build-arg "REVISION=${REVISION:-}" \
    --tag "$name:$version" --file Dockerfile .
  rm -rf "$dist/image"
}

case ${1:-} in
  static | sbom | tarball | deb | image | instructions) "$1" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | head -n 13; exit 2 ;;
esac
