use std::fmt::Write as _;
use std::io::Write as _;

use super::*;
use crate::host::{DatastorePlace, Facts};
use crate::sample::BATCH_EVENTS;
use crate::timeline::Event;

/// Boot in the fixtures, in Unix seconds.
const BOOT: u64 = 1_700_000_000;

/// A node in a temporary directory with a plain file as its log.
struct Node {
    root: tempfile::TempDir,
    kernel: Kernel,
}

impl Node {
    fn new(log: impl AsRef<[u8]>) -> Self {
        Self::with_datastore(log, &[])
    }

    fn with_datastore(log: impl AsRef<[u8]>, chain: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/stat", format!("cpu 1 2\nbtime {BOOT}\n"));
        write(root.path(), "dev/kmsg", log);
        let chain: Vec<_> = chain.iter().map(|&d| d.to_owned()).collect();
        let datastore =
            (!chain.is_empty()).then(|| DatastorePlace { chain, ..DatastorePlace::default() });
        let host = Host::at(root.path()).with_facts(Facts { datastore, ..Facts::default() });
        let kernel = Kernel::new(&Options::default(), &host, fixed, Shared::default()).unwrap();
        Self { root, kernel }
    }

    fn append(&self, log: impl AsRef<[u8]>) {
        let path = self.root.path().join("dev/kmsg");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(log.as_ref()).unwrap();
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        write(self.root.path(), file, content);
    }

    fn sample(&mut self) -> Batch {
        let mut out = Batch::default();
        self.kernel.sample(&mut out).unwrap();
        out
    }
}

fn write(root: &Path, file: &str, content: impl AsRef<[u8]>) {
    let path = root.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// An hour after a boot that is not the fixture's.
fn fixed() -> Clock {
    let boot = UNIX_EPOCH + Duration::from_secs(BOOT + 1_000);
    Clock { boot, now: boot + Duration::from_hours(1) }
}

/// The records of `lines`, one second apart from second 1 on.
fn log(lines: &[&str]) -> String {
    numbered(1, lines)
}

fn numbered(first: u64, lines: &[&str]) -> String {
    (first..).zip(lines).fold(String::new(), |mut log, (n, line)| {
        writeln!(log, "3,{n},{n}000000,-,caller=T1;{line}").unwrap();
        log
    })
}

const READ: &str = "I/O error, dev sda, sector 1198032 op 0x0:(READ) flags 0x80700 phys_seg 1";
const WRITE: &str = "I/O error, dev sda, sector 8999208 op 0x1:(WRITE) flags 0x800 phys_seg 1";

#[test]
fn errors_are_counted_with_the_time_the_kernel_gave_them() {
    let mut node = Node::new(log(&["Linux version 6.1", READ, WRITE, READ]));
    let out = node.sample();
    assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "read"]), Some(2.0));
    assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "write"]), Some(1.0));
    assert_eq!(out.value(&DEVICE_LAST, ["sda"]), Some((BOOT + 4) as f64));
    assert_eq!(out.value(&EVENT_LAST, ["block_io_error"]), Some((BOOT + 4) as f64));
    assert_eq!(out.value(&DEVICE_SECTOR, ["sda"]), Some(1_198_032.0));
    assert_eq!(out.value(&DEVICE_SECTORS, ["sda"]), Some(2.0));
    assert_eq!(out.value(&LOST, []), Some(0.0));
    assert_eq!(out.reasons(), [""; 0]);
}

#[test]
fn a_run_reads_what_is_new_and_keeps_what_it_knew() {
    let mut node = Node::new(log(&[READ]));
    assert_eq!(node.sample().value(&IO_ERRORS, ["sda", "io", "read"]), Some(1.0));
    assert_eq!(node.sample().value(&IO_ERRORS, ["sda", "io", "read"]), Some(1.0));
    node.append(numbered(2, &[READ, READ]));
    let out = node.sample();
    assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "read"]), Some(3.0));
    assert_eq!(out.value(&LOST, []), Some(0.0));
}

#[test]
fn a_log_that_begins_anew_is_counted_from_zero() {
    let mut node = Node::new(log(&[READ, READ, READ]));
    assert_eq!(node.sample().value(&IO_ERRORS, ["sda", "io", "read"]), Some(3.0));
    node.write("dev/kmsg", log(&[READ]));
    assert_eq!(node.sample().value(&IO_ERRORS, ["sda", "io", "read"]), Some(1.0));
}

