//! A soak: an agent at eighty times its default rates, with everything on that the laboratory can give at once, while
//! faults come and go at random.
//!
//! - Every scrape answers within [`super::BOUND`], and no counter goes back.
//! - Memory, threads, files, children and series are in the last fifth of the quiet moments what they were in the first.
//! - In the end a fresh agent on the same sources shows the same.
//!
//! `SOAK=SECONDS` is its length, 30 minutes without it. `SOAK_SEED=N` repeats the faults of another run.

use super::node::pid_in;
use super::process::{signal_children, wake_children};
use super::web::{deaf, talk_nonsense};
use super::{EVERY, POOL, SECOND, Uses, Watch, all_ran, path, unix_now, ups};
use crate::journal::{Node, SLOW};
use crate::lab::agent::{Agent, Options, Sample, Scrape};
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::etcd::{Cluster, Etcd, Options as EtcdOptions};
use crate::lab::process::{self, bound_command, output, run};
use crate::lab::systemd::Container;
use crate::lab::volume::Volume;
use crate::lab::{self, http};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many times the default rates, as far as the shortest interval allows.
const FASTER: f64 = 80.0;
const SHORTEST: Duration = Duration::from_millis(100);
/// After its faults everything is as before within this.
const LIMIT: Duration = Duration::from_secs(40);
/// A quiet moment lasts so many looks, [`EVERY`] 0.2 s one.
const LOOKS: usize = 12;
/// What memory may grow by between the first fifth and the last: less than a tenth of what a debug build has, for the timeline
/// and the figures behind the verdicts, which fill. In half an hour it is 45 bytes for each of some 65 runs a second.
const GROWTH: u64 = 4 << 20;
/// So many files more may be open: the connections of scrapes that are under way.
const OPEN: usize = 2;
/// So many series more may be told: a failure is counted by its reason, and each has its first time.
const REASONS: usize = 60;
const ALL: &str = "controlplane_";

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    DiskIsSlow,
    DiskHangs,
    MemberHangs,
    MemberIsKilled,
    PeerIsLost,
    BusHangs,
    SystemdHangs,
    JournaldRestarts,
    JournalIsFlooded,
    KernelLogIsWritten,
    Reloads,
    ChildrenAreKilled,
    ChildrenHang,
    Storm,
    SlowReaders,
    Garbage,
    StateFoldersAreFull,
    TlsIsRotated,
    PodRestarts,
    KeysAreWritten,
}

const FAULTS: [Fault; 20] = [
    Fault::DiskIsSlow,
    Fault::DiskHangs,
    Fault::MemberHangs,
    Fault::MemberIsKilled,
    Fault::PeerIsLost,
    Fault::BusHangs,
    Fault::SystemdHangs,
    Fault::JournaldRestarts,
    Fault::JournalIsFlooded,
    Fault::KernelLogIsWritten,
    Fault::Reloads,
    Fault::ChildrenAreKilled,
    Fault::ChildrenHang,
    Fault::Storm,
    Fault::SlowReaders,
    Fault::Garbage,
    Fault::StateFoldersAreFull,
    Fault::TlsIsRotated,
    Fault::PodRestarts,
    Fault::KeysAreWritten,
];

impl Fault {
    /// Two faults at once are never of the same place: the end of one would be the end of the other.
    fn place(self) -> &'static str {
        match self {
            Self::DiskIsSlow | Self::DiskHangs => "disk",
            Self::MemberHangs | Self::MemberIsKilled => "member",
            Self::BusHangs | Self::SystemdHangs | Self::JournaldRestarts => "container",
            Self::ChildrenAreKilled | Self::ChildrenHang => "children",
            Self::PeerIsLost => "peer",
            Self::JournalIsFlooded => "journal",
            Self::KernelLogIsWritten => "kernel",
            Self::Reloads => "configuration",
            Self::Storm | Self::SlowReaders | Self::Garbage => "port",
            Self::StateFoldersAreFull => "folders",
            Self::TlsIsRotated => "TLS",
            Self::PodRestarts => "pods",
            Self::KeysAreWritten => "keys",
        }
    }
}

