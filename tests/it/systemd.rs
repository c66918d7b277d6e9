//! The sampler `systemd` against a systemd that is PID 1 of a container.

use crate::lab;
use crate::lab::agent::{Agent, Options, Scrape};
use crate::lab::http;
use crate::lab::process::{Daemon, bound_command};
use crate::lab::systemd::Container;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const NRESTARTS: &str = "controlplane_systemd_unit_nrestarts";
const RESTARTS: &str = "controlplane_systemd_unit_restarts_total";
const STATE: &str = "controlplane_systemd_unit_state";
const LOADED: &str = "controlplane_systemd_unit_loaded";
const EXPECTED: &str = "controlplane_systemd_unit_expected";
const SINCE: &str = "controlplane_systemd_unit_state_since_timestamp_seconds";
const EXIT: &str = "controlplane_systemd_unit_last_exit_info";
const EXIT_TIME: &str = "controlplane_systemd_unit_last_exit_timestamp_seconds";
const AGENT: &str = env!("CARGO_BIN_EXE_controlplane-exporter");
const LIMIT: Duration = Duration::from_secs(15);

/// A service that runs this in a shell, as often as systemd is told to.
fn service(section: &str, script: &str) -> String {
    let script = script.replace('$', "$$");
    format!(
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\n{section}\nExecStart=/bin/sh -c '{script}'\n"
    )
}

fn config(bus: &str, units: &[&str]) -> String {
    format!("systemd: {{units: {units:?}, bus: \"{bus}\", interval: 500ms, timeout: 1s}}\n")
}

