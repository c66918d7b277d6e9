//! The laboratory's own tests: every daemon starts and answers, every fault is real and can be undone.

use crate::lab::agent::{Agent, Scrape};
use crate::lab::alertmanager::{Alert, Alertmanager};
use crate::lab::disk::{Disk, Kind, SlowDisk};
use crate::lab::etcd::{Cluster, Etcd, Listen, Options};
use crate::lab::fuse::{Fault, Operation};
use crate::lab::kmsg::KernelLog;
use crate::lab::node_exporter::NodeExporter;
use crate::lab::process::{Daemon, bound_command, output, run};
use crate::lab::prometheus::{
    Prometheus, Version, openmetrics_complaint, promtool, promtool_complaints,
};
use crate::lab::systemd::Container;
use crate::lab::webhook::{Notice, Webhook};
use crate::lab::{self, http, wait_for};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_cluster_of_three_elects_a_new_leader_when_its_leader_dies_and_takes_it_back() {
    let _turn = lab::together();
    let mut cluster = Cluster::start(Etcd::V35, 3);
    let first = cluster.leader();
    cluster.kill(first);
    let second = cluster.leader();
    assert_ne!(first, second);
    cluster.restart(first);
    let members = cluster.etcdctl(&["member", "list"]);
    assert_eq!(members.lines().filter(|line| line.contains("started")).count(), 3, "{members}");
}

#[test]
fn etcd_3_4_serves_tls_and_refuses_clients_without_a_certificate_of_its_ca() {
    let _turn = lab::together();
    let cluster = Cluster::start(Etcd::V34, 1);
    let version = cluster
        .on_member(0, |mut client| async move { Ok(client.status().await?.version().to_owned()) });
    assert_eq!(version.as_deref(), Ok("3.4.23"));
    let pki = &cluster.pki;
    for leaf in [&pki.client_expired, &pki.other_client] {
        let refused = cluster.try_etcdctl(&[
            "endpoint",
            "status",
            &format!("--cert={}", leaf.cert.display()),
            &format!("--key={}", leaf.key.display()),
            "--command-timeout=2s",
            "--dial-timeout=1s",
        ]);
        assert!(!refused.status.success(), "{leaf:?} was accepted: {}", refused.stdout);
    }
}

#[test]
fn a_stopped_member_accepts_connections_and_does_not_answer_until_it_goes_on() {
    let _turn = lab::together();
    let cluster =
        Cluster::start_with(Etcd::V35, 1, Options { listen: Listen::Plain, ..Options::default() });
    cluster.stop(0);
    let port = cluster.client_url(0).rsplit(':').next().unwrap().parse::<u16>().unwrap();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    assert_eq!(cluster.status(0), Err("no answer within 2 s".to_owned()));
    cluster.cont(0);
    assert!(cluster.status(0).is_ok());
}

#[test]
fn many_keys_are_put_quickly_and_a_quota_raises_the_alarm() {
    let _turn = lab::alone();
    let options = Options { quota: Some(24 << 20), ..Options::default() };
    let cluster = Cluster::start_with(Etcd::V34, 1, options);
    let started = Instant::now();
    cluster.put_many("/registry/longhorn.io/orphans/longhorn-system/orphan-", 10_000, 50);
    let taken = started.elapsed();
    assert!(taken < 20 * SECOND, "10,000 keys took {taken:?}");
    let count = cluster.on_member(0, |mut client| async move {
        let options = etcd_client::GetOptions::new().with_prefix().with_count_only();
        Ok(client.get("/registry/longhorn.io/orphans/", Some(options)).await?.count())
    });
    assert_eq!(count, Ok(10_000));

    let filler = "x".repeat(1 << 20);
    let full = (0..40).any(|i| {
        let (filler, key) = (filler.clone(), format!("filler{i}"));
        cluster
            .on_member(0, |mut client| async move { client.put(key, filler, None).await })
            .is_err()
    });
    assert!(full, "the quota refused nothing");
    assert!(cluster.etcdctl(&["alarm", "list"]).contains("NOSPACE"));
}

