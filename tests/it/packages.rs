//! What is shipped: the static binary, the archive, the Debian package, the unit and the image, each used as an
//! operator would, with the real systemd as PID 1.
//!
//! Everything is made by `deploy/package.sh` from one static build (`tests/run.sh` has made it before).

use crate::lab::agent::Scrape;
use crate::lab::pki::Pki;
use crate::lab::process::{self, Daemon, bound_command, output, run};
use crate::lab::systemd::Container;
use crate::lab::{self, cached, program, wait_for};
use controlplane_exporter::samplers;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const NAME: &str = "controlplane-exporter";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const TRIPLE: &str = "x86_64-unknown-linux-musl";
const UNIT: &str = "controlplane-exporter.service";
const SOCKET: &str = "controlplane-exporter-web.socket";
const ROTATION: &str = "controlplane-exporter-credentials.path";
/// What the drop-in `with-datastore-disk.conf` wants.
const DISK: &str = "controlplane-exporter-disk@mnt-etcd.service";
const PORT: u16 = 10379;
const LIMIT: Duration = Duration::from_secs(20);

/// Whether systemd can raise `RLIMIT_MEMLOCK` here: a machine without `CAP_SYS_RESOURCE` (bit 24) cannot.
fn limits_can_be_raised() -> bool {
    let status = read(Path::new("/proc/self/status"));
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    u64::from_str_radix(capabilities, 16).unwrap() & 1 << 24 != 0
}

/// Runs `deploy/package.sh` and gives the path that it wrote below `target/`.
#[track_caller]
fn package(part: &str, file: &str) -> PathBuf {
    let mut command = bound_command(Path::new(ROOT).join("deploy/package.sh"));
    command.arg(part).env("CONTROLPLANE_EXPORTER_CACHE", lab::cache());
    // A few seconds, unless the sources changed since the static build of tests/run.sh.
    let done = output(command, Duration::from_mins(20));
    assert!(done.status.success(), "package.sh {part}: {}\n{}", done.stdout, done.stderr);
    let file = Path::new(ROOT).join("target").join(file);
    assert!(file.exists(), "{} is missing", file.display());
    file
}

fn binary() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| package("static", &format!("static/{TRIPLE}/release/{NAME}")))
}

fn deb() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| package("deb", &format!("dist/{NAME}_{VERSION}-1_amd64.deb")))
}