/// An agent that watches these units of the container.
fn agent(container: &Container, units: &[&str]) -> Agent {
    Agent::start(&config(&container.bus_address(), units))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The one state that a unit is in.
#[track_caller]
fn state(scrape: &Scrape, unit: &str) -> String {
    let all = scrape.all(STATE, &[("unit", unit)]);
    assert_eq!(all.len(), 7, "{unit} has {all:?}");
    let current: Vec<_> = all.iter().filter(|sample| sample.value > 0.0).collect();
    assert_eq!(current.len(), 1, "{unit} is in several states or in none: {all:?}");
    current[0].labels["state"].clone()
}

/// `code` and `status` of a unit's last exit, or nothing.
fn exit(scrape: &Scrape, unit: &str) -> String {
    let all = scrape.all(EXIT, &[("unit", unit)]);
    assert!(all.len() <= 1, "several last exits: {all:?}");
    all.first().map_or_else(String::new, |exit| {
        format!("{} {}", exit.labels["code"], exit.labels["status"])
    })
}

#[test]
fn every_way_in_which_a_unit_can_end_or_not_begin_is_told_apart() {
    let _turn = lab::together();
    let container = Container::boot();
    let go = "trap \"exit 2\" BUS; kill -BUS $$; sleep 9";
    let units = [
        ("sigbus.service", service("", "kill -BUS $$")),
        ("killed.service", service("", "kill -KILL $$")),
        // What the Go runtime makes of a signal that it cannot handle.
        ("goish.service", service("", go)),
        ("done.service", service("", "exit 0")),
        ("stuck.service", service("Type=notify\nTimeoutStartSec=infinity", "sleep 999")),
        ("running.service", service("", "sleep 999")),
        ("broken.service", "[Service]\nType=nonsense\n".to_owned()),
        ("door.socket", "[Socket]\nListenStream=/run/door\n".to_owned()),
        ("door.service", service("", "sleep 999")),
    ];
    for (name, text) in &units {
        container.install_unit(name, text);
    }
    container.systemctl(&["mask", "--quiet", "masked.service"]);
    let mut names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    names.extend(["masked.service", "missing.service"]);
    let agent = agent(&container, &names);
    agent.wait_value(LOADED, &[("unit", "done.service")], 1.0, LIMIT);
    let before = now();
    for started in ["sigbus", "killed", "goish", "done", "stuck", "running", "door.socket"] {
        container.systemctl(&["start", "--no-block", started]);
    }
    let scrape = agent.wait_until("the last exit of each", STATE, LIMIT, |scrape| {
        ["sigbus", "killed", "goish", "done"]
            .iter()
            .all(|unit| !exit(scrape, &format!("{unit}.service")).is_empty())
            && state(scrape, "stuck.service") == "activating"
            && ["running.service", "door.socket"].iter().all(|unit| state(scrape, unit) == "active")
    });
    let told_of = |unit: &str| (state(&scrape, unit), exit(&scrape, unit));
    let of = |state: &str, exit: &str| (state.to_owned(), exit.to_owned());
    assert_eq!(told_of("sigbus.service"), of("failed", "killed BUS"));
    assert_eq!(told_of("killed.service"), of("failed", "killed KILL"));
    assert_eq!(told_of("goish.service"), of("failed", "exited 2"));
    assert_eq!(told_of("done.service"), of("inactive", "exited 0"));
    assert_eq!(told_of("stuck.service"), of("activating", ""));
    assert_eq!(told_of("running.service"), of("active", ""));
    assert_eq!(told_of("missing.service"), of("inactive", ""));
    assert_eq!(told_of("masked.service"), of("inactive", ""));
    assert_eq!(told_of("door.socket"), of("active", ""));
    for name in &names {
        let absent = ["missing.service", "masked.service", "broken.service"].contains(name);
        let unit = [("unit", *name)];
        assert_eq!(scrape.value(LOADED, &unit), Some(f64::from(u8::from(!absent))), "{name}");
        assert_eq!(scrape.value(EXPECTED, &unit), Some(1.0), "{name}");
    }
    for name in ["sigbus.service", "done.service"] {
        let at = scrape.value(EXIT_TIME, &[("unit", name)]).unwrap();
        assert!((before - 1.0..now()).contains(&at), "{name} ended at {at}, started at {before}");
    }
    let at = scrape.value(EXIT_TIME, &[("unit", "sigbus.service")]).unwrap();
    let since = scrape.value(SINCE, &[("unit", "sigbus.service")]).unwrap();
    assert!((at - 0.1..now()).contains(&since), "it changed at {since}, and ended at {at}");
    // Unit files that were never loaded have no change of state, and sockets do not restart.
    assert_eq!(scrape.value(SINCE, &[("unit", "missing.service")]), None);
    assert_eq!(scrape.value(NRESTARTS, &[("unit", "missing.service")]), None);
    assert_eq!(scrape.value(RESTARTS, &[("unit", "door.socket")]), None);
    assert_eq!(scrape.value(NRESTARTS, &[("unit", "running.service")]), Some(0.0));
    assert_eq!(scrape.value(RESTARTS, &[("unit", "running.service")]), Some(0.0));
    let up = [("sampler", "systemd")];
    assert_eq!(scrape.value("controlplane_sampler_up", &up), Some(1.0));
    assert!(scrape.sum("controlplane_sampler_failures_total", &up) < 1.0);
}

#[test]
fn an_exit_from_before_the_agent_is_told_while_systemd_remembers_it() {
    let _turn = lab::together();
    let container = Container::boot();
    let text = service("", "exit 0") + "[Install]\nWantedBy=multi-user.target\n";
    container.install_unit("k3s.service", &text);
    container.systemctl(&["enable", "--quiet", "--now", "k3s.service"]);
    let agent = agent(&container, &["k3s"]);
    let scrape = agent
        .wait_until("the exit", EXIT, LIMIT, |scrape| exit(scrape, "k3s.service") == "exited 0");
    assert_eq!(state(&scrape, "k3s.service"), "inactive");
    assert_eq!(scrape.value(LOADED, &[("unit", "k3s.service")]), Some(1.0));
}

#[test]
fn a_crash_loop_at_systemds_fastest_loses_neither_restarts_nor_the_last_exit() {
    let _turn = lab::together();
    let container = Container::boot();
    // Runs longer than it waits, so that most looks find it running, its last exit forgotten.
    let section = "Restart=always\nRestartSec=100ms";
    container.install_unit("fast.service", &service(section, "sleep 0.3; kill -BUS $$"));
    let section = "Restart=always\nRestartSec=1s";
    container.install_unit("slow.service", &service(section, "exit 3"));
    let (fast, slow) = ([("unit", "fast.service")], [("unit", "slow.service")]);
    container.systemctl(&["start", "--no-block", "fast", "slow"]);
    let agent = agent(&container, &["fast.service", "slow.service"]);
    let first = agent.wait_until("the first look", RESTARTS, LIMIT, |scrape| {
        scrape.value(RESTARTS, &fast).is_some()
    });
    let offset = first.value(NRESTARTS, &fast).unwrap() - first.value(RESTARTS, &fast).unwrap();
    let mut exits = BTreeSet::new();
    let mut running = 0;
    let started = Instant::now();
    let scrape = loop {
        assert!(
            started.elapsed() < LIMIT * 2,
            "{} exits, {running} times found running\n{}",
            exits.len(),
            agent.scrape().with_prefix(RESTARTS)
        );
        std::thread::sleep(Duration::from_millis(100));
        let scrape = agent.scrape();
        let restarts = scrape.value(RESTARTS, &fast).unwrap();
        assert_eq!(scrape.value(NRESTARTS, &fast), Some(restarts + offset));
        let last = exit(&scrape, "fast.service");
        if !last.is_empty() {
            assert_eq!(last, "killed BUS");
            exits.insert(scrape.value(EXIT_TIME, &fast).unwrap().to_bits());
            running += usize::from(state(&scrape, "fast.service") == "active");
        }
        let restarted = restarts >= 12.0 && scrape.value(RESTARTS, &slow).unwrap() >= 2.0;
        // Its last exit was told again and again, also while it was running.
        if restarted && exits.len() >= 5 && running >= 5 {
            break scrape;
        }
    };
    assert_eq!(exit(&scrape, "slow.service"), "exited 3");

    // Starting it by hand sets systemd's figure back, not ours.
    let before = scrape.value(RESTARTS, &fast).unwrap();
    container.systemctl(&["stop", "fast.service"]);
    container.systemctl(&["start", "fast.service"]);
    let scrape = agent.wait_until("the reset", NRESTARTS, LIMIT, |scrape| {
        scrape.value(NRESTARTS, &fast).unwrap() < before
    });
    assert!(scrape.value(RESTARTS, &fast).unwrap() >= before);
    // Nor does building the sampler anew, for other units.
    agent.write_config(&config(&container.bus_address(), &["fast", "slow", "dbus.service"]));
    agent.signal(Signal::HUP);
    let scrape = agent.wait_value(LOADED, &[("unit", "dbus.service")], 1.0, LIMIT);
    assert!(scrape.value(RESTARTS, &fast).unwrap() >= before);
    assert_ne!(exit(&scrape, "fast.service"), "");
    let status = agent.get("/api/v1/status").unwrap().text();
    assert!(status.contains("fast.service was killed by signal BUS"), "{status}");
    assert!(status.contains("slow.service was restarted"), "{status}");
}

#[test]
fn a_glob_finds_the_units_that_are_loaded_and_they_are_not_expected() {
    let _turn = lab::together();
    let container = Container::boot();
    for name in ["k3s.service", "k3s-second.service", "other.service"] {
        container.install_unit(name, &service("", "sleep 999"));
        container.systemctl(&["start", name]);
    }
    let agent = agent(&container, &["k3s*.service", "k3s.service"]);
    let scrape = agent.wait_value(LOADED, &[("unit", "k3s-second.service")], 1.0, LIMIT);
    assert_eq!(scrape.all(LOADED, &[]).len(), 2, "{}", scrape.with_prefix(LOADED));
    assert_eq!(scrape.value(EXPECTED, &[("unit", "k3s-second.service")]), Some(0.0));
    assert_eq!(scrape.value(EXPECTED, &[("unit", "k3s.service")]), Some(1.0));
}

#[test]
fn counts_go_on_when_the_bus_daemon_is_restarted() {
    let _turn = lab::together();
    let container = Container::boot();
    let section = "Restart=always\nRestartSec=300ms";
    container.install_unit("loop.service", &service(section, "exit 4"));
    container.systemctl(&["start", "--no-block", "loop.service"]);
    let unit = [("unit", "loop.service")];
    let agent = agent(&container, &["loop.service"]);
    let restarts = |scrape: &Scrape| scrape.value(RESTARTS, &unit);
    agent.wait_until("a few restarts", RESTARTS, LIMIT, |s| restarts(s) >= Some(3.0));
    // systemctl could not tell of the end of its job over the bus that it stops.
    let daemon = pid_in(&container, "dbus-daemon");
    kill_process(daemon, Signal::KILL).unwrap();
    let before = restarts(&agent.scrape()).unwrap();
    let up = [("sampler", "systemd")];
    let scrape = agent.wait_until("restarts over the new bus", RESTARTS, LIMIT, |s| {
        restarts(s) >= Some(before + 4.0) && s.value("controlplane_sampler_up", &up) == Some(1.0)
    });
    assert_ne!(pid_in(&container, "dbus-daemon"), daemon);
    // The signals of the new connection work as those of the first did.
    let last = scrape.value(EXIT_TIME, &unit);
    agent.wait_until("a later exit", EXIT_TIME, LIMIT, |s| s.value(EXIT_TIME, &unit) > last);
}

#[test]
fn a_bus_that_is_silent_costs_one_timeout_and_no_scrape_waits_for_it() {
    let _turn = lab::alone();
    let container = Container::boot();
    container.install_unit("running.service", &service("", "sleep 999"));
    container.systemctl(&["start", "running.service"]);
    let agent = agent(&container, &["running.service"]);
    agent.wait_value(STATE, &[("unit", "running.service"), ("state", "active")], 1.0, LIMIT);
    let descriptors = |scrape: &Scrape| scrape.value("process_open_fds", &[]).unwrap();
    let daemon = pid_in(&container, "dbus-daemon");
    kill_process(daemon, Signal::STOP).unwrap();
    let fails = [("sampler", "systemd"), ("reason", "timeout")];
    let mut times = Vec::new();
    let mut failures = 0.0;
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        let from = Instant::now();
        let scrape = agent.scrape();
        times.push(from.elapsed());
        failures = scrape.sum("controlplane_sampler_failures_total", &fails);
        std::thread::sleep(Duration::from_millis(20));
    }
    let scrape = agent.scrape();
    kill_process(daemon, Signal::CONT).unwrap();
    lab::assert_quick(times);
    // A run takes a second, and the next begins at once.
    assert!((4.0..=9.0).contains(&failures), "{failures} runs failed in 8 s");
    assert!(scrape.sum("controlplane_sampler_failures_total", &[("reason", "deadline")]) < 1.0);
    let up = [("sampler", "systemd")];
    let after = agent.wait_value("controlplane_sampler_up", &up, 1.0, LIMIT);
    // Given-up connections are closed.
    assert!(descriptors(&after) <= descriptors(&scrape) + 2.0);
    assert!(descriptors(&after) < 40.0, "{} descriptors are open", descriptors(&after));
}