#[test]
fn etcd_serves_a_unix_socket() {
    let _turn = lab::together();
    for version in [Etcd::V34, Etcd::V35] {
        let options = Options { listen: Listen::Unix, ..Options::default() };
        let cluster = Cluster::start_with(version, 1, options);
        assert!(cluster.socket(0).exists());
        assert!(cluster.status(0).is_ok_and(|(id, leader)| id == leader));
        let health = http::get(([127, 0, 0, 1], cluster.metrics_port(0)).into(), "/health");
        assert_eq!(health.map(|answer| answer.status), Ok(200));
    }
}

#[test]
fn reading_behind_the_end_of_a_cut_off_disk_is_a_record_of_the_kernel() {
    let _turn = lab::alone();
    let disk = Disk::raw(16 << 20);
    disk.read_block(1000).expect("the disk is whole");
    let log = KernelLog::from_now();
    disk.truncate(1 << 20);
    disk.read_block(1000).expect_err("the disk ends before this block");
    let record = wait_for("a kernel record", SECOND, || {
        let records = log.drain();
        let wanted = |text: &str| text.starts_with("I/O error") && text.contains("sector 8000");
        records.iter().find(|r| wanted(&r.text)).cloned().ok_or(format!("{records:?}"))
    });
    assert_eq!(record.facility, 0);
    assert!(record.text.contains(&format!("dev {},", disk.device().name())), "{record:?}");
    disk.restore();
    disk.read_block(1000).expect("the disk is whole again");
}

/// Writes 4 KiB and syncs, in a child; gives the time it took or what `dd` said.
fn synced_write(folder: &Path) -> Result<Duration, String> {
    let mut command = bound_command(lab::program("dd"));
    let target = format!("of={}", folder.join("probe").display());
    command.args(["if=/dev/zero", &target, "bs=4k", "count=1", "conv=notrunc,fdatasync"]);
    let started = Instant::now();
    let output = output(command, 20 * SECOND);
    if output.status.success() { Ok(started.elapsed()) } else { Err(output.stderr) }
}

#[test]
fn a_slow_disk_slows_a_sync_by_its_delay_and_is_fast_again_after_release() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let healthy = synced_write(disk.mount().path()).unwrap();
    assert!(healthy < SECOND / 2, "{healthy:?} before any delay");
    disk.set_delay(SECOND);
    let slow = synced_write(disk.mount().path()).unwrap();
    assert!(slow >= SECOND && slow < 5 * SECOND, "{slow:?} with a delay of 1 s");
    disk.release();
    let after = synced_write(disk.mount().path()).unwrap();
    assert!(after < SECOND / 2, "{after:?} after release");
}

#[test]
fn etcd_on_a_slow_disk_complains_of_its_syncs() {
    let _turn = lab::alone();
    // etcd allocates 64 MB for a segment of its log, and the next one in advance.
    let disk = SlowDisk::sized(Kind::Ext4, 512 << 20);
    let data_root = Some(disk.mount().path().to_owned());
    let cluster = Cluster::start_with(Etcd::V35, 1, Options { data_root, ..Options::default() });
    disk.set_delay(SECOND + SECOND / 2);
    // The write itself may be given up by etcd before the disk has taken it.
    drop(cluster.try_etcdctl(&["put", "key", "value"]));
    wait_for("etcd's complaint", 20 * SECOND, || {
        if cluster.log(0).contains("slow fdatasync") { Ok(()) } else { Err(cluster.log(0)) }
    });
}

#[test]
fn a_hung_disk_hangs_a_sync_until_release() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    synced_write(disk.mount().path()).unwrap();
    disk.hang();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| synced_write(disk.mount().path()));
        wait_for("a request that is held back", 5 * SECOND, || {
            if disk.file().faults().waiting() > 0 { Ok(()) } else { Err("none".into()) }
        });
        std::thread::sleep(SECOND / 2);
        assert!(!writer.is_finished(), "the sync came back from a hung disk");
        disk.release();
        let taken = writer.join().unwrap().unwrap();
        assert!(taken >= SECOND / 2, "{taken:?}");
    });
}

#[test]
fn a_failing_disk_gives_errors_to_the_writer_and_to_the_kernel_log() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    synced_write(disk.mount().path()).unwrap();
    let log = KernelLog::from_now();
    disk.set_error(5);
    let error = synced_write(disk.mount().path()).unwrap_err();
    assert!(error.contains("Input/output error"), "{error}");
    let records = log.drain();
    let name = disk.device().name();
    let of_device = |text: &str| text.contains("I/O error") && text.contains(&name);
    assert!(records.iter().any(|r| r.facility == 0 && of_device(&r.text)), "{records:?}");
}

