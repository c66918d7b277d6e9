#!/usr/bin/env bash
# Whether the datastore's own syncs are seen through fentry. Machines that run tests may refuse to hook the kernel's functions,
# so `make test` sees tracepoints only; here Debian's stock kernel runs in an emulated machine, which needs no KVM.
#
#   tests/fentry.sh [BINARY]    the static binary unless given, built before; with NO_BUILD=1 it is taken as it is
#
# In there etcd has a disk of its own, and what the agent counted while keys were written is held against what etcd says of
# itself. The agent of a user without rights must say why it sees nothing, and one that has only tracepoints, which a locked kernel
# keeps to itself, as well. All of it once more in a kernel that is locked down.
# Run as root on Debian, after tests/setup.sh and tests/setup.sh static. Kernel and busybox stay in the cache. Takes two to six
# minutes without the build; FENTRY_LIMIT are the seconds that each of the two machines may take.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${CONTROLPLANE_EXPORTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/controlplane-exporter-tests}
limit=${FENTRY_LIMIT:-280}
name=controlplane-exporter
packages=(qemu-system-x86 cpio kmod e2fsprogs util-linux xz-utils)
from=$SECONDS
qemu=
work=$(mktemp -d)
trap '[ -z "$qemu" ] || kill "$qemu" 2> /dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

fail() { echo "fentry: FAILED: $*" >&2; exit 1; }

# quietly COMMAND…: shows its last lines when it fails.
quietly() { "$@" > "$work/log" 2>&1 || { tail -n 25 "$work/log" >&2; fail "$*"; }; }

