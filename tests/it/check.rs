//! `controlplane-exporter check` as Nagios, NRPE, Icinga and a person run it: with an agent, without one,
//! with etcd dead and with a disk that hangs.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::agent::{Agent, Options};
use crate::lab::disk::{Kind, SlowDisk};
use crate::lab::etcd::{Cluster, Etcd, Listen};
use crate::lab::process::{self, Daemon, bound_command, output};
use crate::lab::{self, free_port, program, temp_dir, wait_for};

const SECOND: Duration = Duration::from_secs(1);
const BINARY: &str = env!("CARGO_BIN_EXE_controlplane-exporter");

/// What a check said.
#[derive(Debug)]
struct Said {
    code: i32,
    text: String,
    errors: String,
    took: Duration,
}

impl Said {
    fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// The value of this name in the performance data.
    fn data(&self, name: &str) -> Option<&str> {
        let (_, data) = self.first_line().split_once(" | ")?;
        data.split(' ').find_map(|item| item.strip_prefix(name)?.strip_prefix('='))
    }
}

fn check_as(binary: &Path, args: &[&str]) -> Said {
    let started = Instant::now();
    let mut command = bound_command(binary);
    command.args(args).env_remove("CONTROLPLANE_EXPORTER__WEB__SOCKET");
    let ended = output(command, 20 * SECOND);
    let code = ended.status.code().unwrap_or(-1);
    Said { code, text: ended.stdout, errors: ended.stderr, took: started.elapsed() }
}

fn check(args: &[&str]) -> Said {
    let mut all = vec!["check"];
    all.extend(args);
    check_as(Path::new(BINARY), &all)
}

/// What a person sees who asks this agent from a terminal; it stays in `target/tmp/check`.
pub(crate) fn show(agent: &Agent, name: &str) {
    let folder = temp_dir("check");
    let file = config_file(folder.path(), &agent.socket(), "");
    let said = check(&["--format=text", "--config.file", file.to_str().unwrap()]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.text.contains("<- it begins here"), "{said:?}");
    let shown = Path::new(env!("CARGO_TARGET_TMPDIR")).join("check");
    fs::create_dir_all(&shown).unwrap();
    fs::write(shown.join(format!("{name}.txt")), said.text).unwrap();
    let line = check(&["--config.file", file.to_str().unwrap()]);
    fs::write(shown.join(format!("{name}.nagios.txt")), line.text).unwrap();
}

/// A configuration file whose socket is `socket`, for a check of its own.
fn config_file(folder: &Path, socket: &Path, sections: &str) -> PathBuf {
    let file = folder.join("check.yaml");
    fs::write(&file, format!("web: {{socket: {}}}\n{sections}", socket.display())).unwrap();
    file
}

fn etcd_section(cluster: &Cluster) -> String {
    format!("etcd: {{endpoints: ['{}'], interval: 500ms, timeout: 2s}}\n", cluster.client_url(0))
}

fn plain_etcd() -> Cluster {
    let options = lab::etcd::Options { listen: Listen::Plain, ..Default::default() };
    Cluster::start_with(Etcd::V35, 1, options)
}

#[test]
fn it_says_what_the_running_agent_sees_and_what_it_sees_itself_without_one() {
    let _lab = lab::together();
    let mut cluster = plain_etcd();
    let folder = temp_dir("check");
    let agent = Agent::start(&etcd_section(&cluster));
    agent.wait_value("controlplane_etcd_up", &[], 1.0, 10 * SECOND);
    let with_agent = config_file(folder.path(), &agent.socket(), &etcd_section(&cluster));
    let with_agent = ["--profile=etcd", "-vvv", "--config.file", with_agent.to_str().unwrap()];
    let alone = temp_dir("check");
    let without = config_file(alone.path(), &alone.path().join("none"), &etcd_section(&cluster));
    let without = ["--profile=etcd", "-vvv", "--config.file", without.to_str().unwrap()];

    let well = check(&with_agent);
    assert_eq!(well.code, 0, "{well:?}");
    assert!(well.first_line().starts_with("CONTROLPLANE ETCD OK: all "), "{well:?}");
    assert!(well.text.contains("OK: etcd member: answers, is the leader"), "{well:?}");
    assert!(well.text.contains("as the running agent sees it"), "{well:?}");
    assert!(
        well.data("db_of_quota").is_some_and(|item| item.ends_with("%;65;80;0;100")),
        "{well:?}"
    );
    let well = check(&without);
    assert_eq!(well.code, 0, "{well:?}");
    assert!(well.text.contains("OK: etcd member: answers, is the leader"), "{well:?}");
    assert!(well.text.contains("one round of samples"), "{well:?}");
    assert!(well.text.contains("no agent on"), "{well:?}");

    cluster.kill(0);
    agent.wait_value("controlplane_etcd_up", &[], 0.0, 10 * SECOND);
    for args in [&with_agent, &without] {
        let dead = check(args);
        assert_eq!(dead.code, 2, "{dead:?}");
        assert!(
            dead.first_line()
                .starts_with("CONTROLPLANE ETCD CRITICAL: etcd member: does not answer"),
            "{dead:?}"
        );
        assert!(dead.text.contains("/ControlPlaneEtcdMemberDown.md"), "{dead:?}");
        assert!(dead.took < 8 * SECOND, "{dead:?}");
    }
}