/// A mount namespace in which the container's journal is the node's, with the machine and the boot that journalctl looks for,
/// and with small folders of state. In `ids` are the files `machine` and `boot`.
fn namespace(journal: &Path, ids: &Path) -> Vec<String> {
    let script = format!(
        r#"mkdir -p /run/controlplane-exporter /var/lib/controlplane-exporter /var/log/journal &&
        for f in /run/controlplane-exporter /var/lib/controlplane-exporter; do
          mount -t tmpfs -o size=256k tmpfs $f || exit 1; done &&
        mount --bind '{journal}' /var/log/journal && mount --bind '{ids}/machine' /etc/machine-id &&
        mount --bind '{ids}/boot' /proc/sys/kernel/random/boot_id && exec "$0" "$@""#,
        journal = path(journal),
        ids = path(ids)
    );
    ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).into()
}

/// Every sampler with its default interval, from the configuration that is shipped.
fn intervals() -> Vec<(String, Duration)> {
    let text = include_str!("../../deploy/config.yaml");
    let mut section = "";
    let mut all = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with([' ', '#'])) {
            section = name;
        }
        if let Some(interval) = line.strip_prefix("  interval: ") {
            all.push((section.to_owned(), humantime::parse_duration(interval).unwrap()));
        }
    }
    assert!(all.len() > 15, "{all:?}");
    all
}

/// What the samplers look at. The agent goes first when this is dropped, and the disk under etcd last.
struct Soak {
    agent: Agent,
    cluster: Mutex<Cluster>,
    _volume: Volume,
    node: Node,
    /// Of etcd's static pod.
    pod: Mutex<(tempfile::TempDir, u32)>,
    /// How the agent is started, and what it is told beside intervals.
    through: Vec<String>,
    options: BTreeMap<&'static str, String>,
    slowest: Duration,
    _journal: tempfile::TempDir,
    _members: tempfile::TempDir,
    disk: SlowDisk,
}

