//! The laboratory: real daemons and real faults, each an object that cleans up when it is dropped.
//!
//! Every function here panics with the reason when it cannot do its work: a laboratory that half works
//! would make the tests lie. Nothing started here outlives the test process: children carry a parent death
//! signal, and mounts and loop devices that a killed test run left behind are removed by the next one.

#![allow(dead_code, reason = "a laboratory offers more than today's tests use")]

pub(crate) mod agent;
pub(crate) mod alertmanager;
pub(crate) mod apiserver;
pub(crate) mod browser;
pub(crate) mod disk;
pub(crate) mod dqlite;
pub(crate) mod etcd;
pub(crate) mod fuse;
pub(crate) mod http;
pub(crate) mod kmsg;
pub(crate) mod mute;
pub(crate) mod node_exporter;
pub(crate) mod pki;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod systemd;
pub(crate) mod volume;
pub(crate) mod webhook;

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// Names of temporary folders begin with this and the process id, so that leftovers can be told.
pub(crate) const TEMP_PREFIX: &str = "controlplane-exporter-lab.";

static TURN: RwLock<()> = RwLock::new(());

/// The turn of a test that others may run beside: the first line of an ordinary test.
pub(crate) fn together() -> RwLockReadGuard<'static, ()> {
    TURN.read().unwrap_or_else(PoisonError::into_inner)
}

/// The turn of a test that must have the machine for itself, because it measures time or reads the
/// kernel log.
pub(crate) fn alone() -> RwLockWriteGuard<'static, ()> {
    TURN.write().unwrap_or_else(PoisonError::into_inner)
}

/// The cache that `tests/setup.sh` fills.
pub(crate) fn cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("CONTROLPLANE_EXPORTER_CACHE").unwrap_or_else(|| {
        variable("XDG_CACHE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
            .expect("neither CONTROLPLANE_EXPORTER_CACHE nor XDG_CACHE_HOME nor HOME is set")
            .join("controlplane-exporter-tests")
    })
}

/// A file or folder of the cache, such as `etcd-3.5/usr/bin/etcd`.
#[track_caller]
pub(crate) fn cached(relative: &str) -> PathBuf {
    let path = cache().join(relative);
    assert!(path.exists(), "{} is missing: run tests/setup.sh", path.display());
    path
}

/// The absolute path of an installed program.
#[track_caller]
pub(crate) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("no program {name} on this machine: run tests/setup.sh"))
}

/// Fails unless the test runs as root, as mounts and containers need.
#[track_caller]
pub(crate) fn need_root(what: &str) {
    assert!(rustix::process::geteuid().is_root(), "{what} needs root: run the tests as root");
}

/// A new folder that is removed when the value is dropped.
pub(crate) fn temp_dir(name: &str) -> tempfile::TempDir {
    let prefix = format!("{TEMP_PREFIX}{}.{name}.", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary folder")
}

/// A loopback port nobody listens on, never handed out twice by this process.
///
/// Below the range that the kernel gives to outgoing connections, which could otherwise take it before
/// the daemon binds it.
pub(crate) fn free_port() -> u16 {
    static GIVEN: OnceLock<Mutex<HashSet<u16>>> = OnceLock::new();
    let mut given =
        GIVEN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..10_000 {
        let port = fastrand::u16(15_000..32_000);
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
    panic!("no free loopback port between 15000 and 32000");
}

/// Whether scrapes waited for nothing: nine of ten took less than 50 ms, and the one that this machine held up less than
/// any time-out.
#[track_caller]
pub(crate) fn assert_quick(mut times: Vec<Duration>) {
    times.sort_unstable();
    let (most, slowest) = (times[times.len() * 9 / 10 - 1], times[times.len() - 1]);
    assert!(most < Duration::from_millis(50), "nine of ten scrapes took {most:?}");
    assert!(slowest < Duration::from_millis(900), "a scrape took {slowest:?}");
}

/// Calls `probe` until it gives a value; fails with `what` and the last reason after `limit`.
#[track_caller]
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> T {
    let started = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(reason) if started.elapsed() >= limit => {
                panic!("{what}: not within {limit:?}; last seen: {reason}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The last lines of a file, for messages of failed tests.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned());
    let text = text.unwrap_or_else(|error| format!("(cannot read {}: {error})", path.display()));
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
