//! What is done to the agent itself: signals, limits, its clock, its files, its children and its log.

use super::{EVERY, SECOND, Watch, all_ran, path, unix_now, ups};
use crate::lab::agent::{Agent, Options, Scrape};
use crate::lab::process::{self, Daemon, bound_command, output, run};
use crate::lab::{self, http, wait_for};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const RELOAD_OK: &str = "controlplane_exporter_config_last_reload_successful";
const INTERVAL: &str = "controlplane_sampler_interval_seconds";
const RUNS: &str = "controlplane_sampler_runs_total";
const FAILURES: &str = "controlplane_sampler_failures_total";
const SAMPLERS: &str = "controlplane_sampler_";
const LIMIT: Duration = Duration::from_secs(30);
/// Everything that a node without Kubernetes has to offer, every second.
const BUSY: &str = "exporter: {interval: 1s}\nfilesystem: {paths: [/], interval: 1s}\nkernel: {interval: 200ms}\n\
                    fdatasync: {paths: [/var/tmp], interval: 1s}\netcd: {enabled: false}\n\
                    registry_keys: {enabled: false}\nvolume: {enabled: false}\n";

fn busy(through: &[&str]) -> Agent {
    Agent::start_with(Options {
        config: BUSY.into(),
        through: through.iter().map(|&word| word.to_owned()).collect(),
        ..Options::default()
    })
}

fn runs_of(s: &Scrape, sampler: &str) -> f64 {
    s.sum(RUNS, &[("sampler", sampler)])
}

#[test]
fn a_hundred_reloads_in_a_row_lose_no_sampler_and_no_count() {
    let _turn = lab::alone();
    let agent = busy(&[]);
    let mut watch = Watch::of("100 reloads in a row", &agent);
    let before = agent.scrape();
    watch.fault("SIGHUP during runs, each with other intervals", || {
        for i in 0..100 {
            let interval = if i % 2 == 0 { "250ms" } else { "200ms" };
            // In one step: half of a file can be a valid one, in which something is missing.
            let new = agent.config_file().with_extension("new");
            let text = BUSY.replace("200ms", interval).replace("1s", "900ms");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, agent.config_file()).unwrap();
            agent.signal(Signal::HUP);
            std::thread::sleep(SECOND / 20);
        }
        agent.write_config(BUSY);
    });
    watch.repair(|| agent.signal(Signal::HUP));
    let since = unix_now();
    let after = watch.recovers(&agent, SAMPLERS, LIMIT, |s| {
        s.value(INTERVAL, &[("sampler", "kernel")]) == Some(0.2) && all_ran(&before, s, since)
    });
    assert_eq!(after.value(RELOAD_OK, &[]), Some(1.0));
    assert_eq!(ups(&after), ups(&before));
    watch.holds("the last configuration is in force, every sampler runs");
}

#[test]
fn a_configuration_that_turns_to_garbage_is_refused_and_the_old_one_stays() {
    let _turn = lab::alone();
    let agent = busy(&[]);
    let mut watch = Watch::of("configuration turns to garbage", &agent);
    let before = agent.scrape();
    let file = agent.config_file();
    watch.fault(
        "random bytes, nothing, a folder, a pipe, half of the file; a reload with each",
        || {
            let noise: Vec<u8> =
                std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
            for what in ["noise", "nothing", "folder", "pipe", "half"] {
                std::fs::remove_file(&file).ok();
                match what {
                    "noise" => std::fs::write(&file, &noise).unwrap(),
                    "folder" => std::fs::create_dir(&file).unwrap(),
                    "pipe" => _ = run("mkfifo", [&file]),
                    "half" => std::fs::write(&file, &BUSY[..BUSY.len() / 2 - 5]).unwrap(),
                    _ => {}
                }
                let answer =
                    http::request(agent.address(), "POST", "/-/reload", &[], 20 * SECOND).unwrap();
                assert_eq!(answer.status, 500, "{what}: {}", answer.text());
                if what == "folder" {
                    std::fs::remove_dir(&file).unwrap();
                }
            }
        },
    );
    let during = agent.wait_value(RELOAD_OK, &[], 0.0, LIMIT);
    assert_eq!(ups(&during), ups(&before));
    watch.repair(|| {
        agent.write_config(BUSY);
        agent.signal(Signal::HUP);
    });
    watch.recovers(&agent, RELOAD_OK, LIMIT, |s| s.value(RELOAD_OK, &[]) == Some(1.0));
    watch.holds("each is refused with the reason, and told; the samplers go on");
}