impl Soak {
    fn start() -> Self {
        let disk = SlowDisk::sized(Kind::Ext4, 1 << 30);
        let (members, at) = (lab::temp_dir("members"), path(disk.mount().path()));
        run("mkdir", [format!("{at}/m0")]);
        std::os::unix::fs::symlink(format!("{at}/m0"), members.path().join("m0")).unwrap();
        let data_root = Some(members.path().to_owned());
        let cluster =
            Cluster::start_with(Etcd::V35, 3, EtcdOptions { data_root, ..EtcdOptions::default() });
        cluster.put_many("/registry/pods/default/pod-", 500, 100);

        let journal = lab::temp_dir("journal");
        let bind = format!("--bind={}:/var/log/journal", path(journal.path()));
        let container = Container::boot_with("root", &bind);
        let boot = "/proc/sys/kernel/random/boot_id";
        for (name, file) in [("machine", "/etc/machine-id"), ("boot", boot)] {
            let id = container.exec(&["cat", file]).stdout;
            std::fs::write(members.path().join(name), id).unwrap();
        }
        let node = Node::on(container, "Storage=persistent\nSystemMaxUse=32M\n");
        let restarts = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=300ms\n\
                        ExecStart=/bin/sh -c 'sleep 0.7; exit 4'\n";
        node.container.install_unit("loop.service", restarts);
        node.container.systemctl(&["start", "--no-block", "loop.service"]);

        let pods = lab::temp_dir("pods");
        let etcd = pods.path().join("kube-system_etcd-cp-1_e77889d75ec8be65235fe5a966d3f808/etcd");
        std::fs::create_dir_all(&etcd).unwrap();
        std::fs::write(etcd.join("3.log"), "").unwrap();

        let pki = &cluster.pki;
        let [ca, cert, key] = [&pki.ca, &pki.client.cert, &pki.client.key].map(|file| path(file));
        let options = BTreeMap::from([
            (
                "etcd",
                format!(
                    "endpoints: ['{}'], ca_file: '{ca}', cert_file: '{cert}', key_file: '{key}'",
                    cluster.client_url(0)
                ),
            ),
            ("fdatasync", format!("paths: ['{at}']")),
            ("filesystem", format!("paths: ['{at}']")),
            ("certificate", format!("paths: ['{}']", path(pki.folder()))),
            ("static_pod", format!("dir: '{}'", path(pods.path()))),
            ("journal", "units: [k3s.service, loop.service]".to_owned()),
            (
                "systemd",
                format!(
                    "units: [k3s.service, loop.service], bus: '{}'",
                    node.container.bus_address()
                ),
            ),
            (
                "host",
                format!(
                    "distribution: etcd, role: server, datastore: etcd, datastore_dir: '{at}/m0/data'"
                ),
            ),
        ]);
        let volume = Volume::of_driver(Kind::Ext4);
        let through = namespace(journal.path(), members.path());
        let config = configuration(&options, 1.0);
        let agent =
            Agent::start_with(Options { config, through: through.clone(), ..Options::default() });
        let slowest = intervals().iter().map(|(_, interval)| *interval).max().unwrap_or_default();
        Self {
            agent,
            cluster: Mutex::new(cluster),
            _volume: volume,
            node,
            pod: Mutex::new((pods, 3)),
            through,
            options,
            slowest: slowest.div_f64(FASTER),
            _journal: journal,
            _members: members,
            disk,
        }
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a fault, waits, and ends it.
    fn make(&self, fault: Fault, time: Duration, random: &mut fastrand::Rng) {
        let agent = &self.agent;
        let until = Instant::now() + time;
        let is_on = || Instant::now() < until;
        let wait = || std::thread::sleep(until.saturating_duration_since(Instant::now()));
        match fault {
            Fault::DiskIsSlow => {
                self.disk.set_delay(Duration::from_millis(random.u64(50..700)));
                wait();
                self.disk.release();
            }
            Fault::DiskHangs => {
                self.disk.hang();
                wait();
                self.disk.release();
            }
            Fault::MemberHangs
            | Fault::MemberIsKilled
            | Fault::PeerIsLost
            | Fault::BusHangs
            | Fault::SystemdHangs => self.stop_or_kill(fault, until, random),
            Fault::JournaldRestarts => {
                while is_on() {
                    self.node.container.systemctl(&["restart", "systemd-journald"]);
                    std::thread::sleep(2 * SECOND);
                }
            }
            Fault::JournalIsFlooded => {
                let lines = [SLOW.as_bytes(), b"\n", b"a line of no meaning\n"].concat().repeat(50);
                while is_on() {
                    self.node.say(&lines[..lines.len() - 1]);
                    std::thread::sleep(EVERY);
                }
            }
            Fault::KernelLogIsWritten => {
                while is_on() {
                    let mut log = OpenOptions::new().write(true).open("/dev/kmsg").unwrap();
                    log.write_all(b"<7>controlplane-exporter soak\n").unwrap();
                    std::thread::sleep(SECOND / 50);
                }
            }
            Fault::Reloads => {
                while is_on() {
                    self.reload(random.f64() + 1.0);
                    std::thread::sleep(Duration::from_millis(random.u64(50..1_500)));
                }
                self.reload(1.0);
            }
            Fault::ChildrenAreKilled => _ = signal_children(agent, Signal::KILL, time),
            Fault::ChildrenHang => {
                signal_children(agent, Signal::STOP, time);
                wake_children(agent);
            }
            Fault::Storm | Fault::SlowReaders | Fault::Garbage => self.crowd(fault, until, random),
            Fault::StateFoldersAreFull => {
                let folders = "/run/controlplane-exporter /var/lib/controlplane-exporter";
                self.inside(&format!(
                    "for f in {folders}; do dd if=/dev/zero of=$f/filler bs=1k; done; true"
                ));
                wait();
                self.inside(&format!("for f in {folders}; do rm $f/filler; done"));
            }
            Fault::TlsIsRotated => {
                while is_on() {
                    self.cluster().pki.renew();
                    std::thread::sleep(SECOND);
                }
            }
            Fault::PodRestarts => {
                let mut pod = self.pod.lock().unwrap_or_else(PoisonError::into_inner);
                pod.1 += 1;
                let folder = std::fs::read_dir(pod.0.path()).unwrap().next().unwrap().unwrap();
                std::fs::write(folder.path().join(format!("etcd/{}.log", pod.1)), "").unwrap();
            }
            Fault::KeysAreWritten => {
                let mut number = 0;
                while is_on() {
                    number += 1;
                    let key = format!("/registry/configmaps/default/c{}", random.u16(..));
                    // Without a leader it is refused.
                    let put = self.cluster().on_member(1, |mut client| async move {
                        client.put(key, vec![7; 200], None).await.map(drop)
                    });
                    if put.is_err() || number % 20 == 0 {
                        std::thread::sleep(SECOND / 2);
                    }
                    std::thread::sleep(SECOND / 20);
                }
            }
        }
    }

    /// A process that is not the agent's hangs or is gone.
    fn stop_or_kill(&self, fault: Fault, until: Instant, random: &mut fastrand::Rng) {
        let wait = || std::thread::sleep(until.saturating_duration_since(Instant::now()));
        let container = &self.node.container;
        if matches!(fault, Fault::MemberIsKilled | Fault::PeerIsLost) {
            let member = if fault == Fault::PeerIsLost { random.usize(1..3) } else { 0 };
            // On a disk that hangs it ends with the hang.
            self.cluster().kill(member);
            wait();
            self.cluster().launch(member);
            return;
        }
        let pid = match fault {
            Fault::MemberHangs => self.cluster().pid(0),
            Fault::BusHangs => pid_in(container, "dbus-daemon"),
            _ => container.leader(),
        };
        process::signal(pid, Signal::STOP);
        wait();
        process::signal(pid, Signal::CONT);
    }

    /// Clients that are too many, too slow, or talk nonsense.
    fn crowd(&self, fault: Fault, until: Instant, random: &mut fastrand::Rng) {
        let address = self.agent.address();
        if fault == Fault::SlowReaders {
            let readers: Vec<_> = (0..15).map(|_| deaf(address, 20)).collect();
            while Instant::now() < until {
                for mut slow in readers.iter().step_by(2) {
                    slow.set_nonblocking(true).unwrap();
                    let byte = slow.read(&mut [0; 1]);
                    drop(byte);
                }
                std::thread::sleep(SECOND / 2);
            }
            return;
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mut random = random.fork();
                scope.spawn(move || {
                    while Instant::now() < until {
                        if fault == Fault::Garbage {
                            talk_nonsense(address, &mut random);
                        } else {
                            let answer =
                                http::request(address, "GET", "/metrics", &[], 5 * SECOND).unwrap();
                            assert!([200, 503].contains(&answer.status), "{}", answer.text());
                        }
                        std::thread::sleep(SECOND / 50);
                    }
                });
            }
        });
    }

    /// Writes the configuration with intervals that are so much longer, and has it read.
    fn reload(&self, longer: f64) {
        let file = self.agent.config_file();
        let new = file.with_extension("new");
        std::fs::write(&new, configuration(&self.options, longer)).unwrap();
        std::fs::rename(new, file).unwrap();
        self.agent.signal(Signal::HUP);
    }

    /// Runs a script in the agent's mount namespace.
    fn inside(&self, script: &str) {
        let mut command = bound_command(lab::program("nsenter"));
        command.arg(format!("--target={}", self.agent.pid()));
        command.args(["--mount", "--", "sh", "-c", script]);
        let ended = output(command, LIMIT);
        assert!(ended.status.success(), "{script}: {}", ended.stderr);
    }

    /// Waits until all sources are well again and the agent says so.
    fn is_well(&self, first: &Scrape) -> Scrape {
        for member in 0..3 {
            self.cluster().wait_until_up(member);
        }
        let since = unix_now();
        let lines = |s: &Scrape| s.sum("controlplane_journal_lines_read_total", &[]);
        let read = lines(&self.agent.scrape());
        let value = |s: &Scrape, name: &str| s.value(&format!("{ALL}{name}"), &[]);
        let active = [("unit", "k3s.service"), ("state", "active")];
        self.agent.wait_until("all is well again", ALL, LIMIT, |s| {
            value(s, "etcd_up") == Some(1.0)
                && value(s, "etcd_has_leader") == Some(1.0)
                && value(s, "etcd_voters_reachable") == Some(3.0)
                && value(s, "journal_reader_up") == Some(1.0)
                // The unit that restarts has a few lines for each.
                && lines(s) > read
                && s.value(&format!("{ALL}systemd_unit_state"), &active) == Some(1.0)
                && ups(s) == ups(first)
                && all_ran(first, s, since)
        })
    }
}