#[test]
fn a_read_can_fail_below_a_raw_device() {
    let _turn = lab::alone();
    let file = lab::fuse::FaultyFile::new(8 << 20);
    let device = lab::disk::Loop::attach(&file.path());
    let fault = Fault { errno: Some(5), ..Fault::default() };
    file.faults().set(Operation::Read, fault);
    let mut command = bound_command(lab::program("dd"));
    command.arg(format!("if={}", device.device().display()));
    command.args(["of=/dev/null", "bs=4k", "count=1", "skip=500", "iflag=direct"]);
    assert!(output(command, 10 * SECOND).stderr.contains("Input/output error"));
}

#[test]
fn a_filesystem_can_be_full_or_read_only_on_ext4_and_xfs() {
    let _turn = lab::together();
    for kind in [Kind::Ext4, Kind::Xfs] {
        let disk = Disk::with(kind);
        disk.mount().fill();
        let free = run("stat", ["-f", "--format=%a", &disk.mount().path().display().to_string()]);
        assert!(free.trim().parse::<u64>().unwrap() < 10, "{kind:?}: {free} blocks are free");
        disk.mount().make_read_only();
        let error = synced_write(disk.mount().path()).unwrap_err();
        assert!(error.contains("Read-only file system"), "{kind:?}: {error}");
    }
}

#[test]
fn systemd_boots_as_pid_1_and_counts_the_restarts_of_a_unit() {
    let _turn = lab::together();
    let container = Container::boot();
    container.install_unit(
        "crashing.service",
        "[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=100ms\n\
         [Unit]\nStartLimitIntervalSec=0\n",
    );
    container.systemctl(&["start", "crashing.service"]);
    wait_for("three restarts", 10 * SECOND, || {
        let answer = container.busctl(&[
            "get-property",
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1/unit/crashing_2eservice",
            "org.freedesktop.systemd1.Service",
            "NRestarts",
        ]);
        let text = answer.stdout.trim().to_owned();
        let count = text.strip_prefix("u ").and_then(|number| number.parse::<u32>().ok());
        if count.is_some_and(|n| n >= 3) { Ok(()) } else { Err(text + &answer.stderr) }
    });
    container.systemctl(&["stop", "crashing.service"]);
    let state = container.show("crashing.service", "ActiveState");
    assert!(state == "inactive" || state == "failed", "{state}");
}

#[test]
fn two_containers_run_at_once_and_leave_nothing_behind() {
    let _turn = lab::together();
    let (first, second) = (Container::boot(), Container::boot());
    first.install_unit("only-here.service", "[Service]\nType=oneshot\nExecStart=/bin/true\n");
    assert_eq!(first.show("only-here.service", "LoadState"), "loaded");
    assert_eq!(second.show("only-here.service", "LoadState"), "not-found");
    let leader = first.leader();
    drop(first);
    assert!(!Path::new(&format!("/proc/{leader}")).exists());
    assert_eq!(second.show("dbus.service", "ActiveState"), "active");
}

/// Authenticates as root on a D-Bus socket; with `$1` a path. Prints the server's answer.
const AUTHENTICATE: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(5)
s.connect(sys.argv[1])
s.send(b'\\0AUTH EXTERNAL 30\\r\\n')
print(s.recv(100))";

#[test]
fn the_container_takes_root_on_its_bus_from_anywhere_and_on_its_private_socket_from_inside() {
    let _turn = lab::together();
    let container = Container::boot();
    let authenticate = |mut command: Command, address: String| {
        let path = address.strip_prefix("unix:path=").unwrap();
        command.arg(lab::program("python3")).args(["-c", AUTHENTICATE, path]);
        output(command, 10 * SECOND).stdout.contains("OK ")
    };
    let outside = || bound_command("env");
    let inside = || container.inside("env");
    assert!(authenticate(outside(), container.bus_address()));
    assert!(authenticate(inside(), container.bus_address()));
    assert!(!authenticate(outside(), container.private_address()));
    assert!(authenticate(inside(), container.private_address()));
}