#[test]
fn an_etcd_that_hangs_is_critical_within_the_deadline() {
    let _lab = lab::together();
    let cluster = plain_etcd();
    cluster.stop(0);
    let folder = temp_dir("check");
    let section = etcd_section(&cluster).replace("timeout: 2s", "timeout: 1m");
    let file = config_file(folder.path(), &folder.path().join("none"), &section);
    let said = check(&["--profile=etcd", "-t", "3", "--config.file", file.to_str().unwrap()]);
    cluster.cont(0);
    assert!(said.took < 4 * SECOND, "{said:?}");
    assert_eq!(said.code, 2, "{said:?}");
    let expected = "CONTROLPLANE ETCD CRITICAL: etcd member: does not answer: no answer within ";
    assert!(said.first_line().starts_with(expected), "{said:?}");
}

#[test]
fn an_etcd_that_hangs_is_critical_with_the_defaults_whoever_looks() {
    let _lab = lab::together();
    let cluster = plain_etcd();
    let section = format!("etcd: {{endpoints: ['{}']}}\n", cluster.client_url(0));
    let folder = temp_dir("check");
    let agent = Agent::start(&section);
    agent.wait_value("controlplane_etcd_up", &[], 1.0, 10 * SECOND);
    let asking = config_file(folder.path(), &agent.socket(), &section);
    let alone = temp_dir("check");
    let own = config_file(alone.path(), &alone.path().join("none"), &section);
    cluster.stop(0);
    // The agent knows after its interval and one time-out.
    agent.wait_value("controlplane_etcd_up", &[], 0.0, 25 * SECOND);
    let said = [&asking, &own]
        .map(|file| check(&["--profile=etcd", "--config.file", file.to_str().unwrap()]));
    cluster.cont(0);
    for said in said {
        assert_eq!(said.code, 2, "{said:?}");
        assert!(
            said.first_line().contains("etcd member: does not answer: no answer within"),
            "{said:?}"
        );
        assert!(said.took < 10 * SECOND, "{said:?}");
    }
}

#[test]
fn a_node_on_which_nothing_is_found_is_not_well() {
    let _lab = lab::together();
    let folder = temp_dir("check");
    let file = config_file(folder.path(), &folder.path().join("none"), "");
    let empty = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host/empty");
    let look = |profile: &str| {
        let rootfs = format!("--path.rootfs={}", empty.display());
        let profile = format!("--profile={profile}");
        check(&[&profile, &rootfs, "-v", "--config.file", file.to_str().unwrap()])
    };
    let said = look("all");
    assert_ne!(said.code, 0, "{said:?}");
    let what =
        "UNKNOWN: control plane or datastore of this node: none was found; set host.distribution";
    assert!(said.text.contains(what) && said.text.contains("etcd.endpoints"), "{said:?}");
    let said = look("etcd");
    assert!(said.code == 3 && said.text.contains(what), "{said:?}");
    let said = look("kernel");
    assert!(!said.text.contains("host.distribution"), "{said:?}");
}