install_packages() {
  if [ "$(dpkg-query -W -f '${db:Status-Abbrev}\n' "${packages[@]}" 2> /dev/null | grep -c '^ii')" = ${#packages[@]} ]; then return; fi
  echo "apt-get install ${packages[*]}"
  # A third-party source may be out of reach; what counts is whether the install works.
  apt-get update > /dev/null 2>&1 || true
  DEBIAN_FRONTEND=noninteractive quietly apt-get install -y --no-install-recommends "${packages[@]}"
}

# The kernel, the modules that a disk needs, and a busybox, none of them installed: $cache/fentry has them.
unpack() {
  local target=$cache/fentry image version parts
  if [ -d "$target" ]; then return; fi
  apt-get update > /dev/null 2>&1 || true
  # The package of this name is empty and has the newest kernel as its dependency.
  image=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
  [ -n "$image" ] || fail "apt knows no linux-image-amd64"
  echo "downloading $image and busybox-static"
  rm -rf "$target.new"; mkdir -p "$target.new"
  (cd "$target.new" && quietly apt-get -o APT::Sandbox::User=root download "$image" busybox-static)
  dpkg-deb --extract "$target.new"/busybox-static_*.deb "$target.new"
  parts=(fs lib crypto arch drivers/block drivers/virtio)
  dpkg-deb --fsys-tarfile "$target.new"/linux-image-*.deb |
    tar -x -C "$target.new" --wildcards './boot/vmlinuz-*' '*/modules.*' "${parts[@]/#/*/lib/modules/*/kernel/}"
  rm "$target.new"/*.deb
  version=$(echo "$target.new"/boot/vmlinuz-*)
  quietly depmod -b "$target.new" "${version##*/vmlinuz-}"
  mv "$target.new" "$target"
}

# add PROGRAM TO: puts a program there in the machine, and what it is linked to at the same places as here.
add() {
  local library
  install -D "$1" "$root$2"
  { ldd "$1" 2> /dev/null || true; } | { grep -oE '/[^ ()]+' || true; } | while read -r library; do
    install -D "$library" "$root$library"
  done
}

# What the machine's first process is; the host reads the first word of each line that it prints.
write_init() {
  cat > "$root/init" <<'END'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t securityfs securityfs /sys/kernel/security
exec < /dev/null > /dev/console 2>&1

end() {
  echo "$@"
  sync
  poweroff -f
  sleep 60
}
trap 'end stopped at once' EXIT

# within SECONDS WHAT COMMAND…: waits until it succeeds.
within() {
  local left=$1 what=$2
  shift 2
  until "$@"; do
    left=$((left - 1))
    if [ $left -le 0 ]; then
      sed 's/^/log etcd: /' /tmp/etcd.log | tail -n 5
      if [ -e /tmp/agent.log ]; then
        sed 's/^/log agent: /' /tmp/agent.log | tail -n 20
        echo "why $(why 10379)"
      fi
      end "failed waiting for $what"
    fi
    sleep 1
  done
}

# Its own limit makes this wget crash.
get() { timeout 5 wget -q -O - "http://127.0.0.1:$1"; }
why() { get "$1/api/v1/status" | tr '{}' '\n\n' | grep '"name":"fdatasync"' | sed 's/.*"why":"\([^"]*\)".*/\1/'; }
# Keys and values are in base64, of which any four digits are some.
put() {
  local body="{\"key\":\"$(printf %08d "$1")\",\"value\":\"$value\"}"
  wget -q -O /dev/null --post-data "$body" http://127.0.0.1:2379/v3/kv/put
}
healthy() { get 2379/health | grep -q true; }
# It tells the source when the first sync was seen.
seen() { put 0 && [ "$(source_of 10379)" = fentry ]; }
source_of() { get "$1/metrics" | sed -n 's/^controlplane_fdatasync_datastore_source_info{source="\([a-z]*\)".*/\1/p'; }
# By tracepoints, or with the reason why not.
settled() { put 0 && [ -n "$(source_of 10381)" ] || why 10381 | grep -q "the datastore's own syncs are not seen"; }
blind() { why 10380 | grep -q "the datastore's own syncs are not seen"; }

figures() {
  get 10379/metrics | grep -E '^controlplane_fdatasync_(datastore|device_(request|errors))_' | grep -v _bucket
  get 2379/metrics | grep -E '^etcd_disk_(wal_fsync|backend_commit)_duration_seconds_(count|sum)'
}

# The agent looks every second; its probe goes on.
counts() { figures | grep -E '^(etcd_disk|.*datastore_duration).*_count'; }
is_idle() {
  local before
  before=$(counts)
  sleep 3
  [ "$before" = "$(counts)" ]
}

value=AAAA
while [ ${#value} -lt 500 ]; do value=$value$value; done
echo "kernel $(uname -r)"
while read -r module; do
  insmod "/modules/$module" || echo "no module $module"
done < /modules/order
mount -t ext4 /dev/vda /var/lib/etcd || end failed to mount the disk
ip link set lo up
echo "lockdown $(cat /sys/kernel/security/lockdown)"

etcd --name=m0 --data-dir=/var/lib/etcd \
  --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
  --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
  --initial-cluster=m0=http://127.0.0.1:2380 > /tmp/etcd.log 2>&1 &
within 60 etcd healthy
echo "etcd $(cut -d . -f 1 /proc/uptime)"
controlplane-exporter --config.file=/etc/agent.yaml > /tmp/agent.log 2>&1 &
within 40 'a source that is fentry' seen
echo "agent $(cut -d . -f 1 /proc/uptime)"
echo "why $(why 10379)"
grep 'not seen' /tmp/agent.log | sed 's/^/why /'

within 30 'an idle etcd before the writes' is_idle
figures | sed 's/^/before /'
number=0
while [ $number -lt 300 ]; do
  number=$((number + 1))
  put $number || end failed to put a key
done
echo "written $(cut -d . -f 1 /proc/uptime)"
within 30 'an idle etcd after the writes' is_idle
figures | sed 's/^/after /'

/usr/bin/setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all \
  controlplane-exporter --config.file=/etc/blind.yaml > /tmp/blind.log 2>&1 &
within 40 'what the agent without rights says' blind
echo "blind $(why 10380)"

# Without the kernel's types no function can be hooked.
mount -t tracefs tracefs /sys/kernel/tracing
mount --bind /dev/null /sys/kernel/btf/vmlinux
controlplane-exporter --config.file=/etc/tracepoints.yaml > /tmp/tracepoints.log 2>&1 &
within 40 'what the agent says that has only tracepoints' settled
echo "tracepoints $(source_of 10381) $(why 10381)"
end done "$(cut -d . -f 1 /proc/uptime)"
END
  chmod 755 "$root/init"
}

# Everything that is in the machine's memory from its start, in $work/initramfs.
pack() {
  local version=$1 module file
  root=$work/root
  mkdir -p "$root"/{bin,etc,proc,sys,dev,tmp,run,modules,var/lib/etcd}
  chmod 1777 "$root/tmp"
  install "$cache/fentry/bin/busybox" "$root/bin/busybox"
  for module in virtio_pci virtio_blk ext4; do
    modprobe -C /dev/null -d "$cache/fentry" -S "$version" --show-depends "$module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    case $file in
      *.xz) xz -dc "$file" > "$root/modules/$(basename "$file" .xz)" ;;
      *) cp "$file" "$root/modules/" ;;
    esac
    basename "$file" .xz >> "$root/modules/order"
  done
  add "$cache/etcd-3.5/usr/bin/etcd" /usr/bin/etcd
  add "$(command -v setpriv)" /usr/bin/setpriv
  add "$binary" "/usr/bin/$name"
  cat > "$root/etc/agent.yaml" <<'END'
web: {listen_address: ["127.0.0.1:10379"]}
fdatasync: {interval: 1s, passive: auto}
END
  cat > "$root/etc/blind.yaml" <<'END'
web: {listen_address: ["127.0.0.1:10380"], socket: ""}
fdatasync: {interval: 1s, passive: auto}
END
  cat > "$root/etc/tracepoints.yaml" <<'END'
web: {listen_address: ["127.0.0.1:10381"], socket: ""}
fdatasync: {interval: 1s, passive: tracepoints}
END
  write_init
  (cd "$root" && find . | cpio --quiet --create --format=newc --owner=0:0) > "$work/initramfs"
}

# boot WHAT PARAMETERS: runs the machine to its end; what it prints comes to $work/console.
boot() {
  local status=0
  rm -f "$work/disk" "$work/console"
  truncate -s 512M "$work/disk"
  quietly mke2fs -q -t ext4 "$work/disk"
  timeout --kill-after=5 "$limit" qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 1536 -nodefaults -no-reboot -display none \
    -monitor none -serial "file:$work/console" -drive "file=$work/disk,if=virtio,format=raw,throttling.iops-total=40" \
    -kernel "$cache"/fentry/boot/vmlinuz-* -initrd "$work/initramfs" -append "console=ttyS0 quiet panic=-1 $2" \
    < /dev/null > "$work/qemu" 2>&1 &
  qemu=$!
  wait $qemu || status=$?
  qemu=
  touch "$work/console"
  sed -i 's/\r$//' "$work/console"
  if [ $status != 0 ] || ! grep -q '^done ' "$work/console"; then
    cat "$work/qemu" >&2
    tail -n 60 "$work/console" >&2
    if [ $status = 124 ]; then fail "$1: not done within $limit s"; fi
    fail "$1: $(grep -E '^(failed|stopped) ' "$work/console" || echo "the machine ended with $status")"
  fi
}

# said WORD: what the machine printed behind it.
said() { sed -n "s/^$1 //p" "$work/console"; }

# judge WHAT: a line of what was counted, and a failure where the two do not agree.
judge() {
  awk -v what="$1" '
    $1 == "before" || $1 == "after" { value[$1, $2] = $3; names[$2] }
    function grown(name, from, all) {
      all = 0
      for (from in names) if (index(from, name) == 1) all += value["after", from] - value["before", from]
      return all
    }
    function near(a, b, share) { return a >= b * (1 - share) && a <= b * (1 + share) }
    END {
      ours = "controlplane_fdatasync_datastore_duration_seconds_"
      wal = "{process=\"etcd\",file=\"wal\",op=\"fdatasync\"}"
      db = "{process=\"etcd\",file=\"db\",op=\"fdatasync\"}"
      count = grown(ours "count" wal); etcd_count = grown("etcd_disk_wal_fsync_duration_seconds_count")
      sum = grown(ours "sum" wal); etcd_sum = grown("etcd_disk_wal_fsync_duration_seconds_sum")
      syncs = grown(ours "count" db); commits = grown("etcd_disk_backend_commit_duration_seconds_count")
      for (name in names) if (name ~ /^controlplane_fdatasync_device_request_duration_seconds_count.*op="write"/)
        writes += value["after", name] - value["before", name]
      for (name in names) if (name ~ /^controlplane_fdatasync_(datastore_failures|device_errors)_total/)
        failures += value["after", name]
      printf "long: %s: %d WAL syncs, etcd says %d; %.3f s, etcd says %.3f s; ", what, count, etcd_count, sum, etcd_sum
      printf "%d database syncs of %d commits; %d writes of the disk\n", syncs, commits, writes
      if (etcd_count < 100) wrong = wrong " etcd has hardly synced;"
      if (!near(count, etcd_count, 0.01)) wrong = wrong " the numbers of WAL syncs differ;"
      if (!near(sum, etcd_sum, 0.1)) wrong = wrong " the times of WAL syncs differ;"
      if (syncs < 2 * commits - 2 || syncs > 2 * commits + 2) wrong = wrong " a commit has two syncs, and these have not;"
      if (writes <= 0) wrong = wrong " the disk has no writes;"
      if (failures > 0) wrong = wrong " something failed;"
      if (wrong != "") { print "fentry: FAILED: " what ":" wrong > "/dev/stderr"; exit 1 }
    }' "$work/console"
}

install_packages
unpack
[ -x "$cache/etcd-3.5/usr/bin/etcd" ] || fail "no etcd in the cache; run tests/setup.sh"
built=0
binary=${1:-}
if [ -z "$binary" ]; then
  mkdir -p target "$cache/static"
  if [ ! -e target/static ]; then ln -s "$cache/static" target/static; fi
  built=$SECONDS
  quietly deploy/package.sh static
  built=$((SECONDS - built))
  binary=${CONTROLPLANE_EXPORTER_STATIC_TARGET:-target/static}/x86_64-unknown-linux-musl/release/$name
fi
kernel=$(echo "$cache"/fentry/boot/vmlinuz-*)
kernel=${kernel##*/vmlinuz-}
pack "$kernel"

failed=0
for mode in none confidentiality; do
  what="$kernel, lockdown=$mode" start=$SECONDS
  boot "$what" "$(if [ $mode != none ]; then echo "lockdown=$mode"; fi)"
  judge "$what" || failed=1
  case $(said lockdown) in
    *"[$mode]"*) ;;
    *) echo "fentry: FAILED: $what: the kernel says $(said lockdown)" >&2; failed=1 ;;
  esac
  if [ -n "$(said why)" ]; then echo "fentry: FAILED: $what: not all is seen: $(said why)" >&2; failed=1; fi
  echo "long: $what: without rights: $(said blind)"
  echo "long: $what: by tracepoints alone: $(said tracepoints)"
  case $mode:$(said tracepoints) in
    none:tracepoint*) ;;
    # A locked kernel has an empty tracefs.
    confidentiality:*"/events/syscalls/sys_exit_fdatasync/id: No such file"*) ;;
    *) echo "fentry: FAILED: $what: tracepoints alone: not what this kernel lets through" >&2; failed=1 ;;
  esac
  echo "long: $what: $((SECONDS - start)) s, of which etcd answered after $(said etcd), fentry after $(said agent)"
done
echo "long: $((SECONDS - from)) s in all, $built of them for the binary"
exit $failed