#[test]
fn the_private_socket_tells_the_same_without_a_bus() {
    let _turn = lab::together();
    let container = Container::boot();
    let section = "Restart=always\nRestartSec=100ms";
    container.install_unit("fast.service", &service(section, "sleep 0.4; kill -SEGV $$"));
    container.systemctl(&["start", "--no-block", "fast.service"]);
    container.systemctl(&["stop", "dbus.socket", "dbus.service"]);
    // Among the container's processes: systemd does not answer others on this socket.
    let agent = Agent::start_with(Options {
        config: config(&container.private_address(), &["fast.service"]),
        inside: Some(container.leader()),
        ..Options::default()
    });
    let scrape = agent.wait_until("restarts", RESTARTS, LIMIT, |scrape| {
        scrape.value(RESTARTS, &[("unit", "fast.service")]) >= Some(4.0)
            && state(scrape, "fast.service") == "active"
    });
    let last = exit(&scrape, "fast.service");
    assert!(["killed SEGV", "dumped SEGV"].contains(&last.as_str()), "{last}");
}

#[test]
fn the_private_socket_turns_others_than_root_away_and_the_agent_says_so() {
    let _turn = lab::together();
    let container = Container::boot();
    let socket = container.root().join("run/systemd/private");
    // Before 252 everybody could open it, and systemd itself turned them away.
    for mode in [0o600, 0o777] {
        std::fs::set_permissions(&socket, Permissions::from_mode(mode)).unwrap();
        let bus = "unix:path=/run/systemd/private";
        let agent = Nobody::start(&container, bus, "dbus.service");
        let labels = [("sampler", "systemd"), ("reason", "permission")];
        let what = "controlplane_sampler_failures_total";
        agent.wait_until(what, |scrape| scrape.value(what, &labels) > Some(0.0));
        let log = agent.daemon.log();
        assert!(log.contains("set `systemd.bus: system`"), "{log}");
    }
}

