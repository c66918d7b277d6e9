use std::fs;
use std::os::unix::fs::symlink;
use std::time::UNIX_EPOCH;

use super::*;
use crate::host::{DatastorePlace, Distribution, Facts, Installation, Role, Unit};
use crate::sampler;

/// A server of this distribution with these files, the batch of one run on it, and its root.
fn run(distribution: Distribution, files: &[(&str, &str)]) -> (Batch, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    (run_in(root.path(), distribution), root)
}

fn run_in(root: &Path, distribution: Distribution) -> Batch {
    let mut node = Installation::new(distribution);
    node.role = Role::Server;
    node.version = Some("v1.33.1+k3s1".to_owned());
    node.data_dir = Some("/var/lib/rancher/k3s".into());
    node.units = vec![Unit { name: "k3s.service".to_owned(), expected: true }];
    let disks = vec!["vda".to_owned()];
    let facts = Facts {
        boot_time: Some(1_000_000),
        installations: vec![node],
        datastore: Some(DatastorePlace { disks, ..DatastorePlace::default() }),
        ..Facts::default()
    };
    let host = Host::at(root).with_facts(facts);
    let mut out = Batch::default();
    let own = serde_json::json!({});
    sampler::isolated(&SAMPLER, &host, &own).unwrap().sample(&mut out).unwrap();
    out
}

fn digest(batch: &Batch, component: &str) -> String {
    let series = batch.all().iter().find(|series| {
        series.metric == "controlplane_settings_component_info" && series.labels[0] == component
    });
    series.unwrap().labels[1].clone()
}

fn flag(batch: &Batch, component: &str, flag: &str, value: &str) -> bool {
    batch.value(&FLAG, [component, flag, value]).is_some()
}

const CONFIG: &str = "etc/rancher/k3s/config.yaml";

#[test]
fn a_flag_on_one_server_only_is_named() {
    let (plain, _) = run(Distribution::K3s, &[(CONFIG, "")]);
    let (without, _) = run(Distribution::K3s, &[(CONFIG, "disable: traefik\n")]);
    assert!(flag(&without, "k3s", "disable", "traefik"));
    assert!(!flag(&plain, "k3s", "disable", "traefik"));
    assert_ne!(digest(&plain, "k3s"), digest(&without, "k3s"));
}

#[test]
fn the_way_it_is_written_makes_no_difference() {
    let (one, _) = run(
        Distribution::K3s,
        &[(CONFIG, "disable: [traefik, servicelb]\nkube-apiserver-arg: [event-ttl=1h, v=2]\n")],
    );
    let (other, _) = run(
        Distribution::K3s,
        &[
            (CONFIG, "kube-apiserver-arg: [v=2, --event_ttl=1h]\ncluster-cidr: 10.42.0.0/16\n"),
            (
                "etc/systemd/system/k3s.service",
                "[Service]\nExecStart=/usr/local/bin/k3s server --disable=servicelb --disable traefik\n",
            ),
        ],
    );
    assert_eq!(digest(&one, "k3s"), digest(&other, "k3s"));
    assert_eq!(digest(&one, "kube-apiserver"), digest(&other, "kube-apiserver"));
}

#[test]
fn what_names_the_node_itself_makes_no_difference() {
    let pod = |address: &str, ttl: &str| {
        format!(
            "spec:\n  containers:\n  - command: [kube-apiserver, --advertise-address={address}, --event-ttl={ttl}]\n"
        )
    };
    let of = |address: &str, ttl: &str| {
        let path = "etc/kubernetes/manifests/kube-apiserver.yaml";
        digest(&run(Distribution::Kubeadm, &[(path, &pod(address, ttl))]).0, "kube-apiserver")
    };
    assert_eq!(of("10.0.0.1", "1h"), of("10.0.0.2", "1h"));
    assert_ne!(of("10.0.0.1", "1h"), of("10.0.0.1", "2h"));
}

