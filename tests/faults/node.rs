//! The bus, systemd, journald and the kernel's log while they hang, restart and are flooded.

use super::{NO_ETCD, OWN_DISK, SECOND, Watch};
use crate::journal::{Node, SIGNATURE, SLOW, count as heard};
use crate::lab::agent::{Agent, Scrape};
use crate::lab::disk::Disk;
use crate::lab::kmsg::KernelLog;
use crate::lab::process::{self, run};
use crate::lab::systemd::Container;
use crate::lab::{self, wait_for};
use rustix::process::Signal;
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

const STATE: &str = "controlplane_systemd_unit_state";
const RESTARTS: &str = "controlplane_systemd_unit_restarts_total";
const UNITS: &str = "controlplane_systemd_";
const EVENTS: &str = "controlplane_journal_events_total";
const JOURNAL: &str = "controlplane_journal_";
const RUNS: &str = "controlplane_sampler_runs_total";
const FAILURES: &str = "controlplane_sampler_failures_total";
const UP: &str = "controlplane_sampler_up";
const LIMIT: Duration = Duration::from_secs(30);

/// A systemd with a unit that runs and one that restarts every half second, and an agent that watches both.
fn watched() -> (Container, Agent) {
    let container = Container::boot();
    let unit = |name: &str, script: &str| {
        container.install_unit(
            name,
            &format!(
                "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=300ms\n\
                 ExecStart=/bin/sh -c '{script}'\n"
            ),
        );
        container.systemctl(&["start", "--no-block", name]);
    };
    unit("k3s.service", "sleep 9999");
    unit("loop.service", "sleep 0.2; exit 4");
    let agent = Agent::start(&format!(
        "systemd: {{units: [k3s.service, loop.service], bus: '{}', interval: 500ms, timeout: 1s}}\n{NO_ETCD}{OWN_DISK}",
        container.bus_address()
    ));
    agent.wait_until("both units", UNITS, LIMIT, |s| runs(s) && restarts(s) >= 2.0);
    (container, agent)
}

fn runs(s: &Scrape) -> bool {
    s.value(STATE, &[("unit", "k3s.service"), ("state", "active")]) == Some(1.0)
        && s.value(UP, &[("sampler", "systemd")]) == Some(1.0)
}

fn restarts(s: &Scrape) -> f64 {
    s.sum(RESTARTS, &[("unit", "loop.service")])
}

/// systemd is told of as before: the unit that restarts is seen to restart.
fn tells(since: &Scrape) -> impl Fn(&Scrape) -> bool {
    let before = restarts(since);
    move |s| runs(s) && restarts(s) >= before + 2.0
}

/// systemd's own count of the restarts and ours differ as they did before.
#[track_caller]
fn assert_none_lost(first: &Scrape, agent: &Agent) {
    let unit = [("unit", "loop.service")];
    let own = |s: &Scrape| s.sum("controlplane_systemd_unit_nrestarts", &unit);
    let last = agent.scrape();
    assert!(own(&last) > own(first), "{}", last.with_prefix(UNITS));
    let (counted, told) = (restarts(&last) - restarts(first), own(&last) - own(first));
    assert_eq!(counted, told, "restarts counted and told by systemd");
}

/// From now on restarts are told as before, and none of those since `first` was lost.
#[track_caller]
fn restarts_are_whole(watch: &mut Watch, first: &Scrape, agent: &Agent) {
    let now = watch.repair(|| agent.scrape());
    watch.recovers(agent, UNITS, LIMIT, tells(&now));
    assert_none_lost(first, agent);
}

/// The process id, on this side, of the container's process of this name.
pub(super) fn pid_in(container: &Container, comm: &str) -> u32 {
    fn below(pid: u32, comm: &str) -> Option<u32> {
        let own = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if own.trim_end() == comm {
            return Some(pid);
        }
        process::children(pid).into_iter().find_map(|child| below(child, comm))
    }
    below(container.leader(), comm).unwrap_or_else(|| panic!("no {comm} runs there"))
}