fn configuration(options: &BTreeMap<&str, String>, longer: f64) -> String {
    let mut text = String::new();
    for (section, interval) in intervals() {
        let interval = interval.div_f64(FASTER).mul_f64(longer).max(SHORTEST).as_millis();
        let more = options.get(&*section).map(|more| format!(", {more}")).unwrap_or_default();
        text += &format!("{section}: {{interval: {interval}ms{more}}}\n");
    }
    format!("host: {{{}}}\n{text}", options["host"])
}

/// What the agent uses between two faults.
struct Quiet {
    uses: Uses,
    /// All series, and the names of those of now.
    series: usize,
    current: BTreeSet<String>,
}

impl Quiet {
    fn of(agent: &Agent, scrape: &Scrape) -> Self {
        let some: Vec<Uses> = (0..LOOKS)
            .map(|_| {
                std::thread::sleep(EVERY);
                Uses::of(agent.pid())
            })
            .collect();
        // At this pace some child is nearly always at work: the least is what stays.
        let least = |get: fn(&Uses) -> usize| some.iter().map(get).min().unwrap_or(0);
        let uses = Uses {
            threads: least(|uses| uses.threads),
            files: least(|uses| uses.files),
            children: least(|uses| uses.children),
            memory: some.iter().map(|uses| uses.memory).max().unwrap_or(0),
        };
        let current = scrape.samples.iter().filter(|sample| is_current(sample));
        let current = current.map(series).collect();
        Self { uses, series: scrape.samples.len(), current }
    }
}

