//! The datastore's own syncs, as programs in the kernel time them: real etcd, real dqlite, real SQLite, a disk that hangs, and what keeps the
//! kernel from telling.
//!
//! Kernels of virtual machines may refuse to hook functions; tracepoints work in all of them, so that is the way here.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::lab::agent::{Agent, Options, Scrape};
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::dqlite::{self, Dqlite};
use crate::lab::etcd::{Cluster, Etcd, Options as EtcdOptions};
use crate::lab::process::{self, Daemon, bound_command};
use crate::lab::{self, http, wait_for};

const ALL: &str = "controlplane_fdatasync_datastore_";
const COUNT: &str = "controlplane_fdatasync_datastore_duration_seconds_count";
const SUM: &str = "controlplane_fdatasync_datastore_duration_seconds_sum";
const FAILURES: &str = "controlplane_fdatasync_datastore_failures_total";
const INFLIGHT: &str = "controlplane_fdatasync_datastore_inflight_seconds";
const SOURCE: &str = "controlplane_fdatasync_datastore_source_info";
const SECOND: Duration = Duration::from_secs(1);
const WAL: [(&str, &str); 3] = [("process", "etcd"), ("file", "wal"), ("op", "fdatasync")];
const DB: [(&str, &str); 3] = [("process", "etcd"), ("file", "db"), ("op", "fdatasync")];

fn config(passive: &str) -> String {
    format!("fdatasync: {{interval: 200ms, passive: {passive}}}\nfilesystem: {{enabled: false}}\n")
}

/// An agent that sees syncs.
fn seeing() -> Agent {
    seeing_with(&config("tracepoints"))
}

fn seeing_with(config: &str) -> Agent {
    let agent = Agent::start(config);
    agent.wait_until("the programs", ALL, 10 * SECOND, |s| !s.all(INFLIGHT, &[]).is_empty());
    agent
}

/// What a member itself says.
fn of_etcd(cluster: &Cluster) -> Scrape {
    let metrics = http::get(([127, 0, 0, 1], cluster.metrics_port(0)).into(), "/metrics").unwrap();
    Scrape::parse(&metrics.text()).unwrap()
}

/// Waits until neither counts on.
fn settled(agent: &Agent, labels: &[(&str, &str)]) -> Scrape {
    let mut before = f64::NAN;
    wait_for("an idle datastore", 20 * SECOND, || {
        std::thread::sleep(SECOND / 2);
        let scrape = agent.scrape();
        let now = scrape.sum(COUNT, labels);
        if now == std::mem::replace(&mut before, now) { Ok(scrape) } else { Err(now.to_string()) }
    })
}

#[test]
fn etcds_syncs_are_counted_and_timed_as_etcd_does_it_itself() {
    let _turn = lab::alone();
    let cluster = Cluster::start(Etcd::V35, 1);
    let agent = seeing();
    let (ours, theirs) = (settled(&agent, &[]), of_etcd(&cluster));
    let writer = cluster.keep_writing(0, "/registry/k", 500, SECOND / 500);
    std::thread::sleep(4 * SECOND);
    drop(writer);
    let (ours_then, theirs_then) = (settled(&agent, &[]), of_etcd(&cluster));

    let grown =
        |name: &str, labels: &[(&str, &str)]| ours_then.sum(name, labels) - ours.sum(name, labels);
    let said = |name: &str| theirs_then.sum(name, &[]) - theirs.sum(name, &[]);
    let (count, sum) = (grown(COUNT, &WAL), grown(SUM, &WAL));
    let expected = said("etcd_disk_wal_fsync_duration_seconds_count");
    let expected_sum = said("etcd_disk_wal_fsync_duration_seconds_sum");
    eprintln!("WAL: {count} of {expected} syncs, {sum:.4} s of {expected_sum:.4} s");
    assert!(expected > 300.0);
    assert!((count / expected - 1.0).abs() <= 0.01, "{count} of {expected}");
    assert!((sum / expected_sum - 1.0).abs() <= 0.1, "{sum} s of {expected_sum} s");
    // bbolt syncs twice for a commit.
    let commits = said("etcd_disk_backend_commit_duration_seconds_count");
    let syncs = grown(COUNT, &DB);
    assert!((syncs - 2.0 * commits).abs() <= 2.0, "{syncs} syncs of {commits} commits");
    assert_eq!(ours_then.sum(FAILURES, &[]), 0.0);
    assert_eq!(ours_then.value(INFLIGHT, &[("process", "etcd")]), Some(0.0));
    assert_eq!(ours_then.sum(SOURCE, &[]), 1.0, "{}", ours_then.with_prefix(ALL));
}