#[test]
fn an_agent_without_any_privilege_is_told_everything_over_the_bus() {
    let _turn = lab::together();
    let container = Container::boot();
    let section = "Restart=always\nRestartSec=100ms";
    container.install_unit("fast.service", &service(section, "sleep 0.4; exit 7"));
    container.systemctl(&["start", "--no-block", "fast.service"]);
    let agent = Nobody::start(&container, "system", "fast.service");
    let scrape = agent.wait_until("restarts", |scrape| {
        scrape.value(RESTARTS, &[("unit", "fast.service")]) >= Some(3.0)
            && state(scrape, "fast.service") == "active"
    });
    assert_eq!(exit(&scrape, "fast.service"), "exited 7");
}

#[test]
fn the_manager_of_a_user_is_asked_over_the_bus_of_the_user() {
    let _turn = lab::together();
    let container = Container::boot();
    let run = "XDG_RUNTIME_DIR=/run/user/0";
    // What a login would start.
    container.install_unit(
        "manager.service",
        &format!(
            "[Service]\nType=notify\nDelegate=yes\nEnvironment=HOME=/root {run}\n\
             ExecStartPre=/bin/mkdir -p -m 0700 /run/user/0\n\
             ExecStart=/usr/lib/systemd/systemd --user\n"
        ),
    );
    // As Debian's dbus-user-session has them.
    let bus = "/usr/bin/dbus-daemon --session --address=systemd: --nofork --nopidfile";
    let units = [
        ("dbus.socket", "[Socket]\nListenStream=%t/bus\n".to_owned()),
        ("dbus.service", format!("[Service]\nType=notify\nExecStart={bus}\n")),
        ("own.service", service("Restart=always\nRestartSec=300ms", "exit 4")),
    ];
    for (name, text) in units {
        std::fs::write(container.root().join("etc/systemd/user").join(name), text).unwrap();
    }
    container.systemctl(&["start", "manager.service"]);
    for unit in ["dbus.socket", "dbus.service", "own.service"] {
        let started =
            container.exec(&["env", run, "systemctl", "--user", "start", "--no-block", unit]);
        assert!(started.status.success(), "{unit}: {}", started.stderr);
    }
    let socket = container.root().join("run/user/0/bus");
    let address = format!("unix:path={}", socket.display());
    let agent = Agent::start_with(Options {
        config: config("user", &["own.service"]),
        env: vec![("DBUS_SESSION_BUS_ADDRESS".to_owned(), address)],
        ..Options::default()
    });
    let scrape = agent.wait_until("restarts", RESTARTS, LIMIT, |scrape| {
        scrape.value(RESTARTS, &[("unit", "own.service")]) >= Some(2.0)
    });
    assert_eq!(exit(&scrape, "own.service"), "exited 4");
}