#[test]
fn a_bus_that_hangs_costs_a_timeout_and_counts_go_on_after_it() {
    let _turn = lab::alone();
    let (container, agent) = watched();
    let mut watch = Watch::of("D-Bus hangs", &agent);
    let first = agent.scrape();
    let bus = pid_in(&container, "dbus-daemon");
    watch.fault("SIGSTOP of dbus-daemon for 4 s", || process::signal(bus, Signal::STOP));
    let late = [("sampler", "systemd"), ("reason", "timeout")];
    agent.wait_until("time-outs", FAILURES, LIMIT, |s| s.sum(FAILURES, &late) >= 3.0);
    watch.repair(|| process::signal(bus, Signal::CONT));
    watch.recovers(&agent, UNITS, LIMIT, tells(&first));
    assert_none_lost(&first, &agent);
    watch.holds("each run ends with its time-out; no restart of a unit is lost or counted twice");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_bus_that_is_restarted_again_and_again_loses_no_count() {
    let _turn = lab::alone();
    let (container, agent) = watched();
    let mut watch = Watch::of("D-Bus is restarted", &agent);
    let first = agent.scrape();
    watch.fault("SIGKILL of dbus-daemon, three times", || {
        for _ in 0..3 {
            let bus = pid_in(&container, "dbus-daemon");
            process::signal(bus, Signal::KILL);
            wait_for("another dbus-daemon", LIMIT, || {
                let pids = container.exec(&["pidof", "dbus-daemon"]);
                let new = !std::path::Path::new(&format!("/proc/{bus}")).exists();
                if pids.status.success() && new { Ok(()) } else { Err(pids.stdout) }
            });
            let now = agent.scrape();
            agent.wait_until("restarts over the new bus", UNITS, LIMIT, tells(&now));
        }
        process::signal(pid_in(&container, "dbus-daemon"), Signal::KILL);
    });
    restarts_are_whole(&mut watch, &first, &agent);
    watch.holds("connected again each time; as many restarts as systemd itself counts");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_flood_of_signals_on_the_bus_delays_no_scrape_and_hides_no_restart() {
    let _turn = lab::alone();
    let (container, agent) = watched();
    container.install_unit("flood@.service", "[Service]\nType=oneshot\nExecStart=/bin/true\n");
    let mut watch = Watch::of("D-Bus is flooded", &agent);
    let first = agent.scrape();
    watch.fault("400 units start and end, while two clients emit signals without pause", || {
        let emit = "end=$((SECONDS + 8)); while [ $SECONDS -lt $end ]; do \
                    busctl emit /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager UnitNew so k3s.service /x; done";
        let start = "for i in $(seq 400); do echo flood@$i; done | xargs -n 50 systemctl start";
        std::thread::scope(|scope| {
            let loads = [emit, emit, start].map(|script| {
                let container = &container;
                scope.spawn(move || container.exec(&["bash", "-c", script]))
            });
            for load in loads {
                let ended = load.join().unwrap();
                assert!(ended.status.success(), "{}", ended.stderr);
            }
        });
    });
    restarts_are_whole(&mut watch, &first, &agent);
    watch.holds("as many restarts as systemd itself counts");
}

#[test]
#[ignore = "tests/faults.sh"]
fn daemon_reloads_with_two_thousand_units_lose_no_count() {
    let _turn = lab::alone();
    let (container, agent) = watched();
    let mut watch = Watch::of("systemd: daemon-reload with 2,000 units", &agent);
    let first = agent.scrape();
    watch.fault("2,000 loaded units, then five reloads", || {
        let units = container.root().join("etc/systemd/system");
        let wants = units.join("many.target.wants");
        std::fs::create_dir(&wants).unwrap();
        std::fs::write(units.join("many.target"), "[Unit]\nDescription=many\n").unwrap();
        for i in 0..2_000 {
            let text = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n";
            let name = format!("many-{i}.service");
            std::fs::write(units.join(&name), text).unwrap();
            std::os::unix::fs::symlink(units.join(&name), wants.join(&name)).unwrap();
        }
        for _ in 0..5 {
            container.systemctl(&["daemon-reload"]);
            // What is wanted is loaded.
            container.systemctl(&["list-dependencies", "many.target"]);
        }
    });
    restarts_are_whole(&mut watch, &first, &agent);
    watch.holds("as many restarts as systemd itself counts");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_systemd_that_executes_itself_anew_loses_no_count() {
    let _turn = lab::alone();
    let (container, agent) = watched();
    let mut watch = Watch::of("systemd: daemon-reexec", &agent);
    let first = agent.scrape();
    watch.fault("three times", || {
        for _ in 0..3 {
            // It closes the connection of whoever asks for it.
            container.exec(&["systemctl", "daemon-reexec"]);
            let now = agent.scrape();
            agent.wait_until("restarts after it", UNITS, LIMIT, tells(&now));
        }
    });
    restarts_are_whole(&mut watch, &first, &agent);
    watch.holds("as many restarts as systemd itself counts");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_systemd_that_hangs_costs_a_timeout() {
    let _turn = lab::alone();
    let (container, agent) = watched();
    let mut watch = Watch::of("systemd hangs", &agent);
    let first = agent.scrape();
    let late = [("sampler", "systemd"), ("reason", "timeout")];
    watch.fault("SIGSTOP of PID 1 for 4 s; the bus goes on", || {
        process::signal(container.leader(), Signal::STOP);
    });
    agent.wait_until("time-outs", FAILURES, LIMIT, |s| s.sum(FAILURES, &late) >= 3.0);
    watch.repair(|| process::signal(container.leader(), Signal::CONT));
    watch.recovers(&agent, UNITS, LIMIT, tells(&first));
    assert_none_lost(&first, &agent);
    watch.holds("each run ends with its time-out; no restart of a unit is lost or counted twice");
}

/// Says a line, waits until it counts, and says how long that took.
#[track_caller]
fn heard_once(node: &Node, agent: &Agent, watch: &mut Watch, limit: Duration) {
    let before = heard(&agent.scrape(), SIGNATURE);
    watch.repair(|| node.say(SLOW.as_bytes()));
    watch.recovers(agent, JOURNAL, limit, |s| heard(s, SIGNATURE) >= before + 1.0);
    std::thread::sleep(SECOND);
    assert_eq!(heard(&agent.scrape(), SIGNATURE), before + 1.0, "one line counts once");
}

fn following(limits: &str) -> (Node, Agent) {
    let node = Node::with(limits);
    let agent = node.agent();
    let up = [("source", "journal")];
    agent.wait_value("controlplane_journal_reader_up", &up, 1.0, LIMIT);
    node.is_heard(&agent, "a healthy journald");
    (node, agent)
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_journald_that_is_killed_again_and_again_loses_no_line_that_it_took() {
    let _turn = lab::alone();
    let (node, agent) = following("");
    let mut watch = Watch::of("journald is restarted", &agent);
    let before = heard(&agent.scrape(), SIGNATURE);
    watch.fault("twice restarted and twice killed, with a line after each", || {
        for signal in ["", "", "KILL", "KILL"] {
            if signal.is_empty() {
                node.container.systemctl(&["restart", "systemd-journald"]);
            } else {
                node.container.systemctl(&["kill", "--signal=KILL", "systemd-journald"]);
                let is_up = "until journalctl --sync; do sleep 0.1; done";
                assert!(node.container.exec(&["sh", "-c", is_up]).status.success());
            }
            let so_far = heard(&agent.scrape(), SIGNATURE);
            // A unit whose stream to a killed journald is lost gets a new one with its own restart.
            if !signal.is_empty() {
                node.restart_unit();
            }
            node.say(SLOW.as_bytes());
            agent.wait_until("the line", EVENTS, LIMIT, |s| heard(s, SIGNATURE) > so_far);
        }
    });
    assert_eq!(heard(&agent.scrape(), SIGNATURE), before + 4.0);
    heard_once(&node, &agent, &mut watch, LIMIT);
    watch.holds("five lines are five");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_journal_file_that_is_damaged_hides_nothing_that_comes_after() {
    let _turn = lab::alone();
    let (node, agent) = following("Storage=volatile\n");
    let mut watch = Watch::of("a journal file is damaged", &agent);
    watch.fault("16 KiB in the middle of the file that is written to are overwritten", || {
        let folder = node.container.root().join("run/log/journal");
        let machine = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let file = machine.join("system.journal");
        let mut file = OpenOptions::new().write(true).open(file).unwrap();
        file.seek(SeekFrom::Start(0x8000)).unwrap();
        file.write_all(&[0xa5; 0x4000]).unwrap();
        node.container.exec(&["journalctl", "--rotate"]);
    });
    heard_once(&node, &agent, &mut watch, LIMIT);
    watch.holds("what is logged afterwards is heard once");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_flood_of_the_journal_is_bounded_in_memory_and_caught_up_with() {
    let _turn = lab::alone();
    let (node, agent) = following("Storage=volatile\nRuntimeMaxUse=512M\n");
    let mut watch = Watch::of("journald is flooded", &agent);
    let line = br#"{"level":"info","ts":"2024-01-10T08:00:01.220114Z","caller":"mvcc/index.go:214","msg":"compact tree index"}"#;
    watch.fault("20,000 lines a second for 5 s", || {
        let block = [line.as_slice(), b"\n"].concat().repeat(1_000);
        for _ in 0..100 {
            let from = Instant::now();
            node.say(&block[..block.len() - 1]);
            std::thread::sleep(Duration::from_millis(50).saturating_sub(from.elapsed()));
        }
    });
    heard_once(&node, &agent, &mut watch, 10 * LIMIT);
    watch.holds("a line after the flood is heard once");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_journald_that_hangs_loses_no_line() {
    let _turn = lab::alone();
    let (node, agent) = following("");
    let mut watch = Watch::of("journald hangs", &agent);
    let before = heard(&agent.scrape(), SIGNATURE);
    let journald = pid_in(&node.container, "systemd-journal");
    watch.fault("SIGSTOP for 5 s, with three lines meanwhile", || {
        process::signal(journald, Signal::STOP);
        for _ in 0..3 {
            node.say(SLOW.as_bytes());
        }
        std::thread::sleep(5 * SECOND);
    });
    watch.repair(|| process::signal(journald, Signal::CONT));
    watch.recovers(&agent, JOURNAL, LIMIT, |s| heard(s, SIGNATURE) >= before + 3.0);
    heard_once(&node, &agent, &mut watch, LIMIT);
    assert_eq!(heard(&agent.scrape(), SIGNATURE), before + 4.0);
    watch.holds("the three lines are heard when journald goes on, each once");
}

const ERRORS: &str = "controlplane_kernel_io_errors_total";
const OVERRUN: &str = "controlplane_kernel_";

/// Writes lines to the kernel's log for so long. A file takes few lines in a while, so each line has its own.
fn flood_kernel_log(time: Duration) -> usize {
    let (started, mut lines) = (Instant::now(), 0);
    let text = "x".repeat(180);
    while started.elapsed() < time {
        let mut log = OpenOptions::new().write(true).open("/dev/kmsg").unwrap();
        log.write_all(format!("<7>controlplane-exporter fault matrix {lines} {text}\n").as_bytes())
            .unwrap();
        lines += 1;
    }
    lines
}

/// Reads a block that is cut off until the kernel has logged it, and gives how often that was.
fn fail(disk: &Disk, block: u64) {
    let log = KernelLog::from_now();
    let wanted = format!("dev {}, sector {}", disk.device().name(), block * 8);
    wait_for("the kernel's line", LIMIT, || {
        disk.read_block(block).unwrap_err();
        std::thread::sleep(SECOND / 10);
        let logged = log.drain().iter().any(|record| record.text.contains(&wanted));
        logged.then_some(()).ok_or_else(|| format!("no line with {wanted:?}"))
    });
}

/// An agent, and a disk whose errors it counts.
fn with_bad_disk() -> (Disk, Agent) {
    let disk = Disk::raw(64 << 20);
    let agent = Agent::start(&format!("kernel: {{ignore_devices: []}}\n{NO_ETCD}{OWN_DISK}"));
    disk.truncate(1 << 20);
    (disk, agent)
}

fn errors(s: &Scrape, disk: &Disk) -> f64 {
    s.sum(ERRORS, &[("device", &disk.device().name())])
}

#[test]
fn a_flood_of_the_kernel_log_hides_no_error_and_is_no_error() {
    let _turn = lab::alone();
    let (disk, agent) = with_bad_disk();
    let mut watch = Watch::of("kernel log is flooded", &agent);
    let before = agent.scrape();
    let rate = watch
        .fault("lines of a process without pause for 3 s", || flood_kernel_log(3 * SECOND) / 3);
    eprintln!("{rate} lines a second");
    watch.repair(|| fail(&disk, 1_500));
    let scrape =
        watch.recovers(&agent, ERRORS, LIMIT, |s| errors(s, &disk) > errors(&before, &disk));
    let others = |s: &Scrape| s.sum(ERRORS, &[]) - errors(s, &disk);
    assert_eq!(others(&scrape), others(&before), "{}", scrape.with_prefix(ERRORS));
    disk.restore();
    watch.holds("an I/O error after it is counted, the lines of the flood are not");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_reader_of_the_kernel_log_that_is_overrun_goes_on_and_counts_nothing_twice() {
    let _turn = lab::alone();
    let (disk, agent) = with_bad_disk();
    fail(&disk, 1_000);
    agent.wait_until("the first error", ERRORS, LIMIT, |s| errors(s, &disk) >= 1.0);
    std::thread::sleep(SECOND);
    let mut watch = Watch::of("kernel log overruns its reader", &agent);
    let before = agent.scrape();
    watch.mute();
    agent.signal(Signal::STOP);
    let written = watch.fault("the ring is written over while the agent is stopped", || {
        flood_kernel_log(4 * SECOND)
    });
    agent.signal(Signal::CONT);
    agent.scrape();
    watch.hear(agent.pid());
    assert!(written > 5_000, "{written} lines are too few for a ring");
    watch.repair(|| fail(&disk, 2_000));
    let scrape =
        watch.recovers(&agent, ERRORS, LIMIT, |s| errors(s, &disk) > errors(&before, &disk));
    eprintln!("{}", scrape.with_prefix(OVERRUN));
    let kernel = [("sampler", "kernel")];
    assert_eq!(scrape.value(UP, &kernel), Some(1.0));
    disk.restore();
    watch.holds("the error before it is not counted again, the one after it is");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_kernel_log_that_is_cleared_takes_no_count_away() {
    let _turn = lab::alone();
    let (disk, agent) = with_bad_disk();
    fail(&disk, 1_000);
    agent.wait_until("the first error", ERRORS, LIMIT, |s| errors(s, &disk) >= 1.0);
    // What is cleared is only hidden from dmesg. Other tests look there: nothing old is left in the ring.
    let written = flood_kernel_log(4 * SECOND);
    assert!(written > 5_000, "{written} lines are too few for a ring");
    let mut watch = Watch::of("kernel log is cleared", &agent);
    let before = agent.scrape();
    watch.fault("`dmesg -C`", || run("dmesg", ["-C"]));
    let kernel = [("sampler", "kernel")];
    let ran = before.sum(RUNS, &kernel);
    let after = agent.wait_until("further runs", RUNS, LIMIT, |s| s.sum(RUNS, &kernel) > ran + 4.0);
    assert_eq!(errors(&after, &disk), errors(&before, &disk));
    watch.repair(|| fail(&disk, 2_000));
    watch.recovers(&agent, ERRORS, LIMIT, |s| errors(s, &disk) > errors(&before, &disk));
    disk.restore();
    watch.holds("the counts stay, the next error is counted");
}
