//! The sampler `journal` against a real journald, real etcds whose disk is slow, and log files as a container runtime
//! writes them.

use crate::lab;
use crate::lab::agent::{Agent, Options, Scrape};
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::etcd::{Cluster, Etcd};
use crate::lab::process::{Daemon, bound_command, run};
use crate::lab::systemd::Container;
use rustix::process::Signal;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

const EVENTS: &str = "controlplane_journal_events_total";
const LAST: &str = "controlplane_journal_event_last_timestamp_seconds";
const LINES: &str = "controlplane_journal_lines_read_total";
const UP: &str = "controlplane_journal_reader_up";
const SKIPPED: &str = "controlplane_journal_entries_skipped_total";
const REPORTED: &str = "controlplane_journal_reported_seconds";
const LIMIT: Duration = Duration::from_secs(20);
const UNIT: &str = "k3s.service";
/// What a failing etcd says, once.
pub(crate) const SLOW: &str =
    r#"{"level":"warn","msg":"slow fdatasync","took":"1.2s","expected-duration":"1s"}"#;
pub(crate) const SIGNATURE: &str = "etcd_slow_fdatasync";

/// A unit `k3s.service` that logs whatever is appended to a file.
pub(crate) struct Node {
    pub(crate) container: Container,
    /// On a filesystem in memory, as `/run` is.
    memory: tempfile::TempDir,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// `limits` are lines of journald's configuration.
    pub(crate) fn with(limits: &str) -> Self {
        Self::on(Container::boot(), limits)
    }

    /// The same in a container that runs already.
    pub(crate) fn on(container: Container, limits: &str) -> Self {
        let memory =
            tempfile::Builder::new().prefix(lab::TEMP_PREFIX).tempdir_in("/dev/shm").unwrap();
        let node = Self { container, memory };
        let folder = node.container.root().join("etc/systemd/journald.conf.d");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("lab.conf"), format!("[Journal]\nRateLimitBurst=0\n{limits}"))
            .unwrap();
        node.container.systemctl(&["restart", "systemd-journald"]);
        std::fs::write(node.said(), "").unwrap();
        node.container.install_unit(
            UNIT,
            "[Service]\nRestart=always\nRestartSec=200ms\nExecStart=/usr/bin/tail -q -n 0 -F /run/said\n",
        );
        node.container.systemctl(&["start", UNIT]);
        node.wait_for_unit();
        node
    }

    /// Starts the unit again, and waits until it logs what is said.
    pub(crate) fn restart_unit(&self) {
        self.container.systemctl(&["restart", UNIT]);
        self.wait_for_unit();
    }

    fn wait_for_unit(&self) {
        let listens = "until ls -l /proc/$(systemctl show -P MainPID k3s.service)/fd | grep -q said; do sleep 0.1; done";
        assert!(self.container.exec(&["sh", "-c", listens]).status.success());
    }

    fn said(&self) -> PathBuf {
        self.container.root().join("run/said")
    }

    /// The unit logs this.
    pub(crate) fn say(&self, bytes: &[u8]) {
        let mut file = OpenOptions::new().append(true).open(self.said()).unwrap();
        file.write_all(&[bytes, b"\n"].concat()).unwrap();
    }

    fn options(&self, more: &str) -> Options {
        let cursor = self.memory.path().join("cursor");
        Options {
            config: format!(
                "journal: {{units: [{UNIT}, absent.service], cursor_file: '{}', interval: 300ms{more}}}\n\
                 systemd: {{enabled: false}}\nfdatasync: {{enabled: false}}\nkernel: {{enabled: false}}\n",
                cursor.display()
            ),
            rootfs: Some(self.container.root()),
            ..Options::default()
        }
    }

    pub(crate) fn agent(&self) -> Agent {
        Agent::start_with(self.options(""))
    }

    /// Says a line, and waits until it counts.
    #[track_caller]
    pub(crate) fn is_heard(&self, agent: &Agent, what: &str) {
        let before = count(&agent.scrape(), SIGNATURE);
        self.say(SLOW.as_bytes());
        agent.wait_until(what, EVENTS, LIMIT, |scrape| count(scrape, SIGNATURE) >= before + 1.0);
        std::thread::sleep(Duration::from_secs(1));
        let now = count(&agent.scrape(), SIGNATURE);
        assert!(now < before + 1.5, "{what}: counted {before}, then {now}");
    }
}

