//! The timeline of the real agent: as JSON, on the page, in a check, behind a password, and after a crash.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::Value;

use crate::lab;
use crate::lab::agent::{Agent, Options};
use crate::lab::browser::{Browser, View};
use crate::lab::disk::Disk;
use crate::lab::process::{bound_command, output, run};
use crate::lab::systemd::Container;
use crate::{check, page};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: u64 = 60;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The events of an answer.
#[track_caller]
fn timeline(agent: &Agent, query: &str) -> Vec<Value> {
    let answer = agent.get(&format!("/api/v1/timeline{query}")).unwrap();
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    let json: Value = serde_json::from_str(&answer.text()).unwrap();
    json["events"].as_array().unwrap().clone()
}

fn texts(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["text"].as_str().unwrap()).collect()
}

/// A disk that dies within half an hour, as the kernel's log has it: minutes ago, and the line.
const STORY: [(u64, &str); 10] = [
    (300, "I/O error, dev sdc, sector 2048 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2"),
    (58, "I/O error, dev sda, sector 400000 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2"),
    (56, "Buffer I/O error on dev sda2, logical block 49744, lost async page write"),
    (55, "Aborting journal on device sda2-8."),
    (
        54,
        "EXT4-fs error (device sda2): ext4_journal_check_start:84: comm k3s-server: Detected aborted journal",
    ),
    (54, "EXT4-fs (sda2): Remounting filesystem read-only"),
    (50, "INFO: task k3s-server:812 blocked for more than 120 seconds."),
    (40, "I/O error, dev sda, sector 400008 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2"),
    (20, "I/O error, dev sda, sector 400016 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2"),
    (2, "I/O error, dev sda, sector 400024 op 0x1:(WRITE) flags 0x800 phys_seg 1 prio class 2"),
];

/// An agent on a k3s node that booted six hours ago and has lived through the story.
fn in_trouble() -> (Agent, tempfile::TempDir) {
    let root = lab::temp_dir("rootfs");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host/k3s-etcd");
    // Its files are as young as the copy, and not as the checkout, which may be as old as the story.
    run("cp", ["-dR".as_ref(), fixture.join(".").as_os_str(), root.path().as_os_str()]);
    let boot = now() - 360 * MINUTE;
    let stat = root.path().join("proc/stat");
    let text = std::fs::read_to_string(&stat).unwrap();
    std::fs::write(&stat, text.replace("btime 1776000000", &format!("btime {boot}"))).unwrap();
    std::fs::write(root.path().join("proc/sys/kernel/osrelease"), "6.1.0-40-amd64\n").unwrap();
    // Before that a memory card was noisy for half an hour.
    let noise = (316..346).rev().map(|ago| (ago, "I/O error, dev sdd, sector 8 op 0x0:(READ)"));
    let mut log = String::new();
    for (number, (ago, line)) in noise.chain(STORY).enumerate() {
        let micros = (360 - ago) * MINUTE * 1_000_000;
        writeln!(log, "3,{},{micros},-;{line}", number + 1).unwrap();
    }
    std::fs::write(root.path().join("dev/kmsg"), log).unwrap();
    let rootfs = Some(root.path().to_owned());
    let agent = Agent::start_with(Options { rootfs, ..Options::default() });
    page::ready(&agent);
    (agent, root)
}

#[test]
fn it_comes_newest_first_or_oldest_first_and_a_wrong_question_is_told_so_in_a_line() {
    let _turn = lab::together();
    let (agent, _root) = in_trouble();
    let oldest = timeline(&agent, "?order=oldest");
    let told = texts(&oldest);
    assert_eq!(told[0], "the node started (kernel 6.1.0-40-amd64)", "{oldest:?}");
    assert_eq!((&oldest[0]["source"], &oldest[0]["kind"]), (&"exporter".into(), &"reboot".into()));
    let began = told.iter().position(|text| text.contains("sda, sector 400000 ")).unwrap();
    assert_eq!((began, &oldest[began]["source"]), (32, &"kernel".into()), "{oldest:?}");
    let times: Vec<_> = oldest.iter().map(|event| event["time"].as_f64().unwrap()).collect();
    assert!(times.is_sorted() && times.len() > 40, "{oldest:?}");
    let mut newest = timeline(&agent, "");
    assert_eq!(timeline(&agent, "?order=newest"), newest);
    newest.reverse();
    assert_eq!(newest, oldest);
    let since = times[began];
    assert_eq!(timeline(&agent, &format!("?order=oldest&since={since}")), oldest[began..]);
    let status: Value = serde_json::from_str(&agent.get("/api/v1/status").unwrap().text()).unwrap();
    assert_eq!(status["events"], Value::Array(oldest));
    for (query, word) in [("order=up", "newest or oldest"), ("since=now", "Unix"), ("a=b", "order")]
    {
        let answer = agent.get(&format!("/api/v1/timeline?{query}")).unwrap();
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.text().contains(word) && answer.text().lines().count() == 1, "{query}");
    }
}