#[test]
fn a_disk_that_hangs_is_found_by_the_agent_and_by_a_check_alone() {
    let _lab = lab::alone();
    lab::need_root("a loop device");
    let disk = SlowDisk::sized(Kind::Ext4, 64 << 20);
    // The user of the monitoring system may write there as well.
    fs::set_permissions(disk.mount().path(), fs::Permissions::from_mode(0o777)).unwrap();
    let section = format!(
        "fdatasync: {{paths: [{}], interval: 200ms}}\nfilesystem: {{enabled: false}}\n",
        disk.mount().path().display()
    );
    let folder = temp_dir("check");
    let plugin = plugin(folder.path());
    let socket = folder.path().join("agent.sock");
    let agent = Agent::start_with(Options {
        config: section.clone(),
        env: vec![("CONTROLPLANE_EXPORTER__WEB__SOCKET".into(), socket.to_str().unwrap().into())],
        ..Options::default()
    });
    agent.wait_until("a sync", "controlplane_fdatasync_", 10 * SECOND, |s| {
        s.sum("controlplane_fdatasync_duration_seconds_count", &[]) > 0.0
    });
    let asking = config_file(folder.path(), &socket, &section);
    let nrpe = Nrpe::start(folder.path(), &plugin, &asking);
    let alone = temp_dir("check");
    fs::set_permissions(alone.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let own = config_file(alone.path(), &alone.path().join("none"), &section);
    let nrpe_alone = Nrpe::start(alone.path(), &plugin, &own);
    let [asking, own] = [&asking, &own].map(|file| file.to_str().unwrap().to_owned());

    let well = check(&["--profile=disk", "--config.file", &own]);
    assert_eq!(well.code, 0, "{well:?}");
    assert!(well.data("sync_p90").is_some_and(|item| item.contains("s;0.05;0.25;0")), "{well:?}");

    disk.hang();
    agent.wait_until("5 s in flight", "controlplane_fdatasync_inflight", 20 * SECOND, |s| {
        s.sum("controlplane_fdatasync_inflight_seconds", &[]) > 5.0
    });
    let seen = check(&["--profile=disk", "-v", "--config.file", &asking]);
    let (code, through_nrpe) = nrpe.ask("check_controlplane_disk");
    let (code_alone, alone_through_nrpe) = nrpe_alone.ask("check_controlplane_disk");
    let lonely = check(&["--profile=disk", "-v", "--config.file", &own]);
    disk.release();
    assert!(code_alone == 1 || code_alone == 2, "{alone_through_nrpe}");
    assert!(alone_through_nrpe.contains("p90 of 15 minutes: at least"), "{alone_through_nrpe}");
    assert!(code == 1 || code == 2, "{through_nrpe}");
    assert!(through_nrpe.contains("sync in flight in"), "{through_nrpe}");
    for said in [&seen, &lonely] {
        assert!(said.code == 1 || said.code == 2, "{said:?}");
        assert!(said.took < 9 * SECOND, "{said:?}");
    }
    assert!(seen.first_line().contains("sync in flight in"), "{seen:?}");
    assert!(seen.text.contains("/ControlPlaneDiskSyncStuck.md"), "{seen:?}");
    assert!(lonely.text.contains("p90 of 15 minutes: at least"), "{lonely:?}");
    assert!(seen.took < 2 * SECOND, "the agent knows without waiting: {seen:?}");
}

#[test]
fn a_configuration_on_a_disk_that_hangs_does_not_hold_the_check() {
    let _lab = lab::alone();
    lab::need_root("a loop device");
    let disk = SlowDisk::sized(Kind::Ext4, 64 << 20);
    let file = disk.mount().path().join("config.yaml");
    fs::write(&file, "log: {level: warn}\n").unwrap();
    // Written out and forgotten, so that reading it needs the disk.
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    disk.file()
        .faults()
        .set(lab::fuse::Operation::Read, lab::fuse::Fault { hang: true, ..Default::default() });
    let said = check(&["--config.file", file.to_str().unwrap()]);
    disk.release();
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.first_line().contains("config.yaml: no answer within"), "{said:?}");
    assert!(said.took < 8 * SECOND, "{said:?}");
}