#[test]
fn a_reload_keeps_what_was_counted_and_a_member_that_is_started_again_is_found() {
    let _turn = lab::alone();
    let mut cluster = Cluster::start(Etcd::V35, 1);
    let agent = seeing();
    cluster.put_many("/registry/pods/default/pod-", 200, 500);
    let before = settled(&agent, &WAL).sum(COUNT, &WAL);
    assert!(before >= 1.0, "{before}");
    agent.write_config(&config("tracepoints").replace("200ms", "300ms"));
    agent.signal(rustix::process::Signal::HUP);
    let interval = [("sampler", "fdatasync")];
    agent.wait_value("controlplane_sampler_interval_seconds", &interval, 0.3, 10 * SECOND);
    cluster.restart(0);
    cluster.wait_until_up(0);
    // Processes are searched for twice a minute, and anew when one is gone.
    agent.wait_until("more syncs", ALL, 45 * SECOND, |s| {
        cluster.put_many("/registry/pods/default/pod-", 20, 500);
        s.sum(COUNT, &WAL) > before + 20.0
    });
}

#[test]
fn dqlites_writes_are_counted_though_it_never_syncs() {
    let _turn = lab::alone();
    let cluster = dqlite::Cluster::start_as("k8s-dqlite", Dqlite::V118, 1);
    let agent = seeing();
    let writes = [("process", "k8s-dqlite"), ("file", "wal"), ("op", "aio_write")];
    cluster.put_many(0, 20);
    let before = settled(&agent, &writes);
    cluster.put_many(0, 200);
    let after = settled(&agent, &writes);
    let count = after.sum(COUNT, &writes) - before.sum(COUNT, &writes);
    let seconds = after.sum(SUM, &writes) - before.sum(SUM, &writes);
    eprintln!("200 keys: {count} writes, {seconds:.4} s");
    assert_eq!(count, 200.0, "{}", after.with_prefix(ALL));
    assert!(seconds > 0.0);
    assert_eq!(after.sum(FAILURES, &[]), 0.0);
    assert_eq!(after.value(INFLIGHT, &[("process", "k8s-dqlite")]), Some(0.0));
}