fn deploy(file: &str) -> PathBuf {
    Path::new(ROOT).join("deploy").join(file)
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

#[test]
fn the_static_binary_runs_alone_in_an_empty_root_and_names_no_path_of_the_machine_that_built_it() {
    let _turn = lab::together();
    let bytes = std::fs::read(binary()).unwrap();
    assert!(bytes.len() < 12 << 20, "{} bytes", bytes.len());
    let headers = run("readelf", ["--program-headers".as_ref(), binary().as_os_str()]);
    assert!(!headers.contains("INTERP") && !headers.contains("DYNAMIC"), "{headers}");
    let sections = run("readelf", ["--sections".as_ref(), binary().as_os_str()]);
    assert!(!sections.contains(".symtab") && !sections.contains(".debug"), "{sections}");

    let empty = lab::temp_dir("empty");
    std::fs::copy(binary(), empty.path().join("agent")).unwrap();
    let mut command = bound_command(program("chroot"));
    command.arg("--userspec=65534:65534").arg(empty.path()).args(["/agent", "--version"]);
    let said = output(command, LIMIT);
    assert_eq!(said.stdout.trim(), format!("{NAME} {VERSION}"), "{}", said.stderr);

    let home = std::env::var("HOME").unwrap();
    for private in [ROOT, &lab::cache().to_string_lossy(), &format!("{home}/.cargo")] {
        let found = bytes.windows(private.len()).any(|window| window == private.as_bytes());
        assert!(!found, "{private} is in the binary");
    }
}

#[test]
fn the_archive_has_the_names_that_ansible_roles_unpack_and_sums_that_agree() {
    let _turn = lab::together();
    let folder = format!("{NAME}-{VERSION}.linux-amd64");
    let archive = package("tarball", &format!("dist/{folder}.tar.gz"));
    let dist = archive.parent().unwrap();
    // The roles look up the sum by the archive's name, and copy FOLDER/NAME.
    let sums = read(&dist.join("sha256sums.txt"));
    let line = sums.lines().find(|line| line.ends_with(&format!("  {folder}.tar.gz")));
    let (expected, _) = line.unwrap_or_else(|| panic!("{sums}")).split_once(' ').unwrap();
    let sum = run("sha256sum", [archive.as_os_str()]);
    assert!(sum.starts_with(expected), "{sum}");

    let there = lab::temp_dir("archive");
    run("tar", ["-xzf".as_ref(), archive.as_os_str(), "-C".as_ref(), there.path().as_os_str()]);
    let there = there.path().join(&folder);
    let unpacked = run(&there.join(NAME).to_string_lossy(), ["--version"]);
    assert_eq!(unpacked.trim(), format!("{NAME} {VERSION}"));
    for file in ["LICENSE", "README.md", "config.yaml", "systemd/controlplane-exporter.service"] {
        assert!(there.join(file).is_file(), "{file} is missing");
    }
    bill_of_materials(&read(&there.join("sbom.cdx.json")));
}

/// Names what is linked in, at the locked versions, and nothing that only tests use.
#[track_caller]
fn bill_of_materials(text: &str) {
    let bill: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(bill["bomFormat"], "CycloneDX");
    assert_eq!(bill["metadata"]["component"]["version"], VERSION);
    assert!(!text.contains(ROOT), "a path of this machine is in the bill");
    let components = bill["components"].as_array().unwrap();
    let lock = read(&Path::new(ROOT).join("Cargo.lock"));
    for part in components {
        let (name, version) = (part["name"].as_str().unwrap(), part["version"].as_str().unwrap());
        let locked = format!("name = \"{name}\"\nversion = \"{version}\"");
        assert!(lock.contains(&locked), "{name} {version} is not in Cargo.lock");
        assert!(part["licenses"].is_array(), "{name} has no licence");
    }
    let names: BTreeSet<_> = components.iter().filter_map(|part| part["name"].as_str()).collect();
    assert!(names.is_superset(&["tokio", "ring", "rustls", "zbus"].into()), "{names:?}");
    assert!(names.is_disjoint(&["criterion", "proptest", "fuser"].into()), "{names:?}");
}

/// A root with the unit, its drop-ins and an empty program, for systemd-analyze.
fn unit_root(drop_ins: &[&str]) -> tempfile::TempDir {
    let root = lab::temp_dir("units");
    let units = root.path().join("etc/systemd/system");
    std::fs::create_dir_all(units.join(format!("{UNIT}.d"))).unwrap();
    for program in [
        "usr/bin/controlplane-exporter",
        "usr/bin/install",
        "bin/chown",
        "bin/sh",
        "bin/sleep",
        "bin/systemctl",
    ] {
        let file = root.path().join(program);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    }
    for unit in [
        UNIT,
        "controlplane-exporter-credentials.path",
        "controlplane-exporter-credentials.service",
        "controlplane-exporter-disk@.service",
        SOCKET,
    ] {
        std::fs::copy(deploy("systemd").join(unit), units.join(unit)).unwrap();
    }
    for drop_in in drop_ins {
        let file = Path::new(&format!("{UNIT}.d")).join(drop_in);
        std::fs::copy(deploy("systemd").join(&file), units.join(&file)).unwrap();
    }
    root
}

/// The score of `systemd-analyze security`, in tenths.
#[track_caller]
fn exposure(drop_ins: &[&str]) -> u32 {
    let root = unit_root(drop_ins);
    let root = format!("--root={}", root.path().display());
    let report = run("systemd-analyze", ["security", "--offline=yes", "--no-pager", &root, UNIT]);
    let last = report.lines().find_map(|line| line.split_once("exposure level for "));
    let score = last.unwrap_or_else(|| panic!("{report}")).1.split(' ').nth(1).unwrap();
    score.replace('.', "").parse().unwrap_or_else(|e| panic!("{score}: {e}"))
}

#[test]
fn the_units_are_valid_and_exposed_no_more_than_is_said() {
    let _turn = lab::together();
    assert!(exposure(&[]) <= 23, "{}", exposure(&[]));
    assert!(exposure(&["strict.conf"]) <= 20, "{}", exposure(&["strict.conf"]));
    assert!(exposure(&["strict.conf", "k3s.conf"]) <= 20);
    let every: Vec<String> = std::fs::read_dir(deploy("systemd/controlplane-exporter.service.d"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(every.len() > 5, "{every:?}");
    for drop_in in every.iter().map(String::as_str).map(Some).chain([None]) {
        let root = unit_root(&drop_in.into_iter().collect::<Vec<_>>());
        let mut command = bound_command(program("systemd-analyze"));
        command
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(format!("--root={}", root.path().display()))
            .args([UNIT, ROTATION, DISK, SOCKET]);
        let said = output(command, LIMIT);
        // It knows no key or value that it does not name here.
        let text = format!("{}{}", said.stdout, said.stderr);
        let about: Vec<_> = text.lines().filter(|line| line.contains(NAME)).collect();
        assert!(said.status.success() && about.is_empty(), "{drop_in:?}: {text}");
    }
}

#[test]
fn the_drop_ins_set_keys_that_the_configuration_has() {
    // Of the copies only the web configuration is read.
    let folder = lab::temp_dir("credentials");
    std::fs::write(folder.path().join("web-config.yaml"), "http_server_config: {}\n").unwrap();
    let copies = folder.path().display().to_string();
    for file in std::fs::read_dir(deploy("systemd/controlplane-exporter.service.d")).unwrap() {
        let file = file.unwrap().path();
        let mut command = bound_command(binary());
        for line in read(&file).lines() {
            let Some(set) = line.strip_prefix("Environment=") else { continue };
            let (key, value) = set.split_once('=').unwrap();
            let value = value.replace("%d", &copies).replace("%S", "/var/lib");
            command.env(key, value);
        }
        let said = output(
            {
                command.arg("config");
                command
            },
            LIMIT,
        );
        assert!(said.status.success(), "{}: {}", file.display(), said.stderr);
    }
}

/// Where a dqlite member's files are put.
const DQLITE: &str = "/var/lib/dqlite";
const SNAP_AND_DQLITE: [&str; 2] = [
    "CONTROLPLANE_EXPORTER__DQLITE__DIR=/var/lib/dqlite",
    "CONTROLPLANE_EXPORTER__SNAP__SNAPS=demo",
];

/// A container with the package's file in it, and a k3s server on real etcd: all of it readable by root only.
struct Node {
    container: Container,
    pki: Pki,
}

impl Node {
    #[track_caller]
    fn boot(root: &str) -> Self {
        // What nspawn takes away and a host has.
        let container = Container::boot_with(root, "--capability=CAP_SYSLOG,CAP_IPC_LOCK");
        let node = Self { container, pki: Pki::new() };
        node.make_kernel_log();
        if !limits_can_be_raised() {
            eprintln!("no CAP_SYS_RESOURCE here: CAP_IPC_LOCK stands in for LimitMEMLOCK=infinity");
            let lock = "CapabilityBoundingSet=CAP_IPC_LOCK\nAmbientCapabilities=CAP_IPC_LOCK";
            node.set("lock.conf", lock);
        }
        node.copy(deb(), "package.deb");
        node
    }

    /// nspawn makes no `/dev/kmsg`; a host has one.
    #[track_caller]
    fn make_kernel_log(&self) {
        let made = self.container.exec(&["mknod", "-m", "0644", "/dev/kmsg", "c", "1", "11"]);
        assert!(made.status.success(), "{}", made.stderr);
    }

    fn copy(&self, from: &Path, to: &str) {
        std::fs::copy(from, self.container.root().join(to)).unwrap();
    }

    #[track_caller]
    fn exec(&self, args: &[&str]) -> String {
        let done = self.container.exec(args);
        assert!(
            done.status.success(),
            "{args:?}: {}\n{}\n{}",
            done.stdout,
            done.stderr,
            self.journal()
        );
        done.stdout
    }

    fn journal(&self) -> String {
        self.container
            .exec(&["journalctl", "--no-pager", "-n", "40", "-o", "cat", "-u", UNIT])
            .stdout
    }

    #[track_caller]
    fn install(&self) {
        self.exec(&["dpkg", "--install", "/package.deb"]);
        wait_for("the installed agent", LIMIT, || {
            match self.container.show(UNIT, "ActiveState").as_str() {
                "active" => Ok(()),
                other => Err(format!("{other}\n{}", self.journal())),
            }
        });
    }

    /// A unit `k3s.service`, etcd under it with k3s's addresses and files, and keys in it.
    #[track_caller]
    fn start_k3s(&self) {
        let root = self.container.root();
        for program in ["etcd", "etcdctl"] {
            self.copy(
                &cached(&format!("etcd-3.5/usr/bin/{program}")),
                &format!("usr/local/bin/{program}"),
            );
        }
        let data = root.join("var/lib/rancher/k3s/server");
        let tls = data.join("tls/etcd");
        std::fs::create_dir_all(&tls).unwrap();
        std::fs::create_dir_all(data.join("db/etcd")).unwrap();
        let files = [
            (&self.pki.ca, "server-ca.crt"),
            (&self.pki.client.cert, "client.crt"),
            (&self.pki.client.key, "client.key"),
            (&self.pki.server.cert, "server-client.crt"),
            (&self.pki.server.key, "server-client.key"),
        ];
        for (from, to) in files {
            std::fs::copy(from, tls.join(to)).unwrap();
            set_permissions(tls.join(to), Permissions::from_mode(0o600)).unwrap();
        }
        for private in ["", "tls", "tls/etcd", "db", "db/etcd"] {
            set_permissions(data.join(private), Permissions::from_mode(0o700)).unwrap();
        }
        let script = "#!/bin/sh\n[ \"$1\" = server ] || exit 2\nd=/var/lib/rancher/k3s/server\n\
            exec /usr/local/bin/etcd --name=node --data-dir=$d/db/etcd --client-cert-auth \
            --trusted-ca-file=$d/tls/etcd/server-ca.crt --cert-file=$d/tls/etcd/server-client.crt \
            --key-file=$d/tls/etcd/server-client.key --listen-client-urls=https://127.0.0.1:2379 \
            --advertise-client-urls=https://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380 \
            --initial-advertise-peer-urls=http://127.0.0.1:2380 \
            --initial-cluster=node=http://127.0.0.1:2380\n";
        let k3s = root.join("usr/local/bin/k3s");
        std::fs::write(&k3s, script).unwrap();
        set_permissions(&k3s, Permissions::from_mode(0o755)).unwrap();
        self.container.install_unit(
            "k3s.service",
            "[Service]\nType=notify\nExecStart=/usr/local/bin/k3s server\nRestart=always\n\
             [Install]\nWantedBy=multi-user.target\n",
        );
        let started = self.container.exec(&["systemctl", "enable", "--now", "k3s.service"]);
        let journal =
            || self.container.exec(&["journalctl", "--no-pager", "-n", "20", "-u", "k3s"]);
        assert!(started.status.success(), "{}\n{}", started.stderr, journal().stdout);
        self.exec(&[
            "etcdctl",
            "--cacert=/var/lib/rancher/k3s/server/tls/etcd/server-ca.crt",
            "--cert=/var/lib/rancher/k3s/server/tls/etcd/client.crt",
            "--key=/var/lib/rancher/k3s/server/tls/etcd/client.key",
            "put",
            "/registry/configmaps/default/one",
            "1",
        ]);
    }

    /// A snap and the directory of a dqlite member, where root alone may look, and the agent told of both.
    #[track_caller]
    fn add_snap_and_dqlite(&self) {
        let root = self.container.root();
        // On the container's overlay a file and its directory have other devices, which the walk would not cross.
        std::fs::create_dir(root.join("var/snap")).unwrap();
        self.exec(&["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/var/snap"]);
        let common = root.join("var/snap/demo/common");
        std::fs::create_dir_all(&common).unwrap();
        std::fs::write(common.join("images"), vec![7; 1 << 20]).unwrap();
        let data = root.join(DQLITE.trim_start_matches('/'));
        std::fs::create_dir_all(&data).unwrap();
        let samples = Path::new(ROOT).join("tests/data/dqlite/v1.18.7-voter");
        for sample in std::fs::read_dir(samples).unwrap() {
            let sample = sample.unwrap();
            std::fs::copy(sample.path(), data.join(sample.file_name())).unwrap();
        }
        std::fs::copy(&self.pki.server.cert, data.join("cluster.crt")).unwrap();
        std::fs::copy(&self.pki.server.key, data.join("cluster.key")).unwrap();
        for file in std::fs::read_dir(&data).unwrap() {
            set_permissions(file.unwrap().path(), Permissions::from_mode(0o600)).unwrap();
        }
        for private in [&common, &data] {
            set_permissions(private, Permissions::from_mode(0o700)).unwrap();
        }
        let lines = SNAP_AND_DQLITE.map(|variable| format!("Environment={variable}"));
        self.set("snap-and-dqlite.conf", &lines.join("\n"));
    }

    /// A drop-in of the package's examples.
    #[track_caller]
    fn drop_in(&self, name: &str) {
        let folder = format!("/etc/systemd/system/{UNIT}.d");
        let example = format!("/usr/share/doc/{NAME}/examples/{UNIT}.d/{name}");
        self.exec(&["install", "-D", "-m", "644", "-t", &folder, &example]);
    }

    #[track_caller]
    fn set(&self, name: &str, lines: &str) {
        let folder = self.container.root().join(format!("etc/systemd/system/{UNIT}.d"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), format!("[Service]\n{lines}\n")).unwrap();
    }

    #[track_caller]
    fn restart(&self) {
        self.container.systemctl(&["daemon-reload"]);
        self.container.systemctl(&["restart", UNIT]);
    }

    fn scrape(&self) -> Result<Scrape, String> {
        Scrape::parse(&self.container.get(PORT, "/metrics")?.text())
    }

    #[track_caller]
    fn wait_until(&self, what: &str, is_so: impl Fn(&Scrape) -> bool) -> Scrape {
        wait_for(what, LIMIT, || {
            let scrape = self.scrape().map_err(|error| format!("{error}\n{}", self.journal()))?;
            if is_so(&scrape) {
                return Ok(scrape);
            }
            let ours = [
                "sampler_",
                "snap_",
                "dqlite_term",
                "registry_keys",
                "fdatasync_duration_seconds_c",
            ]
            .map(|part| scrape.with_prefix(&format!("controlplane_{part}")));
            Err(format!("{}\n{}", ours.concat(), self.journal()))
        })
    }

    /// The agent's process, as this side sees it.
    #[track_caller]
    fn pid(&self) -> u32 {
        let inside = self.container.show(UNIT, "MainPID");
        let leader = self.container.leader();
        // Its children have the same name; the agent is PID 1's.
        let of = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let ids = status.lines().find(|line| line.starts_with("NSpid:")).unwrap_or_default();
            ids.split_whitespace().last() == Some(inside.as_str())
        };
        process::children(leader)
            .into_iter()
            .find(of)
            .unwrap_or_else(|| panic!("no process {inside}"))
    }
}

/// Resident memory of a process; nothing when it has just ended.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

fn has_all_samplers(scrape: &Scrape) -> bool {
    let up = |name| scrape.value("controlplane_sampler_up", &[("sampler", name)]) == Some(1.0);
    // The node has an etcd and k3s: neither a socket of kine, nor files of arguments, nor static pods.
    let others = ["kine", "args", "static_pod"];
    samplers::ALL.iter().all(|(name, _)| up(name) || others.contains(name))
        && scrape.value("controlplane_dqlite_term", &[]) == Some(3.0)
        && scrape
            .value("controlplane_snap_disk_usage_bytes", &[("snap", "demo"), ("area", "common")])
            >= Some(f64::from(1 << 20))
        && scrape.value("controlplane_registry_keys", &[("resource", "configmaps")]) == Some(1.0)
        && scrape.sum("controlplane_fdatasync_duration_seconds_count", &[]) > 0.0
}

/// Seconds since boot at which the unit was started last.
fn started(node: &Node) -> String {
    node.container.show(UNIT, "ExecMainStartTimestampMonotonic")
}

#[test]
fn every_sampler_works_under_the_hardening_where_root_alone_may_read() {
    let _turn = lab::together();
    let mut node = Node::boot("root");
    node.start_k3s();
    node.add_snap_and_dqlite();
    node.install();
    let scrape = node.wait_until("all samplers", has_all_samplers);
    let failed =
        |labels: &[(&str, &str)]| scrape.sum("controlplane_sampler_failures_total", labels);
    // The node has no API server, and so not the files of one.
    let failures = failed(&[]) - failed(&[("sampler", "apiserver")]);
    assert!(failures < 1.0, "{}\n{}", scrape.with_prefix("controlplane_sampler"), node.journal());
    assert!(!scrape.all("controlplane_kernel_events_total", &[]).is_empty());

    // It runs as nobody's user with two capabilities, all its memory locked, and far below its limits.
    let status = read(Path::new(&format!("/proc/{}/status", node.pid())));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}: {status}"))
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    assert_ne!(field("Uid:"), "0");
    // 1 << CAP_SYSLOG | 1 << CAP_DAC_READ_SEARCH, and CAP_IPC_LOCK where it stands in.
    let expected = if limits_can_be_raised() { "0000000400000004" } else { "0000000400004004" };
    assert_eq!(field("CapEff:"), expected);
    assert_eq!(field("CapBnd:"), expected);
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(node.container.show(UNIT, "LimitMEMLOCK"), "infinity");
    let kib = |name: &str| field(name).parse::<u64>().unwrap();
    assert!(kib("VmLck:") >= kib("VmRSS:") && kib("VmLck:") > 4 << 10, "{status}");
    assert!(kib("VmLck:") < 48 << 10, "{status}");
    let own = node.pid();
    let all = std::iter::once(own).chain(process::children(own));
    let resident: u64 = all.map(resident_kib).sum();
    assert!(resident < 40 << 10, "{resident} KiB of the unit's 64 MiB");
    let run = node.container.root().join("run/controlplane-exporter");
    assert_eq!(std::fs::metadata(run).unwrap().permissions().mode() & 0o777, 0o755);

    // HUP reads the configuration again, and the unit says so to systemd.
    let before = started(&node);
    node.container.systemctl(&["reload", UNIT]);
    assert_eq!(started(&node), before);
    assert!(node.journal().contains("configuration read again"), "{}", node.journal());

    // A stopped agent feeds no watchdog; a killed one is started again.
    node.set("fast.conf", "WatchdogSec=2\nRestartSec=200ms");
    node.restart();
    let mut last = started(&node);
    for signal in [Signal::STOP, Signal::KILL] {
        process::signal(node.pid(), signal);
        wait_for("another agent", LIMIT, || {
            let state = node.container.show(UNIT, "ActiveState");
            let now = started(&node);
            if state == "active" && now != last && now != "0" {
                Ok(now)
            } else {
                Err(format!("{state} {now}"))
            }
        })
        .clone_into(&mut last);
        if signal == Signal::STOP {
            assert!(node.journal().to_lowercase().contains("watchdog"), "{}", node.journal());
        }
    }
    assert_eq!(node.container.show(UNIT, "NRestarts"), "2");

    // Where sockets of IPv6 are refused, as by a kernel that has it switched off, there are those of IPv4.
    node.set("families.conf", "RestrictAddressFamilies=\nRestrictAddressFamilies=AF_UNIX AF_INET");
    node.restart();
    node.wait_until("etcd over IPv4", |scrape| {
        scrape.value("controlplane_etcd_up", &[]) == Some(1.0)
    });
    assert!(node.journal().contains("address=0.0.0.0:10379"), "{}", node.journal());
    node.set("families.conf", "");

    // With the port in systemd's hands it starts at boot all the same, before anybody has connected.
    node.exec(&["systemctl", "enable", SOCKET]);
    node.container.reboot();
    node.make_kernel_log();
    wait_for("the agent after a reboot", LIMIT, || {
        match node.container.show(UNIT, "ActiveState").as_str() {
            "active" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    assert!(node.journal().contains("listening on a socket of systemd"), "{}", node.journal());
    node.wait_until("etcd after a reboot", |scrape| {
        scrape.value("controlplane_etcd_up", &[]) == Some(1.0)
    });
}

/// The drop-in `with-datastore-disk.conf`, with a disk that hangs, without one and with one.
#[track_caller]
fn measures_a_disk_of_its_own(node: &Node) {
    // What makes a directory on the datastore's disk may wait for that; the agent starts meanwhile.
    let is = |property: &str, wanted: &str| {
        wait_for("what makes the directory", LIMIT, || {
            let now = node.container.show(DISK, property);
            if now == wanted { Ok(()) } else { Err(now) }
        });
    };
    let mounted = node.container.root().join("mnt/etcd");
    std::fs::create_dir_all(&mounted).unwrap();
    let hanging = node.container.root().join("etc/systemd/system").join(format!("{DISK}.d"));
    std::fs::create_dir(&hanging).unwrap();
    let lines =
        "[Unit]\nConditionPathIsMountPoint=\n[Service]\nExecStart=\nExecStart=/bin/sleep 60\n";
    std::fs::write(hanging.join("hanging.conf"), lines).unwrap();
    node.drop_in("with-datastore-disk.conf");
    for _ in 0..2 {
        node.restart();
        is("ActiveState", "activating");
    }
    node.container.systemctl(&["stop", DISK]);
    std::fs::remove_dir_all(&hanging).unwrap();

    // Where nothing is mounted it makes none, for that would be on the root disk.
    node.restart();
    is("ConditionResult", "no");
    assert!(!mounted.join("controlplane-exporter").exists());

    // A directory on a disk of its own belongs to the agent's user, whatever its number is.
    node.exec(&["mount", "--bind", "/mnt/etcd", "/mnt/etcd"]);
    node.restart();
    let disk = [("path", "/mnt/etcd/controlplane-exporter")];
    node.wait_until("the probe on the datastore's disk", |scrape| {
        scrape.sum("controlplane_fdatasync_duration_seconds_count", &disk) > 0.0
    });
}

#[test]
fn the_strict_drop_in_says_what_it_lost_and_credentials_bring_etcd_back() {
    let _turn = lab::together();
    let node = Node::boot("root");
    node.start_k3s();
    node.add_snap_and_dqlite();
    node.install();
    node.drop_in("strict.conf");
    node.restart();
    assert!(node.scrape().unwrap().value("controlplane_etcd_up", &[]) != Some(1.0));
    // As the unit's user, with what the unit has.
    let environment = SNAP_AND_DQLITE.map(|variable| format!("--setenv={variable}"));
    let mut inspect = vec!["systemd-run", "--quiet", "--wait", "--pipe"];
    inspect.extend(environment.iter().map(String::as_str));
    inspect.extend([
        "--property=DynamicUser=yes",
        "--property=User=controlplane-exporter",
        "--property=AmbientCapabilities=CAP_SYSLOG",
        "--property=ProtectProc=invisible",
        "/usr/bin/controlplane-exporter",
        "inspect",
    ]);
    let inspect = node.exec(&inspect);
    for part in [
        "AmbientCapabilities=CAP_DAC_READ_SEARCH",
        "/var/snap/demo/common: permission denied, for snap\n",
        "/var/lib/dqlite/cluster.key: permission denied, for dqlite\n",
        "/var/lib: permission denied, for fdatasync\n",
        "server/db/etcd/member/wal could not be examined: permission denied",
    ] {
        assert!(inspect.contains(part), "{part}: {inspect}");
    }
    let lost = |scrape: &Scrape, name| {
        let labels = [("sampler", name), ("reason", "permission")];
        scrape.value("controlplane_sampler_failures_total", &labels) >= Some(1.0)
    };
    node.wait_until("samplers that say what they lost", |scrape| {
        lost(scrape, "snap") && lost(scrape, "dqlite")
    });

    node.drop_in("k3s.conf");
    node.restart();
    let up = |scrape: &Scrape| {
        scrape.value("controlplane_etcd_up", &[]) == Some(1.0)
            && scrape.value("controlplane_registry_keys", &[("resource", "configmaps")])
                == Some(1.0)
            && scrape.sum("controlplane_fdatasync_duration_seconds_count", &[]) > 0.0
    };
    node.wait_until("etcd through the credentials", up);
    let secret = node.container.exec(&["ls", "/run/credentials/controlplane-exporter.service"]);
    assert!(secret.stdout.contains("etcd-key"), "{} {}", secret.stdout, secret.stderr);

    // A web server's key that root alone may read.
    let web = node.container.root().join("etc/controlplane-exporter");
    std::fs::create_dir(&web).unwrap();
    let lock = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n";
    std::fs::write(web.join("web-config.yaml"), lock).unwrap();
    std::fs::copy(&node.pki.server.cert, web.join("server.crt")).unwrap();
    std::fs::copy(&node.pki.server.key, web.join("server.key")).unwrap();
    for file in ["web-config.yaml", "server.crt", "server.key"] {
        set_permissions(web.join(file), Permissions::from_mode(0o600)).unwrap();
    }
    node.drop_in("web.conf");
    node.restart();
    let plain = node.container.get(PORT, "/metrics").unwrap();
    assert_eq!(plain.status, 400, "{}", plain.text());
    assert!(plain.text().contains("HTTPS server"), "{}", plain.text());
    let locked = node.exec(&["controlplane-exporter", "check", "--self"]);
    assert!(locked.contains("OK"), "{locked}");
    // Another web configuration: the path unit starts the agent anew, with a copy of this one.
    node.container.systemctl(&["start", ROTATION]);
    std::fs::write(web.join("web-config.yaml"), "http_server_config: {http2: false}\n").unwrap();
    wait_for("the agent with the new web configuration", LIMIT, || {
        let plain = node.container.get(PORT, "/metrics")?;
        if plain.status == 200 { Ok(()) } else { Err(plain.text()) }
    });
    let folder = format!("/etc/systemd/system/{UNIT}.d/web.conf");
    node.exec(&["rm", &folder]);

    measures_a_disk_of_its_own(&node);

    // Rotated certificates: the path unit starts the agent anew, and the copies are the new ones.
    node.container.systemctl(&["start", ROTATION]);
    let before = started(&node);
    let tls = node.container.root().join("var/lib/rancher/k3s/server/tls/etcd");
    std::fs::copy(&node.pki.server.key, tls.join("client.key")).unwrap();
    std::fs::copy(&node.pki.server.cert, tls.join("client.crt")).unwrap();
    wait_for("the agent with the new certificate", LIMIT, || {
        let now = started(&node);
        if now == before { Err(now) } else { Ok(()) }
    });
    node.wait_until("etcd with the new certificate", up);
}

const NEWER: &str = "99.0.0-1";

/// The package as a later version of it, which brings another `/etc/default` and one more file.
#[track_caller]
fn newer_deb() -> (PathBuf, tempfile::TempDir) {
    let folder = lab::temp_dir("newer");
    let tree = folder.path().join("tree");
    run("dpkg-deb", ["--raw-extract".as_ref(), deb().as_os_str(), tree.as_os_str()]);
    let change = |file: &str, from: &str, to: &str| {
        let file = tree.join(file);
        let text = read(&file);
        assert!(text.contains(from), "{}: {text}", file.display());
        std::fs::write(&file, text.replace(from, to)).unwrap();
    };
    change("DEBIAN/control", &format!("Version: {VERSION}-1"), &format!("Version: {NEWER}"));
    change("etc/default/controlplane-exporter", "OPTIONS=\"\"", "# Newer.\nOPTIONS=\"\"");
    std::fs::write(tree.join(format!("usr/share/doc/{NAME}/newer")), "").unwrap();
    let newer = folder.path().join("newer.deb");
    let to = newer.as_os_str();
    // Unpacked by root and packed by root: the owners are right.
    run("dpkg-deb", ["--build".as_ref(), "-Znone".as_ref(), tree.as_os_str(), to]);
    (newer, folder)
}

/// All files of the container but what the package manager and systemd write for themselves.
#[track_caller]
fn files(node: &Node) -> BTreeSet<String> {
    let found = node.exec(&[
        "find",
        "/",
        "-xdev",
        "(",
        "-path",
        "/var/lib/dpkg",
        "-o",
        "-path",
        "/var/log",
        "-o",
        "-path",
        "/var/cache",
        "-o",
        "-path",
        "/tmp",
        "-o",
        "-path",
        "/var/tmp",
        ")",
        "-prune",
        "-o",
        "-print",
    ]);
    found.lines().map(ToOwned::to_owned).collect()
}

#[track_caller]
fn comes_and_goes(root: &str) {
    let node = Node::boot(root);
    // The first start of any unit with a user of its own makes this one.
    node.exec(&["install", "-d", "-m", "0700", "/var/lib/private"]);
    let before = files(&node);
    node.install();
    node.wait_until("the first figures", |scrape| {
        scrape.value("controlplane_sampler_up", &[("sampler", "kernel")]) == Some(1.0)
    });
    assert_eq!(node.exec(&["systemctl", "is-enabled", UNIT]).trim(), "enabled");
    let plugin = node.exec(&["readlink", "-f", "/usr/lib/nagios/plugins/check_controlplane"]);
    assert_eq!(plugin.trim(), "/usr/bin/controlplane-exporter");
    bill_of_materials(&node.exec(&["cat", &format!("/usr/share/doc/{NAME}/sbom.cdx.json")]));

    // The port can be systemd's: nobody is refused while the agent is away, which starts without being asked.
    node.exec(&["systemctl", "stop", UNIT]);
    node.exec(&["systemctl", "enable", "--now", SOCKET, ROTATION]);
    node.exec(&["systemctl", "start", UNIT]);
    assert!(node.journal().contains("listening on a socket of systemd"), "{}", node.journal());
    node.wait_until("figures at the port of systemd", |scrape| {
        scrape.value("controlplane_sampler_up", &[("sampler", "kernel")]) == Some(1.0)
    });

    // An update starts the new program and keeps what the administrator wrote, and what he switched on.
    let defaults = node.container.root().join("etc/default/controlplane-exporter");
    std::fs::write(&defaults, "OPTIONS=\"--web.telemetry-path=/figures\"\n").unwrap();
    let first = started(&node);
    let (newer, _folder) = newer_deb();
    node.copy(&newer, "newer.deb");
    node.exec(&["dpkg", "--install", "--force-confdef", "--force-confold", "/newer.deb"]);
    let version = node.exec(&["dpkg-query", "--show", "--showformat=${Version}", NAME]);
    assert_eq!(version, NEWER);
    assert_ne!(started(&node), first, "an update did not start the agent anew");
    assert!(read(&defaults).contains("figures"));
    let figures = node.container.get(PORT, "/figures").unwrap();
    assert_eq!(figures.status, 200, "{}", node.journal());
    for unit in [SOCKET, ROTATION] {
        assert_eq!(node.container.show(unit, "ActiveState"), "active", "{unit} after an update");
        assert_eq!(node.exec(&["systemctl", "is-enabled", unit]).trim(), "enabled");
    }

    node.exec(&["dpkg", "--remove", NAME]);
    for unit in [UNIT, SOCKET, ROTATION] {
        assert_eq!(node.container.show(unit, "ActiveState"), "inactive", "{unit} after a removal");
    }
    assert!(defaults.exists(), "removing took the configuration away");
    node.exec(&["getent", "passwd", NAME]);
    node.exec(&["dpkg", "--purge", NAME]);
    node.exec(&["rm", "/newer.deb"]);
    let left: Vec<_> = files(&node).difference(&before).cloned().collect();
    assert!(left.is_empty(), "a purge left {left:?}");
    for users in ["passwd", "group"] {
        let found = node.container.exec(&["getent", users, NAME]);
        assert_eq!(found.status.code(), Some(2), "a purge left {}", found.stdout);
    }
}

#[test]
fn the_package_comes_and_goes_on_debian_12() {
    let _turn = lab::together();
    comes_and_goes("root");
}

#[test]
fn the_package_comes_and_goes_on_debian_13() {
    let _turn = lab::together();
    comes_and_goes("root-2");
}

#[test]
fn lintian_has_nothing_to_say_about_the_package() {
    let _turn = lab::together();
    let mut command = bound_command(program("lintian"));
    command.args(["--fail-on=error,warning", "--allow-root"]).arg(deb());
    let said = output(command, Duration::from_mins(1));
    assert!(said.status.success(), "{}{}", said.stdout, said.stderr);
    let needs = run("dpkg-deb", ["--field".as_ref(), deb().as_os_str(), "Depends".as_ref()]);
    assert_eq!(needs.trim(), "", "the static binary needs no package");
}

#[test]
fn the_image_holds_the_binary_alone_and_runs_it_as_nobody() {
    let _turn = lab::alone();
    let _ = binary();
    let from = Instant::now();
    package("image", "dist");
    let tag = format!("localhost/{NAME}:{VERSION}");
    let inspect = run("buildah", ["inspect", "--type=image", &tag]);
    let image: serde_json::Value = serde_json::from_str(&inspect).unwrap();
    let config = &image["Docker"]["config"];
    assert_eq!(config["User"], "65534:65534");
    assert!(config["ExposedPorts"]["10379/tcp"].is_object(), "{config}");
    assert_eq!(config["Entrypoint"][0], "/controlplane-exporter");
    let health = config["Healthcheck"]["Test"].as_array().unwrap();
    assert_eq!(health[1..], ["/controlplane-exporter", "check", "--self"]);
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], VERSION);
    assert_eq!(config["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");

    let folder = lab::temp_dir("image");
    let archive = folder.path().join("image.tar");
    run(
        "buildah",
        [
            "push".to_owned(),
            "--quiet".into(),
            tag.clone(),
            format!("docker-archive:{}", archive.display()),
        ],
    );
    let size = std::fs::metadata(&archive).unwrap().len();
    assert!(size < 14 << 20, "{size} bytes");

    // chroot isolation needs no daemon and no new namespaces; the user is that of the image.
    let container = run("buildah", ["from", &tag]);
    let container = container.trim();
    // Its network is this machine's. The address of the agent is an argument, which the health check does not know.
    let nobody =
        format!("CONTROLPLANE_EXPORTER__WEB__LISTEN_ADDRESS=127.0.0.1:{}", lab::free_port());
    let listen = format!("--web.listen-address=127.0.0.1:{}", lab::free_port());
    let in_it = |args: &[&str]| {
        let mut command = bound_command(program("buildah"));
        command.args(["run", "--isolation=chroot", "--env", &nobody, container, "--"]);
        command.arg("/controlplane-exporter").args(args);
        command
    };
    let said = output(in_it(&["--version"]), LIMIT);
    // The health check, as the runtime starts it beside the agent: before it runs, and while it does.
    let without = output(in_it(&["check", "--self"]), LIMIT);
    let mut agent = Daemon::start("the image", in_it(&[&listen]), &folder.path().join("log"));
    let with = wait_for("the health check", LIMIT, || {
        agent.check_alive()?;
        let said = output(in_it(&["check", "--self"]), LIMIT);
        if said.status.success() { Ok(said) } else { Err(said.stdout) }
    });
    agent.kill();
    run("buildah", ["rm", container]);
    run("buildah", ["rmi", &tag]);
    assert_eq!(said.stdout.trim(), format!("{NAME} {VERSION}"), "{}", said.stderr);
    assert!(without.status.code() == Some(2), "{}{}", without.stdout, without.stderr);
    assert!(with.stdout.contains("OK: the agent answers"), "{}", with.stdout);
    assert!(from.elapsed() < Duration::from_mins(5), "{:?}", from.elapsed());
}

#[test]
fn the_package_s_own_texts_carry_the_version_of_the_program() {
    let changelog = read(&deploy("deb/changelog"));
    assert!(changelog.starts_with(&format!("{NAME} ({VERSION}-1) ")), "{changelog}");
    assert!(
        read(&deploy("deb/controlplane-exporter.8")).contains(&format!("\"{NAME} {VERSION}\""))
    );
    assert!(
        read(&Path::new(ROOT).join("Dockerfile")).contains(&format!("ARG VERSION={VERSION}\n"))
    );
}