fn median<T: Ord + Copy>(of: &[Quiet], get: impl Fn(&Quiet) -> T) -> T {
    let mut all: Vec<T> = of.iter().map(get).collect();
    all.sort_unstable();
    all[all.len() / 2]
}

/// Tells of now: no count, no distribution and no time of what has been, which another agent has not seen, and not of the
/// kernel's log, which forgets.
fn is_current(sample: &Sample) -> bool {
    let name = sample.name.as_str();
    let past = ["_total", "_count", "_bucket", "_sum", "_timestamp_seconds"];
    !past.iter().any(|end| name.ends_with(end)) && !name.starts_with("controlplane_kernel_")
}

/// Has the same value for every agent: neither of the agent itself nor a time, an age or a length of time.
fn is_equal_for_all(sample: &Sample) -> bool {
    is_current(sample) && !sample.name.starts_with("process_") && !sample.name.ends_with("_seconds")
        || sample.name == "controlplane_sampler_interval_seconds"
}

fn series(sample: &Sample) -> String {
    format!("{}{:?}", sample.name, sample.labels)
}

/// Compares what both show until all was the same at some moment; how many series and values these are.
#[track_caller]
fn show_the_same(old: &Agent, fresh: &Agent) -> (usize, usize) {
    let names = |scrape: &Scrape, which: fn(&Sample) -> bool| -> BTreeSet<String> {
        scrape.samples.iter().filter(|sample| which(sample)).map(series).collect()
    };
    let mut equal = BTreeSet::new();
    lab::wait_for("the same figures of both agents", LIMIT, || {
        let (ours, theirs) = (old.scrape(), fresh.scrape());
        let values: BTreeMap<_, _> =
            theirs.samples.iter().map(|sample| (series(sample), sample.value)).collect();
        let mut wrong = Vec::new();
        for sample in ours.samples.iter().filter(|sample| is_equal_for_all(sample)) {
            let name = series(sample);
            let value = values.get(&name);
            if value == Some(&sample.value) {
                equal.insert(name);
            } else if !equal.contains(&name) {
                wrong.push(format!("{name}: {}, fresh: {value:?}", sample.value));
            }
        }
        let [ours_now, theirs_now] = [&ours, &theirs].map(|scrape| names(scrape, is_current));
        let differ = ours_now.symmetric_difference(&theirs_now);
        wrong.extend(differ.map(|name| format!("{name} of one agent only")));
        // What has been is known to the one that was there, and what the fresh one knows of it is known to both.
        let unknown =
            |sample: &Sample| !is_current(sample) && !sample.name.ends_with("_failures_total");
        let all = names(&ours, |_| true);
        wrong.extend(
            names(&theirs, unknown)
                .difference(&all)
                .map(|name| format!("{name} of the fresh only")),
        );
        if wrong.is_empty() {
            Ok((ours_now.len(), equal.len()))
        } else {
            std::thread::sleep(SECOND / 10);
            let journal = "controlplane_journal_";
            Err(format!(
                "{wrong:#?}\n{}\nfresh:\n{}",
                ours.with_prefix(journal),
                theirs.with_prefix(journal)
            ))
        }
    })
}