#[test]
fn an_agent_that_does_not_answer_is_reported_and_the_check_looks_itself() {
    let _lab = lab::together();
    let folder = temp_dir("check");
    let socket = folder.path().join("agent.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let file = config_file(folder.path(), &socket, "");
    let said = check(&["--profile=space", "-vvv", "--config.file", file.to_str().unwrap()]);
    assert!(said.text.contains("does not answer within 2s"), "{said:?}");
    assert!(said.text.contains("one round of samples"), "{said:?}");
    assert!(said.text.contains("space left on /"), "{said:?}");
    assert_ne!(said.code, 0, "a silent agent is not well: {said:?}");
}

#[test]
fn the_watchdog_ends_a_check_whose_result_nobody_reads() {
    let _lab = lab::together();
    let (reader, mut writer) = std::io::pipe().unwrap();
    // A pipe that is full: whoever prints into it waits for ever.
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
    while std::io::Write::write(&mut writer, &[b'x'; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::empty()).unwrap();
    let mut command = bound_command(BINARY);
    command.args(["check", "--profile=space", "-t", "2"]).stdout(writer).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = process::spawn(command);
    let status = wait_for("the end of the check", 10 * SECOND, || {
        child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
    });
    assert!(started.elapsed() < 4 * SECOND, "{:?}", started.elapsed());
    assert_eq!(status.code(), Some(2));
    drop(reader);
}

#[test]
fn from_afar_it_asks_over_http_and_a_refused_connection_is_critical() {
    let _lab = lab::together();
    let agent = Agent::start("");
    let port = agent.address().port().to_string();
    let said = check(&["-H", "127.0.0.1", "-p", &port, "--profile=kernel", "-vvv"]);
    assert!(said.text.contains("as the running agent sees it"), "{said:?}");
    let port = free_port().to_string();
    let said = check(&["-H", "127.0.0.1", "-p", &port]);
    assert_eq!(said.code, 2, "{said:?}");
    let expected =
        format!("CONTROLPLANE CRITICAL: the agent on 127.0.0.1:{port}: Connection refused");
    assert!(said.first_line().starts_with(&expected), "{said:?}");
    // Nobody has looked at that node, and the one that asks is another.
    let said = check(&["-H", "127.0.0.1", "-p", &port, "-vvv"]);
    assert!(said.text.contains("asked from afar, without an answer"), "{said:?}");
    assert!(!said.text.contains("one round of samples"), "{said:?}");
    let said = check(&["-H", "127.0.0.1", "-p", &port, "--format=text"]);
    let expected = "127.0.0.1  Nothing is known of this node: its agent says nothing";
    assert_eq!(said.first_line(), expected, "{said:?}");
}

#[test]
fn an_agent_afar_that_is_silent_is_named_before_the_deadline() {
    let _lab = lab::together();
    // The kernel takes the connection, and nobody ever says a word.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    for seconds in ["1", "2"] {
        let said = check(&["-H", "127.0.0.1", "-p", &port.to_string(), "-t", seconds]);
        assert_eq!(said.code, 2, "{said:?}");
        let expected = format!(
            "CONTROLPLANE CRITICAL: the agent on 127.0.0.1:{port}: does not answer within "
        );
        assert!(said.first_line().starts_with(&expected), "{said:?}");
    }
}

#[test]
fn a_password_on_the_port_does_not_lock_the_check_out() {
    let _lab = lab::together();
    let folder = temp_dir("check");
    let lock = folder.path().join("web-config.yaml");
    let hash = bcrypt::hash("secret", 4).unwrap();
    fs::write(&lock, format!("basic_auth_users: {{prometheus: {hash}}}\n")).unwrap();
    let agent = Agent::launch(Options {
        args: vec![format!("--web.config.file={}", lock.display())],
        ..Options::default()
    });
    wait_for("the locked port", 10 * SECOND, || {
        let status = agent.get("/metrics")?.status;
        if status == 401 { Ok(()) } else { Err(status.to_string()) }
    });
    let file = config_file(folder.path(), &agent.socket(), "");
    let said = check(&["--profile=space", "-vvv", "--config.file", file.to_str().unwrap()]);
    assert!(said.text.contains("as the running agent sees it"), "{said:?}");
    assert!(said.text.contains("space left on"), "{said:?}");
    // From afar nobody knows the password, and nothing is known about the node.
    let port = agent.address().port().to_string();
    let said = check(&["-H", "127.0.0.1", "-p", &port]);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.first_line().contains("answers 401 Unauthorized"), "{said:?}");
    let listen = format!("--web.listen-address={}", agent.address());
    // What a person is shown does not ask the port that would not answer.
    let full =
        ["--profile=space", "--format=text", "-c", "space_left=101:", &listen, "--config.file"];
    let said = check(&[&full[..], &[file.to_str().unwrap()]].concat());
    assert!(said.code == 2 && said.text.contains("as the running agent sees it"), "{said:?}");
    assert!(!said.text.contains("curl -s"), "{said:?}");
    let none = config_file(folder.path(), &folder.path().join("none"), "");
    let said = check(&["--self", &listen, "--config.file", none.to_str().unwrap()]);
    assert_eq!(said.code, 0, "who asks for a password is alive: {said:?}");
}