#[test]
fn the_page_says_what_happened_first_and_then_everything_the_newest_first() {
    let _turn = lab::together();
    let (agent, _root) = in_trouble();
    let mut browser = Browser::start();
    let url = format!("http://{}/", agent.address());
    let view = View { width: 1600, dark: false, scripts: false };
    let mut shown = browser.open(&url, view);
    let text = shown.evaluate("document.body.innerText");
    let folded = text.as_str().unwrap();
    assert!(folded.contains(" older\n") && !folded.contains("the node started"), "{folded}");
    shown.evaluate("document.querySelector('details').open = true");
    let text = shown.evaluate("document.body.innerText");
    let text = text.as_str().unwrap();
    let (before, first) = text.split_once("What happened first, in UTC").expect(text);
    assert!(before.contains("What is wrong, causes first"), "{text}");
    let (first, all) = first.split_once("Timeline, in UTC, the newest first").expect(text);
    // An hour ago it began, and not with the disk that had failed four hours before.
    let cause = first.find("dev sda, sector 400000").expect(first);
    let effect = first.find("Aborting journal on device sda2-8.").expect(first);
    assert!(cause < effect && !first.contains("dev sdc"), "{first}");
    assert!(!first.contains("sector 400008"), "only the first of a kind: {first}");
    assert!(first.contains("(58 min ago)") || first.contains("(59 min ago)"), "{first}");
    let newest = all.find("dev sda, sector 400024").expect(all);
    let old = all.find("dev sdc, sector 2048").expect(all);
    assert!(newest < old && old < all.find("the node started").expect(all), "{all}");
    drop(shown);
    page::look(&agent, "timeline");
}

#[test]
fn a_check_shows_a_person_what_happened_first() {
    let _turn = lab::together();
    let (agent, _root) = in_trouble();
    check::show(&agent, "timeline");
    let shown = Path::new(env!("CARGO_TARGET_TMPDIR")).join("check/timeline.txt");
    let text = std::fs::read_to_string(shown).unwrap();
    let (_, first) = text.split_once("\nWhat happened first, in UTC\n").expect(&text);
    assert!(first.lines().next().unwrap().contains("dev sda, sector 400000"), "{text}");
}

#[test]
fn it_is_behind_the_password_and_on_the_socket_without_one() {
    let _turn = lab::together();
    let folder = lab::temp_dir("timeline");
    let lock = folder.path().join("web.yaml");
    let hash = bcrypt::hash("secret", 4).unwrap();
    std::fs::write(&lock, format!("basic_auth_users: {{alice: {hash}}}\n")).unwrap();
    let args = vec![format!("--web.config.file={}", lock.display())];
    let agent = Agent::launch(Options { args, ..Options::default() });
    lab::wait_for("the locked port", 10 * SECOND, || agent.get("/metrics").map(drop));
    let ask = |more: &[&str]| {
        let mut curl = bound_command(lab::program("curl"));
        curl.args(["-sS", "-w", "%{http_code}"]).args(more);
        output(curl, 10 * SECOND).stdout
    };
    let url = format!("http://{}/api/v1/timeline", agent.address());
    assert_eq!(ask(&[&url]), "Unauthorized\n401");
    assert_eq!(ask(&["--user", "alice:wrong", &url]), "Unauthorized\n401");
    let answer = ask(&["--user", "alice:secret", &url]);
    assert!(answer.starts_with("{\"events\":[") && answer.ends_with("]}200"), "{answer}");
    let socket = agent.socket().display().to_string();
    let answer = ask(&["--unix-socket", &socket, "http://localhost/api/v1/timeline?order=oldest"]);
    assert!(answer.starts_with("{\"events\":[") && answer.ends_with("]}200"), "{answer}");
}

