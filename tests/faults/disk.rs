//! Disks that fail, hang, fill up and go away, under the datastore and under the agent itself.

use super::{NO_ETCD, OWN_DISK, SECOND, Watch, all_ran, path, unix_now, ups};
use crate::lab::agent::{Agent, Options, Scrape};
use crate::lab::disk::{Disk, Kind, SlowDisk};
use crate::lab::fuse::{Fault, Operation};
use crate::lab::process::{Output, bound_command, output, run};
use crate::lab::{self, http, mute, wait_for};
use std::path::Path;

const COUNT: &str = "controlplane_fdatasync_duration_seconds_count";
const FAILURES: &str = "controlplane_fdatasync_failures_total";
const INFLIGHT: &str = "controlplane_fdatasync_inflight_seconds";
const STALLS: &str = "controlplane_fdatasync_stalls_total";
const SYNCS: &str = "controlplane_fdatasync_";
const AVAIL: &str = "controlplane_filesystem_avail_bytes";
const SIZE: &str = "controlplane_filesystem_size_bytes";
const READONLY: &str = "controlplane_filesystem_readonly";
const SPACE: &str = "controlplane_filesystem_";
const ERRORS: &str = "controlplane_kernel_io_errors_total";
const EVENTS: &str = "controlplane_kernel_events_total";
const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// An agent that syncs on the disk, and knows its space and its device.
fn agent_on(disk: &Path) -> Agent {
    let disk = path(disk);
    let agent = Agent::start(&format!(
        "fdatasync: {{paths: ['{disk}'], interval: 200ms}}\nkernel: {{ignore_devices: []}}\n\
         filesystem: {{paths: ['{disk}'], interval: 500ms, timeout: 1s}}\n{NO_ETCD}"
    ));
    agent.wait_until("a first sync", SYNCS, LIMIT, |s| count(s) > 0.0 && avail(s).is_some());
    agent
}

fn count(scrape: &Scrape) -> f64 {
    scrape.sum(COUNT, &[])
}

fn avail(scrape: &Scrape) -> Option<f64> {
    scrape.value(AVAIL, &[])
}

/// Syncs end as before.
fn syncs(since: &Scrape) -> impl Fn(&Scrape) -> bool {
    let before = count(since);
    move |now| count(now) > before + 3.0 && now.sum(INFLIGHT, &[]) < 1.0
}

/// Runs a command on a disk that this process may serve.
fn try_run(program: &str, args: &[&str]) -> Output {
    let mut command = bound_command(lab::program(program));
    command.args(args);
    output(command, LIMIT)
}

/// Unmounts what nobody uses any more, and mounts this device there.
#[track_caller]
fn mount_again(device: &Path, at: &Path) {
    let at = path(at);
    wait_for("an unused mount", LIMIT, || {
        let left = try_run("umount", &[&at]);
        if left.status.success() { Ok(()) } else { Err(left.stderr) }
    });
    run("mount", [device.as_os_str(), at.as_ref()]);
}

#[test]
fn a_datastore_device_that_gives_eio_is_counted_and_after_a_new_mount_it_syncs() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let agent = agent_on(disk.mount().path());
    let mut watch = Watch::of("datastore device gives EIO", &agent);
    let device = disk.device().name();
    // The kernel prints few lines about failed requests in a while, and always that a journal ends.
    let errors = |s: &Scrape| s.sum(ERRORS, &[("device", &device)]) + s.sum(EVENTS, &[]);
    let before = errors(&agent.scrape());
    watch.fault("each write and flush fails, until ext4 gives up its journal", || {
        disk.set_error(5);
    });
    let rofs = [("step", "open"), ("errno", "EROFS")];
    let failed = agent.wait_until("EIO, then EROFS", SYNCS, LIMIT, |s| {
        s.sum(FAILURES, &[("errno", "EIO")]) >= 1.0
            && s.value(FAILURES, &rofs) >= Some(1.0)
            && errors(s) > before
    });
    watch.repair(|| {
        disk.release();
        mount_again(disk.device().device(), disk.mount().path());
    });
    watch.recovers(&agent, SYNCS, LIMIT, syncs(&failed));
    let after = agent.scrape().sum(FAILURES, &[]);
    std::thread::sleep(SECOND);
    assert!(agent.scrape().sum(FAILURES, &[]) <= after, "failures after the repair");
    watch.holds("EIO and EROFS counted by step; the kernel's word of it as well");
}