/// Hides a path of the host from an agent that has a mount namespace of its own.
fn hide(agent: &Agent, what: &str) {
    let script = format!(
        "if [ -d {what} ]; then mount -t tmpfs none {what}; else mount --bind /dev/null {what}; fi"
    );
    inside(agent, &script);
}

fn show(agent: &Agent, what: &str) {
    inside(agent, &format!("umount {what}"));
}

#[track_caller]
fn inside(agent: &Agent, script: &str) {
    let mut command = bound_command(lab::program("nsenter"));
    command.arg(format!("--target={}", agent.pid())).args(["--mount", "--", "sh", "-c", script]);
    let ended = output(command, LIMIT);
    assert!(ended.status.success(), "{script}: {}", ended.stderr);
}

#[test]
fn entries_of_proc_and_sys_that_are_missing_or_empty_fail_only_what_needs_them() {
    const HIDDEN: [&str; 6] =
        ["/sys", "/proc/sys", "/proc/diskstats", "/proc/1/mountinfo", "/proc/stat", "/proc/uptime"];
    let _turn = lab::alone();
    let agent = busy(&["unshare", "--mount"]);
    let mut watch = Watch::of("entries of /proc and /sys are missing", &agent);
    let before = agent.scrape();
    let since = unix_now();
    watch.fault(format!("{} are empty", HIDDEN.join(", ")), || {
        for what in HIDDEN {
            hide(&agent, what);
        }
    });
    std::thread::sleep(5 * SECOND);
    let during = agent.scrape();
    // The kernel's log needs none of them.
    let kernel = [("sampler", "kernel")];
    let last = "controlplane_sampler_last_success_timestamp_seconds";
    assert!(during.value(last, &kernel) > Some(since), "{}", during.with_prefix(SAMPLERS));
    assert!(during.sum(FAILURES, &[("reason", "panic")]) < 1.0, "{}", agent.log());
    watch.repair(|| HIDDEN.iter().for_each(|what| show(&agent, what)));
    let since = unix_now();
    watch.recovers(&agent, SAMPLERS, LIMIT, |s| {
        all_ran(&before, s, since) && ups(s) == ups(&before)
    });
    watch.holds("no panic; what does not need them goes on, all is well afterwards");
}