#[test]
fn sqlites_syncs_are_counted_log_and_database_apart() {
    let _turn = lab::alone();
    let folder = lab::temp_dir("kine");
    let (program, log) = (folder.path().join("kine"), folder.path().join("strace"));
    std::fs::copy(lab::program("sqlite3"), &program).unwrap();
    let mut command = bound_command(lab::program("strace"));
    command.args(["-qq", "-y", "-e", "trace=fsync,fdatasync", "-e", "signal=none", "-o"]).arg(&log);
    command.arg(&program).args(["-batch", "-bail"]).arg(folder.path().join("state.db"));
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut kine = process::spawn(command);
    let mut statements = kine.stdin.take().expect("a pipe for statements");
    wait_for("the datastore's process", 10 * SECOND, || {
        if log.exists() { Ok(()) } else { Err("strace has not started it".to_owned()) }
    });
    let agent = seeing();
    let said = |file: &str| {
        let text = std::fs::read_to_string(&log).unwrap();
        text.lines().filter(|line| line.contains(&format!("/{file}>"))).count() as f64
    };
    let ours =
        |scrape: &Scrape, file: &str| scrape.sum(COUNT, &[("process", "kine"), ("file", file)]);
    // As kine sets it up. Files that are there for a moment only leave their descriptors to others, so the comparison
    // begins when all are open.
    let setup = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=100;\n\
        CREATE TABLE kine (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, value BLOB);\n\
        CREATE INDEX kine_name_index ON kine (name);\n";
    statements.write_all(setup.as_bytes()).unwrap();
    let before = settled(&agent, &[("process", "kine")]);
    let said_before = (said("state.db-wal"), said("state.db"));
    let mut text = String::new();
    for number in 0..200 {
        let name = format!("'/registry/pods/default/pod-{number}'");
        writeln!(text, "INSERT INTO kine (name, value) VALUES ({name}, randomblob(500));").unwrap();
    }
    statements.write_all(text.as_bytes()).unwrap();
    let all = ours(&before, "wal") + 200.0;
    agent.wait_until("all commits", ALL, 20 * SECOND, |s| ours(s, "wal") >= all);
    let after = settled(&agent, &[("process", "kine")]);
    let grown = |file: &str| ours(&after, file) - ours(&before, file);
    let (wal, db) = (grown("wal"), grown("db"));
    eprintln!("200 commits: {wal} syncs of the log, {db} of the database");
    let expected = (said("state.db-wal") - said_before.0, said("state.db") - said_before.1);
    assert_eq!((wal, db), expected, "{}", after.with_prefix(ALL));
    assert!(db >= 1.0);
    // It ends with its input.
    drop(statements);
    assert!(kine.wait().unwrap().success());
}

#[test]
fn an_etcd_that_cannot_see_the_nodes_datastore_is_another_clusters() {
    let _turn = lab::alone();
    let cluster = Cluster::start(Etcd::V35, 1);
    let folder = lab::temp_dir("pod");
    // On the same disk, as the volume of a virtual cluster may be; only its part of it can be seen.
    let script = r#"
        cd "$0" && mkdir volume root && mount -t tmpfs none root && cd root &&
        mkdir usr data && ln -s usr/lib usr/lib64 . && cp /usr/bin/perl etcd &&
        mount --bind /usr usr && mount --bind ../volume data && printf %s "$1" > writes && exec chroot . /etcd /writes
    "#;
    let writes = r#"
        use IO::Handle;
        open(my $log, ">", "/data/0.wal") or die;
        while (1) { syswrite($log, "x" x 100); $log->sync or die; select(undef, undef, undef, 0.02) }
    "#;
    let mut command = bound_command("unshare");
    command.args(["--mount", "sh", "-ec", script]).arg(folder.path()).arg(writes);
    let other = Daemon::start("another cluster's etcd", command, &folder.path().join("log"));
    let file = folder.path().join("volume/0.wal");
    let written = || std::fs::metadata(&file).map_or(0, |meta| meta.len());
    wait_for("its writes", 10 * SECOND, || if written() > 0 { Ok(()) } else { Err(other.log()) });
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", other.pid())).unwrap();
    assert_eq!(comm.trim_end(), "etcd");

    let agent = seeing();
    let before = written();
    cluster.put_many("/registry/pods/default/pod-", 50, 500);
    agent.wait_until("the node's own", ALL, 20 * SECOND, |s| s.sum(COUNT, &WAL) > 0.0);
    std::thread::sleep(SECOND);
    assert!(written() > before + 1_000);
    let scrape = agent.scrape();
    assert_eq!(scrape.sum(COUNT, &[("op", "fsync")]), 0.0, "{}", scrape.with_prefix(ALL));
}

/// A program of this name that writes a block and syncs it.
fn writer(folder: &Path, file: &Path, sync: &str) -> Daemon {
    let program = folder.join("etcd");
    if !program.exists() {
        std::fs::copy(lab::program("dd"), &program).unwrap();
    }
    let mut command = bound_command("setpriv");
    command.arg("--clear-groups").arg("--").arg(&program).arg("if=/dev/zero");
    command.arg(format!("of={}", file.display()));
    command.args(["bs=4k", "count=1", &format!("conv={sync}")]);
    Daemon::start("a writer", command, &folder.join("log"))
}