/// How many lines of this signature have been counted.
pub(crate) fn count(scrape: &Scrape, signature: &str) -> f64 {
    scrape.sum(EVENTS, &[("signature", signature)])
}

#[test]
fn a_line_counts_once_and_an_agent_that_was_killed_neither_loses_nor_repeats_one() {
    let _turn = lab::together();
    let node = Node::start();
    node.say(SLOW.as_bytes());
    std::thread::sleep(Duration::from_secs(1));
    let agent = node.agent();
    // What was logged before the first start tells when, and counts nothing.
    let scrape = agent.wait_until("the line before", LAST, LIMIT, |scrape| {
        scrape.value(LAST, &[("signature", SIGNATURE), ("unit", UNIT)]).is_some()
    });
    assert_eq!(Some(count(&scrape, SIGNATURE)), Some(0.0));
    assert_eq!(scrape.value(UP, &[("source", "journal")]), Some(1.0));
    assert_eq!(
        scrape.value(EVENTS, &[("signature", "volume_formatting"), ("unit", UNIT)]),
        Some(0.0)
    );
    for _ in 0..3 {
        node.say(SLOW.as_bytes());
    }
    agent.wait_until("three lines", EVENTS, LIMIT, |scrape| count(scrape, SIGNATURE) >= 3.0);
    // The place is kept within an interval.
    std::thread::sleep(Duration::from_secs(1));
    agent.signal(Signal::KILL);
    drop(agent);
    for _ in 0..2 {
        node.say(SLOW.as_bytes());
    }
    let agent = node.agent();
    agent.wait_until("the two in between", EVENTS, LIMIT, |scrape| count(scrape, SIGNATURE) >= 2.0);
    node.is_heard(&agent, "one more");
    assert_eq!(Some(count(&agent.scrape(), SIGNATURE)), Some(3.0));
    // The timeline has the story from before the crash.
    let status = agent.get("/api/v1/status").unwrap();
    assert!(status.text().contains("slow fdatasync, took 1.2s"), "{}", status.text());
    // What systemd says about the unit is heard too, under the unit's name.
    node.container.systemctl(&["kill", "--signal=KILL", UNIT]);
    agent.wait_until("the unit's end", EVENTS, LIMIT, |scrape| {
        let of = |signature| scrape.value(EVENTS, &[("signature", signature), ("unit", UNIT)]);
        of("unit_process_exit") == Some(1.0)
            && of("unit_restart_scheduled") == Some(1.0)
            && scrape.value("controlplane_journal_reported_restarts", &[("unit", UNIT)])
                == Some(1.0)
    });
}