#[test]
fn a_datastore_device_that_hangs_shows_one_age_and_one_stall() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let agent = agent_on(disk.mount().path());
    let mut watch = Watch::of("datastore device hangs", &agent);
    let healthy = agent.scrape();
    watch.fault("no write and no flush is answered for 4 s", || disk.hang());
    let hung = agent.wait_until("a hang", SYNCS, LIMIT, |s| s.sum(INFLIGHT, &[]) > 3.5);
    watch.repair(|| disk.release());
    watch.recovers(&agent, SYNCS, LIMIT, syncs(&hung));
    let stalls = |s: &Scrape| s.sum(STALLS, &[("threshold", "1")]);
    let after = agent.scrape();
    assert_eq!(stalls(&after) - stalls(&healthy), 1.0, "{}", after.with_prefix(SYNCS));
    assert_eq!(after.sum(FAILURES, &[]), 0.0, "{}", after.with_prefix(SYNCS));
    watch.holds("the age grows; the hang is one stall and one sync of its whole length");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_datastore_device_that_is_slow_counts_each_slow_sync() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let agent = agent_on(disk.mount().path());
    let mut watch = Watch::of("datastore device is slow", &agent);
    watch.fault("each flush takes 0.7 s", || disk.set_delay(SECOND * 7 / 10));
    let half = [("threshold", "0.5")];
    let slow = agent.wait_until("slow syncs", SYNCS, LIMIT, |s| s.sum(STALLS, &half) >= 3.0);
    let late = count(&slow) - slow.sum(&COUNT.replace("count", "bucket"), &[("le", "0.5")]);
    assert!((late - slow.sum(STALLS, &half)).abs() <= 1.0, "{}", slow.with_prefix(SYNCS));
    watch.repair(|| disk.release());
    watch.recovers(&agent, SYNCS, LIMIT, syncs(&slow));
    watch.holds("as many stalls as slow syncs in the distribution");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_datastore_filesystem_that_is_full_is_still_measured() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let agent = agent_on(disk.mount().path());
    let mut watch = Watch::of("datastore filesystem is full", &agent);
    watch.fault("written to the last byte", || disk.mount().fill());
    let full = agent.wait_until("no space", SPACE, LIMIT, |s| {
        avail(s).is_some_and(|avail| avail < s.sum(SIZE, &[]) / 100.0)
    });
    let more = agent.wait_until("more syncs", SYNCS, LIMIT, |s| count(s) > count(&full) + 3.0);
    assert_eq!(more.sum(FAILURES, &[]), 0.0, "{}", more.with_prefix(SYNCS));
    watch.repair(|| run("rm", [disk.mount().path().join("filler")]));
    watch.recovers(&agent, SPACE, LIMIT, |s| {
        avail(s).is_some_and(|avail| avail > s.sum(SIZE, &[]) / 2.0)
    });
    watch.holds("nothing left is told; syncs go on in the space that was reserved");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_datastore_filesystem_that_is_read_only_says_so() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let at = path(disk.mount().path());
    let agent = agent_on(disk.mount().path());
    let mut watch = Watch::of("datastore filesystem is read-only", &agent);
    watch.fault("ext4 is told to give up, as after an error", || {
        run("mount", ["-o", "remount,abort", &at]);
    });
    let scrape = agent.wait_until("read-only", SPACE, LIMIT, |s| {
        s.value(READONLY, &[]) == Some(1.0) && s.sum(FAILURES, &[("errno", "EROFS")]) >= 2.0
    });
    watch.repair(|| mount_again(disk.device().device(), disk.mount().path()));
    watch.recovers(&agent, SPACE, LIMIT, |s| s.value(READONLY, &[]) == Some(0.0));
    agent.wait_until("syncs as before", SYNCS, LIMIT, syncs(&scrape));
    watch.holds("read-only is told, EROFS counted; both end with the repair");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_datastore_device_that_is_unplugged_is_counted_and_a_new_one_is_measured() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let fresh = Disk::raw(64 << 20);
    run("mkfs.ext4", ["-q".as_ref(), fresh.device().device().as_os_str()]);
    let at = disk.mount().path();
    let agent = agent_on(at);
    let mut watch = Watch::of("datastore device is unplugged", &agent);
    watch.fault("what is under the device is gone for good, with all requests", || {
        run("umount", ["-f".as_ref(), "-l".as_ref(), disk.file().mountpoint().as_os_str()]);
    });
    let gone = agent.wait_until("failures", SYNCS, LIMIT, |s| s.sum(FAILURES, &[]) >= 3.0);
    watch.repair(|| mount_again(fresh.device().device(), at));
    watch
        .recovers(&agent, SYNCS, LIMIT, |s| syncs(&gone)(s) && s.value(READONLY, &[]) == Some(0.0));
    let device = fresh.device().name();
    agent.wait_until("the new device", SPACE, LIMIT, |s| {
        s.all(SIZE, &[("device", &device)]).len() == 1
    });
    watch.holds("failures counted; the figures are the new device's");
}