#[test]
fn an_agent_inside_the_container_ends_with_its_handle() {
    let _turn = lab::together();
    let container = Container::boot();
    let options = lab::agent::Options { inside: Some(container.leader()), ..Default::default() };
    let agent = Agent::start_with(options);
    let process = format!("/proc/{}", agent.pid());
    let name = std::fs::read_to_string(format!("{process}/comm")).unwrap();
    assert!(name.starts_with("controlplane"), "{name}");
    drop(agent);
    wait_for("the agent's end", 5 * SECOND, || {
        if Path::new(&process).exists() { Err("it runs".into()) } else { Ok(()) }
    });
}

#[test]
fn prometheus_starts_and_answers_queries() {
    let _turn = lab::together();
    let own = lab::free_port();
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], own));
    let prometheus = Prometheus::scraping("nobody", nobody);
    let up = prometheus.wait_for("up", 10 * SECOND, |series| !series.is_empty());
    assert_eq!((up[0].labels["job"].as_str(), up[0].value), ("nobody", 0.0));
    assert!(promtool(&["--version"]).contains("promtool"));
}

#[test]
fn alertmanager_tells_who_inhibits_whom_and_sends_the_rest_to_the_webhook() {
    let _turn = lab::together();
    let webhook = Webhook::start();
    let started = Instant::now();
    let alertmanager = Alertmanager::start(&format!(
        "route: {{receiver: a, group_wait: 100ms, group_interval: 1s, repeat_interval: 1h}}\n\
         receivers: [{{name: a, webhook_configs: [{{url: '{}'}}]}}]\n\
         inhibit_rules: [{{source_matchers: ['alertname = Cause'], target_matchers: ['alertname = Symptom'], equal: [node]}}]\n",
        webhook.url("here")
    ));
    alertmanager.amtool(&["check-config", &alertmanager.config_file().display().to_string()]);
    for (name, node) in [("Cause", "one"), ("Symptom", "one"), ("Symptom", "two")] {
        let labels = [format!("alertname={name}"), format!("node={node}"), "severity=page".into()];
        let mut args = vec!["alert", "add", "--annotation=summary=told"];
        args.extend(labels.iter().map(String::as_str));
        alertmanager.amtool(&args);
    }
    let notice = wait_for("the cause", 10 * SECOND, || {
        let cause = webhook.first(started, |notice| notice.label("alertname") == "Cause");
        cause.ok_or_else(|| format!("{:?}", webhook.notices()))
    });
    assert!(notice.firing && notice.path == "here" && notice.annotations["summary"] == "told");
    wait_for("the symptom elsewhere", 10 * SECOND, || {
        webhook.first(started, |n| n.label("node") == "two").ok_or_else(String::new)
    });
    let alerts = alertmanager.alerts();
    let by = |node: &str| {
        let fits = |alert: &&Alert| alert.name() == "Symptom" && alert.label("node") == node;
        let alert = alerts.iter().find(fits).unwrap_or_else(|| panic!("{alerts:?}"));
        (alert.state.as_str(), alert.inhibited_by.clone())
    };
    assert_eq!(by("one"), ("suppressed", vec!["Cause page".to_owned()]));
    assert_eq!(by("two"), ("active", Vec::new()));
    let symptom = |n: &Notice| n.label("alertname") == "Symptom" && n.label("node") == "one";
    // It may have gone out before its cause was there, but never after.
    let late = webhook.first(notice.arrived + SECOND / 10, symptom);
    assert!(late.is_none(), "{late:?}");
}

#[test]
fn prometheus_of_both_versions_sends_an_alert_from_a_rule_file_to_the_webhook() {
    let _turn = lab::together();
    for version in [Version::V2, Version::V3] {
        let started = Instant::now();
        let webhook = Webhook::start();
        let alertmanager = Alertmanager::start(&format!(
            "route: {{receiver: a, group_wait: 0s}}\nreceivers: [{{name: a, webhook_configs: [{{url: '{}'}}]}}]\n",
            webhook.url("page")
        ));
        let config = format!(
            "global: {{evaluation_interval: 200ms}}\nrule_files: ['{{folder}}/*.yaml']\n\
             alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{}']}}]}}]}}\n",
            alertmanager.address()
        );
        let rules = "groups: [{name: g, rules: [{alert: Always, expr: vector(1)}]}]";
        let files = [("always.yaml".to_owned(), rules.to_owned())];
        // It finds its Alertmanager after five seconds, and what it sent before is lost.
        let flags = ["--rules.alert.resend-delay=1s".to_owned()];
        let prometheus = Prometheus::start_with(version, &config, &files, &flags);
        wait_for("the alert at the webhook", 20 * SECOND, || {
            let found = webhook.first(started, |n| n.label("alertname") == "Always");
            found.ok_or_else(|| format!("{:?}", prometheus.query("ALERTS")))
        });
        let major = prometheus.query("prometheus_build_info");
        assert!(major.is_empty(), "nothing is scraped: {major:?}");
        let build = prometheus.api("status/buildinfo", &[]);
        let said = build["version"].as_str().unwrap().to_owned();
        assert!(said.starts_with(if version == Version::V2 { '2' } else { '3' }), "{said}");
    }
}

