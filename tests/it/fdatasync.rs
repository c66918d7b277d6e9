//! The `fdatasync` sampler on disks that are slow, fail, fill up and hang for real.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::lab::agent::{Agent, Options, Scrape};
use crate::lab::disk::{Disk, Kind, SlowDisk};
use crate::lab::process::{self, Daemon, bound_command, children, run};
use crate::lab::{self, wait_for};

const COUNT: &str = "controlplane_fdatasync_duration_seconds_count";
const BUCKET: &str = "controlplane_fdatasync_duration_seconds_bucket";
const STALLS: &str = "controlplane_fdatasync_stalls_total";
const INFLIGHT: &str = "controlplane_fdatasync_inflight_seconds";
const FAILURES: &str = "controlplane_fdatasync_failures_total";
const LAST_FAILURE: &str = "controlplane_fdatasync_failure_last_timestamp_seconds";
const MAX: &str = "controlplane_fdatasync_max_seconds";
const BLOCKED: &str = "controlplane_fdatasync_thread_blocked_seconds";
const ALL: &str = "controlplane_fdatasync_";
const SECOND: Duration = Duration::from_secs(1);

fn config(path: &Path) -> String {
    // What else looks at the disk would only make the times less certain.
    format!(
        "fdatasync: {{paths: [{}], interval: 200ms}}\nfilesystem: {{enabled: false}}\n",
        path.display()
    )
}

/// An agent that has synced on the disk.
fn probing(path: &Path) -> Agent {
    let agent = Agent::start(&config(path));
    agent.wait_until("a first sync", ALL, 10 * SECOND, |s| count(s) > 0.0);
    agent
}

fn count(scrape: &Scrape) -> f64 {
    scrape.sum(COUNT, &[])
}

fn inflight(scrape: &Scrape) -> f64 {
    scrape.sum(INFLIGHT, &[])
}

fn stalls(scrape: &Scrape) -> [f64; 4] {
    ["0.1", "0.5", "1", "5"].map(|threshold| scrape.sum(STALLS, &[("threshold", threshold)]))
}

/// The probes of an agent.
fn probes(agent: &Agent) -> BTreeSet<u32> {
    let is_probe = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"probe")
    };
    children(agent.pid()).into_iter().filter(is_probe).collect()
}

fn is_gone(pid: u32) -> Result<(), String> {
    if Path::new("/proc").join(pid.to_string()).exists() {
        Err(format!("{pid} lives"))
    } else {
        Ok(())
    }
}

/// What lies on a disk; asked by a child, since the disk is served by this process.
fn names(path: &Path) -> String {
    run("ls", ["-A".as_ref(), path.as_os_str()]).trim().to_owned()
}

#[test]
fn a_slow_sync_shows_in_the_distribution_as_the_worst_and_as_a_stall_at_each_threshold() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let agent = probing(disk.mount().path());
    let healthy = agent.scrape();
    assert_eq!(stalls(&healthy), [0.0; 4], "{}", healthy.with_prefix(ALL));
    assert!(healthy.sum(MAX, &[]) < 0.1, "{}", healthy.with_prefix(ALL));

    disk.set_delay(SECOND + SECOND / 5);
    let slow = agent.wait_until("a slow sync", ALL, 15 * SECOND, |s| {
        s.sum(COUNT, &[]) > s.sum(BUCKET, &[("le", "1")])
    });
    let [tenth, half, one, five] = stalls(&slow);
    assert!(tenth >= 1.0 && half >= 1.0 && one >= 1.0, "{}", slow.with_prefix(ALL));
    assert_eq!(five, 0.0);
    assert!(slow.sum(MAX, &[]) >= 1.2, "{}", slow.with_prefix(ALL));

    disk.release();
    agent.wait_until("syncs as before", ALL, 15 * SECOND, |s| {
        s.sum(BUCKET, &[("le", "0.25")]) > healthy.sum(BUCKET, &[("le", "0.25")]) + 3.0
    });
    says(&agent, "sync_stalled");
    says(&agent, "sync_recovered");
}