#[test]
fn binary_and_long_lines_do_no_harm_and_what_follows_is_heard() {
    let _turn = lab::together();
    let node = Node::start();
    let agent = node.agent();
    agent.wait_value(UP, &[("source", "journal")], 1.0, LIMIT);
    node.say(b"\x1b[31m\xff\xfe\x00 etcdserver: no leader \x1b[0m");
    // Longer than journald's own limit: it comes as two, of which the first is no JSON any more.
    let long =
        format!(r#"{{"msg":"slow fdatasync","took":"9s","padding":"{}"}}"#, "x".repeat(60_000));
    node.say(long.as_bytes());
    node.say(&[b"y".repeat(47_000), b" etcdserver: request timed out".to_vec()].concat());
    node.is_heard(&agent, "a line after odd ones");
    let scrape = agent.scrape();
    assert_eq!(Some(count(&scrape, "etcd_no_leader")), Some(1.0));
    assert_eq!(Some(count(&scrape, "etcd_request_timeout")), Some(1.0));
    assert_eq!(scrape.value("controlplane_journal_lines_unparsed_total", &[]), Some(1.0));
    assert_eq!(
        scrape.value(UP, &[("source", "journal")]),
        Some(1.0),
        "with a unit that does not exist"
    );
}

#[test]
fn journald_is_followed_through_whatever_happens_to_it_and_to_its_files() {
    let _turn = lab::together();
    // Its files lie on a small filesystem, which will be full.
    let node = Node::with("Storage=persistent\nSystemMaxUse=6M\n");
    let root = node.container.root();
    node.container.exec(&["mkdir", "-p", "/var/log/journal"]);
    node.container.exec(&["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", "/var/log/journal"]);
    node.container.systemctl(&["restart", "systemd-journald"]);
    node.container.exec(&["journalctl", "--flush"]);
    let agent = node.agent();
    agent.wait_value(UP, &[("source", "journal")], 1.0, LIMIT);
    node.is_heard(&agent, "a healthy journald");
    node.container.exec(&["journalctl", "--rotate"]);
    node.is_heard(&agent, "after a rotation");
    node.container.exec(&["journalctl", "--vacuum-size=1M", "--vacuum-files=1"]);
    node.is_heard(&agent, "after a vacuum");
    node.container.systemctl(&["restart", "systemd-journald"]);
    node.is_heard(&agent, "after a restart of journald");
    // The file that is written to, in its middle.
    let folder =
        std::fs::read_dir(root.join("var/log/journal")).unwrap().next().unwrap().unwrap().path();
    let mut file = OpenOptions::new().write(true).open(folder.join("system.journal")).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0x8000)).unwrap();
    file.write_all(&[0xa5; 0x4000]).unwrap();
    drop(file);
    node.container.exec(&["journalctl", "--rotate"]);
    node.is_heard(&agent, "after its file was damaged");
    let full = node.container.exec(&["dd", "if=/dev/zero", "of=/var/log/journal/filler", "bs=64k"]);
    assert!(full.stderr.contains("No space left"), "{}", full.stderr);
    for _ in 0..50 {
        node.say(&b"x".repeat(40_000));
    }
    node.container.exec(&["rm", "/var/log/journal/filler"]);
    node.container.exec(&["journalctl", "--rotate"]);
    node.is_heard(&agent, "after its disk was full");
    assert_eq!(
        agent.scrape().value("controlplane_sampler_up", &[("sampler", "journal")]),
        Some(1.0)
    );
}

#[test]
fn who_may_not_read_the_journal_is_told_the_group() {
    let _turn = lab::together();
    let node = Node::start();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let mut options = node.options("");
    // Its view of the container needs no rights of root's.
    let copy = lab::temp_dir("journal");
    let journal = copy.path().join("var/log/journal/0123456789abcdef0123456789abcdef");
    std::fs::create_dir_all(&journal).unwrap();
    let from = node.container.root().join("var/log/journal");
    let machine = std::fs::read_dir(&from).unwrap().next().unwrap().unwrap().path();
    std::fs::copy(machine.join("system.journal"), journal.join("system.journal")).unwrap();
    run("chmod", ["-R", "go-r", &journal.join("system.journal").to_string_lossy()]);
    run("chmod", ["-R", "go+x", &copy.path().to_string_lossy()]);
    options.rootfs = Some(copy.path().to_owned());
    options.through = nobody.map(str::to_owned).into();
    let agent = Agent::start_with(options);
    agent.wait_value(
        "controlplane_sampler_state_info",
        &[("sampler", "journal"), ("state", "no_permission")],
        1.0,
        LIMIT,
    );
    let inspect = agent.get("/api/v1/status").unwrap();
    assert!(inspect.text().contains("SupplementaryGroups=systemd-journal"), "{}", inspect.text());
}