#[test]
fn whether_the_agent_itself_lives_is_a_check_of_its_own() {
    let _lab = lab::together();
    let agent = Agent::start("");
    let folder = temp_dir("check");
    let file = config_file(folder.path(), &agent.socket(), "");
    let said = check(&["--self", "--config.file", file.to_str().unwrap()]);
    assert_eq!(
        (said.code, said.text.as_str()),
        (0, "CONTROLPLANE-EXPORTER OK: the agent answers\n")
    );
    // Without a socket the port is asked.
    let listen = format!("--web.listen-address={}", agent.address());
    let none = config_file(folder.path(), &folder.path().join("none"), "");
    let said = check(&["--self", &listen, "--config.file", none.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    drop(agent);
    let said = check(&["--self", &listen, "--config.file", none.to_str().unwrap()]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.text.contains("Connection refused"), "{said:?}");
}

#[test]
fn wrong_usage_and_help_are_unknown_and_on_standard_output() {
    let _lab = lab::together();
    for (args, expected) in [
        (&["--profile=nothing"][..], "invalid value 'nothing'"),
        (&["-w", "latency=1"], "there is no figure `latency`"),
        (&["-c", "sync_p90=fast"], "`fast` is no range"),
        (&["-t", "0"], "0 is not in 1..=600"),
        (&["--no-such-flag"], "unexpected argument"),
        (&["-h"], "Usage: controlplane-exporter check"),
        (&["-V"], env!("CARGO_PKG_VERSION")),
        (&["--config.file=/no/such/file"], "CONTROLPLANE UNKNOWN: /no/such/file: No such file"),
    ] {
        let said = check(args);
        assert_eq!(said.code, 3, "{args:?} {said:?}");
        assert!(said.text.contains(expected), "{args:?} {said:?}");
        assert_eq!(said.errors, "", "{args:?}");
    }
}

#[test]
fn a_range_of_the_users_own_decides() {
    let _lab = lab::together();
    let folder = temp_dir("check");
    let file = config_file(folder.path(), &folder.path().join("none"), "");
    let file = file.to_str().unwrap();
    let space = |limits: &[&str]| {
        let mut args = vec!["--profile=space", "--config.file", file];
        args.extend(limits);
        check(&args)
    };
    let whole = [
        "-w",
        "space_left=0:",
        "-c",
        "space_left=0:",
        "-w",
        "inodes_left=0:",
        "-c",
        "inodes_left=0:",
    ];
    assert_eq!(space(&whole).code, 0);
    let said = space(&[&whole[..], &["-w", "space_left=@0:100"]].concat());
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.data("space_left").is_some_and(|item| item.contains("%;@0:100;0:;0;100")),
        "{said:?}"
    );
    assert_eq!(space(&[&whole[..], &["-c", "space_left=101:"]].concat()).code, 2);
}

#[test]
fn json_carries_the_verdicts_and_the_exit_code() {
    let _lab = lab::together();
    let folder = temp_dir("check");
    let file = config_file(folder.path(), &folder.path().join("none"), "");
    let said =
        check(&["--profile=space", "--format=json", "--config.file", file.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&said.text).unwrap();
    assert_eq!(json["exit_code"], said.code, "{said:?}");
    assert_eq!(json["verdicts"][0]["topic"], "space");
    assert_eq!(json["by_agent"], false);
    let names: Vec<_> = json["samplers"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["filesystem"], "a profile runs what it needs");
}

/// The plugin under its own name, where the user of the monitoring system may run it.
fn plugin(folder: &Path) -> PathBuf {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.join("controlplane-exporter");
    fs::copy(BINARY, &binary).unwrap();
    let plugin = folder.join("check_controlplane");
    symlink("controlplane-exporter", &plugin).unwrap();
    plugin
}

#[test]
fn called_by_the_plugins_name_it_is_the_plugin() {
    let _lab = lab::together();
    let folder = temp_dir("check");
    let said = check_as(&plugin(folder.path()), &["--profile", "space"]);
    assert!(said.first_line().starts_with("CONTROLPLANE SPACE "), "{said:?}");
    assert!(said.first_line().contains(" | "), "{said:?}");
    let said = check_as(&plugin_in(folder.path()), &["--format", "json", "--profile", "space"]);
    assert!(said.text.starts_with('{'), "{said:?}");
}

fn plugin_in(folder: &Path) -> PathBuf {
    folder.join("check_controlplane")
}

/// Debian's NRPE server with the shipped commands.
struct Nrpe {
    _server: Daemon,
    port: u16,
}

impl Nrpe {
    /// Starts it with this plugin, which is given this configuration file.
    #[track_caller]
    fn start(folder: &Path, plugin: &Path, file: &Path) -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nagios/nrpe.cfg");
        let shipped = fs::read_to_string(shipped).unwrap();
        let commands = shipped.replace(
            "/usr/lib/nagios/plugins/check_controlplane",
            &format!("{} --config.file={}", plugin.display(), file.display()),
        );
        assert_eq!(commands.matches("--config.file").count(), 7, "{commands}");
        let port = free_port();
        let config = folder.join("nrpe.cfg");
        let server = format!(
            "server_address=127.0.0.1\nserver_port={port}\nnrpe_user=nagios\nnrpe_group=nagios\n\
             allowed_hosts=127.0.0.1\npid_file={}\n{commands}",
            folder.join("nrpe.pid").display()
        );
        fs::write(&config, server).unwrap();
        let mut nrpe = bound_command(program("nrpe"));
        nrpe.arg("-c").arg(&config).arg("-f");
        let mut server = Daemon::start("nrpe", nrpe, &folder.join("nrpe.log"));
        wait_for("nrpe's port", 10 * SECOND, || {
            server.check_alive()?;
            std::net::TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())
        });
        Self { _server: server, port }
    }

    /// Exit code and text of one of its commands.
    fn ask(&self, command: &str) -> (i32, String) {
        let mut ask = Command::new("/usr/lib/nagios/plugins/check_nrpe");
        ask.args(["-H", "127.0.0.1", "-p", &self.port.to_string(), "-t", "10", "-c", command]);
        let ended = output(ask, 15 * SECOND);
        (ended.status.code().unwrap_or(-1), ended.stdout)
    }
}