#[test]
fn records_that_are_not_the_kernels_are_ignored() {
    let journald = "systemd-journald[115]: Failed to write entry to /var/log/journal/1/system.\
                    journal: Input/output error";
    let mut node = Node::new(format!(
        "12,1,1,-;{READ}\n30,2,2,-;{READ}\n45,3,3,-;{READ}\n3,4,4,-;{journald}\n\
         12,5,5,-;{journald}\n45,6,6,-;someone[1]: x\n45,7,7,-;x {journald}\n"
    ));
    let out = node.sample();
    assert_eq!((out.series(&IO_ERRORS), out.series(&EVENT_LAST)), (0, 0));
    assert_eq!(out.value(&LOST, []), Some(0.0), "their numbers count all the same");

    // Nor does a daemon tell whose memory it was that ran out.
    let chosen = "Memory cgroup out of memory: Kill process 7 (etcd) score 9 or sacrifice child";
    let killed = "Killed process 7 (etcd) total-vm:1kB, anon-rss:1kB";
    node.append(format!("45,8,8,-;{chosen}\n3,9,9,-;{killed}\n"));
    assert_eq!(node.sample().value(&OOM_KILLS, ["node", "etcd"]), Some(1.0));

    node.append(format!("45,10,8000000,-;{journald}\n"));
    let out = node.sample();
    assert_eq!(out.value(&EVENTS, [JOURNALD_IO_ERROR]), Some(1.0));
    assert_eq!(out.value(&EVENT_LAST, [JOURNALD_IO_ERROR]), Some((BOOT + 8) as f64));
}

#[test]
fn a_bad_record_is_a_counted_failure_and_hides_no_other() {
    let mut huge = vec![b'y'; 100_000];
    huge.push(b'\n');
    let deep = format!("3,3,3,-;{}\n", "\\x0a".repeat(3_000));
    let bad: [&[u8]; 12] = [
        b"\n",
        b"3,2\n",
        b"3,2,3,-\n",
        b"no record\n",
        b";;;;\n",
        b"3,x,3,-;x\n",
        b"-3,2,3,-;x\n",
        b"99999999999999999999,2,3,-;x\n",
        b"\0\0\0;\0\n",
        b"\xff\xfe\xfd,1,2;\xff\n",
        b"<3>[  1.0] I/O error, dev sda, sector 1\n",
        &huge,
    ];
    let mut log = log(&[READ]).into_bytes();
    for record in bad {
        log.extend(record);
    }
    // Strange, yet records.
    log.extend(b"3,2,3000000,-;I/O error, dev \\xff\\x00\\x22} 1, sector 5 op 0x0:(READ)\n");
    log.extend(deep.as_bytes());
    log.extend(b"3,4,4000000,-;\xc3\x28\n");
    log.extend(numbered(5, &[WRITE]).into_bytes());
    let mut node = Node::new(&log);
    let out = node.sample();
    assert_eq!(out.reasons(), ["parse"; 12]);
    assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "read"]), Some(1.0));
    assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "write"]), Some(1.0));
    assert_eq!(out.series(&IO_ERRORS), 2, "a name that is none is no label");
    assert_eq!(node.sample().reasons(), [""; 0], "counted once");
}

#[test]
fn a_storm_of_bad_records_is_told_in_part() {
    let out = Node::new("x\n".repeat(1_000)).sample();
    assert_eq!(out.reasons().len(), 16);
    assert_eq!(out.dropped_count(), 984);
}

#[test]
fn a_gap_in_the_numbers_is_lost_records() {
    let mut node = Node::new(numbered(400, &["a", "b"]));
    assert_eq!(node.sample().value(&LOST, []), Some(0.0));
    node.append(numbered(1_000, &[READ]));
    let out = node.sample();
    assert_eq!(out.value(&LOST, []), Some(598.0));
    assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "read"]), Some(1.0));
}

#[test]
fn a_flood_is_read_in_parts_and_lost_nowhere() {
    let lines = vec![READ; RECORDS_PER_RUN + 5];
    let mut node = Node::new(log(&lines));
    let out = node.sample();
    assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "read"]), Some(RECORDS_PER_RUN as f64));
    let out = node.sample();
    assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "read"]), Some((RECORDS_PER_RUN + 5) as f64));
    assert_eq!(out.value(&LOST, []), Some(0.0));
}

