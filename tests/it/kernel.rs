//! The `kernel` sampler against the true kernel log: loop devices that fail, filesystems that die.

use std::io::Write;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::lab;
use crate::lab::agent::{Agent, Scrape};
use crate::lab::disk::{Disk, Kind, SlowDisk};
use crate::lab::kmsg::KernelLog;
use crate::lab::process::{bound_command, output};

const ERRORS: &str = "controlplane_kernel_io_errors_total";
const EVENTS: &str = "controlplane_kernel_events_total";
const SECOND: Duration = Duration::from_secs(1);
/// Loop devices are ignored by default: snaps and images come and go on them.
const WITH_LOOPS: &str = "kernel: {ignore_devices: []}";

fn ready(config: &str) -> Agent {
    let agent = Agent::start(config);
    agent.wait_value("controlplane_sampler_up", &[("sampler", "kernel")], 1.0, 10 * SECOND);
    agent
}

fn errors(scrape: &Scrape, device: &str) -> f64 {
    scrape.sum(ERRORS, &[("device", device)])
}

/// Reads a block that is cut off until the kernel has logged it: it prints 10 such lines in 5 s at
/// most, and other disks fail too.
fn fail(disk: &Disk, block: u64) {
    let log = KernelLog::from_now();
    let wanted = format!("dev {}, sector {}", disk.device().name(), block * 8);
    lab::wait_for("the kernel's line", 15 * SECOND, || {
        disk.read_block(block).unwrap_err();
        std::thread::sleep(SECOND / 10);
        let logged = log.drain().iter().any(|record| record.text.contains(&wanted));
        logged.then_some(()).ok_or_else(|| format!("no line with {wanted:?}"))
    });
}

#[test]
fn a_bad_sector_is_on_metrics_within_two_seconds_with_its_device_sector_and_time() {
    let _turn = lab::alone();
    let disk = Disk::raw(1 << 30);
    // The log may still hold errors of an earlier device of this name: other sectors each time.
    let [first, second] = [300..100_000, 100_000..200_000].map(fastrand::u64);
    let name = disk.device().name();
    let labels = [("device", name.as_str())];
    let agent = ready(WITH_LOOPS);
    let before = errors(&agent.scrape(), &name);
    let start = UNIX_EPOCH.elapsed().unwrap().as_secs_f64();

    disk.truncate(1 << 20);
    fail(&disk, first);
    let scrape =
        agent.wait_until("the error", ERRORS, 2 * SECOND, |scrape| errors(scrape, &name) > before);
    let read = [("device", name.as_str()), ("kind", "io"), ("operation", "read")];
    assert!(
        scrape.value(ERRORS, &read).is_some_and(|n| n >= 1.0),
        "{}",
        scrape.with_prefix(ERRORS)
    );
    let sector = scrape.value("controlplane_kernel_io_error_last_sector", &labels);
    assert_eq!(sector, Some((first * 8) as f64));
    let sectors = |scrape: &Scrape| {
        scrape.value("controlplane_kernel_io_error_sectors", &labels).unwrap_or_default()
    };
    assert!(sectors(&scrape) >= 1.0);
    let at = scrape.value("controlplane_kernel_io_error_last_timestamp_seconds", &labels).unwrap();
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!(at > start - 0.5 && at < now + 0.5, "at {at}, between {start} and {now}");

    // The same sector again is one more error and no new sector; another one is.
    let distinct = sectors(&scrape);
    fail(&disk, first);
    fail(&disk, second);
    agent.wait_until("a second sector", ERRORS, 2 * SECOND, |scrape| {
        sectors(scrape) >= distinct + 1.0 && errors(scrape, &name) >= before + 3.0
    });
    disk.restore();
}

#[test]
fn an_agent_that_starts_later_still_sees_the_error_and_its_time() {
    let _turn = lab::alone();
    let disk = Disk::raw(8 << 20);
    disk.truncate(1 << 20);
    fail(&disk, 1500);
    let name = disk.device().name();
    let happened = UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    std::thread::sleep(2 * SECOND);
    let agent = ready(WITH_LOOPS);
    let scrape = agent
        .wait_until("the old error", ERRORS, 5 * SECOND, |scrape| errors(scrape, &name) >= 1.0);
    let labels = [("device", name.as_str())];
    let at = scrape.value("controlplane_kernel_io_error_last_timestamp_seconds", &labels).unwrap();
    assert!((at - happened).abs() < 1.5, "at {at}, happened {happened}");
    disk.restore();
}