#[test]
fn nrpe_passes_the_result_on_with_the_shipped_commands() {
    let _lab = lab::together();
    lab::need_root("nrpe, which changes to the user nagios");
    let folder = temp_dir("check");
    let plugin = plugin(folder.path());
    let socket = folder.path().join("agent.sock");
    let mut cluster = plain_etcd();
    let agent = Agent::start_with(Options {
        config: etcd_section(&cluster),
        env: vec![("CONTROLPLANE_EXPORTER__WEB__SOCKET".into(), socket.to_str().unwrap().into())],
        ..Options::default()
    });
    agent.wait_value("controlplane_etcd_up", &[], 1.0, 10 * SECOND);
    let file = config_file(folder.path(), &socket, "");

    let nrpe = Nrpe::start(folder.path(), &plugin, &file);
    let (code, text) = nrpe.ask("check_controlplane_etcd");
    assert_eq!(code, 0, "{text}");
    assert!(
        text.starts_with("CONTROLPLANE ETCD OK: all ") && text.contains("db_of_quota="),
        "{text}"
    );
    for command in
        ["check_controlplane_kernel", "check_controlplane_disk", "check_controlplane_space"]
    {
        let (_, text) = nrpe.ask(command);
        assert!(text.starts_with("CONTROLPLANE "), "{command}: {text}");
    }

    cluster.kill(0);
    agent.wait_value("controlplane_etcd_up", &[], 0.0, 10 * SECOND);
    let (code, text) = nrpe.ask("check_controlplane_etcd");
    assert_eq!(code, 2, "{text}");
    assert!(text.starts_with("CONTROLPLANE ETCD CRITICAL: etcd member: does not answer"), "{text}");

    drop(agent);
    // Without the agent, and with the rights of nagios only, it still answers in time, and nothing is well that it may
    // not look at.
    let (code, text) = nrpe.ask("check_controlplane_kernel");
    assert_eq!(code, 3, "{text}");
    assert!(text.starts_with("CONTROLPLANE KERNEL UNKNOWN: kernel: no permission: "), "{text}");
}