#[test]
fn a_sync_that_the_disk_holds_shows_its_age_and_enters_with_its_whole_length() {
    let _turn = lab::alone();
    let disk = SlowDisk::sized(Kind::Ext4, 1 << 30);
    let data_root = Some(disk.mount().path().to_owned());
    let cluster =
        Cluster::start_with(Etcd::V35, 1, EtcdOptions { data_root, ..EtcdOptions::default() });
    let paths = format!("paths: ['{}'], passive", disk.mount().path().display());
    let agent = seeing_with(&config("tracepoints").replace("passive", &paths));
    let etcd = [("process", "etcd")];
    cluster.put_many("/registry/pods/default/pod-", 50, 500);
    let before = settled(&agent, &WAL);
    assert!(before.sum(COUNT, &WAL) > 0.0, "{}", before.with_prefix(ALL));
    disk.hang();
    let write = cluster.keep_writing(0, "/registry/k", 100, SECOND);
    let held = agent
        .wait_until("a sync in flight", ALL, 20 * SECOND, |s| s.value(INFLIGHT, &etcd) > Some(4.0));
    std::thread::sleep(SECOND);
    let later = agent.scrape();
    let grown = later.value(INFLIGHT, &etcd).unwrap() - held.value(INFLIGHT, &etcd).unwrap();
    assert!((0.8..2.0).contains(&grown), "{grown} s in a second");
    disk.release();
    agent.wait_until("its end", ALL, 20 * SECOND, |s| {
        s.value(INFLIGHT, &etcd).is_some_and(|age| age < 1.0)
            && s.sum(SUM, &etcd) - before.sum(SUM, &etcd) > 5.0
    });
    drop(write);
}

#[test]
fn a_sync_that_fails_is_a_failure_and_no_duration() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let folder = lab::temp_dir("etcd");
    let file = disk.mount().path().join("0.wal");
    // It must be known before it syncs: it waits for the disk meanwhile.
    disk.hang();
    let writer = writer(folder.path(), &file, "fdatasync");
    let agent = Agent::start(&config("tracepoints"));
    let etcd = [("process", "etcd")];
    agent.wait_until("the call under way", ALL, 20 * SECOND, |s| {
        s.value(INFLIGHT, &etcd) > Some(1.0)
    });
    disk.set_error(5);
    agent.wait_until("the failure", ALL, 20 * SECOND, |s| s.sum(FAILURES, &etcd) == 1.0);
    assert_eq!(agent.scrape().sum(COUNT, &etcd), 0.0);
    drop(writer);
    disk.release();
}

#[test]
fn requests_of_the_datastores_disk_are_timed_and_those_that_fail_are_counted_by_status() {
    const REQUESTS: &str = "controlplane_fdatasync_device_request_duration_seconds_count";
    const ERRORS: &str = "controlplane_fdatasync_device_errors_total";
    const LAST: &str = "controlplane_fdatasync_device_error_last_timestamp_seconds";
    const DEVICE: &str = "controlplane_fdatasync_device_";
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let paths = format!("paths: ['{}'], passive", disk.mount().path().display());
    let agent = Agent::start(&config("auto").replace("passive", &paths));
    let name = disk.device().name();
    let (writes, flushes) = (
        [("device", name.as_str()), ("op", "write")],
        [("device", name.as_str()), ("op", "flush")],
    );
    agent.wait_until("requests", DEVICE, 20 * SECOND, |s| {
        s.sum(REQUESTS, &writes) > 3.0 && s.sum(REQUESTS, &flushes) > 3.0
    });
    assert_eq!(agent.scrape().sum(ERRORS, &[("device", &name)]), 0.0);
    disk.set_error(5);
    agent.wait_until("an error", DEVICE, 20 * SECOND, |s| {
        s.sum(ERRORS, &[("device", &name), ("status", "ioerr")]) > 0.0
    });
    // It pages only for the datastore's own disk, and no datastore lies on this one.
    assert_eq!(agent.scrape().value(LAST, &[("device", &name)]), None);
    disk.release();
}