#[test]
fn harmless_devices_do_not_count_unless_the_datastore_lies_there() {
    let loop7 = "I/O error, dev loop7, sector 8 op 0x0:(READ) flags 0x0";
    let fd0 = "I/O error, dev fd0, sector 0";
    let lost = "Buffer I/O error on dev loop7, logical block 1, lost async page write";
    let log = log(&[loop7, fd0, lost]);
    let out = Node::new(&log).sample();
    assert_eq!((out.series(&IO_ERRORS), out.value(&EVENTS, ["buffer_write_lost"])), (0, Some(0.0)));

    let out = Node::with_datastore(&log, &["dm-0", "loop7"]).sample();
    assert_eq!(out.value(&IO_ERRORS, ["loop7", "io", "read"]), Some(1.0));
    assert_eq!(out.value(&EVENTS, ["buffer_write_lost"]), Some(1.0));
    assert_eq!(out.value(&HOLDS_DATASTORE, ["loop7"]), Some(1.0));
    assert_eq!(out.series(&IO_ERRORS), 1);
}

#[test]
fn a_device_with_errors_holds_the_datastore_or_not_or_nobody_knows() {
    let sdb = "I/O error, dev sdb, sector 8 op 0x0:(READ) flags 0x0";
    let log = log(&[READ, sdb]);
    let mut node = Node::with_datastore(&log, &["sda2", "sda"]);
    node.write("sys/fs/ext4/sda2/errors_count", "2\n");
    node.write("sys/fs/ext4/sdc1/errors_count", "0\n");
    let out = node.sample();
    assert_eq!(out.value(&HOLDS_DATASTORE, ["sda"]), Some(1.0));
    assert_eq!(out.value(&HOLDS_DATASTORE, ["sdb"]), Some(0.0));
    assert_eq!(out.value(&HOLDS_DATASTORE, ["sda2"]), Some(1.0));
    assert_eq!(out.series(&HOLDS_DATASTORE), 3, "sdc1 has no errors");
    assert_eq!(Node::new(&log).sample().series(&HOLDS_DATASTORE), 0);
}

#[test]
fn the_counters_of_sysfs_are_there_on_each_run() {
    let mut node = Node::new("");
    node.write("sys/block/sda/device/ioerr_cnt", "0x12\n");
    node.write("sys/fs/ext4/dm-0/errors_count", "0\n");
    for _ in 0..2 {
        let out = node.sample();
        assert_eq!(out.value(&SCSI_ERRORS, ["sda"]), Some(18.0));
        assert_eq!(out.value(&FILESYSTEM_ERRORS, ["dm-0"]), Some(0.0));
    }
}

#[test]
fn a_log_that_is_missing_or_closed_fails_with_the_fix() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::at(root.path());
    let mut kernel = Kernel::new(&Options::default(), &host, fixed, Shared::default()).unwrap();
    let error = kernel.sample(&mut Batch::default()).unwrap_err();
    assert_eq!(error.reason(), "not_found");
    assert!(error.to_string().contains("mount the host's /dev/kmsg"), "{error}");

    let closed = refused(Path::new("/dev/kmsg"), rustix::io::Errno::PERM.into());
    assert_eq!(closed.reason(), "permission");
    assert!(closed.to_string().contains("CAP_SYSLOG"), "{closed}");
    let closed = refused(Path::new("/dev/kmsg"), rustix::io::Errno::ACCESS.into());
    assert_eq!(closed.reason(), "permission");
    let sick = refused(Path::new("/dev/kmsg"), rustix::io::Errno::IO.into());
    assert_eq!(sick.reason(), "read");

    write(root.path(), "dev/kmsg", log(&[READ]));
    let mut out = Batch::default();
    kernel.sample(&mut out).unwrap();
    assert_eq!(out.value(&IO_ERRORS, ["sda", "io", "read"]), Some(1.0));
}

/// What a sampler that has just been built reads of a ring in which this is left.
fn read_anew(left: &str, ignored: &[&str], counted: &Shared<Counted>) -> Batch {
    let mut node = Node::new(left);
    node.kernel.decides.0 = ignored.iter().map(|&glob| glob.to_owned()).collect();
    read_ring(node, counted)
}

/// What the node's sampler reads, as if its log were the ring.
fn read_ring(mut node: Node, counted: &Shared<Counted>) -> Batch {
    node.kernel.log.open().unwrap();
    let mut counted = counted.lock();
    node.kernel.begin(&mut counted);
    let mut out = Batch::default();
    let classifier = CLASSIFIER.as_ref().unwrap();
    node.kernel.drain(classifier, &mut counted, &mut out).unwrap();
    counted.tally.push(&mut out);
    out
}