/// An agent whose binary and configuration lie on the disk.
fn agent_from(disk: &SlowDisk) -> Agent {
    let at = path(disk.mount().path());
    let config = format!("exporter: {{interval: 1s}}\n{OWN_DISK}{NO_ETCD}");
    let script = r#"cp "$1" "$2/agent" && printf %s "$3" > "$2/config.yaml" && sync -f "$2""#;
    run("sh", ["-c", script, "sh", env!("CARGO_BIN_EXE_controlplane-exporter"), &at, &config]);
    let through = ["sh".into(), "-c".into(), format!("exec {at}/agent \"$@\"")];
    let agent = Agent::start_with(Options {
        args: vec![format!("--config.file={at}/config.yaml")],
        through: through.into(),
        ..Options::default()
    });
    let locked = std::fs::read_to_string(format!("/proc/{}/maps", agent.pid())).unwrap();
    assert!(locked.contains(&format!("{at}/agent")), "it runs from there");
    agent
}

/// The agent's own root fails in this way, and is well again.
fn own_root(name: &'static str, what: &str, fault: Fault) {
    let disk = SlowDisk::sized(Kind::Ext4, 1 << 30);
    let agent = agent_from(&disk);
    let mut watch = Watch::of(name, &agent);
    let before = agent.scrape();
    let since = unix_now();
    watch.fault(what, || {
        std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        for operation in [Operation::Read, Operation::Write, Operation::Sync] {
            disk.file().faults().set(operation, fault);
        }
    });
    // The configuration is there; a child reads it.
    let reload = http::request(agent.address(), "POST", "/-/reload", &[], 20 * SECOND).unwrap();
    assert!([200, 500].contains(&reload.status), "{}", reload.text());
    std::thread::sleep(4 * SECOND);
    let exporter = [("sampler", "exporter")];
    let last = "controlplane_sampler_last_success_timestamp_seconds";
    let during = agent.scrape();
    assert!(during.value(last, &exporter) > Some(since), "what needs no disk goes on");
    watch.repair(|| disk.release());
    let since = unix_now();
    watch.recovers(&agent, "controlplane_sampler_", 3 * LIMIT, |s| {
        all_ran(&before, s, since) && ups(s).values().all(|up| *up)
    });
    watch.holds(&format!(
        "what needs no disk goes on; a reload in the middle was answered {}; all samplers run after it",
        reload.status
    ));
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_whose_own_disk_fails_goes_on() {
    let _turn = lab::alone();
    let fault = Fault { errno: Some(5), ..Fault::default() };
    own_root("own disk fails", "reads and writes under binary and configuration give EIO", fault);
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_whose_own_disk_hangs_goes_on() {
    let _turn = lab::alone();
    let fault = Fault { hang: true, ..Fault::default() };
    own_root("own disk hangs", "no read and no write under binary and configuration ends", fault);
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_mount_that_dies_hides_no_other_path() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let folder = lab::temp_dir("dead");
    let (live, dead) = (path(disk.mount().path()), path(folder.path()));
    let agent = Agent::start(&format!(
        "filesystem: {{paths: ['{live}', '{dead}'], interval: 500ms, timeout: 1s}}\n\
         fdatasync: {{paths: ['{live}']}}\n{NO_ETCD}"
    ));
    let of = |s: &Scrape, path: &str| s.value(AVAIL, &[("path", path)]);
    agent.wait_until("both", SPACE, LIMIT, |s| of(s, &live).is_some() && of(s, &dead).is_some());
    let mut watch = Watch::of("a watched mount dies", &agent);
    let mounted = watch.fault("a filesystem that never answers is mounted over one path", || {
        mute::over(folder.path())
    });
    let late = [("sampler", "filesystem"), ("reason", "timeout")];
    let failures = "controlplane_sampler_failures_total";
    let scrape = agent.wait_until("time-outs", failures, LIMIT, |s| s.sum(failures, &late) >= 3.0);
    assert!(of(&scrape, &live).is_some(), "{}", scrape.with_prefix(SPACE));
    assert!(of(&scrape, &dead).is_none(), "{}", scrape.with_prefix(SPACE));
    watch.repair(|| drop(mounted));
    watch.recovers(&agent, SPACE, LIMIT, |s| of(s, &live).is_some() && of(s, &dead).is_some());
    watch.holds("the other path has its figures, the dead one has none");
}

/// Small filesystems in memory over the folders that the agent could write to, in a mount namespace of its own.
const FULL: &str = r#"for a; do case $a in */config.yaml) own=${a%/*};; esac; done
mkdir -p /run/controlplane-exporter /var/lib/controlplane-exporter && mount --bind "$own" /mnt &&
for f in /tmp /run/controlplane-exporter /var/lib/controlplane-exporter; do
  mount -t tmpfs -o size=64k tmpfs $f; done &&
mkdir -p "$own" && mount --bind /mnt "$own" && umount /mnt && exec "$0" "$@""#;

#[test]
#[ignore = "tests/faults.sh"]
fn full_folders_of_its_own_cost_the_agent_nothing() {
    let _turn = lab::alone();
    let through = ["unshare", "--mount", "sh", "-c", FULL].map(str::to_owned);
    let agent = Agent::start_with(Options {
        config: format!("exporter: {{interval: 1s}}\n{OWN_DISK}{NO_ETCD}"),
        through: through.into(),
        ..Options::default()
    });
    let mut watch = Watch::of("/tmp and the state folders are full", &agent);
    let inside = |script: &str| {
        let target = format!("--target={}", agent.pid());
        try_run("nsenter", &[&target, "--mount", "--", "sh", "-c", script])
    };
    let before = agent.scrape();
    watch.fault("/tmp, /run/controlplane-exporter and /var/lib/controlplane-exporter", || {
        let filled = inside(
            "for f in /tmp /run/controlplane-exporter /var/lib/controlplane-exporter; do dd if=/dev/zero of=$f/filler bs=1k; done",
        );
        assert_eq!(filled.stderr.matches("No space left").count(), 3, "{}", filled.stderr);
    });
    let reload = http::request(agent.address(), "POST", "/-/reload", &[], 20 * SECOND).unwrap();
    assert_eq!(reload.status, 200, "{}", reload.text());
    std::thread::sleep(3 * SECOND);
    assert!(ups(&agent.scrape()).values().all(|up| *up), "{}", agent.scrape().text);
    watch.repair(|| inside("rm /tmp/filler /run/*/filler /var/lib/*/filler"));
    let since = unix_now();
    watch.recovers(&agent, "controlplane_sampler_", LIMIT, |s| all_ran(&before, s, since));
    watch.holds("every sampler is well all the time, and a reload is taken");
}