/// An agent whose standard error is a pipe that nobody reads.
#[test]
fn a_reader_of_its_log_that_hangs_holds_up_nothing() {
    let _turn = lab::alone();
    let folder = lab::temp_dir("log");
    let pipe = folder.path().join("pipe");
    run("mkfifo", [&pipe]);
    // It is open for reading, and never read.
    let hold = format!("exec 3<> '{}'; exec sleep 3600", path(&pipe));
    let mut command = bound_command("sh");
    command.args(["-c", &hold]);
    let mut reader = Daemon::start("a reader that hangs", command, &folder.path().join("reader"));
    let script = format!("exec \"$0\" \"$@\" 2> '{}'", path(&pipe));
    let agent = Agent::start_with(Options {
        config: format!("log: {{level: debug}}\n{BUSY}"),
        through: ["sh", "-c", &script].map(str::to_owned).into(),
        ..Options::default()
    });
    let mut watch = Watch::of("the reader of its log hangs", &agent);
    let before = agent.scrape();
    watch.fault(
        "standard error is a full pipe, while the configuration is refused again and again",
        || {
            agent.write_config("nonsense: 1\n");
            // Each is a line or two of the log; the pipe takes 64 KiB.
            for _ in 0..600 {
                agent.signal(Signal::HUP);
                std::thread::sleep(SECOND / 100);
            }
        },
    );
    let filled = folder.path().join("pipe");
    wait_for("a full pipe", LIMIT, || {
        let mut command = bound_command("timeout");
        // Writing one more block would wait.
        command.args(["1", "sh", "-c", &format!("head -c 70000 /dev/zero > '{}'", path(&filled))]);
        let ended = output(command, LIMIT);
        if ended.status.code() == Some(124) { Ok(()) } else { Err(ended.stderr) }
    });
    std::thread::sleep(3 * SECOND);
    agent.write_config(&format!("log: {{level: debug}}\n{BUSY}"));
    let reload = http::request(agent.address(), "POST", "/-/reload", &[], 20 * SECOND).unwrap();
    assert_eq!(reload.status, 200, "{}", reload.text());
    let since = unix_now();
    agent.wait_until("samples", SAMPLERS, LIMIT, |s| all_ran(&before, s, since));
    // The log is read again.
    let reads = watch.repair(|| {
        let mut command = bound_command("sh");
        let out = folder.path().join("out");
        command.args(["-c", &format!("exec cat '{}' > '{}'", path(&pipe), path(&out))]);
        Daemon::start("a reader", command, &folder.path().join("reader"))
    });
    agent.write_config("other: 1\n");
    agent.signal(Signal::HUP);
    let out = folder.path().join("out");
    wait_for("later lines", LIMIT, || {
        let text = String::from_utf8_lossy(&std::fs::read(&out).unwrap_or_default()).into_owned();
        if text.contains("other") {
            Ok(())
        } else {
            Err(text.lines().last().unwrap_or_default().to_owned())
        }
    });
    agent.write_config(BUSY);
    agent.signal(Signal::HUP);
    watch.recovers(&agent, RELOAD_OK, LIMIT, |s| s.value(RELOAD_OK, &[]) == Some(1.0));
    watch.holds("samples, scrapes and reloads go on; later lines are written when somebody reads");
    drop(reads);
    reader.kill();
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_log_on_a_full_device_costs_nothing() {
    let _turn = lab::alone();
    let agent = busy(&["sh", "-c", "exec \"$0\" --log.level=debug \"$@\" 2> /dev/full"]);
    let mut watch = Watch::of("its log cannot be written", &agent);
    let before = agent.scrape();
    watch.fault("standard error is /dev/full, and 100 refused reloads", || {
        agent.write_config("nonsense: 1\n");
        for _ in 0..100 {
            agent.signal(Signal::HUP);
            std::thread::sleep(SECOND / 50);
        }
    });
    watch.repair(|| {
        agent.write_config(BUSY);
        agent.signal(Signal::HUP);
    });
    let since = unix_now();
    watch.recovers(&agent, SAMPLERS, LIMIT, |s| {
        all_ran(&before, s, since) && s.value(RELOAD_OK, &[]) == Some(1.0)
    });
    watch.holds("samples, scrapes and reloads go on");
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_that_is_stopped_for_half_a_minute_goes_on_where_it_was() {
    let _turn = lab::alone();
    let agent = busy(&[]);
    let mut watch = Watch::of("the agent is suspended", &agent);
    let before = agent.scrape();
    watch.mute();
    watch.fault("SIGSTOP for 30 s, without its children", || agent.signal(Signal::STOP));
    std::thread::sleep(30 * SECOND);
    watch.repair(|| agent.signal(Signal::CONT));
    let since = unix_now();
    // What waited in the meantime is answered first.
    wait_for("an answer", 2 * SECOND, || {
        http::request(agent.address(), "GET", "/metrics", &[], SECOND).map(drop)
    });
    watch.hear(agent.pid());
    let after = watch.recovers(&agent, SAMPLERS, LIMIT, |s| all_ran(&before, s, since));
    // The runs that were missed are not made up for.
    let kernel = runs_of(&after, "kernel") - runs_of(&before, "kernel");
    assert!(kernel < 100.0, "{kernel} runs of an interval of 0.2 s");
    watch.holds("no burst of the runs that were missed; nothing is down for it");
}

/// A seeded random source of our own, so that a failure can be repeated.
fn seeded() -> fastrand::Rng {
    let seed = std::env::var("FAULT_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(20_261_129);
    eprintln!("FAULT_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_that_is_killed_at_random_fifty_times_starts_clean_each_time() {
    let _turn = lab::alone();
    let mut random = seeded();
    let address = SocketAddr::from(([127, 0, 0, 1], lab::free_port()));
    let folder = lab::temp_dir("killed");
    let start = || {
        Agent::launch(Options {
            config: BUSY.into(),
            args: vec![format!("--web.listen-address={address}")],
            // Its socket is left behind by the one that was killed.
            through: vec![
                "env".into(),
                format!("CONTROLPLANE_EXPORTER__WEB__SOCKET={}", path(&folder.path().join("s"))),
            ],
            ..Options::default()
        })
    };
    let until_up = |agent: &mut Agent| {
        let started = Instant::now();
        wait_for("an answer", 10 * SECOND, || {
            assert!(!agent.has_ended(), "it ended: {}", agent.log());
            http::request(address, "GET", "/metrics", &[], SECOND).map(drop)
        });
        started.elapsed()
    };
    let mut agent = start();
    until_up(&mut agent);
    wait_for("a first round", LIMIT, || {
        let ready = agent.get("/-/ready")?;
        if ready.status == 200 { Ok(()) } else { Err(ready.text()) }
    });
    let before = agent.scrape();
    let mut watch = Watch::at("the agent is killed at random", address, agent.pid());
    let mut slowest = Duration::ZERO;
    watch
        .fault("SIGKILL 50 times, after 0 to 400 ms of life, with the same port and socket", || {});
    watch.mute();
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(random.u64(0..400)));
        let children = process::children(agent.pid());
        agent.signal(Signal::KILL);
        wait_for("its end", 2 * SECOND, || {
            if agent.has_ended() { Ok(()) } else { Err("it lives".to_owned()) }
        });
        drop(agent);
        agent = start();
        slowest = slowest.max(until_up(&mut agent));
        for pid in children {
            wait_for("the end of a child", 5 * SECOND, || {
                let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if command.is_empty() { Ok(()) } else { Err(format!("{pid} lives")) }
            });
        }
    }
    watch.repair(|| ());
    let since = unix_now();
    watch.hear(agent.pid());
    watch.recovers(&agent, SAMPLERS, LIMIT, |s| all_ran(&before, s, since));
    let mut check = bound_command(env!("CARGO_BIN_EXE_controlplane-exporter"));
    check.env("CONTROLPLANE_EXPORTER__WEB__SOCKET", folder.path().join("s"));
    check.args(["check", "--self"]);
    let check = output(check, LIMIT);
    assert!(check.status.success(), "{}{}", check.stdout, check.stderr);
    watch.holds(&format!(
        "serves again within {:.1} s each time; no child outlives it; the socket is taken over",
        slowest.as_secs_f64()
    ));
}

/// Signals every child of the agent again and again for so long; how many that were.
pub(super) fn signal_children(agent: &Agent, signal: Signal, time: Duration) -> usize {
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < time {
        for pid in process::children(agent.pid()) {
            process::signal(pid, signal);
            count += 1;
        }
        std::thread::sleep(EVERY / 4);
    }
    count
}

/// Ends what [`signal_children`] stopped.
pub(super) fn wake_children(agent: &Agent) {
    for pid in process::children(agent.pid()) {
        process::signal(pid, Signal::CONT);
    }
}

/// Children that were stopped go on, and with them all samplers.
#[track_caller]
fn children_go_on(mut watch: Watch, agent: &Agent, before: &Scrape) {
    watch.repair(|| wake_children(agent));
    let since = unix_now();
    watch.recovers(agent, SAMPLERS, 3 * LIMIT, |s| {
        all_ran(before, s, since) && ups(s) == ups(before)
    });
    watch.holds("what has no child goes on; all samplers run again");
}

#[test]
#[ignore = "tests/faults.sh"]
fn children_that_are_killed_are_started_again() {
    let _turn = lab::alone();
    let agent = busy(&[]);
    let mut watch = Watch::of("its children are killed", &agent);
    let before = agent.scrape();
    let killed = watch.fault("SIGKILL to each child every 50 ms for 5 s", || {
        signal_children(&agent, Signal::KILL, 5 * SECOND)
    });
    let since = watch.repair(unix_now);
    watch.recovers(&agent, SAMPLERS, 3 * LIMIT, |s| {
        all_ran(&before, s, since) && ups(s) == ups(&before)
    });
    watch.holds(&format!("{killed} children were killed; all samplers run again"));
}

#[test]
#[ignore = "tests/faults.sh"]
fn children_that_hang_are_ended_or_waited_for_and_nothing_else_waits() {
    let _turn = lab::alone();
    let agent = busy(&[]);
    let mut watch = Watch::of("its children hang", &agent);
    let before = agent.scrape();
    let since = unix_now();
    watch.fault("SIGSTOP to each child every 50 ms for 8 s", || {
        signal_children(&agent, Signal::STOP, 8 * SECOND)
    });
    let during = agent.scrape();
    let last = "controlplane_sampler_last_success_timestamp_seconds";
    assert!(during.value(last, &[("sampler", "kernel")]) > Some(since + 6.0));
    children_go_on(watch, &agent, &before);
}

#[test]
#[ignore = "tests/faults.sh"]
fn children_that_hang_before_they_run_hold_up_no_scrape() {
    let _turn = lab::alone();
    let config = BUSY.replace("1s", "100ms").replace("200ms", "100ms");
    let agent = Agent::start(&format!("{config}settings: {{interval: 100ms}}\n"));
    let mut watch = Watch::of("its children hang before they run", &agent);
    let before = agent.scrape();
    let own = std::fs::read(format!("/proc/{}/cmdline", agent.pid())).unwrap();
    let what = "SIGSTOP to two children before their program is there, for 4 s";
    let held = watch.fault(what, || {
        let (started, mut held) = (Instant::now(), BTreeSet::new());
        while held.len() < 2 && started.elapsed() < 10 * SECOND {
            for pid in process::children(agent.pid()) {
                // Until its program is there it is a copy of the agent.
                let is_copy =
                    || std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == own);
                if held.contains(&pid) || !is_copy() {
                    continue;
                }
                process::signal(pid, Signal::STOP);
                std::thread::sleep(SECOND / 200);
                if is_copy() {
                    held.insert(pid);
                } else {
                    process::signal(pid, Signal::CONT);
                }
            }
            std::thread::sleep(SECOND / 5_000);
        }
        std::thread::sleep(4 * SECOND);
        held
    });
    eprintln!("{} children were held", held.len());
    assert!(!held.is_empty(), "none was met so early");
    children_go_on(watch, &agent, &before);
}

/// A cgroup of one controller. Removed when dropped, with what is left in it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(controller: &str) -> Self {
        lab::need_root("a cgroup");
        let name = format!("{}{}", lab::TEMP_PREFIX, fastrand::u32(..));
        let folder = PathBuf::from("/sys/fs/cgroup").join(controller).join(name);
        std::fs::create_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        Self(folder)
    }

    fn set(&self, file: &str, value: &str) {
        std::fs::write(self.0.join(file), value).unwrap_or_else(|e| panic!("{file}: {e}"));
    }

    fn get(&self, file: &str) -> u64 {
        let text = std::fs::read_to_string(self.0.join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or_else(|e| panic!("{file} {text:?}: {e}"))
    }

    /// What makes the agent start in it.
    fn through(&self) -> Vec<String> {
        let script = format!("echo 0 > {}/cgroup.procs && exec \"$0\" \"$@\"", path(&self.0));
        ["sh", "-c", &script].map(str::to_owned).into()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let started = Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && started.elapsed() < 5 * SECOND {
            std::thread::sleep(SECOND / 20);
        }
    }
}

