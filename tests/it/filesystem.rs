//! The `filesystem` sampler on filesystems that are full, read-only, given up, and dead.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::lab;
use crate::lab::agent::Agent;
use crate::lab::disk::{Disk, Kind, SlowDisk};
use crate::lab::process::{bound_command, output};

const SIZE: &str = "controlplane_filesystem_size_bytes";
const AVAIL: &str = "controlplane_filesystem_avail_bytes";
const READONLY: &str = "controlplane_filesystem_readonly";
const ALL: &str = "controlplane_filesystem_";
const FAILURES: &str = "controlplane_sampler_failures_total";
const SECOND: Duration = Duration::from_secs(1);

fn agent(paths: &[&Path]) -> Agent {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    Agent::start(&format!(
        "filesystem: {{paths: [{}], interval: 300ms, timeout: 1s}}\nfdatasync: {{enabled: false}}\n",
        paths.join(", ")
    ))
}

#[test]
fn a_full_filesystem_has_nothing_left_and_an_empty_one_most_of_it() {
    let _turn = lab::together();
    for kind in [Kind::Ext4, Kind::Xfs] {
        let disk = Disk::with(kind);
        let label = disk.mount().path().display().to_string();
        let labels = [("path", label.as_str()), ("role", "other")];
        let agent = agent(&[disk.mount().path()]);
        let empty =
            agent.wait_until("figures", ALL, 10 * SECOND, |s| s.value(AVAIL, &labels).is_some());
        let size = empty.value(SIZE, &labels).unwrap();
        assert!(empty.value(AVAIL, &labels).unwrap() > size / 2.0, "{}", empty.with_prefix(ALL));
        assert_eq!(empty.value(READONLY, &labels), Some(0.0));
        let device = disk.device().name();
        assert_eq!(empty.all(SIZE, &[("device", &device)]).len(), 1, "{}", empty.with_prefix(ALL));
        disk.mount().fill();
        agent.wait_until("no space", ALL, 10 * SECOND, |s| {
            s.value(AVAIL, &labels).is_some_and(|avail| avail < size / 100.0)
        });
    }
}

#[test]
fn a_filesystem_that_is_remounted_read_only_says_so() {
    let _turn = lab::together();
    let disk = Disk::with(Kind::Ext4);
    let agent = agent(&[disk.mount().path()]);
    agent.wait_until("writable", ALL, 10 * SECOND, |s| s.value(READONLY, &[]) == Some(0.0));
    disk.mount().make_read_only();
    agent.wait_until("read-only", ALL, 10 * SECOND, |s| s.value(READONLY, &[]) == Some(1.0));
}

#[test]
fn ext4_that_gave_up_its_journal_is_read_only_where_the_kernel_shows_it() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let path = disk.mount().path();
    let agent = agent(&[path]);
    agent.wait_until("writable", ALL, 10 * SECOND, |s| s.value(READONLY, &[]) == Some(0.0));
    disk.set_error(5);
    let shown = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|l| l.contains(&*path.to_string_lossy())).unwrap();
        line.split(" - ")
            .nth(1)
            .unwrap()
            .split([' ', ','])
            .any(|o| o == "emergency_ro" || o == "ro")
    };
    // Linux before 6.15 says nothing in mountinfo; the sync probe's EROFS is all that tells it there.
    let told = lab::wait_for("the end of the journal", 20 * SECOND, || {
        // A change of the directory has to go through the journal.
        let mut command = bound_command(lab::program("mkdir"));
        command.arg(path.join(fastrand::u64(..).to_string()));
        output(command, 20 * SECOND);
        let mut command = bound_command(lab::program("sync"));
        command.arg("-f").arg(path);
        output(command, 20 * SECOND);
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        let old = (numbers.next(), numbers.next()) < (Some(6), Some(15));
        if shown() || old { Ok(!old) } else { Err("mountinfo says rw".to_owned()) }
    });
    if told {
        agent.wait_until("read-only", ALL, 10 * SECOND, |s| s.value(READONLY, &[]) == Some(1.0));
    } else {
        eprintln!("this kernel does not show an aborted journal in mountinfo");
    }
}

#[test]
fn a_dead_mount_hides_no_other_path_and_no_second_child_waits_for_it() {
    let _turn = lab::alone();
    lab::need_root("a FUSE mount");
    let folder = lab::temp_dir("mute");
    let dead = folder.path().join("dead");
    std::fs::create_dir(&dead).unwrap();
    let session = lab::mute::over(&dead);
    let disk = Disk::with(Kind::Ext4);
    let mut agent = agent(&[&dead, disk.mount().path(), Path::new("/nonexistent")]);
    let label = disk.mount().path().display().to_string();
    let timeout = [("sampler", "filesystem"), ("reason", "timeout")];
    let scrape = agent.wait_until("three time-outs", FAILURES, 20 * SECOND, |s| {
        s.value(FAILURES, &timeout) >= Some(3.0)
    });
    assert!(scrape.value(AVAIL, &[("path", &label)]) > Some(0.0), "{}", scrape.with_prefix(ALL));
    assert!(scrape.all(SIZE, &[("path", &dead.display().to_string())]).is_empty());
    let missing = [("sampler", "filesystem"), ("reason", "not_found")];
    assert!(scrape.value(FAILURES, &missing) >= Some(3.0));
    let waiting = lab::process::children(agent.pid())
        .into_iter()
        .filter(|pid| {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('D'))
        })
        .count();
    assert!(waiting <= 1, "{waiting} children wait for the dead mount");
    let started = Instant::now();
    assert!(agent.stop(5 * SECOND).success());
    assert!(started.elapsed() < 5 * SECOND);
    drop(session);
}