/// An agent without any privilege in the container, for it could not follow `/proc/PID/root`. It
/// listens on this side.
struct Nobody {
    daemon: Daemon,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Nobody {
    #[track_caller]
    fn start(container: &Container, bus: &str, unit: &str) -> Self {
        let there = container.root().join("opt");
        // The file of an agent that runs cannot be written, only replaced.
        std::fs::remove_file(there.join("agent")).ok();
        std::fs::copy(AGENT, there.join("agent")).unwrap();
        std::fs::write(there.join("config.yaml"), config(bus, &[unit])).unwrap();
        let folder = lab::temp_dir("nobody");
        let address = SocketAddr::from(([127, 0, 0, 1], lab::free_port()));
        let mut command = bound_command(lab::program("nsenter"));
        command
            .arg(format!("--target={}", container.leader()))
            .args(["--pid", "--mount", "--root", "--"])
            .args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["/opt/agent", "--config.file=/opt/config.yaml"])
            .arg(format!("--web.listen-address={address}"));
        let daemon = Daemon::start("agent", command, &folder.path().join("agent.log"));
        Self { daemon, address, _folder: folder }
    }

    #[track_caller]
    fn wait_until(&self, what: &str, condition: impl Fn(&Scrape) -> bool) -> Scrape {
        lab::wait_for(what, LIMIT, || {
            let answer = http::get(self.address, "/metrics")?;
            let scrape = Scrape::parse(&answer.text())?;
            if condition(&scrape) { Ok(scrape) } else { Err(self.daemon.describe()) }
        })
    }
}