/// Topic, subject and health of what the page says of now.
fn verdicts(agent: &Agent) -> BTreeSet<String> {
    let text = agent.get("/api/v1/status").unwrap().text();
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    let all = status["verdicts"].as_array().expect("verdicts").iter();
    let said = |verdict: &serde_json::Value, key: &str| {
        verdict[key].as_str().unwrap_or_default().to_owned()
    };
    let is_past = |verdict: &serde_json::Value| {
        let what = said(verdict, "what");
        ["kernel", "log"].contains(&&*said(verdict, "topic"))
            || ["minutes", "hours"].iter().any(|time| what.contains(time))
    };
    all.filter(|verdict| !is_past(verdict))
        .map(|verdict| {
            let [topic, what, health] = ["topic", "what", "health"].map(|key| said(verdict, key));
            format!("{topic}: {what}: {health}")
        })
        .collect()
}

fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        return default;
    }
    text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}"))
}

/// Compares the first fifth of the quiet moments with the last, and gives both.
#[track_caller]
fn assert_flat(quiet: &[Quiet]) -> String {
    let fifth = quiet.len().div_ceil(5);
    let (before, after) = (&quiet[..fifth], &quiet[quiet.len() - fifth..]);
    let both = |get: &dyn Fn(&Quiet) -> usize| (median(before, get), median(after, get));
    let memory = (median(before, |q| q.uses.memory), median(after, |q| q.uses.memory));
    let threads = both(&|q| q.uses.threads);
    let files = both(&|q| q.uses.files);
    let children = both(&|q| q.uses.children);
    let (all, current) = (both(&|q| q.series), both(&|q| q.current.len()));
    let used = format!(
        "memory {:.1} → {:.1} MB, threads {} → {}, files {} → {}, children {} → {}, series {} → {}, of which of now {} → {}",
        memory.0 as f64 / 1e6,
        memory.1 as f64 / 1e6,
        threads.0,
        threads.1,
        files.0,
        files.1,
        children.0,
        children.1,
        all.0,
        all.1,
        current.0,
        current.1
    );
    eprintln!("{used}");
    assert!(memory.1 <= memory.0 + GROWTH, "{used}");
    assert!(threads.1 <= threads.0 + POOL, "{used}");
    assert!(files.1 <= files.0 + OPEN, "{used}");
    assert!(children.1 <= children.0, "{used}");
    assert!(all.1 <= all.0 + REASONS, "{used}");
    let [first, last] = [before, after].map(|part| &part[part.len() - 1].current);
    let differ: Vec<_> = first.symmetric_difference(last).collect();
    assert_eq!(current.0, current.1, "{used}: {differ:#?}");
    used
}