#[test]
fn a_key_that_nagios_may_not_read_is_unknown_with_its_path_and_says_nothing_against_etcd() {
    let _lab = lab::together();
    lab::need_root("nrpe, which changes to the user nagios");
    let cluster = Cluster::start(Etcd::V35, 1);
    let folder = temp_dir("check");
    let plugin = plugin(folder.path());
    let file = |name: &str, from: &Path, mode: u32| {
        let to = folder.path().join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
        to.display().to_string()
    };
    let pki = &cluster.pki;
    let section = format!(
        "etcd: {{endpoints: ['{}'], ca_file: {}, cert_file: {}, key_file: {}}}\n",
        cluster.client_url(0),
        file("ca.crt", &pki.ca, 0o644),
        file("client.crt", &pki.client.cert, 0o644),
        file("client.key", &pki.client.key, 0o600),
    );
    let config = config_file(folder.path(), &folder.path().join("none"), &section);
    let root = check(&["--profile=etcd", "--config.file", config.to_str().unwrap()]);
    assert_eq!(root.code, 0, "{root:?}");
    let nrpe = Nrpe::start(folder.path(), &plugin, &config);
    let (code, text) = nrpe.ask("check_controlplane_etcd");
    assert_eq!(code, 3, "{text}");
    assert!(text.starts_with("CONTROLPLANE ETCD UNKNOWN: etcd: no permission: /"), "{text}");
    assert!(text.contains("client.key: ") && !text.contains("does not answer"), "{text}");
    assert!(text.lines().next().unwrap().len() < 170, "{text}");
}

#[test]
fn icinga_takes_the_shipped_command() {
    let _lab = lab::together();
    let folder = temp_dir("icinga");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nagios/icinga2.conf");
    let main = folder.path().join("icinga2.conf");
    let text = format!(
        "const PluginDir = \"/usr/lib/nagios/plugins\"\nconst NodeName = \"cp-1\"\n\
         include \"{}\"\n\
         object CheckCommand \"up\" {{ command = [ \"/bin/true\" ] }}\n\
         object Host \"cp-1\" {{ check_command = \"up\"\n vars.controlplane_warning = [ \"sync_p90=0.02\", \"space_left=15:\" ] }}\n\
         object Service \"controlplane\" {{ host_name = \"cp-1\"\n check_command = \"controlplane\" }}\n",
        shipped.display()
    );
    fs::write(&main, text).unwrap();
    let mut command = Command::new(program("icinga2"));
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    for (name, value) in [
        ("DataDir", &data),
        ("LogDir", &data),
        ("CacheDir", &data),
        ("InitRunDir", &data),
        ("SpoolDir", &data),
    ] {
        command.arg(format!("-D{name}={}", value.display()));
    }
    command.args(["daemon", "-C", "-c"]).arg(&main);
    let ended = output(command, 60 * SECOND);
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("1 Service."), "{}", ended.stdout);
}

#[test]
fn on_a_terminal_it_is_in_colour_and_says_where_it_begins() {
    let _lab = lab::together();
    let mut cluster = plain_etcd();
    cluster.kill(0);
    let folder = temp_dir("check");
    let file = config_file(folder.path(), &folder.path().join("none"), &etcd_section(&cluster));
    let line = format!("{BINARY} check --profile=etcd --config.file {}", file.display());
    // script gives it a terminal.
    let mut command = bound_command(program("script"));
    command.args(["-qec", &line, "/dev/null"]).stdout(Stdio::piped());
    let mut child = process::spawn(command);
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2), "{text}");
    assert!(text.contains("\u{1b}[1;31m"), "{text}");
    assert!(text.contains("<- it begins here"), "{text}");
    assert!(text.contains("Begin with"), "{text}");
    // The first command of the runbook asks an agent, and there is none.
    assert!(text.contains("  controlplane-exporter inspect"), "{text}");
    assert!(!text.contains("localhost:10379"), "{text}");
}