#[test]
fn the_log_of_a_real_etcd_with_a_slow_disk_is_understood_in_the_journal_of_k3s() {
    let _turn = lab::together();
    let disk = SlowDisk::sized(Kind::Ext4, 256 << 20);
    let etcd = lab::cached("etcd-3.5/usr/bin/etcd");
    let binds = format!(
        "--bind-ro={} --bind={}",
        std::fs::canonicalize(etcd.parent().unwrap()).unwrap().display(),
        disk.mount().path().display()
    );
    let etcd = std::fs::canonicalize(etcd).unwrap();
    let container = Container::boot_with("root", &binds);
    let memory = tempfile::Builder::new().prefix(lab::TEMP_PREFIX).tempdir_in("/dev/shm").unwrap();
    let node = Node { container, memory };
    node.container.install_unit(
        UNIT,
        &format!(
            "[Service]\nExecStart={} --data-dir={}/data --logger=zap --log-outputs=stderr \\\n \
             --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \\\n \
             --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \\\n \
             --initial-cluster=default=http://127.0.0.1:2380\n",
            etcd.display(),
            disk.mount().path().display()
        ),
    );
    let agent = node.agent();
    agent.wait_value(UP, &[("source", "journal")], 1.0, LIMIT);
    node.container.systemctl(&["start", UNIT]);
    agent.wait_until("etcd's start", EVENTS, LIMIT, |scrape| {
        count(scrape, "etcd_lifecycle") >= 2.0 && count(scrape, "etcd_became_leader") >= 1.0
    });
    disk.set_delay(Duration::from_millis(1_300));
    let etcdctl = etcd.with_file_name("etcdctl");
    for key in ["a", "b", "c"] {
        node.container.exec(&[
            &etcdctl.to_string_lossy(),
            "--command-timeout=20s",
            "put",
            key,
            "1",
        ]);
    }
    let scrape = agent.wait_until("slow syncs in its log", EVENTS, 2 * LIMIT, |scrape| {
        count(scrape, SIGNATURE) >= 1.0 && count(scrape, "etcd_slow_apply") >= 1.0
    });
    disk.release();
    let [syncs, sum] = ["_count", "_sum"]
        .map(|end| scrape.sum(&format!("{REPORTED}{end}"), &[("signature", SIGNATURE)]));
    assert!(syncs >= 1.0 && sum / syncs > 1.0, "{syncs} syncs of {sum} s");
    assert!(
        agent
            .get("/api/v1/status")
            .unwrap()
            .text()
            .contains("k3s.service: slow fdatasync, took 1.")
    );
}

/// What a container runtime does with a container's standard error, a line at a time. It ends with its shell.
const RUNTIME: &str = r#"tail --pid=$$ -q -n +1 -F "$1" 2>/dev/null | while IFS= read -r line; do
  printf '%s stderr F %s\n' "$(date -u +%FT%T.%NZ)" "$line" >> "$2"
done"#;

#[test]
fn the_log_of_kubeadms_etcd_is_followed_through_rotation_and_restarts_of_its_pod() {
    let _turn = lab::together();
    let disk = SlowDisk::sized(Kind::Ext4, 256 << 20);
    let data = lab::temp_dir("members");
    symlink(disk.mount().path(), data.path().join("m0")).unwrap();
    let options =
        crate::lab::etcd::Options { data_root: Some(data.path().to_owned()), ..Default::default() };
    let mut cluster = Cluster::start_with(Etcd::V35, 1, options);
    let root = lab::temp_dir("root");
    let pod = root
        .path()
        .join("var/log/pods/kube-system_etcd-node1_8f1b6dcb3a7b3c1d2e4f5a6b7c8d9e0f/etcd");
    std::fs::create_dir_all(&pod).unwrap();
    let runtime = |number: u32| {
        let mut command = bound_command("sh");
        command.args(["-c", RUNTIME, "runtime"]);
        command.arg(cluster.log_file(0)).arg(pod.join(format!("{number}.log")));
        Daemon::start("the container runtime", command, &root.path().join("runtime.log"))
    };
    let mut writer = runtime(0);
    let agent = Agent::start_with(Options {
        config: "host: {distribution: kubeadm, role: server, datastore: etcd}\n\
                 etcd: {enabled: false}\nregistry_keys: {enabled: false}\nfdatasync: {enabled: false}\n\
                 kernel: {enabled: false}\nsystemd: {enabled: false}\n\
                 journal: {interval: 300ms, cursor_file: ''}\n"
            .into(),
        rootfs: Some(root.path().to_owned()),
        ..Options::default()
    });
    let pods = [("source", "pods")];
    agent.wait_value(UP, &pods, 1.0, LIMIT);
    let slow = |at_least: f64, what: &str| {
        cluster.try_etcdctl(&["--command-timeout=20s", "put", "key", what]);
        agent.wait_until(what, EVENTS, 2 * LIMIT, |scrape| {
            scrape.sum(EVENTS, &[("signature", SIGNATURE), ("unit", "etcd")]) >= at_least
        });
        count(&agent.scrape(), SIGNATURE)
    };
    disk.set_delay(Duration::from_millis(1_300));
    let seen = slow(1.0, "a slow sync");
    // kubelet moves the file aside; the runtime goes on in a new one.
    std::fs::rename(pod.join("0.log"), pod.join("0.log.20261128-120000")).unwrap();
    let seen = slow(seen + 1.0, "one after a rotation");
    writer.kill();
    let _writer = runtime(1);
    // The new file repeats the old log's lines, as this runtime begins at its start: they count, being in a new file.
    assert!(slow(seen + 1.0, "one after a restart of the container") > seen);
    disk.release();
    let scrape = agent.scrape();
    assert!(scrape.sum(LINES, &pods) > 3.0);
    assert!(scrape.sum(&format!("{REPORTED}_count"), &[("signature", SIGNATURE)]) >= 3.0);
    cluster.wait_until_up(0);
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or_default() << 10
}

