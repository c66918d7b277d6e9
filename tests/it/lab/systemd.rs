//! A container whose PID 1 is systemd, booted in about a second with systemd-nspawn.
//!
//! The root that `tests/setup.sh` made lies under an overlay in memory, so every container starts fresh
//! and several can run at once. It has no network but its own loopback; a unit with `NetworkNamespacePath=/host-net`
//! is in the host's. Host processes reach its system bus
//! and systemd's private socket through `/proc/PID/root`, and authenticate as root. The whole container is
//! a process namespace below one child: it ends with the test process, however that ends.

use super::http::{self, Response};
use super::process::{self, Daemon, Output, bound_command, children, output};
use super::{TEMP_PREFIX, cached, need_root, program, temp_dir, wait_for};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Own cgroup in every hierarchy (two containers at the top would kill each other's processes), own /run
/// (nspawn keeps locks there), own overlay. Not `exec`: nspawn must not be PID 1 of the outer namespace.
const BOOT: &str = r#"set -e
for top in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
  if [ -e $top/cgroup.procs ]; then mkdir $top/$NAME; echo 0 > $top/$NAME/cgroup.procs; fi
done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs "$FOLDER"
mkdir "$FOLDER/upper" "$FOLDER/work" "$FOLDER/root"
touch "$FOLDER/net"
mount --bind /proc/self/ns/net "$FOLDER/net"
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$FOLDER/root"
while :; do
  status=0
  systemd-nspawn --quiet --directory="$FOLDER/root" --machine="$MACHINE" --boot --register=no --keep-unit \
    --private-network --link-journal=no --resolv-conf=off --timezone=off --console=read-only \
    --bind="$FOLDER/net:/host-net" $EXTRA || status=$?
  # It ends with this when the container wants to boot again.
  [ $status = 133 ] || exit $status
done"#;

const CGROUP_TOPS: [&str; 3] =
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"];

/// A booted container. Ended when dropped.
pub(crate) struct Container {
    daemon: Daemon,
    leader: u32,
    cgroup: String,
    _folder: tempfile::TempDir,
}

impl Container {
    /// Boots and waits until systemd answers on the container's bus.
    #[track_caller]
    pub(crate) fn boot() -> Self {
        Self::boot_with("root", "")
    }

    /// Boots another root of the cache, with these options for systemd-nspawn.
    #[track_caller]
    pub(crate) fn boot_with(root: &str, options: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        need_root("a container");
        let folder = temp_dir("container");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("{TEMP_PREFIX}{}.{number}", std::process::id());
        let log = folder.path().join("log");
        let overlay = folder.path().join("overlay");
        std::fs::create_dir(&overlay).expect("a folder for the overlay");
        cached(&format!("{root}/usr/lib/systemd/systemd"));
        program("systemd-nspawn");
        remove_left_cgroups();
        let mut command = bound_command(program("unshare"));
        command
            .args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"])
            .args(["sh", "-c", BOOT])
            .env("NAME", &cgroup)
            .env("FOLDER", &overlay)
            .env("LOWER", cached(root))
            .env("EXTRA", options)
            .env("MACHINE", format!("lab{}-{number}", std::process::id()))
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        let daemon = Daemon::start("systemd container", command, &log);
        let mut container = Self { daemon, leader: 0, cgroup, _folder: folder };
        container.wait_until_booted();
        container
    }

    /// `systemctl reboot`: the same files, another PID 1.
    #[track_caller]
    pub(crate) fn reboot(&mut self) {
        let before = self.leader;
        // Its connection ends with everything else, so it may say that it failed.
        let said = self.exec(&["systemctl", "reboot"]).stderr;
        wait_for("the old PID 1 to end", Duration::from_secs(30), || {
            let gone = !Path::new(&format!("/proc/{before}")).exists();
            gone.then_some(()).ok_or_else(|| format!("{said}{}", self.daemon.describe()))
        });
        self.wait_until_booted();
    }

    /// Waits until systemd answers on the container's bus.
    #[track_caller]
    fn wait_until_booted(&mut self) {
        self.leader = wait_for("the container's PID 1", Duration::from_secs(20), || {
            self.daemon.check_alive().unwrap_or_else(|end| panic!("container: {end}"));
            let child = |pid| children(pid).first().copied();
            // unshare, the shell, nspawn, systemd; nspawn has another child before it.
            let nspawn = child(self.daemon.pid()).and_then(child);
            let last = nspawn.and_then(|pid| children(pid).last().copied());
            let is_ready = |pid: &u32| {
                Path::new(&format!("/proc/{pid}/root/run/dbus/system_bus_socket")).exists()
            };
            last.filter(is_ready).ok_or_else(|| self.daemon.describe())
        });
        wait_for("systemd in the container", Duration::from_secs(30), || {
            let state = self.busctl(&[
                "get-property",
                "org.freedesktop.systemd1",
                "/org/freedesktop/systemd1",
                "org.freedesktop.systemd1.Manager",
                "SystemState",
            ]);
            match state.stdout.trim() {
                r#"s "running""# | r#"s "degraded""# => Ok(()),
                other => Err(format!("{other} {}\n{}", state.stderr, self.daemon.describe())),
            }
        });
    }

    /// A request to a server in the container, which has a loopback of its own.
    pub(crate) fn get(&self, port: u16, path: &str) -> Result<Response, String> {
        let network = std::fs::File::open(format!("/proc/{}/ns/net", self.leader))
            .map_err(|error| format!("the container's network: {error}"))?;
        // Only the thread that asks enters it.
        std::thread::scope(|scope| {
            let asks = scope.spawn(|| {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|error| format!("the container's network: {error}"))?;
                http::get(SocketAddr::from(([127, 0, 0, 1], port)), path)
            });
            asks.join().expect("no panic while asking")
        })
    }

    /// Process id of the container's PID 1, as the host sees it.
    pub(crate) fn leader(&self) -> u32 {
        self.leader
    }

    /// The container's files, as the host reaches them.
    pub(crate) fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.leader).into()
    }

    /// Address of the container's system bus.
    pub(crate) fn bus_address(&self) -> String {
        format!("unix:path=/proc/{}/root/run/dbus/system_bus_socket", self.leader)
    }

    /// Address of systemd's own socket, which speaks D-Bus without a bus.
    ///
    /// It resets connections from outside the container's process namespace, whose process id it
    /// sees as 0: start the client with [`Self::inside`].
    pub(crate) fn private_address(&self) -> String {
        format!("unix:path=/proc/{}/root/run/systemd/private", self.leader)
    }

    /// Writes a unit file (or replaces it) and makes systemd read it.
    #[track_caller]
    pub(crate) fn install_unit(&self, name: &str, text: &str) {
        let file = self.root().join("etc/systemd/system").join(name);
        std::fs::write(&file, text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.systemctl(&["daemon-reload"]);
    }

    /// `systemctl` in the container; fails unless it exits 0.
    #[track_caller]
    pub(crate) fn systemctl(&self, args: &[&str]) -> String {
        let output = self.exec(&[&["systemctl"], args].concat());
        let (out, err) = (&output.stdout, &output.stderr);
        assert!(output.status.success(), "systemctl {args:?}: {}\n{out}{err}", output.status);
        output.stdout
    }

    /// One property of a unit as `systemctl show` prints it, such as `NRestarts`.
    #[track_caller]
    pub(crate) fn show(&self, unit: &str, property: &str) -> String {
        let text = self.systemctl(&["show", "--value", "--property", property, unit]);
        text.trim().to_owned()
    }

    /// Runs a program in the container, as root, within 30 seconds.
    #[track_caller]
    pub(crate) fn exec(&self, args: &[&str]) -> Output {
        let mut command = bound_command(program("nsenter"));
        command
            .arg(format!("--target={}", self.leader))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--"])
            .args(args);
        output(command, Duration::from_secs(30))
    }

    /// A command of the host, with its files and network, in the container's process namespace.
    pub(crate) fn inside(&self, program_name: impl AsRef<OsStr>) -> Command {
        process::command_inside(self.leader, program_name)
    }

    /// `busctl` on the host, connected to the container's bus.
    #[track_caller]
    pub(crate) fn busctl(&self, args: &[&str]) -> Output {
        let mut command: Command = bound_command(program("busctl"));
        command.arg(format!("--address={}", self.bus_address())).args(args);
        process::output(command, Duration::from_secs(30))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.daemon.kill();
        let started = Instant::now();
        // Removing a cgroup fails until its last process is gone.
        while !remove_cgroup(&self.cgroup) && started.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Removes a cgroup and those below it from every hierarchy; false when something is left.
fn remove_cgroup(name: &str) -> bool {
    fn remove(folder: &Path) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        std::fs::remove_dir(folder).ok();
    }
    let folders = CGROUP_TOPS.map(|top| Path::new(top).join(name));
    for folder in &folders {
        remove(folder);
    }
    folders.iter().all(|folder| !folder.exists())
}

/// Removes the cgroups of containers whose test process was killed.
fn remove_left_cgroups() {
    for top in CGROUP_TOPS {
        for entry in std::fs::read_dir(top).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if super::disk::is_leftover(&name) {
                remove_cgroup(&name);
            }
        }
    }
}