#[test]
#[ignore = "tests/long.sh soak"]
fn an_agent_is_after_many_faults_what_it_was_before() {
    let _turn = lab::alone();
    let length = Duration::from_secs(number("SOAK", 1_800));
    let seed = number("SOAK_SEED", fastrand::u64(..1_000_000_000));
    eprintln!("SOAK={} SOAK_SEED={seed}", length.as_secs());
    let mut random = fastrand::Rng::with_seed(seed);
    let soak = Soak::start();
    let agent = &soak.agent;
    let mut watch = Watch::of("soak", agent);
    let first = agent.scrape();
    eprintln!("{:?}", ups(&first));
    soak.is_well(&first);

    let (started, mut minutes) = (Instant::now(), 0);
    let (mut quiet, mut made) = (Vec::new(), BTreeMap::<Fault, usize>::new());
    let (mut rounds, mut pairs) = (0, 0);
    while started.elapsed() < length {
        rounds += 1;
        let mut faults = vec![FAULTS[random.usize(..FAULTS.len())]];
        let second = FAULTS[random.usize(..FAULTS.len())];
        if random.usize(..5) < 2 && second.place() != faults[0].place() {
            faults.push(second);
            pairs += 1;
        }
        std::thread::scope(|scope| {
            for &fault in &faults {
                let time = Duration::from_millis(random.u64(1_000..10_000));
                let mut random = random.fork();
                let soak = &soak;
                scope.spawn(move || soak.make(fault, time, &mut random));
                *made.entry(fault).or_default() += 1;
                std::thread::sleep(EVERY);
            }
        });
        eprintln!("{:.0} s: {faults:?}", started.elapsed().as_secs_f64());
        let scrape = soak.is_well(&first);
        quiet.push(Quiet::of(agent, &scrape));
        let (scrapes, slowest) = watch.so_far();
        if started.elapsed().as_secs() / 60 > minutes {
            minutes = started.elapsed().as_secs() / 60;
            eprintln!(
                "{minutes} min: {rounds} rounds, {scrapes} scrapes, the slowest {slowest:?}, {:?}",
                quiet.last().map(|quiet| quiet.uses)
            );
        }
    }

    let used = assert_flat(&quiet);
    std::thread::sleep(2 * soak.slowest);
    let config = configuration(&soak.options, 1.0);
    let through = soak.through.clone();
    let fresh = Agent::start_with(Options { config, through, ..Options::default() });
    lab::wait_for("the fresh agent's first round", LIMIT, || {
        let ready = fresh.get("/-/ready")?;
        if ready.status == 200 { Ok(()) } else { Err(ready.text()) }
    });
    std::thread::sleep(2 * soak.slowest);
    let (same, values) = show_the_same(agent, &fresh);
    let said = lab::wait_for("the same verdicts of both agents", LIMIT, || {
        let (ours, theirs) = (verdicts(agent), verdicts(&fresh));
        let differ: Vec<_> = ours.symmetric_difference(&theirs).cloned().collect();
        if differ.is_empty() { Ok(ours.len()) } else { Err(format!("{differ:#?}")) }
    });
    let (scrapes, slowest) = watch.ends();
    let kinds = made.len();
    let count: usize = made.values().sum();
    eprintln!(
        "long: {} s, SOAK_SEED={seed}: {count} faults of {kinds} kinds, {pairs} times two at once; {scrapes} scrapes, the slowest {:.0} ms",
        started.elapsed().as_secs(),
        slowest.as_secs_f64() * 1e3
    );
    eprintln!("long: between the faults, first fifth → last: {used}");
    eprintln!(
        "long: a fresh agent shows the same {same} series, {values} values and {said} verdicts"
    );
}