#[test]
fn a_sampler_that_is_built_anew_counts_on_although_the_ring_has_turned_over() {
    let record = |number: u64| format!("3,{number},{number}000000,-;{READ}\n");
    let counted = Shared::default();
    let errors = |out: &Batch| out.value(&IO_ERRORS, ["sda", "io", "read"]).unwrap();
    let all: String = (1..=8).map(record).collect();
    assert!((errors(&read_anew(&all, &[], &counted)) - 8.0).abs() < 0.1);
    // The oldest six are written over, and one is new; its sampler is another one.
    let left: String = (7..=9).map(record).collect();
    let mut out = read_anew(&left, &[], &counted);
    assert!((errors(&out) - 9.0).abs() < 0.1, "{}", errors(&out));
    assert_eq!(events(&mut out).len(), 1);
    assert_eq!(out.value(&LOST, []), Some(0.0));
    // Other devices count: the ring is counted anew, and nothing is told again.
    let mut out = read_anew(&left, &["sdz"], &counted);
    assert!((errors(&out) - 3.0).abs() < 0.1, "{}", errors(&out));
    assert_eq!(events(&mut out), []);
}

#[test]
fn devices_that_come_to_the_datastore_or_go_reset_no_count_unless_a_glob_names_them() {
    let counted = Shared::default();
    let errors = |left: &str, chain: &[&str]| {
        let out = read_ring(Node::with_datastore(left, chain), &counted);
        out.value(&IO_ERRORS, ["sda", "io", "read"])
    };
    assert_eq!(errors(&numbered(1, &[READ; 8]), &["dm-0", "sda"]), Some(8.0));
    // The oldest records are written over, and the volume has a snapshot.
    let left = numbered(7, &[READ; 3]);
    assert_eq!(errors(&left, &["dm-0", "dm-2", "dm-1", "sda"]), Some(9.0));
    assert_eq!(errors(&left, &["dm-0", "sda"]), Some(9.0));
    // A loop device counts for the datastore alone: what it said before did not.
    assert_eq!(errors(&left, &["loop7", "sda"]), Some(3.0));
}

#[test]
fn times_of_a_machine_that_learns_late_what_time_it_is_are_put_right() {
    fn at(boot: u64, up: u64) -> Clock {
        let boot = UNIX_EPOCH + Duration::from_secs(boot);
        Clock { boot, now: boot + Duration::from_secs(up) }
    }
    let hung = "INFO: task etcd:812 blocked for more than 120 seconds.";
    let killed = "Out of memory: Killed process 10 (etcd) total-vm:1kB, anon-rss:1kB";
    let ring = numbered(1, &[READ, hung, killed]);
    let read = |clock: fn() -> Clock, counted: &Shared<Counted>| {
        let mut node = Node::new(&ring);
        node.kernel.clock = clock;
        let out = read_ring(node, counted);
        [
            out.value(&DEVICE_LAST, ["sda"]),
            out.value(&EVENT_LAST, ["block_io_error"]),
            out.value(&HUNG_LAST, ["etcd"]),
            out.value(&OOM_LAST, ["node", "etcd"]),
        ]
    };
    let after = |boot: u64| [1, 1, 2, 3].map(|second| Some((boot + second) as f64));
    let counted = Shared::default();
    assert_eq!(read(|| at(0, 60), &counted), after(0), "no clock of its own");
    assert_eq!(read(|| at(BOOT, 120), &counted), after(BOOT), "the network told the time");
    assert_eq!(read(|| at(BOOT + 30, 180), &counted), after(BOOT), "a small correction");
    assert_eq!(read(|| at(BOOT + 9_000, 7_200), &counted), after(BOOT), "two hours later");
    let counted = Shared::default();
    assert_eq!(read(|| at(BOOT, 60), &counted), after(BOOT));
    assert_eq!(read(|| at(BOOT - 600, 120), &counted), after(BOOT - 600), "it was ahead");
}

fn events(out: &mut Batch) -> Vec<Event> {
    out.take_events()
}

#[test]
fn errors_go_to_the_timeline_and_context_does_not() {
    let mut node = Node::new(format!(
        "{}6,4,4000000,-;sd 6:0:0:1: rejecting I/O to offline device\n SUBSYSTEM=scsi\n \
         DEVICE=+scsi:6:0:0:1\n",
        log(&[READ, "EXT4-fs (sda1): recovery complete", "ata2: hard resetting link"]),
    ));
    let told = events(&mut node.sample());
    let texts: Vec<_> = told.iter().map(|e| (e.kind.as_str(), e.text.as_str())).collect();
    assert_eq!(
        texts,
        [
            ("block_io_error", format!("{READ} (read-ahead)").as_str()),
            (
                "scsi_device_offline",
                "sd 6:0:0:1: rejecting I/O to offline device (scsi +scsi:6:0:0:1)"
            ),
        ]
    );
    assert!((told[0].time - (BOOT + 1) as f64).abs() < 1e-9);
    assert_eq!(events(&mut node.sample()), []);
}