#[test]
fn secrets_planted_everywhere_come_out_nowhere() {
    const SECRET: &str = "hunter2";
    let files = [
        (
            CONFIG,
            "token: hunter2\nagent-token: hunter2\ndatastore-endpoint: mysql://u:hunter2@tcp(db)/k3s\n\
             cluster-domain: https://u:hunter2@c.example\nkube-apiserver-arg: [oidc-client-secret=hunter2, \
             some-password=hunter2, 'etcd-servers=https://u:hunter2@e1:2379']\netcd-arg: [quota-backend-bytes=1]\n",
        ),
        (
            "etc/rancher/k3s/config.yaml.d/a.yaml",
            "vpn-auth: name=x,joinKey=hunter2\ntoken+: hunter2\n",
        ),
        (
            "etc/systemd/system/k3s.service",
            "[Service]\nEnvironment=K3S_TOKEN=hunter2 K3S_AGENT_TOKEN=hunter2\nEnvironmentFile=-/etc/default/%N\n\
             ExecStart=/usr/local/bin/k3s server --token hunter2 --disable=traefik --etcd-s3-secret-key=hunter2\n",
        ),
        (
            "etc/default/k3s",
            "K3S_TOKEN=hunter2\nK3S_DATASTORE_ENDPOINT=postgres://k3s:hunter2@db/k3s\n",
        ),
        (
            "etc/systemd/system/k3s.service.env",
            "K3S_TOKEN='hunter2'\nHTTP_PROXY=http://u:hunter2@proxy\n",
        ),
        // It cannot be parsed, and the error may not quote it.
        ("etc/rancher/k3s/config.yaml.d/z.yaml.d/x", "hunter2"),
    ];
    for broken in [None, Some(("etc/rancher/k3s/config.yaml.d/z.yaml", "token: \"hunter2\n"))] {
        let files: Vec<_> = files[..5].iter().copied().chain(broken).collect();
        let (mut out, _) = run(Distribution::K3s, &files);
        assert_eq!(out.failures().is_empty(), broken.is_none());
        let events = out.take_events();
        let failures: Vec<String> = out.failures().iter().map(ToString::to_string).collect();
        let all = format!("{:?} {:?} {events:?} {failures:?}", out.all(), out.remarks());
        assert!(!all.contains(SECRET), "{all}");
        if broken.is_none() {
            assert!(flag(&out, "k3s", "agent-token", "set"), "{all}");
            assert!(flag(&out, "k3s", "datastore-endpoint", "mysql"), "{all}");
            assert!(flag(&out, "kube-apiserver", "etcd-servers", "https://e1:2379"), "{all}");
        }
    }
}

#[test]
fn a_secrets_value_does_not_reach_the_digest() {
    let of = |secret: &str| {
        let text = format!(
            "agent-token: {secret}\nkube-apiserver-arg: [oidc-client-secret={secret}, 'x=https://{secret}@h']\n"
        );
        let (out, _) = run(Distribution::K3s, &[(CONFIG, &text)]);
        (digest(&out, "k3s"), digest(&out, "kube-apiserver"))
    };
    assert_eq!(of("hunter2"), of("correct-horse"));
}

#[test]
fn a_file_changed_after_the_start_is_told() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(CONFIG, "");
    write("proc/7/comm", "k3s-server\n");
    write("proc/7/cmdline", "/usr/local/bin/k3s server\0");
    write("proc/7/cgroup", "0::/system.slice/k3s.service\n");
    let ticks = rustix::param::clock_ticks_per_second() * 100;
    let stat = format!("7 (k3s-server) S 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 9 0 {ticks} 0 0");
    write("proc/7/stat", &format!("{stat} 18446744073709551615{}\n", " 0".repeat(27)));
    let path = format!("/{CONFIG}");
    let changed = |seconds: u64| {
        let file = fs::File::options().write(true).open(root.path().join(CONFIG)).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        let mut out = run_in(root.path(), Distribution::K3s);
        assert_eq!(out.value(&FILE, [&path]), Some(seconds as f64));
        (out.value(&CHANGED, [&path]), out.take_events())
    };
    // k3s began 100 s after the boot.
    assert_eq!(changed(1_000_110), (Some(0.0), Vec::new()));
    let (told, events) = changed(1_000_200);
    assert_eq!(told, Some(1.0));
    assert_eq!(events[0].kind, "settings_changed");
    assert_eq!(
        events[0].text,
        "/etc/rancher/k3s/config.yaml was changed; k3s has not been restarted since and takes it over at the next start"
    );
}