#[test]
fn a_unit_that_somebody_stops_and_starts_is_told_and_one_that_has_failed_before_is_too() {
    let _turn = lab::together();
    let container = Container::boot();
    container.install_unit("k3s.service", "[Service]\nExecStart=/bin/sleep 9999\n");
    container.install_unit("etcd.service", "[Service]\nExecStart=/bin/false\n");
    container.systemctl(&["start", "k3s.service", "etcd.service"]);
    lab::wait_for("a failed unit", 10 * SECOND, || {
        let state = container.show("etcd.service", "ActiveState");
        if state == "failed" { Ok(()) } else { Err(state) }
    });
    let agent = Agent::start(&format!(
        "systemd: {{units: [k3s.service, etcd.service], bus: '{}', interval: 300ms}}",
        container.bus_address()
    ));
    let told = || -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let all = timeline(&agent, "?order=oldest").into_iter();
        let own = all.filter(|event| event["source"] == "systemd" && event["kind"] != "unit_exit");
        own.map(|event| (text(&event["kind"]), text(&event["text"]))).collect()
    };
    let wait = |count: usize| {
        lab::wait_for("events of the units", 10 * SECOND, || {
            let told = told();
            if told.len() >= count { Ok(told) } else { Err(format!("{told:?}")) }
        })
    };
    let expected = [
        ("unit_failed", "etcd.service has failed: exit-code"),
        ("unit_stopped", "k3s.service has stopped"),
        ("unit_started", "k3s.service has started"),
    ];
    let expected = expected.map(|(kind, text)| (kind.to_owned(), text.to_owned()));
    assert_eq!(wait(1), expected[..1]);
    container.systemctl(&["stop", "k3s.service"]);
    assert_eq!(wait(2), expected[..2]);
    container.systemctl(&["start", "k3s.service"]);
    assert_eq!(wait(3), expected);
}

#[test]
fn an_agent_that_was_killed_has_the_kernels_events_again_with_their_times() {
    let _turn = lab::alone();
    let disk = Disk::raw(1 << 30);
    disk.truncate(1 << 20);
    let config = "kernel: {ignore_devices: []}";
    let mut agent = Agent::start(config);
    page::ready(&agent);
    // Other sectors than an earlier device of this name had.
    let block = fastrand::u64(300..100_000);
    let line = format!("dev {}, sector {} ", disk.device().name(), block * 8);
    let find = |agent: &Agent| {
        let all = timeline(agent, "?order=oldest");
        let event = all.into_iter().find(|e| e["text"].as_str().unwrap().contains(&line));
        event.ok_or_else(|| format!("no event of {line}"))
    };
    // The kernel prints ten such lines in five seconds for all disks, and the agent tells one a minute of each.
    let before = lab::wait_for("the event", 90 * SECOND, || {
        disk.read_block(block).unwrap_err();
        std::thread::sleep(SECOND / 5);
        find(&agent)
    });
    assert_eq!((&before["source"], &before["kind"]), (&"kernel".into(), &"block_io_error".into()));

    agent.signal(Signal::KILL);
    lab::wait_for("the end", 5 * SECOND, || agent.has_ended().then_some(()).ok_or("alive".into()));
    std::thread::sleep(SECOND);
    let again = Agent::start(config);
    page::ready(&again);
    let after = lab::wait_for("the event again", 10 * SECOND, || find(&again));
    let time = |event: &Value| event["time"].as_f64().unwrap();
    assert!((time(&after) - time(&before)).abs() < 1.0, "{before} {after}");
    assert_eq!((&after["text"], &after["kind"]), (&before["text"], &before["kind"]));
    let boots = timeline(&again, "").iter().filter(|event| event["kind"] == "reboot").count();
    assert_eq!(boots, 1, "the node did not start again");
    disk.restore();
}
