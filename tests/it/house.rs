//! The agent as a process: start, formats, reload, exit, and what it says when something is wrong.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use procfs::process::{MMPermissions, Process};
use rustix::process::Signal;

use crate::lab;
use crate::lab::agent::{Agent, Options, Scrape};
use crate::lab::disk::{Disk, Kind, SlowDisk};
use crate::lab::fuse::{Fault, Operation};
use crate::lab::process::bound_command;
use crate::lab::{http, prometheus};

const SECOND: Duration = Duration::from_secs(1);
const RELOAD_OK: &str = "controlplane_exporter_config_last_reload_successful";
const INTERVAL: &str = "controlplane_sampler_interval_seconds";

/// Runs the agent to its end.
fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_controlplane-exporter")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn each_format_carries_the_content_type_of_its_specification() {
    let _turn = lab::together();
    let agent = Agent::start("");
    let get = |accept: &str, encoding: &str| {
        let headers = [("Accept", accept), ("Accept-Encoding", encoding)];
        http::request(agent.address(), "GET", "/metrics", &headers, 5 * SECOND).unwrap()
    };
    let text = get("", "");
    assert_eq!(text.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(text.header("vary"), Some("Accept, Accept-Encoding"));
    let open = get("application/openmetrics-text;version=1.0.0;escaping=underscores", "");
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores")
    );
    assert!(open.text().ends_with("# EOF\n"));
    let zipped = get("", "gzip");
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    let mut plain = String::new();
    flate2::read::GzDecoder::new(&zipped.body[..]).read_to_string(&mut plain).unwrap();
    assert!(plain.contains("controlplane_exporter_config_last_reload_successful 1"), "{plain}");
}

#[test]
fn both_text_formats_pass_the_parsers_of_prometheus() {
    let _turn = lab::together();
    let agent = Agent::start("");
    agent.wait_until("all samplers have run", "controlplane_sampler_up", 20 * SECOND, |_| {
        agent.get("/-/ready").is_ok_and(|ready| ready.status == 200)
    });
    assert_eq!(prometheus::promtool_complaints(&agent.scrape().text), "");
    let headers = [("Accept", "application/openmetrics-text;version=1.0.0")];
    let open = http::request(agent.address(), "GET", "/metrics", &headers, 5 * SECOND).unwrap();
    assert_eq!(prometheus::openmetrics_complaint(&open.text()), None);
}