#[test]
fn a_fifo_in_place_of_a_file_is_a_failed_part_and_no_hang() {
    let root = tempfile::tempdir().unwrap();
    let fifo = root.path().join(CONFIG);
    fs::create_dir_all(fifo.parent().unwrap()).unwrap();
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, rustix::fs::Mode::RUSR, 0).unwrap();
    let out = run_in(root.path(), Distribution::K3s);
    assert_eq!(out.reasons(), ["read"]);
    assert_eq!(out.series(&COMPONENT), 0);
}

#[test]
fn a_link_is_followed_inside_the_root_only() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("config.yaml"), "disable: outside\n").unwrap();
    let root = tempfile::tempdir().unwrap();
    let link = root.path().join(CONFIG);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(outside.path().join("config.yaml"), &link).unwrap();
    let out = run_in(root.path(), Distribution::K3s);
    assert!(!flag(&out, "k3s", "disable", "outside"));
}

#[test]
fn the_machine_is_told_as_the_kernel_says_it() {
    let (out, _root) = run(
        Distribution::K3s,
        &[
            ("proc/sys/vm/swappiness", "60\n"),
            ("proc/sys/vm/dirty_ratio", "20\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-32-amd64\n"),
            ("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n"),
            ("sys/class/block/vda/queue/scheduler", "[mq-deadline] kyber bfq none\n"),
            ("sys/class/block/vda/queue/write_cache", "write back\n"),
            ("sys/class/block/vda/queue/rotational", "1\n"),
            ("sys/module/zfs/parameters/zfs_txg_timeout", "5\n"),
            ("proc/spl/kstat/zfs/rpool/state", "DEGRADED\n"),
            ("proc/spl/kstat/zfs/arcstats", "x\n"),
            ("proc/pressure/io", "some avg10=0.00 total=2000000\nfull avg10=0.00 total=1000000\n"),
        ],
    );
    assert_eq!(out.value(&machine::SYSCTL, ["vm.swappiness"]), Some(60.0));
    assert_eq!(out.value(&machine::SYSCTL, ["vm.dirty_ratio"]), Some(20.0));
    assert_eq!(out.value(&machine::DISK, ["vda", "mq-deadline", "write back", "yes"]), Some(1.0));
    assert_eq!(out.value(&machine::TXG_TIMEOUT, []), Some(5.0));
    assert_eq!(out.value(&machine::POOL, ["rpool", "DEGRADED"]), Some(1.0));
    assert_eq!(out.series(&machine::POOL), 1);
    assert_eq!(out.value(&machine::PRESSURE, ["io", "full"]), Some(1.0));
    assert!(out.value(&machine::CLOCK_ERROR, []).is_some());
    for (component, version) in [
        ("kubernetes", "v1.33.1"),
        ("k3s", "v1.33.1+k3s1"),
        ("kernel", "6.1.0-32-amd64"),
        ("os", "debian 12"),
    ] {
        assert_eq!(out.value(&VERSION, [component, version]), Some(1.0), "{component}");
    }
    assert_eq!(out.reasons(), Vec::<&str>::new());
}

#[test]
fn containerd_tells_its_version_by_the_program() {
    // A program that tells another one's version only.
    let root = tempfile::tempdir().unwrap();
    let program = root.path().join("var/lib/rancher/k3s/data/current/bin/containerd");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    fs::write(&program, include_bytes!("../../../tests/data/go-build-info.elf")).unwrap();
    let out = run_in(root.path(), Distribution::K3s);
    assert!(out.all().iter().all(|series| series.labels.first().is_none_or(|l| l != "containerd")));
    assert_eq!(out.reasons(), Vec::<&str>::new());
}

#[test]
fn too_many_flags_are_counted_and_not_told() {
    let items: Vec<String> = (0..200).map(|n| format!("item{n}")).collect();
    let (out, _) =
        run(Distribution::K3s, &[(CONFIG, &format!("disable: [{}]\n", items.join(", ")))]);
    assert_eq!(out.series(&FLAG), 64);
    // Fifteen more are the defaults of the others.
    assert_eq!(out.dropped_count(), 200 + 15 - 64);
}