/// Lines a second, and for how long: a short form in the test, the long one by `tests/long.sh`.
fn flood() -> (u32, u32) {
    let told = std::env::var("FLOOD").ok().and_then(|text| {
        let (rate, seconds) = text.split_once('x')?;
        Some((rate.parse().ok()?, seconds.parse().ok()?))
    });
    told.unwrap_or((20_000, 5))
}

#[test]
fn a_flood_of_lines_takes_neither_the_memory_nor_the_answers_and_is_caught_up_with() {
    let _turn = lab::alone();
    let (rate, seconds) = flood();
    let node = Node::with("Storage=volatile\nRuntimeMaxUse=512M\n");
    let agent = node.agent();
    agent.wait_value(UP, &[("source", "journal")], 1.0, LIMIT);
    let quiet = resident(agent.pid());
    let (mut most, mut slowest) = (quiet, Duration::ZERO);
    let line = br#"{"level":"info","ts":"2024-01-10T08:00:01.220114Z","caller":"mvcc/index.go:214","msg":"compact tree index","revision":1754941}"#;
    let block = [line.as_slice(), b"\n"].concat().repeat(usize::try_from(rate / 20).unwrap());
    let started = std::time::Instant::now();
    for _ in 0..seconds * 20 {
        let mut file = OpenOptions::new().append(true).open(node.said()).unwrap();
        file.write_all(&block).unwrap();
        let asked = std::time::Instant::now();
        agent.scrape();
        slowest = slowest.max(asked.elapsed());
        most = most.max(resident(agent.pid()));
        std::thread::sleep(Duration::from_millis(50).saturating_sub(asked.elapsed()));
    }
    let written = started.elapsed();
    // Whatever was passed over, what is said now is heard.
    node.say(SLOW.as_bytes());
    let heard = std::time::Instant::now();
    let after = std::cell::Cell::new(most);
    let scrape = agent.wait_until("the line after the flood", EVENTS, 45 * LIMIT, |scrape| {
        after.set(after.get().max(resident(agent.pid())));
        count(scrape, SIGNATURE) >= 1.0
    });
    let most = after.get();
    let read = scrape.sum(LINES, &[]);
    eprintln!(
        "long: {} lines written in {:.1} s; {read} read, {} passed over; line after it heard {:.1} s later; memory {:.1} to {:.1} MB; slowest scrape {:.1} ms",
        rate * seconds,
        written.as_secs_f64(),
        scrape.sum(SKIPPED, &[]),
        heard.elapsed().as_secs_f64(),
        quiet as f64 / 1e6,
        most as f64 / 1e6,
        slowest.as_secs_f64() * 1e3,
    );
    assert!(read > 1_000.0, "{read} lines");
    assert!(most < quiet + (8 << 20), "from {quiet} to {most} bytes");
}