#[test]
fn a_hang_grows_by_the_second_and_costs_neither_scrapes_nor_the_port_nor_the_exit() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let path = disk.mount().path();
    let agent = probing(path);
    disk.hang();
    let first = agent.wait_until("a hang", ALL, 10 * SECOND, |s| inflight(s) > 2.0);
    let asked = Instant::now();
    assert!(stalls(&first)[..3].iter().all(|n| *n == 1.0), "{}", first.with_prefix(ALL));

    let mut times = Vec::new();
    for _ in 0..20 {
        std::thread::sleep(SECOND / 10);
        let started = Instant::now();
        agent.scrape();
        times.push(started.elapsed());
    }
    lab::assert_quick(times);
    let second = agent.scrape();
    let grown = (inflight(&second) - inflight(&first)) / asked.elapsed().as_secs_f64();
    assert!((0.8..1.2).contains(&grown), "{grown} s a second");
    assert_eq!(count(&second), count(&first), "an unfinished sync is in no bucket");
    let worst = second.sum(MAX, &[]);
    assert!(worst > 2.0 && worst <= inflight(&second), "{}", second.with_prefix(ALL));

    // A reload in the middle: the same sync, the same child.
    let held = probes(&agent);
    assert_eq!(held.len(), 1);
    agent.write_config(&config(path).replace("200ms", "300ms"));
    agent.signal(Signal::HUP);
    let interval = [("sampler", "fdatasync")];
    agent.wait_value("controlplane_sampler_interval_seconds", &interval, 0.3, 10 * SECOND);
    let third = agent.wait_until("figures after the reload", ALL, 5 * SECOND, |s| {
        inflight(s) > inflight(&second)
    });
    assert_eq!(count(&third), count(&first), "{}", third.with_prefix(ALL));
    assert_eq!(probes(&agent), held, "no second child before the first is reaped");
    // The child that was told to end still counts at the thresholds that its sync passes.
    agent.wait_until("the last threshold", ALL, 10 * SECOND, |s| stalls(s) == [1.0; 4]);

    // Killed: the port is free while the child is still held.
    let address = agent.address();
    let mut agent = agent;
    agent.signal(Signal::KILL);
    wait_for("the end of the agent", 2 * SECOND, || {
        agent.has_ended().then_some(()).ok_or_else(|| "it lives".to_owned())
    });
    for pid in &held {
        assert!(is_gone(*pid).is_err(), "the disk no longer holds the child");
    }
    TcpListener::bind(address).expect("the port is free at once");

    // A new one starts on the same port, shows the hang, and ends when told to.
    let again = Options {
        config: config(path),
        args: vec![format!("--web.listen-address={address}")],
        ..Options::default()
    };
    let mut agent = Agent::start_with(again);
    let response = lab::http::get(address, "/metrics").unwrap();
    assert_eq!(response.status, 200);
    agent.wait_until("the hang again", ALL, 15 * SECOND, |s| inflight(s) > 1.0);
    let started = Instant::now();
    assert!(agent.stop(5 * SECOND).success());
    assert!(started.elapsed() < 5 * SECOND);

    disk.release();
    for pid in held {
        wait_for("the end of the held child", 10 * SECOND, || is_gone(pid));
    }
    assert_eq!(names(path), "lost+found", "nothing is left behind");
}

#[test]
fn a_hang_that_ends_enters_the_distribution_with_its_whole_length() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let agent = probing(disk.mount().path());
    disk.hang();
    agent.wait_until("a hang", ALL, 10 * SECOND, |s| inflight(s) > 2.0);
    disk.release();
    let after =
        agent.wait_until("its end", ALL, 10 * SECOND, |s| count(s) > s.sum(BUCKET, &[("le", "1")]));
    assert_eq!(stalls(&after), [1.0, 1.0, 1.0, 0.0], "{}", after.with_prefix(ALL));
    assert!(after.sum("controlplane_fdatasync_duration_seconds_sum", &[]) > 2.0);
}

#[test]
fn a_disk_that_fails_is_counted_by_step_and_errno_with_the_time() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let agent = probing(disk.mount().path());
    assert_eq!(agent.scrape().sum(FAILURES, &[]), 0.0);
    disk.set_error(5);
    let eio = [("step", "sync"), ("errno", "EIO")];
    let failed =
        agent.wait_until("EIO", ALL, 15 * SECOND, |s| s.value(FAILURES, &eio) >= Some(1.0));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let last = failed.sum(LAST_FAILURE, &[]);
    assert!((now - 10.0..=now).contains(&last), "{last} is not about {now}");
    // ext4 gives up its journal: from then on nothing can be opened for writing.
    let rofs = [("step", "open"), ("errno", "EROFS")];
    agent.wait_until("EROFS", ALL, 15 * SECOND, |s| s.value(FAILURES, &rofs) >= Some(1.0));
    agent.wait_value("controlplane_sampler_up", &[("sampler", "fdatasync")], 1.0, SECOND);
}