#[test]
fn node_exporter_sees_the_units_of_the_container() {
    let _turn = lab::together();
    let container = Container::boot();
    container.install_unit("k3s.service", "[Service]\nExecStart=/bin/sleep 999\n");
    container.systemctl(&["start", "k3s.service"]);
    let node = NodeExporter::start(&container);
    let page = http::get(node.address(), "/metrics").unwrap().text();
    let scrape = Scrape::parse(&page).unwrap();
    let labels = [("name", "k3s.service"), ("state", "active")];
    assert_eq!(scrape.value("node_systemd_unit_state", &labels), Some(1.0), "{page}");
    assert_eq!(scrape.value("node_systemd_service_restart_total", &labels[..1]), Some(0.0));
}

#[test]
fn both_parsers_take_a_good_exposition_and_refuse_a_bad_one() {
    let _turn = lab::together();
    let good = "# HELP controlplane_etcd_up Whether it answers.\n\
                # TYPE controlplane_etcd_up gauge\ncontrolplane_etcd_up 1\n";
    assert_eq!(promtool_complaints(good), "");
    assert_eq!(openmetrics_complaint(&format!("{good}# EOF\n")), None);
    assert!(!promtool_complaints("controlplane_etcd_up{ 1\n").is_empty());
    let complaint = openmetrics_complaint(good).unwrap();
    assert!(complaint.contains("EOF"), "{complaint}");
}

#[test]
fn a_scrape_is_read_by_name_and_labels() {
    let _turn = lab::together();
    let scrape = Scrape::parse(
        "# HELP a b\na{x=\"1\",y=\"quote \\\" comma, brace } line\\n\"} 2.5\na{x=\"2\"} +Inf\nb 7\n",
    );
    let scrape = scrape.unwrap();
    assert_eq!(scrape.value("a", &[("x", "1")]), Some(2.5));
    assert_eq!(scrape.value("a", &[("x", "2")]), Some(f64::INFINITY));
    assert_eq!(scrape.value("b", &[]), Some(7.0));
    assert_eq!(scrape.value("c", &[]), None);
    assert_eq!(scrape.samples[0].labels["y"], "quote \" comma, brace } line\n");
}

#[test]
fn children_end_with_a_test_process_that_is_killed() {
    let _turn = lab::together();
    let folder = lab::temp_dir("orphan");
    let pid_file = folder.path().join("pid");
    let script =
        format!("setpriv --pdeathsig KILL -- sleep 600 & echo $! > {}; wait", pid_file.display());
    let mut command = bound_command("sh");
    command.args(["-c", &script]);
    let mut parent = Daemon::start("parent", command, &folder.path().join("log"));
    let child = wait_for("the child's id", 5 * SECOND, || {
        let text = std::fs::read_to_string(&pid_file).map_err(|error| error.to_string())?;
        text.trim().parse::<u32>().map_err(|error| error.to_string())
    });
    let is_sleep = || {
        std::fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|c| c.trim() == "sleep")
    };
    wait_for("sleep", 5 * SECOND, || if is_sleep() { Ok(()) } else { Err("not yet".into()) });
    parent.kill();
    wait_for("its end", 5 * SECOND, || if is_sleep() { Err("alive".into()) } else { Ok(()) });
}

#[test]
fn the_agent_serves_metrics_and_ends_on_sigterm() {
    let _turn = lab::together();
    let mut agent = Agent::start("");
    let build = "controlplane_exporter_build_info";
    agent.wait_until("the version", build, 5 * SECOND, |scrape| scrape.all(build, &[]).len() == 1);
    assert_eq!(agent.stop(5 * SECOND).code(), Some(0), "{}", agent.log());
}