#[test]
fn text_that_a_process_writes_to_the_log_counts_as_nothing() {
    let _turn = lab::alone();
    let agent = ready(WITH_LOOPS);
    let forged =
        "I/O error, dev sdforged, sector 1 op 0x1:(WRITE) flags 0x0 phys_seg 1 prio class 2";
    for prefix in ["", "<3>", "<0>"] {
        let mut log = std::fs::File::options().write(true).open("/dev/kmsg").unwrap();
        log.write_all(format!("{prefix}{forged}\n").as_bytes()).unwrap();
    }
    std::thread::sleep(2 * SECOND);
    let scrape = agent.scrape();
    assert!(scrape.all(ERRORS, &[("device", "sdforged")]).is_empty());
    assert!(!scrape.text.contains("sdforged"));
}

#[test]
fn loop_devices_are_ignored_unless_they_hold_the_datastore() {
    let _turn = lab::alone();
    let disk = Disk::with(Kind::Ext4);
    let name = disk.device().name();
    let ignoring = ready("");
    let holding = ready(&format!(
        "host: {{distribution: etcd, datastore: etcd, datastore_dir: {}}}",
        disk.mount().path().display()
    ));
    // The end of the image is free space, so the filesystem itself is not hurt.
    disk.truncate(60 << 20);
    fail(&disk, 16_000);
    let scrape =
        holding.wait_until("the error", ERRORS, 3 * SECOND, |scrape| errors(scrape, &name) >= 1.0);
    let holds = "controlplane_kernel_device_holds_datastore";
    assert_eq!(scrape.value(holds, &[("device", &name)]), Some(1.0));
    assert!(ignoring.scrape().all(ERRORS, &[("device", &name)]).is_empty());
    disk.restore();
}

#[test]
fn a_filesystem_that_aborts_its_journal_shows_as_events_and_as_failed_writes() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let name = disk.device().name();
    let agent = ready(WITH_LOOPS);
    let before = agent.scrape();
    let aborted = |scrape: &Scrape| {
        ["jbd2_abort", "ext4_error", "ext4_journal_aborted", "ext4_remount_ro", "buffer_write_lost"]
            .iter()
            .map(|event| scrape.sum(EVENTS, &[("event", event)]))
            .sum::<f64>()
    };
    disk.set_error(5);
    let mut command = bound_command(lab::program("dd"));
    let target = format!("of={}", disk.mount().path().join("file").display());
    command.args(["if=/dev/zero", &target, "bs=4k", "count=64", "conv=fsync"]);
    let written = output(command, 20 * SECOND);
    assert!(!written.status.success(), "the disk takes no write");
    let started = Instant::now();
    let scrape = agent.wait_until("events of the filesystem", EVENTS, 15 * SECOND, |scrape| {
        aborted(scrape) > aborted(&before) && errors(scrape, &name) > errors(&before, &name)
    });
    let writes = [("device", name.as_str()), ("operation", "write")];
    assert!(
        scrape.sum(ERRORS, &writes) >= 1.0,
        "{:?} {}",
        started.elapsed(),
        scrape.with_prefix(ERRORS)
    );
    disk.release();
}

#[test]
fn an_error_of_ext4_shows_as_an_event_and_in_the_count_of_its_superblock() {
    let _turn = lab::alone();
    let disk = Disk::with(Kind::Ext4);
    let name = disk.device().name();
    let agent = ready(WITH_LOOPS);
    let event = [("event", "ext4_error")];
    let before = agent.scrape().sum(EVENTS, &event);
    std::fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "as the test wants").unwrap();
    agent.wait_until("the event", EVENTS, 3 * SECOND, |s| s.sum(EVENTS, &event) > before);
    // The counts of sysfs are read every 10 s.
    let count = "controlplane_kernel_filesystem_errors_total";
    agent.wait_value(count, &[("device", &name)], 1.0, 15 * SECOND);
}