#[test]
fn a_read_only_filesystem_and_a_full_one_are_failures_of_open_and_of_the_reservation() {
    let _turn = lab::together();
    let disk = Disk::with(Kind::Ext4);
    disk.mount().make_read_only();
    let agent = Agent::start(&config(disk.mount().path()));
    let rofs = [("step", "open"), ("errno", "EROFS")];
    agent.wait_until("EROFS", ALL, 10 * SECOND, |s| s.value(FAILURES, &rofs) >= Some(1.0));
    drop(agent);

    let disk = Disk::with(Kind::Ext4);
    disk.mount().fill();
    let agent = Agent::start(&config(disk.mount().path()));
    let full = [("step", "fallocate"), ("errno", "ENOSPC")];
    agent.wait_until("ENOSPC", ALL, 10 * SECOND, |s| s.value(FAILURES, &full) >= Some(1.0));
    says(&agent, "KiB left");
}

#[test]
fn a_filesystem_that_fills_up_is_still_measured_in_the_space_that_was_reserved() {
    let _turn = lab::together();
    let disk = Disk::with(Kind::Ext4);
    let agent = probing(disk.mount().path());
    disk.mount().fill();
    let full = count(&agent.scrape());
    let after = agent.wait_until("more syncs", ALL, 10 * SECOND, |s| count(s) > full + 2.0);
    assert_eq!(after.sum(FAILURES, &[]), 0.0, "{}", after.with_prefix(ALL));
}

#[test]
fn memory_is_refused_with_the_reason_and_has_no_figures() {
    let _turn = lab::together();
    let agent = Agent::start(&config(Path::new("/dev/shm")));
    let refused = [("sampler", "fdatasync"), ("reason", "call")];
    let name = "controlplane_sampler_failures_total";
    let scrape =
        agent.wait_until("a refusal", name, 10 * SECOND, |s| s.value(name, &refused) >= Some(1.0));
    for metric in [COUNT, INFLIGHT, MAX, STALLS] {
        assert!(scrape.all(metric, &[]).is_empty(), "{}", scrape.with_prefix(ALL));
    }
    says(&agent, "/dev/shm is in memory");
}

#[test]
fn an_overlay_that_syncs_nothing_and_a_mount_the_agent_may_not_write_to_are_refused() {
    let _turn = lab::together();
    let disk = Disk::with(Kind::Ext4);
    let base = disk.mount().path();
    let [lower, upper, work, over, bound] =
        ["lower", "upper", "work", "over", "bound"].map(|name| base.join(name));
    for folder in [&lower, &upper, &work, &over, &bound] {
        std::fs::create_dir(folder).unwrap();
    }
    let (l, u, w) = (lower.display(), upper.display(), work.display());
    let options = format!("volatile,lowerdir={l},upperdir={u},workdir={w}");
    let _over = Mounted::new(["-t", "overlay", "-o", &options, "overlay"], &over);
    let source = lower.display().to_string();
    let _bound = Mounted::new(["-o", "bind,ro", &source], &bound);
    let (over, bound) = (over.display(), bound.display());
    let agent = Agent::start(&format!(
        "fdatasync: {{paths: [{over}, {bound}], interval: 200ms}}\nfilesystem: {{enabled: false}}\n"
    ));
    says(&agent, &format!("{over} is on an overlay mounted `volatile`"));
    let scrape = agent.scrape();
    assert!(scrape.all(COUNT, &[]).is_empty(), "{}", scrape.with_prefix(ALL));
    assert!(scrape.all(FAILURES, &[]).is_empty(), "{}", scrape.with_prefix(ALL));
    drop(agent);
    let agent = Agent::start(&config(Path::new(&bound.to_string())));
    says(&agent, &format!("{bound} is writable, but not for the agent: add it to ReadWritePaths="));
    assert!(agent.scrape().all(FAILURES, &[]).is_empty());
}