#[test]
fn of_a_storm_the_timeline_gets_the_latest() {
    let lines: Vec<_> = (0..500).map(|i| format!("I/O error, dev dm-{i}, sector {i}")).collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let told = events(&mut Node::new(log(&lines)).sample());
    assert_eq!(told.len(), BATCH_EVENTS);
    assert_eq!(told.last().unwrap().text, "I/O error, dev dm-499, sector 499");
}

#[test]
fn what_the_kernel_repeats_is_told_once_a_minute_for_each_device_and_counted_each_time() {
    let other = READ.replace("sda", "sdb");
    let mut lines = vec![READ; 150];
    lines[30] = &other;
    let mut node = Node::new(log(&lines));
    let mut out = node.sample();
    let seconds: Vec<_> = events(&mut out).iter().map(|e| e.time - BOOT as f64).collect();
    assert_eq!(seconds, [1.0, 31.0, 61.0, 121.0]);
    assert_eq!(out.value(&EVENTS, ["block_io_error"]), Some(150.0));
    node.append(numbered(151, &[READ, READ]));
    assert_eq!(events(&mut node.sample()), [], "the next run still knows");
}

#[test]
fn a_record_that_is_new_in_the_ring_is_no_older_than_the_last_look_at_it() {
    let Clock { boot, now } = fixed();
    let times = |not_before| Times { clock: fixed(), not_before };
    let minute = Duration::from_mins(1);
    let looked = now - Duration::from_millis(500);
    assert_eq!(times(None).of(60_000_000), boot + minute, "of the first look nothing is known");
    assert_eq!(times(Some(looked)).of(60_000_000), looked, "the log's clock was behind");
    assert_eq!(times(Some(looked)).of(u64::MAX), now);
    // The clock of the node was set back since.
    assert_eq!(times(Some(now + minute)).of(60_000_000), now);
}

#[test]
fn a_time_to_come_counts_as_now() {
    let mut node = Node::new(format!("3,1,{},-;{READ}\n3,2,9000000000,-;{READ}\n", u64::MAX));
    let now = (BOOT + 1_000 + 3_600) as f64;
    assert_eq!(node.sample().value(&DEVICE_LAST, ["sda"]), Some(now));
}

#[test]
fn without_a_boot_time_of_its_own_a_file_is_of_this_boot() {
    let mut node = Node::new(log(&[READ]));
    node.write("proc/stat", "cpu 1 2\n");
    assert_eq!(node.sample().value(&DEVICE_LAST, ["sda"]), Some((BOOT + 1_001) as f64));
}

#[test]
fn the_real_clock_puts_boot_before_now() {
    let clock = clock();
    let fifty_years = Duration::from_hours(50 * 365 * 24);
    assert!(clock.boot > UNIX_EPOCH + fifty_years && clock.boot < clock.now);
}

#[test]
fn no_log_makes_more_series_than_its_caps_allow() {
    let mut log = String::new();
    let mut n = 0;
    for line in include_str!("../../../tests/data/kmsg-samples.jsonl").lines() {
        let sample: serde_json::Value = serde_json::from_str(line).unwrap();
        for i in 0..40 {
            n += 1;
            let text = sample["line"].as_str().unwrap().replace('\n', "\\x0a");
            // Other devices and other processes each time.
            let text = text.replace("dev sd", &format!("dev sd{}", "abcdefgh".repeat(1 + i / 8)));
            let text = text.replace("etcd", &format!("etcd{i}"));
            writeln!(log, "3,{n},{n},-;{text}").unwrap();
        }
    }
    let out = Node::new(log).sample();
    assert_eq!(out.reasons(), [""; 0]);
    assert!(out.series(&EVENTS) > 80 && out.all().len() < 500, "{}", out.all().len());
}

#[test]
fn options_that_make_no_sense_are_refused_by_name() {
    let host = Host::at("/nonexistent");
    let options = |text: &str| crate::sampler::Options {
        interval: Duration::from_millis(500),
        timeout: Duration::from_secs(1),
        own: serde_json::from_str(text).unwrap(),
    };
    let key = |text: &str| (SAMPLER.build)(&options(text), &host).err().map(|error| error.key);
    assert_eq!(key("{}"), None);
    assert_eq!(key(r#"{"ignore_devices": ["sd*"]}"#), None);
    assert_eq!(key(r#"{"ignore_devices": ["sd["]}"#).as_deref(), Some("ignore_devices"));
    assert_eq!(key(r#"{"ignore_devices": 3}"#).as_deref(), Some("ignore_devices"));
    assert!(key(r#"{"ignored": []}"#).is_some());
}