#[test]
fn prometheus_scrapes_for_a_minute_without_an_error_or_a_doubtful_sample() {
    let _turn = lab::together();
    let agent = Agent::start("");
    let server = prometheus::Prometheus::start(&format!(
        "global: {{scrape_interval: 1s}}\n\
         scrape_configs:\n\
         - {{job_name: agent, static_configs: [{{targets: ['{}']}}]}}\n\
         - {{job_name: prometheus, scrape_interval: 5s, static_configs: [{{targets: ['PROM']}}]}}\n",
        agent.address()
    ));
    std::thread::sleep(Duration::from_mins(1));
    let value = |expression: &str| server.query(expression).first().map(|series| series.value);
    assert_eq!(value(r#"min_over_time(up{job="agent"}[58s])"#), Some(1.0));
    assert!(value(r#"count_over_time(up{job="agent"}[1m])"#).is_some_and(|n| n >= 50.0));
    assert_eq!(value(r#"resets(process_cpu_seconds_total{job="agent"}[1m])"#), Some(0.0));
    let own = Scrape::parse(&http::get(server.address(), "/metrics").unwrap().text()).unwrap();
    for doubt in ["duplicate_timestamp", "out_of_order", "out_of_bounds"] {
        let name = format!("prometheus_target_scrapes_sample_{doubt}_total");
        assert_eq!(own.value(&name, &[]), Some(0.0), "{name}");
    }
}

#[test]
fn pages_that_are_not_there_answer_404_and_the_others_answer() {
    let _turn = lab::together();
    let agent = Agent::start("");
    for (path, status) in [
        ("/", 200),
        ("/-/healthy", 200),
        ("/api/v1/status", 200),
        ("/api/v1/timeline", 200),
        ("/-/reload", 405),
        ("/metrics/", 404),
        ("/../etc/passwd", 404),
        ("/favicon.ico", 404),
    ] {
        assert_eq!(agent.get(path).unwrap().status, status, "{path}");
    }
    // The samplers are there after the first look at the node.
    lab::wait_for("samplers in the status", 10 * SECOND, || {
        let body = agent.get("/api/v1/status")?.body;
        let json: serde_json::Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        let some = json["samplers"].as_array().is_some_and(|all| !all.is_empty());
        some.then_some(()).ok_or_else(|| json.to_string())
    });
}

#[test]
fn a_reload_takes_a_good_configuration_and_refuses_a_bad_one() {
    let _turn = lab::together();
    let agent = Agent::start("exporter: {interval: 5s}");
    let sampler = [("sampler", "exporter")];
    agent.wait_value(INTERVAL, &sampler, 5.0, 10 * SECOND);

    agent.write_config("exporter: {interval: 7s}");
    agent.signal(Signal::HUP);
    agent.wait_value(INTERVAL, &sampler, 7.0, 10 * SECOND);

    agent.write_config("exporter: {intervall: 9s}");
    let refused = http::request(agent.address(), "POST", "/-/reload", &[], 10 * SECOND).unwrap();
    assert_eq!(refused.status, 500);
    let text = refused.text();
    assert!(text.contains("config.yaml: exporter.intervall: unknown field"), "{text}");
    let scrape = agent.scrape();
    assert_eq!(scrape.value(INTERVAL, &sampler), Some(7.0), "the old one stays");
    assert_eq!(scrape.value(RELOAD_OK, &[]), Some(0.0));

    agent.write_config("exporter: {interval: 9s}");
    let taken = http::request(agent.address(), "POST", "/-/reload", &[], 10 * SECOND).unwrap();
    assert_eq!((taken.status, taken.text().as_str()), (200, "reloaded\n"));
    let scrape = agent.wait_value(INTERVAL, &sampler, 9.0, 10 * SECOND);
    assert_eq!(scrape.value(RELOAD_OK, &[]), Some(1.0));

    // Who adds a lock must not think that the port has it.
    agent.write_config("{exporter: {interval: 11s}, web: {max_requests: 7}, log: {level: warn}}");
    let partly = http::request(agent.address(), "POST", "/-/reload", &[], 10 * SECOND).unwrap();
    let expected = "reloaded, but changes of web, log need a restart\n";
    assert_eq!((partly.status, partly.text().as_str()), (200, expected));
    agent.wait_value(INTERVAL, &sampler, 11.0, 10 * SECOND);
}

#[test]
fn a_wrong_configuration_is_one_line_that_names_file_key_and_reason() {
    let _turn = lab::together();
    let folder = lab::temp_dir("config");
    let file = folder.path().join("agent.yaml");
    std::fs::write(&file, "filesystem: {pathes: [/]}").unwrap();
    let file = file.to_str().unwrap();
    for args in [["config", "--config.file", file].as_slice(), &["--config.file", file]] {
        let output = agent(args);
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert_eq!(text.lines().count(), 1, "{text}");
        let expected = format!("controlplane-exporter: {file}: filesystem.pathes: unknown field");
        assert!(text.starts_with(&expected), "{text}");
    }
    let missing = agent(&["config", "--config.file", "/nonexistent.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("/nonexistent.yaml: No such file"), "{}", stderr(&missing));
}

#[test]
fn a_port_that_is_taken_is_named_with_the_way_out() {
    let _turn = lab::together();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = agent(&["--web.listen-address", &address]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains(&format!("listening on {address}")), "{text}");
    assert!(text.contains("--web.listen-address") && text.contains("in use"), "{text}");
}

#[test]
fn two_agents_on_one_node_do_not_disturb_each_other() {
    let _turn = lab::together();
    let (one, two) = (Agent::start(""), Agent::start(""));
    for agent in [&one, &two] {
        let up = [("sampler", "exporter")];
        agent.wait_value("controlplane_sampler_up", &up, 1.0, 10 * SECOND);
    }
}

#[test]
fn an_unreachable_root_starts_normally_and_says_so() {
    let _turn = lab::together();
    let options = Options { rootfs: Some("/nonexistent/root".into()), ..Options::default() };
    let agent = Agent::start_with(options);
    agent.wait_value("controlplane_sampler_up", &[("sampler", "exporter")], 1.0, 10 * SECOND);
    let scrape = agent.scrape();
    let node = scrape.all("controlplane_exporter_node_info", &[("distribution", "none")]);
    assert_eq!(node.len(), 1, "{}", scrape.text);
    assert_eq!(agent.get("/-/healthy").unwrap().status, 200);
}

#[test]
fn sigterm_ends_it_with_0_within_five_seconds_even_with_clients_connected() {
    let _turn = lab::together();
    let mut agent = Agent::start("");
    // One silent client, and one in the middle of its request.
    let _silent = TcpStream::connect(agent.address()).unwrap();
    let mut slow = TcpStream::connect(agent.address()).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").unwrap();
    let started = Instant::now();
    let status = agent.stop(5 * SECOND);
    assert_eq!(status.code(), Some(0));
    assert!(started.elapsed() < 5 * SECOND);
}

#[test]
fn systemd_hears_that_it_is_ready_that_it_lives_and_that_it_reloads() {
    let _turn = lab::together();
    let folder = lab::temp_dir("notify");
    let path = folder.path().join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(5 * SECOND)).unwrap();
    let env = [
        ("NOTIFY_SOCKET".to_owned(), path.to_str().unwrap().to_owned()),
        ("WATCHDOG_USEC".to_owned(), "400000".to_owned()),
    ];
    let agent = Agent::start_with(Options { env: env.into(), ..Options::default() });
    let hear = |wanted: &str| {
        for _ in 0..100 {
            let mut buffer = [0; 512];
            let n = socket.recv(&mut buffer).expect("a message of the agent");
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
        panic!("systemd never heard {wanted}");
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    agent.signal(Signal::HUP);
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    hear("READY=1");
    agent.signal(Signal::TERM);
    hear("STOPPING=1");
}

#[test]
fn inspect_says_what_was_found_and_what_each_sampler_does() {
    let _turn = lab::together();
    let output = agent(&["inspect", "--path.rootfs", "/nonexistent/root"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("No Kubernetes control plane was found below /nonexistent/root"));
    assert!(text.contains("host: {distribution: k3s"), "what to write:\n{text}");
    assert!(text.contains("no such directory; check --path.rootfs"), "{text}");
    for (name, _) in controlplane_exporter::samplers::ALL {
        assert!(text.contains(&format!("  {name}")), "{name} is missing:\n{text}");
    }
}

#[test]
fn each_line_of_inspect_that_is_not_well_says_what_would_fix_it() {
    let _turn = lab::together();
    let folder = lab::temp_dir("inspect");
    let root = copied_fixture(folder.path());
    // A k3s that does not run, whose sampler of syncs somebody switched off.
    for entry in std::fs::read_dir(root.join("proc")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().chars().all(|c| c.is_ascii_digit()) {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, "fdatasync: {enabled: false}\n").unwrap();
    let file = format!("--config.file={}", config.display());
    let output = agent(&["inspect", "--path.rootfs", root.to_str().unwrap(), &file]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for expected in [
        "k3s (version unknown; set host.version)\n",
        "  running        no process seen; `systemctl status k3s.service` says why\n",
        "  fdatasync      off             set fdatasync.enabled to true to switch it on\n",
        "  snap           not applicable  no snap of a Kubernetes distribution is installed; name others in `snap.snaps`\n",
    ] {
        assert!(text.contains(expected), "{expected} is missing:\n{text}");
    }
}

/// A copy of the fixture of a k3s server, below `folder`.
fn copied_fixture(folder: &std::path::Path) -> std::path::PathBuf {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/host/k3s-etcd");
    let root = folder.join("root");
    lab::process::run("cp", ["-a", fixture, root.to_str().unwrap()]);
    root
}

#[test]
fn a_worker_that_hangs_shows_its_age_and_delays_neither_scrape_nor_exit() {
    let _turn = lab::alone();
    let folder = lab::temp_dir("stuck");
    let root = copied_fixture(folder.path());
    // Opening a pipe that nobody writes to holds the thread that reads it.
    let pipe = root.join("proc/diskstats");
    std::fs::remove_file(&pipe).unwrap();
    lab::process::run("mkfifo", [pipe.to_str().unwrap()]);
    let mut agent = Agent::start_with(Options {
        config: "fdatasync: {interval: 500ms, timeout: 100ms}".into(),
        rootfs: Some(root),
        ..Options::default()
    });
    let sampler = [("sampler", "fdatasync")];
    let inflight = "controlplane_sampler_inflight_seconds";
    let scrape = agent.wait_until("the age of the hung run", inflight, 10 * SECOND, |scrape| {
        scrape.value(inflight, &sampler).is_some_and(|age| age > 2.0)
    });
    let late = [("sampler", "fdatasync"), ("reason", "deadline")];
    let failures = "controlplane_sampler_failures_total";
    assert_eq!(scrape.value(failures, &late), Some(1.0), "counted once");
    assert_eq!(scrape.value("controlplane_sampler_up", &sampler), Some(0.0));
    let other = [("sampler", "exporter")];
    assert_eq!(scrape.value("controlplane_sampler_up", &other), Some(1.0));
    let quick = |_| {
        let started = Instant::now();
        agent.scrape();
        started.elapsed()
    };
    lab::assert_quick((0..10).map(quick).collect());
    let started = Instant::now();
    assert_eq!(agent.stop(5 * SECOND).code(), Some(0));
    assert!(started.elapsed() < 5 * SECOND);
}

#[test]
fn a_filesystem_that_has_given_up_takes_away_nothing_that_is_known_of_the_node() {
    let _turn = lab::alone();
    let disk = Disk::with(Kind::Xfs);
    let data = disk.mount().path();
    std::fs::create_dir_all(data.join("server/db")).unwrap();
    std::fs::write(data.join("server/db/state.db"), "SQLite format 3").unwrap();
    let agent = Agent::start(&format!("host: {{distribution: k3s, data_dir: {}}}", data.display()));
    let node = "controlplane_exporter_node_info";
    agent.wait_value(node, &[("datastore", "sqlite")], 1.0, 10 * SECOND);

    lab::process::run("xfs_io", ["-x", "-c", "shutdown -f", data.to_str().unwrap()]);
    // A reload looks at the node too.
    let taken = http::request(agent.address(), "POST", "/-/reload", &[], 10 * SECOND).unwrap();
    assert_eq!(taken.status, 200);
    let status = agent.get("/api/v1/status").unwrap().text();
    assert!(status.contains("could not be examined: Input/output error"), "{status}");
    assert_eq!(agent.scrape().value(node, &[("datastore", "sqlite")]), Some(1.0), "{status}");
}

#[test]
fn a_datastore_disk_that_hangs_at_start_keeps_nobody_from_asking_nor_from_ending_it() {
    let _turn = lab::alone();
    let disk = SlowDisk::new();
    let data = disk.mount().path().join("a/b/k3s");
    std::fs::create_dir_all(data.join("server/db/etcd/member/wal")).unwrap();
    // Freezing empties the journal, which would keep the directories in memory.
    for step in ["-f", "-u"] {
        lab::process::run("fsfreeze", [step, disk.mount().path().to_str().unwrap()]);
    }
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    // The program is not what is to be slow.
    std::fs::read(env!("CARGO_BIN_EXE_controlplane-exporter")).unwrap();
    let hang = Fault { hang: true, ..Fault::default() };
    disk.file().faults().set(Operation::Read, hang);

    let config = format!("host: {{distribution: k3s, data_dir: {}}}", data.display());
    let started = Instant::now();
    let mut agent = Agent::start(&config);
    assert!(started.elapsed() < 4 * SECOND, "it serves before it looks: {:?}", started.elapsed());
    assert_eq!(agent.get("/-/healthy").unwrap().status, 200);
    agent.wait_value("controlplane_sampler_up", &[("sampler", "kernel")], 1.0, 15 * SECOND);
    assert!(agent.log().contains("cannot be looked at"), "{}", agent.log());
    assert!(disk.file().faults().waiting() > 0, "nothing hangs");
    // It says so where people look, and not that there is nothing.
    agent.wait_value("controlplane_sampler_up", &[("sampler", "exporter")], 0.0, 15 * SECOND);
    let status = agent.get("/api/v1/status").unwrap().text();
    assert!(status.contains("looking for the node's files"), "{status}");
    assert!(!status.contains("none was found"), "{status}");
    let page = agent.get("/").unwrap().text();
    assert!(page.contains("Nothing is known of this node") && !page.contains("No Kubernetes"));
    assert_eq!(agent.stop(5 * SECOND).code(), Some(0));
    TcpListener::bind(agent.address()).expect("the port is free at once");
    disk.release();
}

#[test]
fn the_default_port_has_ipv4_also_where_ipv6_is_alone_by_default() {
    let _turn = lab::together();
    let script = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/bindv6only || exit 2
        \"$0\" --web.listen-address=:10379 & agent=$!
        for address in 127.0.0.1 '[::1]'; do
            curl --silent --retry 50 --retry-delay 1 --retry-connrefused \"http://$address:10379/-/healthy\"
        done
        kill $agent; wait $agent";
    let mut command = bound_command("unshare");
    command.args(["--net", "sh", "-c", script, env!("CARGO_BIN_EXE_controlplane-exporter")]);
    let ended = lab::process::output(command, 30 * SECOND);
    assert_eq!(ended.stdout, "healthy\nhealthy\n", "{}", ended.stderr);
}

/// One request on a connection that stays open, and the status line of its answer.
fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"healthy\n") {
        let mut part = [0; 1024];
        let n = stream.read(&mut part).unwrap();
        assert_ne!(n, 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend(&part[..n]);
    }
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn who_does_not_end_a_request_is_cut_off_and_an_idle_connection_stays() {
    let _turn = lab::together();
    let agent = Agent::start("");
    let connect = || {
        let stream = TcpStream::connect(agent.address()).unwrap();
        stream.set_read_timeout(Some(20 * SECOND)).unwrap();
        stream
    };
    let mut idle = connect();
    assert_eq!(ask(&mut idle, "/-/healthy"), "HTTP/1.1 200 OK");
    let half = b"GET /metrics HTTP/1.1\r\nHost: x\r\n";
    let silent = connect();
    let mut first = connect();
    first.write_all(half).unwrap();
    let mut second = connect();
    ask(&mut second, "/-/healthy");
    second.write_all(half).unwrap();
    let started = Instant::now();
    // One that sends a byte now and then must not buy time with it.
    let mut dripping = connect();
    while started.elapsed() < 9 * SECOND {
        dripping.write_all(b"G").unwrap();
        std::thread::sleep(SECOND / 4);
    }
    for (what, mut stream) in
        [("silent", silent), ("half", first), ("half of a second", second), ("drips", dripping)]
    {
        let mut rest = Vec::new();
        // A reset is an end as well.
        stream.read_to_end(&mut rest).ok();
        let after = started.elapsed();
        assert!(after > 9 * SECOND && after < 14 * SECOND, "{what}: {after:?}");
    }
    std::thread::sleep((15 * SECOND).saturating_sub(started.elapsed()));
    assert_eq!(ask(&mut idle, "/-/healthy"), "HTTP/1.1 200 OK");
}

/// What a line of `/proc/PID/status` says, in KiB.
fn status_kib(agent: &Agent, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn memory_is_locked_where_that_is_safe_and_only_there() {
    let _turn = lab::together();
    lab::need_root("locking memory");
    let agent = Agent::start("");
    let locked = status_kib(&agent, "VmLck");
    assert!(locked > 1024, "{locked} KiB: {}", agent.log());
    // What comes from a disk is there as a whole; what is only reserved takes no memory.
    let maps = Process::new(agent.pid().cast_signed()).unwrap().smaps().unwrap();
    let code = maps.iter().find(|map| map.perms.contains(MMPermissions::EXECUTE)).unwrap();
    let figure = |name: &str| code.extension.map[name];
    assert_eq!((figure("Rss"), figure("Locked") > 0), (code.address.1 - code.address.0, true));
    assert!(status_kib(&agent, "VmRSS") < locked, "{}", agent.log());

    // Without the right, and with a limit under which the lock would succeed and threads would fail.
    let through = "prlimit --memlock=65536:65536 setpriv --bounding-set=-ipc_lock \
                   --inh-caps=-ipc_lock --";
    let through = through.split_whitespace().map(str::to_owned).collect();
    let limited = Agent::start_with(Options { through, ..Options::default() });
    let up = [("sampler", "exporter")];
    limited.wait_value("controlplane_sampler_up", &up, 1.0, 10 * SECOND);
    assert_eq!(status_kib(&limited, "VmLck"), 0);
    assert_eq!(limited.log().matches("memory is not locked").count(), 1, "{}", limited.log());
}

#[test]
fn a_sampler_that_fails_writes_one_line_and_one_when_it_works_again() {
    let _turn = lab::together();
    for format in ["logfmt", "json"] {
        let root = lab::temp_dir("log");
        let config = format!("log: {{format: {format}}}\nkernel: {{interval: 100ms}}");
        let rootfs = Some(root.path().to_owned());
        let agent = Agent::start_with(Options { config, rootfs, ..Options::default() });
        let kernel = [("sampler", "kernel")];
        let runs = "controlplane_sampler_runs_total";
        agent.wait_until("many runs", runs, 20 * SECOND, |scrape| {
            scrape.value(runs, &kernel).is_some_and(|n| n >= 25.0)
        });
        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/kmsg"), "").unwrap();
        agent.wait_value("controlplane_sampler_up", &kernel, 1.0, 10 * SECOND);
        std::thread::sleep(SECOND / 2);
        let log = agent.log();
        let lines: Vec<BTreeMap<String, String>> = log.lines().map(|l| fields(format, l)).collect();
        for line in &lines {
            for key in ["level", "message"] {
                let known = line.contains_key(key) || line.contains_key("msg");
                assert!(known, "{key} is missing in {line:?}");
            }
        }
        let about =
            |line: &&BTreeMap<String, String>| line.get("sampler").is_some_and(|s| s == "kernel");
        let told: Vec<_> = lines.iter().filter(about).collect();
        let message = |line: &BTreeMap<String, String>| {
            line.get("message").or_else(|| line.get("msg")).cloned().unwrap_or_default()
        };
        assert_eq!(told.len(), 2, "{log}");
        assert_eq!((message(told[0]), message(told[1])), ("failing".into(), "works again".into()));
        assert_eq!(told[0].get("reason").map(String::as_str), Some("not_found"));
        assert!(told[0]["error"].contains("dev/kmsg"), "{log}");
    }
}

/// The fields of a log line; fails unless it is what its format says.
fn fields(format: &str, line: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    if format == "json" {
        let json: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for (key, value) in json {
            fields.insert(key, value.as_str().map_or(value.to_string(), str::to_owned));
        }
        return fields;
    }
    let mut rest = line.trim_end();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').unwrap_or_else(|| panic!("no logfmt: {line}"));
        assert!(!key.contains([' ', '"']), "no logfmt: {line}");
        let end = if after.starts_with('"') {
            let mut escaped = false;
            let close = after.char_indices().skip(1).find(|(_, c)| {
                let closes = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                closes
            });
            close.unwrap_or_else(|| panic!("an open quote: {line}")).0 + 1
        } else {
            after.find(' ').unwrap_or(after.len())
        };
        fields.insert(key.to_owned(), after[..end].trim_matches('"').to_owned());
        rest = after[end..].trim_start_matches(' ');
    }
    fields
}

#[test]
fn a_configuration_file_that_goes_bad_is_told_and_the_agent_goes_on() {
    let _turn = lab::together();
    let mut agent = Agent::start("exporter: {interval: 5s}");
    let file = agent.config_file();
    let reload = || http::request(agent.address(), "POST", "/-/reload", &[], 10 * SECOND).unwrap();
    let refused = |what: &str| {
        let answer = reload();
        let text = answer.text();
        assert_eq!((answer.status, text.lines().count()), (500, 1), "{text}");
        assert!(text.contains(&format!("{}: ", file.display())) && text.contains(what), "{text}");
    };
    std::fs::write(&file, b"\x7fELF\0\xff\xfe").unwrap();
    refused("no text");
    std::fs::remove_file(&file).unwrap();
    refused("No such file");
    std::fs::create_dir(&file).unwrap();
    refused("Is a directory");
    std::fs::remove_dir(&file).unwrap();
    // A file that nobody ever answers for, as on a disk that hangs.
    lab::process::run("mkfifo", [file.to_str().unwrap()]);
    refused("no answer within");
    assert_eq!(agent.scrape().value(RELOAD_OK, &[]), Some(0.0));
    let address = agent.address();
    let waiting = std::thread::spawn(move || {
        drop(http::request(address, "POST", "/-/reload", &[], 10 * SECOND));
    });
    std::thread::sleep(SECOND / 2);
    assert_eq!(agent.stop(5 * SECOND).code(), Some(0), "in the middle of a reload");
    waiting.join().unwrap();
}

#[test]
fn reloads_at_once_switch_samplers_and_units_while_another_sampler_hangs() {
    let _turn = lab::alone();
    let folder = lab::temp_dir("reload");
    let root = copied_fixture(folder.path());
    let pipe = root.join("proc/diskstats");
    std::fs::remove_file(&pipe).unwrap();
    lab::process::run("mkfifo", [pipe.to_str().unwrap()]);
    let mut agent = Agent::start_with(Options {
        config: "fdatasync: {interval: 500ms, timeout: 100ms}\nsystemd: {units: [dbus.service]}"
            .into(),
        rootfs: Some(root),
        ..Options::default()
    });
    let stuck = [("sampler", "fdatasync")];
    let inflight = "controlplane_sampler_inflight_seconds";
    agent.wait_until("a hung run", inflight, 10 * SECOND, |scrape| {
        scrape.value(inflight, &stuck).is_some_and(|age| age > 1.0)
    });
    agent.write_config(
        "fdatasync: {interval: 700ms, timeout: 100ms}\nsystemd: {units: [cron.service]}\n\
         snap: {enabled: false}\nfilesystem: {enabled: false}",
    );
    let address = agent.address();
    let reloads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                http::request(address, "POST", "/-/reload", &[], 20 * SECOND).unwrap().status
            })
        })
        .collect();
    agent.signal(Signal::HUP);
    for reload in reloads {
        assert_eq!(reload.join().unwrap(), 200);
    }
    let state = "controlplane_sampler_state_info";
    let off = |name: &str| [("sampler", name.to_owned()), ("state", "off".to_owned())];
    let scrape = agent.scrape();
    for name in ["snap", "filesystem"] {
        let labels = off(name);
        let labels = [(labels[0].0, &*labels[0].1), (labels[1].0, &*labels[1].1)];
        assert_eq!(scrape.value(state, &labels), Some(1.0), "{name}");
    }
    assert_eq!(scrape.all("controlplane_filesystem_size_bytes", &[]).len(), 0);
    assert!(
        scrape.value(inflight, &stuck).is_some_and(|age| age > 1.0),
        "the hung run is still shown, and no second one was started"
    );
    agent.write_config("filesystem: {interval: 3s}");
    agent.signal(Signal::HUP);
    agent.wait_value(INTERVAL, &[("sampler", "filesystem")], 3.0, 10 * SECOND);
    agent.wait_value("controlplane_sampler_up", &[("sampler", "filesystem")], 1.0, 10 * SECOND);
    assert_eq!(agent.stop(5 * SECOND).code(), Some(0));
}

#[test]
fn inspect_by_somebody_else_names_what_it_may_not_read_and_the_command_that_helps() {
    let _turn = lab::together();
    lab::need_root("becoming another user");
    let folder = lab::temp_dir("inspect");
    let root = copied_fixture(folder.path());
    let program = folder.path().join("controlplane-exporter");
    std::fs::copy(env!("CARGO_BIN_EXE_controlplane-exporter"), &program).unwrap();
    std::fs::create_dir_all(root.join("dev")).unwrap();
    std::fs::write(root.join("dev/kmsg"), "").unwrap();
    let key = root.join("var/lib/rancher/k3s/server/tls/etcd/client.key");
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(folder.path(), 0o755);
    mode(&key, 0o600);
    mode(&root.join("dev/kmsg"), 0o600);
    let inspect = |user: &str| {
        let mut command = lab::process::bound_command(lab::program("setpriv"));
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        command.arg(&program).args(["inspect", "--path.rootfs"]).arg(&root);
        let output = lab::process::output(command, 20 * SECOND);
        assert!(output.status.success(), "{}", output.stderr);
        output.stdout
    };
    let text = inspect("65534");
    for expected in [
        "  kernel         no permission   see below\n",
        "  /dev/kmsg: permission denied, for kernel\n",
        "  /var/lib/rancher/k3s/server/tls/etcd/client.key: permission denied, for etcd and registry_keys\n",
        "  /var/lib/rancher/k3s/server/db: permission denied, for fdatasync\n",
        &format!("\n  sudo {}\n", program.display()),
        "  CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_SYSLOG\n  \
           AmbientCapabilities=CAP_DAC_READ_SEARCH CAP_SYSLOG\n",
        "with-datastore-disk.conf",
    ] {
        assert!(text.contains(expected), "{expected} is missing:\n{text}");
    }
    assert!(!text.contains("client.crt: permission"), "that one may be read:\n{text}");
    let text = inspect("0");
    assert!(!text.contains("permission"), "root may read all of it:\n{text}");
}

#[test]
fn what_detection_could_not_read_is_on_the_page_and_in_inspect() {
    let _turn = lab::together();
    let folder = lab::temp_dir("notes");
    let root = copied_fixture(folder.path());
    let file = root.join("etc/rancher/k3s/config.yaml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "token: [SECRET").unwrap();
    let said = "/etc/rancher/k3s/config.yaml";
    let text = agent(&["inspect", "--path.rootfs", root.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let notes = text.split_once("\nNotes\n").unwrap_or_else(|| panic!("no notes:\n{text}")).1;
    assert!(notes.contains(said), "{text}");
    let agent = Agent::start_with(Options { rootfs: Some(root), ..Options::default() });
    lab::wait_for("the note on the page", 10 * SECOND, || {
        let page = agent.get("/")?.text();
        let notes = page.split_once("Notes of detection").map(|(_, notes)| notes.to_owned());
        notes.filter(|notes| notes.contains(said)).ok_or(page)
    });
    assert_eq!(agent.log().matches("detection").count(), agent.log().matches("note=").count());
    for text in [text, agent.get("/").unwrap().text(), agent.log()] {
        assert!(!text.contains("SECRET"), "{text}");
    }
}