#[test]
fn xfs_shows_slow_failing_and_hanging_syncs_as_ext4_does() {
    let _turn = lab::alone();
    let disk = SlowDisk::sized(Kind::Xfs, 320 << 20);
    let agent = probing(disk.mount().path());
    disk.set_delay(SECOND * 3 / 10);
    let slow = agent.wait_until("a slow sync", ALL, 15 * SECOND, |s| stalls(s)[0] >= 1.0);
    assert!(slow.sum(MAX, &[]) >= 0.1, "{}", slow.with_prefix(ALL));
    disk.hang();
    agent.wait_until("a hang", ALL, 15 * SECOND, |s| inflight(s) > 1.5 && stalls(s)[2] >= 1.0);
    disk.release();
    let before = count(&agent.scrape());
    agent.wait_until("syncs as before", ALL, 15 * SECOND, |s| count(s) > before + 3.0);
    disk.set_error(5);
    let eio = [("errno", "EIO")];
    agent.wait_until("EIO", ALL, 15 * SECOND, |s| s.sum(FAILURES, &eio) >= 1.0);
    // The filesystem shuts down, and unmounting it must not wait for its log.
    disk.release();
}

/// Waits until the status of the agent says why it does not measure; the reason follows the count.
#[track_caller]
fn says(agent: &Agent, why: &str) {
    wait_for("the reason", 10 * SECOND, || {
        let status = agent.get("/api/v1/status").unwrap().text();
        if status.contains(why) { Ok(()) } else { Err(status) }
    });
}

/// A mount of its own; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new<const N: usize>(args: [&str; N], at: &Path) -> Self {
        run("mount", args.map(AsRef::as_ref).into_iter().chain([at.as_os_str()]));
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", ["-l".as_ref(), self.0.as_os_str()]);
    }
}

#[test]
fn nothing_is_left_behind_when_agent_and_child_are_killed() {
    let _turn = lab::together();
    let disk = Disk::with(Kind::Ext4);
    let path = disk.mount().path();
    let agent = probing(path);
    assert_eq!(names(path), "lost+found", "the file has no name while it is used");
    let children = probes(&agent);
    assert_eq!(children.len(), 1);
    agent.signal(Signal::KILL);
    for pid in children {
        wait_for("the end of the child", 5 * SECOND, || is_gone(pid));
    }
    assert_eq!(names(path), "lost+found");
}

#[test]
fn a_child_that_is_killed_is_started_again() {
    let _turn = lab::together();
    let disk = Disk::with(Kind::Ext4);
    let agent = probing(disk.mount().path());
    let first = probes(&agent);
    for pid in &first {
        process::signal(*pid, Signal::KILL);
    }
    let before = count(&agent.scrape());
    agent.wait_until("more syncs", ALL, 10 * SECOND, |s| count(s) > before + 2.0);
    assert!(probes(&agent).is_disjoint(&first));
}

#[test]
fn a_thread_of_the_datastore_that_the_disk_holds_shows_its_age() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let agent = probing(disk.mount().path());
    let folder = lab::temp_dir("etcd");
    // The kernel calls a process by the name of its file.
    let program = folder.path().join("etcd");
    std::fs::copy(lab::program("dd"), &program).unwrap();
    disk.hang();
    let mut command = bound_command("setpriv");
    command.arg("--clear-groups").arg("--").arg(&program).arg("if=/dev/zero");
    command.arg(format!("of={}", disk.mount().path().join("file").display()));
    command.args(["bs=4k", "count=1", "conv=fsync"]);
    let writer = Daemon::start("a writer", command, &folder.path().join("log"));
    // Processes are searched for twice a minute.
    let etcd = [("process", "etcd")];
    let held = agent.wait_until("a blocked thread", BLOCKED, 45 * SECOND, |s| {
        s.value(BLOCKED, &etcd) > Some(2.0)
    });
    assert!(held.value(BLOCKED, &etcd) < Some(60.0));
    disk.release();
    agent.wait_until("its end", BLOCKED, 10 * SECOND, |s| {
        s.value(BLOCKED, &etcd).is_none_or(|age| age == 0.0)
    });
    drop(writer);
}