#[test]
fn the_system_bus_is_looked_for_below_the_root_of_the_host() {
    let _turn = lab::together();
    let container = Container::boot();
    let options = Options {
        config: "systemd: {units: [dbus.service], interval: 500ms}\n".to_owned(),
        rootfs: Some(container.root()),
        ..Options::default()
    };
    let agent = Agent::start_with(options);
    agent.wait_value(STATE, &[("unit", "dbus.service"), ("state", "active")], 1.0, LIMIT);
}

#[test]
fn a_missing_bus_is_a_failure_that_names_its_socket() {
    let _turn = lab::together();
    let folder = lab::temp_dir("nothing");
    let options = Options {
        config: "systemd: {units: [k3s.service], interval: 500ms}\n".to_owned(),
        rootfs: Some(folder.path().to_owned()),
        ..Options::default()
    };
    let agent = Agent::start_with(options);
    let labels = [("sampler", "systemd"), ("reason", "not_found")];
    let what = "controlplane_sampler_failures_total";
    agent.wait_until("failures", what, LIMIT, |scrape| scrape.value(what, &labels) > Some(0.0));
    let socket = folder.path().join("run/dbus/system_bus_socket");
    assert!(agent.log().contains(socket.to_str().unwrap()), "{}", agent.log());
}

#[test]
fn without_units_there_is_nothing_to_watch_and_the_agent_says_what_to_do() {
    let _turn = lab::together();
    let folder = lab::temp_dir("nothing");
    let options = Options { rootfs: Some(folder.path().to_owned()), ..Options::default() };
    let agent = Agent::start_with(options);
    let state = [("sampler", "systemd"), ("state", "not_applicable")];
    agent.wait_value("controlplane_sampler_state_info", &state, 1.0, LIMIT);
    let status = agent.get("/api/v1/status").unwrap().text();
    assert!(status.contains("no units to watch: set systemd.units"), "{status}");
}

/// The process id, on this side, of the container's process of this name.
fn pid_in(container: &Container, comm: &str) -> Pid {
    fn below(pid: u32, comm: &str) -> Option<u32> {
        let own = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if own.trim_end() == comm {
            return Some(pid);
        }
        lab::process::children(pid).into_iter().find_map(|child| below(child, comm))
    }
    let pid = below(container.leader(), comm).unwrap_or_else(|| panic!("no {comm} runs there"));
    Pid::from_raw(pid.cast_signed()).unwrap()
}