/// What the state of the sampler says.
fn why(agent: &Agent) -> String {
    let text = agent.get("/api/v1/status").unwrap().text();
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    let samplers = status["samplers"].as_array().expect("samplers").iter();
    let own = samplers.into_iter().find(|sampler| sampler["name"] == "fdatasync");
    own.and_then(|own| own["why"].as_str()).unwrap_or_default().to_owned()
}

/// The agent started through this says why it does not see; the probe works on.
fn is_blind(through: &str, passive: &str, reasons: &[&str]) {
    let script = format!("{through} exec \"$0\" \"$@\"");
    let through = ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned).into();
    let config = config(passive).replace("passive", "paths: [/var/lib], passive");
    let agent = Agent::start_with(Options { config, through, ..Options::default() });
    let said = wait_for("the reason", 10 * SECOND, || {
        let said = why(&agent);
        if said.is_empty() { Err(agent.log()) } else { Ok(said) }
    });
    for reason in reasons {
        assert!(said.contains(reason), "{reason}: {said}");
    }
    agent.wait_until("the probe", "controlplane_fdatasync_", 10 * SECOND, |s| {
        s.sum("controlplane_fdatasync_duration_seconds_count", &[]) > 0.0
    });
    let scrape = agent.scrape();
    let failures = scrape.sum("controlplane_sampler_failures_total", &[("sampler", "fdatasync")]);
    // What is not there is no failure unless it was asked for.
    assert_eq!(failures > 0.0, passive == "tracepoints", "{said}");
    assert_eq!(scrape.sum(COUNT, &[]) + scrape.sum(SOURCE, &[]), 0.0);
}

#[test]
fn what_keeps_the_kernel_from_telling_is_said_and_nothing_else_suffers() {
    let _turn = lab::alone();
    let _cluster = Cluster::start(Etcd::V35, 1);
    let no_bpf = "set -- setpriv --bounding-set=-bpf,-perfmon,-sys_admin \"$0\" \"$@\"; set -- \"$@\"; exec \"$@\";";
    is_blind(no_bpf, "auto", &["making a map", "not permitted"]);
    is_blind(no_bpf, "tracepoints", &["making a map", "not permitted"]);
    let no_types = "mount --bind /dev/null /sys/kernel/btf/vmlinux &&";
    is_blind(no_types, "auto", &["no BTF that can be read"]);
    let no_tracefs =
        "mount -t tmpfs none /sys/kernel/tracing && mount -t tmpfs none /sys/kernel/debug &&";
    is_blind(
        &format!("{no_types} {no_tracefs}"),
        "tracepoints",
        &["no BTF that can be read", "/events/syscalls/sys_exit_fdatasync/id: No such file"],
    );
    let folder = lab::temp_dir("etcd");
    let etcd = folder.path().join("etcd");
    std::fs::copy(lab::program("sleep"), &etcd).unwrap();
    let own_numbers = format!(
        r#"set -- unshare --pid --fork --mount-proc --kill-child sh -c '{} 60 & exec "$0" "$@"' "$0" "$@"; exec "$@";"#,
        etcd.display()
    );
    is_blind(&own_numbers, "tracepoints", &["hostPID"]);
}

#[test]
fn it_is_off_where_the_configuration_says_so() {
    let _turn = lab::alone();
    let _cluster = Cluster::start(Etcd::V35, 1);
    let agent = seeing();
    agent.write_config(&config("off"));
    agent.signal(rustix::process::Signal::HUP);
    agent.wait_until("its end", ALL, 10 * SECOND, |s| s.all(INFLIGHT, &[]).is_empty());
    assert_eq!(why(&agent), "");
    agent.write_config(&config("sometimes"));
    agent.signal(rustix::process::Signal::HUP);
    wait_for("the refusal", 10 * SECOND, || {
        let log = agent.log();
        if log.contains("fdatasync.passive") { Ok(()) } else { Err(log) }
    });
}