fn in_cgroup(cgroup: &Cgroup) -> Agent {
    let through = cgroup.through();
    Agent::start_with(Options { config: BUSY.into(), through, ..Options::default() })
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_whose_memory_cgroup_is_full_goes_on() {
    let _turn = lab::alone();
    let cgroup = Cgroup::new("memory");
    let agent = in_cgroup(&cgroup);
    let mut watch = Watch::of("memory cgroup at its limit", &agent);
    let before = agent.scrape();
    let limit = cgroup.get("memory.usage_in_bytes") + (96 << 20);
    cgroup.set("memory.limit_in_bytes", &limit.to_string());
    watch.fault(
        "96 MiB more than it uses, and a neighbour in it that takes all of them, five times",
        || {
            for _ in 0..5 {
                let script = format!(
                    "echo 0 > {}/cgroup.procs && head -c 200M /dev/zero | tail | wc -c",
                    path(&cgroup.0)
                );
                let mut command = bound_command("sh");
                command.args(["-c", &script]);
                output(command, LIMIT);
            }
        },
    );
    assert!(cgroup.get("memory.failcnt") > 0, "the limit was not reached");
    let since = watch.repair(unix_now);
    watch.recovers(&agent, SAMPLERS, LIMIT, |s| {
        all_ran(&before, s, since) && ups(s) == ups(&before)
    });
    let failures = cgroup.get("memory.failcnt");
    watch.holds(&format!("the limit was met {failures} times; the agent lives and samples"));
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_that_may_start_no_process_serves_and_recovers() {
    let _turn = lab::alone();
    let cgroup = Cgroup::new("pids");
    let agent = in_cgroup(&cgroup);
    let mut watch = Watch::of("no further process may be started", &agent);
    let before = agent.scrape();
    let since = unix_now();
    watch.fault("the limit of its pids cgroup is what it has, for 6 s", || {
        let own = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().count();
        cgroup.set("pids.max", &own.to_string());
    });
    std::thread::sleep(6 * SECOND);
    let during = agent.scrape();
    let last = "controlplane_sampler_last_success_timestamp_seconds";
    assert!(during.value(last, &[("sampler", "exporter")]) > Some(since + 3.0));
    let failed = during.sum(FAILURES, &[]) - before.sum(FAILURES, &[]);
    assert!(failed > 0.0, "nothing was refused");
    assert!(during.sum(FAILURES, &[("reason", "panic")]) < 1.0, "{}", agent.log());
    watch.repair(|| cgroup.set("pids.max", "max"));
    let since = unix_now();
    watch.recovers(&agent, SAMPLERS, 3 * LIMIT, |s| {
        all_ran(&before, s, since) && ups(s) == ups(&before)
    });
    watch.holds("what needs no child goes on, the rest fails and is told, all run again");
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_with_a_twentieth_of_a_processor_answers() {
    let _turn = lab::alone();
    let cgroup = Cgroup::new("cpu");
    let agent = in_cgroup(&cgroup);
    let mut watch = Watch::of("a twentieth of a processor", &agent).within(5 * SECOND);
    let before = agent.scrape();
    watch.fault("5 ms of each 100 ms for it and its children, for 10 s", || {
        cgroup.set("cpu.cfs_quota_us", "5000");
    });
    std::thread::sleep(10 * SECOND);
    watch.repair(|| cgroup.set("cpu.cfs_quota_us", "-1"));
    let since = unix_now();
    watch.recovers(&agent, SAMPLERS, LIMIT, |s| {
        all_ran(&before, s, since) && ups(s) == ups(&before)
    });
    watch.holds("the bound is 5 s here; all samplers run again");
}

#[test]
#[ignore = "tests/faults.sh"]
fn an_agent_with_64_file_descriptors_answers_again_when_its_clients_go() {
    let _turn = lab::alone();
    let agent = busy(&["prlimit", "--nofile=64:64"]);
    let mut watch = Watch::of("64 file descriptors", &agent);
    let before = agent.scrape();
    watch.mute();
    let what = "200 clients that stay for 5 s: none is left for pipes and further clients";
    let clients = watch
        .fault(what, || (0..200).map(|_| TcpStream::connect(agent.address())).collect::<Vec<_>>());
    std::thread::sleep(5 * SECOND);
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    assert!(open > 60, "only {open} descriptors are open");
    watch.repair(|| drop(clients));
    let since = unix_now();
    wait_for("an answer", 15 * SECOND, || {
        http::request(agent.address(), "GET", "/metrics", &[], SECOND).map(drop)
    });
    watch.hear(agent.pid());
    watch.recovers(&agent, SAMPLERS, LIMIT, |s| {
        all_ran(&before, s, since) && ups(s) == ups(&before)
    });
    watch.holds("it lives, and all samplers run again; while they stay, it need not answer");
}

/// An agent whose clock is a file.
pub(super) struct OwnClock {
    pub(super) agent: Agent,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl OwnClock {
    /// Its clock is the machine's plus or minus this, such as `+10y`. The monotonic one is not touched.
    pub(super) fn jump(&self, offset: &str) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{offset}\n")).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }
}

/// An agent that sees the clock through libfaketime. Its children, which get no environment, do not.
pub(super) fn with_own_clock(config: &str) -> OwnClock {
    let library = PathBuf::from("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1");
    assert!(library.exists(), "{} is missing: run tests/setup.sh", library.display());
    let folder = lab::temp_dir("clock");
    let file = folder.path().join("offset");
    std::fs::write(&file, "+0\n").unwrap();
    let env = [
        ("LD_PRELOAD", path(&library)),
        ("FAKETIME_TIMESTAMP_FILE", path(&file)),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
    ];
    let through = std::iter::once("env".to_owned())
        .chain(env.map(|(name, value)| format!("{name}={value}")))
        .collect();
    let config = config.to_owned();
    let agent = Agent::start_with(Options { config, through, ..Options::default() });
    OwnClock { agent, file, _folder: folder }
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_clock_that_jumps_back_and_forth_by_years_keeps_the_pace_of_samples() {
    let _turn = lab::alone();
    let clock = with_own_clock(BUSY);
    let agent = &clock.agent;
    let mut watch = Watch::of("the clock jumps back and forth", agent);
    let before = agent.scrape();
    let from = Instant::now();
    watch.fault("by 1, 5 and 10 years ahead and back, every 2 s", || {
        for offset in ["+1y", "-1y", "+5y", "-5y", "+10y", "-10y"] {
            clock.jump(offset);
            std::thread::sleep(2 * SECOND);
        }
    });
    watch.repair(|| clock.jump("+0"));
    let since = unix_now();
    let after = watch.recovers(agent, SAMPLERS, LIMIT, |s| all_ran(&before, s, since));
    let kernel = runs_of(&after, "kernel") - runs_of(&before, "kernel");
    let expected = from.elapsed().as_secs_f64() / 0.2;
    assert!(kernel > expected / 2.0 && kernel < expected * 1.5, "{kernel} runs, not {expected}");
    assert_eq!(ups(&after), ups(&before));
    watch.holds("as many runs as the monotonic clock has intervals; all samplers are well");
}

#[test]
#[ignore = "tests/faults.sh"]
fn a_machine_that_has_been_up_for_ten_years_is_like_any_other() {
    let _turn = lab::alone();
    let years = (10 * 365 * 86_400).to_string();
    let script =
        format!("exec unshare --time --monotonic {years} --boottime {years} \"$0\" \"$@\"");
    let agent = busy(&["sh", "-c", &script]);
    let mut watch = Watch::of("ten years of uptime", &agent);
    let before = agent.scrape();
    let up = std::fs::read_to_string(format!("/proc/{}/timens_offsets", agent.pid())).unwrap();
    assert!(up.contains(&years), "{up}");
    watch.fault("a time namespace whose monotonic and boot clocks are ten years ahead", || {
        std::thread::sleep(3 * SECOND);
    });
    let since = watch.repair(unix_now);
    let after = watch.recovers(&agent, SAMPLERS, LIMIT, |s| all_ran(&before, s, since));
    let age = unix_now() - after.sum("process_start_time_seconds", &[]);
    assert!((0.0..120.0).contains(&age), "it seems to have started {age} s ago");
    let kernel = [("sampler", "kernel")];
    assert_eq!(after.value("controlplane_sampler_up", &kernel), Some(1.0));
    watch.holds("all samplers run; ages and times are those of a young process");
}

#[test]
#[ignore = "tests/faults.sh"]
fn its_socket_and_its_configuration_can_be_deleted_under_it() {
    let _turn = lab::alone();
    let agent = busy(&[]);
    let mut watch = Watch::of("its files are deleted", &agent);
    let before = agent.scrape();
    let since = unix_now();
    watch.fault("the socket and the configuration file", || {
        std::fs::remove_file(agent.socket()).unwrap();
        std::fs::remove_file(agent.config_file()).unwrap();
    });
    let refused = http::request(agent.address(), "POST", "/-/reload", &[], 20 * SECOND).unwrap();
    assert_eq!(refused.status, 500);
    agent.wait_until("samples", SAMPLERS, LIMIT, |s| all_ran(&before, s, since));
    watch.repair(|| agent.write_config(BUSY));
    let taken = http::request(agent.address(), "POST", "/-/reload", &[], 20 * SECOND).unwrap();
    assert_eq!(taken.status, 200, "{}", taken.text());
    watch.recovers(&agent, RELOAD_OK, LIMIT, |s| s.value(RELOAD_OK, &[]) == Some(1.0));
    watch.holds("a reload is refused, the samplers go on; a new file is taken");
}
