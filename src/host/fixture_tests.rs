//! Detection on the checked-in roots below `tests/fixtures/host/`.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn host(case: &str) -> Host {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/host").join(case);
    assert!(root.is_dir(), "{} is missing", root.display());
    Host::at(root)
}

fn facts(case: &str) -> Facts {
    detect(&host(case), &Overrides::default())
}

/// The facts of a case with one installation, which must come without notes.
fn only(case: &str) -> (Installation, Option<DatastorePlace>) {
    let mut facts = facts(case);
    assert_eq!(facts.notes, Vec::<String>::new(), "{case}");
    assert_eq!(facts.installations.len(), 1, "{case}: {:?}", facts.installations);
    (facts.installations.remove(0), facts.datastore)
}

fn expected(found: &Installation) -> Vec<&str> {
    found.units.iter().filter(|unit| unit.expected).map(|unit| unit.name.as_str()).collect()
}

fn endpoints(found: &Installation) -> Vec<&str> {
    let etcd = found.etcd.as_ref().expect("a local etcd");
    etcd.endpoints.iter().map(String::as_str).collect()
}

fn quota(found: &Installation) -> Option<(u64, QuotaSource)> {
    found.etcd.as_ref()?.quota.as_ref().map(|quota| (quota.bytes, quota.source))
}

#[expect(clippy::unnecessary_wraps, reason = "facts hold optional paths")]
fn path(text: &str) -> Option<PathBuf> {
    Some(text.into())
}

#[test]
fn k3s_with_embedded_etcd() {
    let (k3s, place) = only("k3s-etcd");
    assert_eq!((k3s.distribution, k3s.role), (Distribution::K3s, Role::Server));
    assert!(k3s.running);
    assert_eq!(k3s.data_dir, path("/var/lib/rancher/k3s"));
    assert_eq!(k3s.datastore, Datastore::Etcd);
    assert_eq!(k3s.datastore_dir, path("/var/lib/rancher/k3s/server/db/etcd"));
    assert_eq!(k3s.etcd_snapshots, path("/var/lib/rancher/k3s/server/db/snapshots"));
    assert_eq!(endpoints(&k3s), ["https://127.0.0.1:2379"]);
    let etcd = k3s.etcd.as_ref().unwrap();
    assert_eq!(etcd.ca_file, path("/var/lib/rancher/k3s/server/tls/etcd/server-ca.crt"));
    assert_eq!(etcd.cert_file, path("/var/lib/rancher/k3s/server/tls/etcd/client.crt"));
    assert_eq!(etcd.key_file, path("/var/lib/rancher/k3s/server/tls/etcd/client.key"));
    assert_eq!(quota(&k3s), Some((4_294_967_296, QuotaSource::Config)));
    assert_eq!(k3s.units, [Unit { name: "k3s.service".to_owned(), expected: true }]);
    assert_eq!(k3s.processes, ["k3s-server"]);
    assert_eq!(k3s.kine_socket, None);
    assert_eq!(
        k3s.container_dirs,
        [Path::new("/var/lib/rancher/k3s/agent/containerd"), Path::new("/var/lib/kubelet")]
    );
    let place = place.unwrap();
    assert_eq!((place.mount_point.as_path(), place.fstype.as_str()), (Path::new("/"), "ext4"));
    assert_eq!(place.chain, ["vda1", "vda"]);
    assert_eq!(place.disks, ["vda"]);
}

#[test]
fn hostname_and_boot_time_are_read() {
    let facts = facts("k3s-etcd");
    assert_eq!(facts.hostname, "k3s-1");
    assert_eq!(facts.boot_time, Some(1_776_000_000));
}

#[test]
fn no_secret_of_any_fixture_reaches_the_facts() {
    for entry in fs::read_dir(host("empty").rootfs().parent().unwrap()).unwrap() {
        let case = entry.unwrap().file_name().into_string().unwrap();
        let json = serde_json::to_string(&facts(&case)).unwrap();
        assert!(!json.contains("SECRET"), "{case}: {json}");
        let back: Facts = serde_json::from_str(&json).unwrap();
        assert_eq!(back, facts(&case), "{case}");
    }
}

#[test]
fn k3s_on_sqlite_with_its_data_moved_by_a_flag() {
    let (k3s, place) = only("k3s-sqlite");
    assert_eq!(k3s.data_dir, path("/srv/k3s"));
    assert_eq!(k3s.datastore, Datastore::Sqlite);
    assert_eq!(k3s.datastore_dir, path("/srv/k3s/server/db"));
    assert_eq!(k3s.kine_socket, path("/srv/k3s/server/kine.sock"));
    assert_eq!(k3s.etcd_snapshots, None);
    assert!(!k3s.kine_tls);
    assert_eq!(k3s.etcd, None);
    let place = place.unwrap();
    assert_eq!(place.mount_point, Path::new("/srv"));
    assert_eq!(place.chain, ["vdb1", "vdb"]);
}

#[test]
fn a_k3s_agent_has_no_datastore() {
    let (agent, place) = only("k3s-agent");
    assert_eq!((agent.distribution, agent.role), (Distribution::K3s, Role::Agent));
    assert_eq!(agent.datastore, Datastore::Unknown);
    assert_eq!((agent.datastore_dir, agent.etcd), (None, None));
    assert_eq!(agent.units[0].name, "k3s-agent.service");
    assert_eq!(place, None);
}

#[test]
fn rke2_with_both_unit_files_of_its_tarball() {
    let (rke2, place) = only("rke2");
    assert_eq!((rke2.distribution, rke2.role), (Distribution::Rke2, Role::Server));
    assert_eq!(rke2.version.as_deref(), Some("v1.33.4+rke2r1"));
    assert_eq!(rke2.datastore, Datastore::Etcd);
    assert_eq!(rke2.datastore_dir, path("/var/lib/rancher/rke2/server/db/etcd"));
    assert_eq!(endpoints(&rke2), ["https://127.0.0.1:2379"]);
    assert_eq!(quota(&rke2), None);
    assert_eq!(rke2.processes, ["etcd"]);
    assert_eq!(expected(&rke2), ["rke2-server.service"]);
    assert_eq!(rke2.units.len(), 1);
    assert!(place.is_some());
}

#[test]
fn kubeadm_with_a_stacked_member_on_a_disk_of_its_own() {
    let (kubeadm, place) = only("kubeadm");
    assert_eq!((kubeadm.distribution, kubeadm.role), (Distribution::Kubeadm, Role::Server));
    assert!(kubeadm.running);
    assert_eq!(kubeadm.version.as_deref(), Some("v1.34.1"));
    assert_eq!(kubeadm.datastore, Datastore::Etcd);
    assert_eq!(endpoints(&kubeadm), ["https://127.0.0.1:2379"]);
    let etcd = kubeadm.etcd.as_ref().unwrap();
    assert_eq!(etcd.ca_file, path("/etc/kubernetes/pki/etcd/ca.crt"));
    assert_eq!(etcd.cert_file, path("/etc/kubernetes/pki/etcd/healthcheck-client.crt"));
    assert_eq!(etcd.key_file, path("/etc/kubernetes/pki/etcd/healthcheck-client.key"));
    // The manifest has 8 GiB, but the member that runs was started with 6.
    assert_eq!(quota(&kubeadm), Some((6_442_450_944, QuotaSource::Process)));
    assert_eq!(expected(&kubeadm), ["kubelet.service", "containerd.service"]);
    let place = place.unwrap();
    assert_eq!(place.path, Path::new("/var/lib/etcd"));
    assert_eq!((place.source.as_str(), place.fstype.as_str()), ("/dev/vdb1", "xfs"));
    assert_eq!(place.disks, ["vdb"]);
}

#[test]
fn kubeadm_with_an_external_etcd() {
    let (kubeadm, place) = only("kubeadm-external-etcd");
    assert_eq!(kubeadm.datastore, Datastore::ExternalEtcd);
    assert_eq!(kubeadm.etcd, None);
    let external = kubeadm.external_etcd.unwrap();
    assert_eq!(external.endpoints.len(), 3);
    assert_eq!(external.cert_file, path("/etc/kubernetes/pki/apiserver-etcd-client.crt"));
    assert_eq!(place, None);
}

#[test]
fn a_member_run_by_a_unit_beside_its_api_server_is_the_api_servers_own() {
    let (kubeadm, place) = only("kubeadm-host-etcd");
    assert_eq!(kubeadm.datastore, Datastore::Etcd);
    assert_eq!(endpoints(&kubeadm), ["https://127.0.0.1:2379"]);
    let etcd = kubeadm.etcd.as_ref().unwrap();
    assert_eq!(etcd.cert_file, path("/etc/kubernetes/pki/apiserver-etcd-client.crt"));
    // The process has no flags, and its variables cannot be read: the unit's say all this.
    assert_eq!(quota(&kubeadm), Some((2_147_483_648, QuotaSource::Config)));
    assert_eq!(kubeadm.external_etcd, None);
    assert!(expected(&kubeadm).contains(&"etcd.service"));
    assert_eq!(place.unwrap().path, Path::new("/var/lib/etcd"));
}

#[test]
fn variables_of_the_process_come_before_those_of_its_unit() {
    let (_dir, host) = copy_of("kubeadm-host-etcd");
    let variables = "PATH=/bin\0OTHER=SECRET\0ETCD_DATA_DIR=/var/lib/etcd\0\
                     ETCD_ADVERTISE_CLIENT_URLS=https://192.0.2.41:2379\0\
                     ETCD_LISTEN_CLIENT_URLS=https://192.0.2.41:2379,https://127.0.0.1:2479\0\
                     ETCD_QUOTA_BACKEND_BYTES=8589934592\0";
    fs::write(host.path("/proc/800/environ"), variables).unwrap();
    let facts = detect(&host, &Overrides::default());
    assert_eq!(facts.installations.len(), 1);
    let kubeadm = facts.primary().unwrap();
    assert_eq!(endpoints(kubeadm), ["https://127.0.0.1:2479"]);
    assert_eq!(quota(kubeadm), Some((8_589_934_592, QuotaSource::Process)));
}

#[test]
fn an_etcd_whose_variables_nothing_tells_is_not_taken_for_one_with_defaults() {
    let hidden = |change: &dyn Fn(&Host)| {
        let (_dir, host) = copy_of("kubeadm-host-etcd");
        change(&host);
        let facts = detect(&host, &Overrides::default());
        assert_eq!(facts.primary().unwrap().datastore, Datastore::ExternalEtcd);
        let etcd = facts.installations.iter().find(|n| n.distribution == Distribution::Etcd);
        assert_eq!(etcd.map(|etcd| (&etcd.etcd, &etcd.datastore_dir)), Some((&None, &None)));
        assert_eq!((facts.etcd(), &facts.datastore), (None, &None));
        let told = facts.notes.iter().any(|note| note.contains("its address is unknown"));
        assert!(told, "{:?}", facts.notes);
    };
    let unit = "/etc/systemd/system/etcd.service";
    hidden(&|host| fs::remove_file(host.path(unit)).unwrap());
    // What a script sets by itself is in no unit.
    hidden(&|host| fs::write(host.path(unit), "[Service]\nExecStart=/opt/run.sh\n").unwrap());
    hidden(&|host| {
        fs::remove_file(host.path("/etc/etcd.env")).unwrap();
        fs::create_dir(host.path("/etc/etcd.env")).unwrap();
    });
}

#[test]
fn an_etcd_that_its_unit_starts_through_a_shell_is_known_by_the_units_variables() {
    let (_dir, host) = copy_of("kubeadm-host-etcd");
    let unit = "[Service]\nEnvironmentFile=/etc/etcd.env\nWorkingDirectory=/var/lib\n\
                ExecStart=/bin/bash -c \"GOMAXPROCS=2 /usr/local/bin/etcd\"\n";
    fs::write(host.path("/etc/systemd/system/etcd.service"), unit).unwrap();
    let env = host.path("/etc/etcd.env");
    let text = fs::read_to_string(&env).unwrap();
    fs::write(&env, text.replace("DATA_DIR=/var/lib/etcd", "DATA_DIR=etcd")).unwrap();
    let facts = detect(&host, &Overrides::default());
    let kubeadm = facts.primary().unwrap();
    assert_eq!(kubeadm.datastore, Datastore::Etcd);
    assert_eq!(endpoints(kubeadm), ["https://127.0.0.1:2379"]);
    assert_eq!(kubeadm.datastore_dir, path("/var/lib/etcd"), "from where the unit starts it");
}

/// A control plane of kubeadm whose pods of these names were stopped by moving their manifests.
fn moved(names: &[&str]) -> (tempfile::TempDir, Host) {
    let (dir, host) = copy_of("kubeadm");
    for name in names {
        fs::remove_file(host.path(format!("/etc/kubernetes/manifests/{name}.yaml"))).unwrap();
        for process in fs::read_dir(host.path("/proc")).unwrap() {
            let process = process.unwrap().path();
            if fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == *name) {
                fs::remove_dir_all(process).unwrap();
            }
        }
    }
    (dir, host)
}

#[test]
fn a_control_plane_whose_manifests_were_moved_away_is_still_one() {
    let (_dir, host) = moved(&["kube-apiserver", "etcd"]);
    let config = host.path("/etc/kubernetes/controller-manager.conf");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("127.0.0.1:6443", "balancer:8443")).unwrap();
    let facts = detect(&host, &Overrides::default());
    let kubeadm = facts.primary().unwrap();
    assert_eq!((kubeadm.distribution, kubeadm.role), (Distribution::Kubeadm, Role::Server));
    assert_eq!(kubeadm.api_url.as_deref(), Some("https://127.0.0.1:6443"));
    assert_eq!(kubeadm.datastore, Datastore::Etcd);
    assert_eq!(kubeadm.datastore_dir, path("/var/lib/etcd"));
    assert_eq!(endpoints(kubeadm), ["https://127.0.0.1:2379"]);
    let etcd = kubeadm.etcd.as_ref().unwrap();
    assert_eq!(etcd.ca_file, path("/etc/kubernetes/pki/etcd/ca.crt"));
    assert_eq!(etcd.cert_file, path("/etc/kubernetes/pki/etcd/healthcheck-client.crt"));
    assert_eq!(facts.datastore.unwrap().disks, ["vdb"]);
    assert!(facts.notes[0].starts_with("/etc/kubernetes/manifests/kube-apiserver.yaml is missing"));
    assert!(facts.notes[1].starts_with("/etc/kubernetes/manifests/etcd.yaml is missing"));
    assert_eq!(facts.notes.len(), 2, "{:?}", facts.notes);
}

#[test]
fn one_manifest_that_was_moved_away_changes_nothing_else() {
    let (_dir, host) = moved(&["kube-apiserver"]);
    let facts = detect(&host, &Overrides::default());
    let kubeadm = facts.primary().unwrap();
    assert_eq!(kubeadm.api_url.as_deref(), Some("https://127.0.0.1:6443"));
    assert_eq!(quota(kubeadm), Some((6_442_450_944, QuotaSource::Process)));
    assert_eq!(facts.notes.len(), 1, "{:?}", facts.notes);

    let (_dir, host) = moved(&["etcd"]);
    let facts = detect(&host, &Overrides::default());
    let kubeadm = facts.primary().unwrap();
    assert_eq!(kubeadm.version.as_deref(), Some("v1.34.1"));
    assert_eq!((kubeadm.datastore, &kubeadm.external_etcd), (Datastore::Etcd, &None));
    assert_eq!(kubeadm.datastore_dir, path("/var/lib/etcd"));
    assert_eq!(facts.notes.len(), 1, "{:?}", facts.notes);
}

#[test]
fn an_etcd_beside_the_api_server_is_not_kubeadms_own() {
    let (_dir, host) = moved(&["etcd"]);
    let unit = host.path("/etc/systemd/system/etcd.service");
    let text = "[Service]\nExecStart=/usr/bin/etcd --data-dir=/srv/etcd\n";
    fs::write(&unit, text).unwrap();
    let wanted = host.path("/etc/systemd/system/multi-user.target.wants/etcd.service");
    std::os::unix::fs::symlink("../etcd.service", wanted).unwrap();
    let facts = detect(&host, &Overrides::default());
    assert_eq!(facts.primary().unwrap().datastore, Datastore::ExternalEtcd);
    assert_eq!(facts.notes, Vec::<String>::new());
}

#[test]
fn without_manifests_an_etcd_elsewhere_is_unknown_and_a_worker_stays_one() {
    let (_dir, host) = copy_of("kubeadm-external-etcd");
    fs::remove_file(host.path("/etc/kubernetes/manifests/kube-apiserver.yaml")).unwrap();
    fs::remove_dir_all(host.path("/proc/1400")).unwrap();
    let found = || detect(&host, &Overrides::default()).installations.remove(0);
    // As on a worker, but for files that an administrator has copied.
    assert_eq!((found().role, found().api_url), (Role::Agent, None));
    assert_eq!(detect(&host, &Overrides::default()).notes, Vec::<String>::new());
    fs::write(host.path("/etc/kubernetes/controller-manager.conf"), "").unwrap();
    fs::write(host.path("/etc/kubernetes/pki/apiserver.crt"), "").unwrap();
    assert_eq!((found().role, found().datastore), (Role::Server, Datastore::Unknown));
    assert_eq!(found().api_url.as_deref(), Some("https://127.0.0.1:6443"));
}

#[test]
fn a_plain_etcd_that_is_stopped_is_still_described() {
    let (etcd, place) = only("etcd");
    assert_eq!((etcd.distribution, etcd.role), (Distribution::Etcd, Role::Server));
    assert!(!etcd.running);
    assert_eq!(endpoints(&etcd), ["http://127.0.0.1:2379", "http://[::1]:2379"]);
    assert_eq!(quota(&etcd), Some((4_294_967_296, QuotaSource::Config)));
    assert_eq!(etcd.datastore_dir, path("/var/lib/etcd/default"));
    assert_eq!(expected(&etcd), ["etcd.service"]);
    assert_eq!(place.unwrap().disks, ["vda"]);
}

#[test]
fn a_package_of_etcd_that_never_ran_is_not_an_installation() {
    let (_dir, host) = copy_of("etcd");
    fs::remove_dir_all(host.path("/var/lib/etcd/default/member")).unwrap();
    assert_eq!(detect(&host, &Overrides::default()).installations, []);
}

#[test]
fn k0s_with_its_runtime_configuration() {
    let (k0s, place) = only("k0s");
    assert_eq!((k0s.distribution, k0s.role), (Distribution::K0s, Role::Server));
    assert_eq!(k0s.version.as_deref(), Some("v1.33.4"));
    assert_eq!(k0s.datastore, Datastore::Etcd);
    assert_eq!(endpoints(&k0s), ["https://127.0.0.1:2379"]);
    let etcd = k0s.etcd.as_ref().unwrap();
    assert_eq!(etcd.ca_file, path("/var/lib/k0s/pki/etcd/ca.crt"));
    assert_eq!(etcd.cert_file, path("/var/lib/k0s/pki/apiserver-etcd-client.crt"));
    assert_eq!(quota(&k0s), Some((8_589_934_592, QuotaSource::Process)));
    assert_eq!(expected(&k0s), ["k0scontroller.service"]);
    assert_eq!(k0s.processes, ["etcd"]);
    assert_eq!(place.unwrap().path, Path::new("/var/lib/k0s/etcd"));
}

#[test]
fn microk8s_with_dqlite_and_its_lock_files() {
    let (microk8s, place) = only("microk8s");
    assert_eq!((microk8s.distribution, microk8s.role), (Distribution::Microk8s, Role::Server));
    assert!(microk8s.running);
    assert_eq!(microk8s.version.as_deref(), Some("v1.34.5"));
    assert_eq!(microk8s.datastore, Datastore::Dqlite);
    let backend = "/var/snap/microk8s/current/var/kubernetes/backend";
    assert_eq!(microk8s.datastore_dir, path(backend));
    assert_eq!(microk8s.kine_socket, path(&format!("{backend}/kine.sock:12379")));
    assert_eq!(microk8s.processes, ["k8s-dqlite"]);
    assert_eq!(microk8s.snaps, ["microk8s"]);
    assert_eq!(microk8s.units.len(), 8);
    assert_eq!(
        expected(&microk8s),
        ["kubelite", "k8s-dqlite", "containerd", "cluster-agent", "apiserver-kicker"]
            .map(|app| format!("snap.microk8s.daemon-{app}.service"))
    );
    // As text, since paths that differ in a slash at the end are equal.
    assert_eq!(place.unwrap().path.to_str(), Some(backend), "the link must stay");
}

#[test]
fn canonical_kubernetes_with_its_own_etcd() {
    let (k8s, _) = only("canonical-k8s");
    assert_eq!((k8s.distribution, k8s.role), (Distribution::CanonicalK8s, Role::Server));
    assert_eq!(k8s.version.as_deref(), Some("v1.34.1"));
    assert_eq!(k8s.datastore, Datastore::Etcd);
    assert_eq!(k8s.datastore_dir, path("/var/snap/k8s/common/var/lib/etcd/data"));
    assert_eq!(endpoints(&k8s), ["https://127.0.0.1:2379"]);
    let etcd = k8s.etcd.as_ref().unwrap();
    assert_eq!(etcd.cert_file, path("/etc/kubernetes/pki/apiserver-etcd-client.crt"));
    assert!(expected(&k8s).contains(&"snap.k8s.etcd.service"));
    assert!(!expected(&k8s).contains(&"snap.k8s.k8s-apiserver-proxy.service"));
}

#[test]
fn images_of_canonical_kubernetes_are_where_its_containerd_keeps_them() {
    let (_dir, host) = copy_of("canonical-k8s");
    let dirs = || detect(&host, &Overrides::default()).primary().unwrap().container_dirs.clone();
    let inside = "/var/snap/k8s/common/var/lib/containerd";
    assert_eq!(dirs(), [Path::new(inside)]);
    let make = |folder: &str| fs::create_dir_all(host.path(folder)).unwrap();
    make("/var/lib/containerd");
    make("/var/lib/kubelet");
    assert_eq!(dirs(), ["/var/lib/containerd", inside, "/var/lib/kubelet"].map(Path::new));
    fs::remove_dir_all(host.path(inside)).unwrap();
    assert_eq!(dirs(), ["/var/lib/containerd", "/var/lib/kubelet"].map(Path::new));
    make("/srv/k8s/var/lib/containerd");
    let args = host.path("/var/snap/k8s/common/args/containerd");
    fs::write(args, "--root=/srv/k8s/var/lib/containerd\n").unwrap();
    assert_eq!(dirs(), ["/srv/k8s/var/lib/containerd", "/var/lib/kubelet"].map(Path::new));
}

#[test]
fn talos_says_what_is_not_possible() {
    let facts = facts("talos");
    let talos = facts.primary().unwrap();
    assert_eq!(facts.installations.len(), 1);
    assert_eq!((talos.distribution, talos.role), (Distribution::Talos, Role::Server));
    assert_eq!(talos.version.as_deref(), Some("v1.11.2"));
    assert_eq!(talos.units, []);
    assert_eq!(talos.etcd.as_ref().unwrap().cert_file, path("/system/secrets/etcd/admin.crt"));
    assert!(facts.notes.iter().any(|note| note.contains("no units to watch")));
    assert_eq!(facts.datastore.unwrap().chain, ["vda4", "vda"]);
}

#[test]
fn what_starts_at_boot_comes_before_leftovers() {
    let facts = facts("two-traces");
    let found: Vec<Distribution> = facts.installations.iter().map(|f| f.distribution).collect();
    assert_eq!(found, [Distribution::K3s, Distribution::Microk8s, Distribution::Rke2]);
    assert!(!facts.installations[0].running);
    assert_eq!(expected(&facts.installations[0]), ["k3s.service"]);
    assert_eq!(expected(&facts.installations[1]), Vec::<&str>::new());
    // Not running, but where it would answer is known, so that `etcd_up 0` can be said.
    assert_eq!(facts.etcd().unwrap().endpoints, ["https://127.0.0.1:2379"]);
    let place = facts.datastore.unwrap();
    assert_eq!(place.path, Path::new("/var/lib/rancher/k3s/server/db/etcd"));
}

#[test]
fn an_empty_root_starts_with_notes_and_no_installation() {
    let facts = facts("empty");
    assert_eq!(facts.installations, []);
    assert_eq!(facts.datastore, None);
    assert_eq!(facts.hostname, "bare");
    assert_eq!(facts.boot_time, None);
    assert_eq!(
        facts.notes,
        [
            "/proc is missing or empty below --path.rootfs; a container needs the host's /proc mounted there",
            "/sys is missing or empty below --path.rootfs; a container needs the host's /sys mounted there"
        ]
    );
}

#[test]
fn a_root_that_does_not_exist_is_named() {
    let facts = detect(&Host::at("/does/not/exist"), &Overrides::default());
    assert_eq!(facts.installations, []);
    assert_eq!(facts.hostname, "");
    assert!(facts.notes[0].contains("/does/not/exist"), "{:?}", facts.notes);
}

#[test]
fn devices_are_followed_to_the_disk() {
    for (case, chain, disks) in [
        ("lvm-on-partition", &["dm-0", "sda2", "sda"][..], &["sda"][..]),
        ("md", &["md0", "sda1", "sda", "sdb1", "sdb"], &["sda", "sdb"]),
        ("loop", &["loop3", "sda1", "sda"], &["sda"]),
        ("btrfs", &["sda1", "sda", "sdb"], &["sda", "sdb"]),
    ] {
        let place = facts(case).datastore.unwrap();
        assert_eq!(place.mount_point, Path::new("/var/lib/etcd"), "{case}");
        assert_eq!(
            (&place.chain[..], &place.disks[..]),
            (chain_of(chain).as_slice(), chain_of(disks).as_slice()),
            "{case}"
        );
    }
}

fn chain_of(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_filesystem_without_a_block_device_has_no_chain() {
    let (_dir, host) = copy_of("kubeadm");
    let mountinfo = host.path("/proc/1/mountinfo");
    for line in [
        "30 22 0:47 / /var/lib/etcd rw - zfs rpool/etcd rw\n",
        "30 22 0:47 / /var/lib/etcd rw - nfs4 192.0.2.1:/etcd rw\n",
        "30 22 0:47 / /var/lib/etcd rw - overlay overlay rw,lowerdir=/l\n",
        "30 22 0:47 / /var/lib/etcd rw - tmpfs tmpfs rw\n",
        "30 22 259:9 / /var/lib/etcd rw - ext4 /dev/gone rw\n",
    ] {
        fs::write(&mountinfo, line).unwrap();
        let facts = detect(&host, &Overrides::default());
        let place = facts.datastore.unwrap();
        assert_eq!((place.chain, place.disks), (vec![], vec![]), "{line}");
        assert!(facts.notes[0].contains("are unknown: it lies on"), "{:?}", facts.notes);
    }
}

#[test]
fn a_wal_on_a_mount_of_its_own_is_what_matters() {
    let (_dir, host) = copy_of("kubeadm");
    let mountinfo = host.path("/proc/1/mountinfo");
    let mut text = fs::read_to_string(&mountinfo).unwrap();
    text.push_str("40 30 254:1 / /var/lib/etcd/member/wal rw - ext4 /dev/vda1 rw\n");
    fs::write(&mountinfo, text).unwrap();
    let place = detect(&host, &Overrides::default()).datastore.unwrap();
    assert_eq!(place.path, Path::new("/var/lib/etcd/member/wal"));
    assert_eq!(place.disks, ["vda"]);
}

#[test]
fn overrides_replace_what_was_found() {
    let overrides = Overrides {
        version: Some("v9".to_owned()),
        datastore_dir: path("/srv/k3s"),
        role: Some(Role::Agent),
        ..Overrides::default()
    };
    let facts = detect(&host("k3s-etcd"), &overrides);
    let k3s = facts.primary().unwrap();
    assert_eq!((k3s.version.as_deref(), k3s.role), (Some("v9"), Role::Agent));
    assert_eq!(facts.datastore.unwrap().path, Path::new("/srv/k3s"));
}

#[test]
fn overridden_devices_replace_the_chain_and_sys_tells_which_are_whole_disks() {
    let chain = |case: &str, names: &[&str]| {
        let devices = Some(chain_of(names));
        let facts = detect(&host(case), &Overrides { devices, ..Overrides::default() });
        facts.datastore.map(|place| (place.chain, place.disks))
    };
    let lvm = chain("lvm-on-partition", &["dm-0", "sda2", "sda"]).unwrap();
    assert_eq!(lvm, (chain_of(&["dm-0", "sda2", "sda"]), chain_of(&["sda"])));
    let unknown = chain("lvm-on-partition", &["nvme9n1"]).unwrap();
    assert_eq!(unknown, (chain_of(&["nvme9n1"]), chain_of(&["nvme9n1"])), "not in /sys");
    let partition = chain("k3s-etcd", &["vda1"]).unwrap();
    assert_eq!(partition.1, chain_of(&["vda1"]), "none is whole: all of them");
    assert_eq!(chain("empty", &["sda"]), None);
}

#[test]
fn an_overridden_data_directory_moves_everything_below_it() {
    let overrides = Overrides { data_dir: path("/srv/k3s"), ..Overrides::default() };
    let facts = detect(&host("two-traces"), &overrides);
    let k3s = facts.primary().unwrap();
    assert_eq!(k3s.datastore, Datastore::Sqlite, "there is no WAL below it");
    assert_eq!(k3s.datastore_dir, path("/srv/k3s/server/db"));
}

#[test]
fn an_overridden_distribution_comes_first_or_is_made() {
    let overrides = Overrides { distribution: Some(Distribution::Rke2), ..Overrides::default() };
    let facts = detect(&host("two-traces"), &overrides);
    assert_eq!(facts.installations[0].distribution, Distribution::Rke2);
    assert_eq!(facts.installations.len(), 3);
    let facts = detect(&host("empty"), &overrides);
    assert_eq!(facts.installations[0].distribution, Distribution::Rke2);
    let overrides = Overrides { datastore_dir: path("/data"), ..Overrides::default() };
    let facts = detect(&host("empty"), &overrides);
    assert_eq!(facts.installations[0].datastore_dir, path("/data"));
    assert!(facts.notes.iter().any(|note| note.contains("host.distribution")));
}

#[test]
fn damage_costs_a_note_and_nothing_else() {
    let (_dir, host) = copy_of("k3s-etcd");
    let config = host.path("/etc/rancher/k3s/config.yaml");
    fs::remove_file(&config).unwrap();
    fs::create_dir(&config).unwrap();
    fs::write(host.path("/etc/rancher/k3s/config.yaml.d/50-quota.yaml"), "a: [b\n\t- {").unwrap();
    let etcd_config = host.path("/var/lib/rancher/k3s/server/db/etcd/config");
    fs::File::create(&etcd_config).unwrap().set_len(1 << 33).unwrap();
    fs::write(
        host.path("/proc/1/mountinfo"),
        b"\xff\xfe garbage\n22 1 254:1 / / rw - ext4 /dev/vda1 rw\n",
    )
    .unwrap();
    fs::write(host.path("/proc/stat"), "btime soon\n").unwrap();
    fs::write(host.path("/proc/812/cmdline"), vec![0xff; 200_000]).unwrap();
    let facts = detect(&host, &Overrides::default());
    let k3s = facts.primary().unwrap();
    assert_eq!(k3s.datastore, Datastore::Etcd);
    assert_eq!(endpoints(k3s), ["https://127.0.0.1:2379"]);
    assert_eq!(facts.boot_time, None);
    assert_eq!(facts.datastore.unwrap().disks, ["vda"]);
    let notes = facts.notes.join("\n");
    for part in [
        "/etc/rancher/k3s/config.yaml could not be read: a directory",
        "50-quota.yaml could not be read: not YAML at line",
        "db/etcd/config could not be read: larger than",
        "1 lines of the host's mounts",
    ] {
        assert!(notes.contains(part), "{part} is not in:\n{notes}");
    }
}

#[test]
fn microk8s_lock_files_decide_what_is_expected() {
    let (_dir, host) = copy_of("microk8s");
    let locks = host.path("/var/snap/microk8s/8695/var/lock");
    fs::write(locks.join("no-k8s-dqlite"), "").unwrap();
    fs::write(locks.join("clustered.lock"), "").unwrap();
    fs::remove_file(locks.join("no-apiserver-proxy")).unwrap();
    let facts = detect(&host, &Overrides::default());
    let worker = facts.primary().unwrap();
    assert_eq!(worker.role, Role::Agent);
    assert_eq!(
        expected(worker),
        ["kubelite", "containerd", "cluster-agent", "apiserver-proxy"]
            .map(|app| format!("snap.microk8s.daemon-{app}.service"))
    );
    fs::write(locks.join("stopped.lock"), "").unwrap();
    let facts = detect(&host, &Overrides::default());
    assert_eq!(expected(facts.primary().unwrap()), Vec::<&str>::new());
}

#[test]
fn microk8s_without_ha_runs_its_bundled_etcd() {
    let (_dir, host) = copy_of("microk8s");
    let data = host.path("/var/snap/microk8s/8695");
    fs::write(
        data.join("args/kube-apiserver"),
        "--etcd-servers='https://127.0.0.1:12379'\n--etcd-cafile=${SNAP_DATA}/certs/ca.crt\n",
    )
    .unwrap();
    fs::write(
        data.join("args/etcd"),
        "--data-dir=${SNAP_COMMON}/var/run/etcd\n--quota-backend-bytes=1000000000\n",
    )
    .unwrap();
    fs::remove_file(data.join("var/lock/ha-cluster")).unwrap();
    fs::remove_file(data.join("var/lock/no-etcd")).unwrap();
    let facts = detect(&host, &Overrides::default());
    let found = facts.primary().unwrap();
    assert_eq!(found.datastore, Datastore::Etcd);
    assert_eq!(found.datastore_dir, path("/var/snap/microk8s/common/var/run/etcd"));
    assert_eq!(endpoints(found), ["https://127.0.0.1:12379"]);
    assert_eq!(quota(found), Some((1_000_000_000, QuotaSource::Manifest)));
    let etcd = found.etcd.as_ref().unwrap();
    assert_eq!(etcd.ca_file, path("/var/snap/microk8s/current/certs/ca.crt"));
    assert_eq!(etcd.cert_file, path("/var/snap/microk8s/current/certs/server.crt"));
    assert!(expected(found).contains(&"snap.microk8s.daemon-etcd.service"));
    assert!(!expected(found).contains(&"snap.microk8s.daemon-k8s-dqlite.service"));
}

#[test]
fn snapshots_of_etcd_are_expected_where_the_configuration_says() {
    let (_dir, host) = copy_of("k3s-etcd");
    let file = host.path("/etc/rancher/k3s/config.yaml.d/90.yaml");
    let told = |text: &str| {
        fs::write(&file, text).unwrap();
        detect(&host, &Overrides::default()).primary().unwrap().etcd_snapshots.clone()
    };
    assert_eq!(told("etcd-snapshot-dir: /backup\n"), path("/backup"));
    let usual = path("/var/lib/rancher/k3s/server/db/snapshots");
    assert_eq!(told("etcd-snapshot-dir: backup\n"), usual);
    assert_eq!(told("etcd-disable-snapshots: false\n"), usual);
    assert_eq!(told("etcd-disable-snapshots: true\n"), None);
}

#[test]
fn a_server_that_is_told_to_have_no_api_server_has_none() {
    let told = |case: &str, name: &str, text: &str| {
        let (_dir, host) = copy_of(case);
        let folder = host.path(format!("/etc/rancher/{name}/config.yaml.d"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("90.yaml"), text).unwrap();
        let node = detect(&host, &Overrides::default()).installations.remove(0);
        assert_eq!((node.role, node.datastore), (Role::Server, Datastore::Etcd), "{case}");
        assert_eq!(endpoints(&node), ["https://127.0.0.1:2379"], "{case}");
        node.api_url
    };
    let usual = Some("https://127.0.0.1:6443".to_owned());
    for (case, name) in [("k3s-etcd", "k3s"), ("rke2", "rke2")] {
        assert_eq!(told(case, name, "disable-apiserver: true\n"), None, "{case}");
        assert_eq!(told(case, name, "disable-apiserver: false\n"), usual, "{case}");
    }
    let (_dir, host) = copy_of("k3s-etcd");
    let unit = host.path("/etc/systemd/system/k3s.service");
    let text = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, format!("{}\n\t'--disable-apiserver' \\\n", text.trim_end())).unwrap();
    assert_eq!(detect(&host, &Overrides::default()).primary().unwrap().api_url, None);
}

#[test]
fn kine_of_k3s_speaks_tls_when_it_is_told_to() {
    let (_dir, host) = copy_of("k3s-sqlite");
    let unit = host.path("/etc/systemd/system/k3s.service");
    let text = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, format!("{}\n\t'--kine-tls' \\\n", text.trim_end())).unwrap();
    let facts = detect(&host, &Overrides::default());
    let kine = facts.primary().unwrap().kine().unwrap();
    assert_eq!(kine.endpoints, ["unixs:///srv/k3s/server/kine.sock"]);
    assert_eq!(kine.ca_file, path("/srv/k3s/server/tls/etcd/server-ca.crt"));
}

#[test]
fn the_etcd_that_an_installation_of_before_has_left_behind_is_nobodys() {
    let etcd =
        EtcdAccess { endpoints: vec!["https://127.0.0.1:2379".into()], ..EtcdAccess::default() };
    let unit = |expected| Unit { name: "etcd.service".into(), expected };
    let mut left = Installation::new(Distribution::K3s);
    left.etcd = Some(etcd.clone());
    left.units = vec![unit(false)];
    let of = |left: &Installation| {
        let installations = vec![Installation::new(Distribution::Microk8s), left.clone()];
        Facts { installations, ..Facts::default() }.etcd().cloned()
    };
    assert_eq!(of(&left), None);
    let mut stopped = left.clone();
    stopped.units = vec![unit(true)];
    assert_eq!(of(&stopped), Some(etcd.clone()), "it is down, and should run");
    left.running = true;
    assert_eq!(of(&left), Some(etcd));
}

#[test]
fn the_disk_of_an_installation_of_before_is_not_the_datastores() {
    let (_dir, host) = copy_of("kubeadm-external-etcd");
    assert_eq!(detect(&host, &Overrides::default()).datastore, None);
    fs::create_dir_all(host.path("/var/lib/rancher/k3s/server/db/etcd/member/wal")).unwrap();
    fs::create_dir_all(host.path("/var/lib/rancher/k3s/server/tls")).unwrap();
    let facts = detect(&host, &Overrides::default());
    let left = facts.installations.iter().find(|node| node.distribution == Distribution::K3s);
    assert!(left.is_some_and(|left| left.datastore_dir.is_some()), "{facts:?}");
    assert_eq!((facts.datastore.as_ref(), facts.etcd()), (None, None));
}

#[test]
fn k0s_that_listens_on_one_address_alone_is_asked_there() {
    let (_dir, host) = copy_of("k0s");
    let file = host.path("/run/k0s/k0s.yaml");
    let text = fs::read_to_string(&file).unwrap();
    for (address, expected) in [
        ("192.0.2.51", "https://192.0.2.51:6443"),
        ("'2001:db8::51'", "https://[2001:db8::51]:6443"),
    ] {
        let alone = format!("api: {{address: {address}, onlyBindToAddress: true, port: 6443}}");
        let told = text.replace("api: {address: 192.0.2.51, port: 6443}", &alone);
        assert_ne!(told, text);
        fs::write(&file, told).unwrap();
        let facts = detect(&host, &Overrides::default());
        assert_eq!(facts.primary().unwrap().api_url.as_deref(), Some(expected));
    }
}

#[test]
fn the_directory_of_an_etcd_in_a_container_is_that_which_the_host_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::at(dir.path());
    let folder = dir.path().join("proc/77");
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(dir.path().join("proc/1")).unwrap();
    fs::write(folder.join("comm"), "etcd\n").unwrap();
    fs::write(folder.join("cmdline"), "/usr/local/bin/etcd\0--data-dir=/etcd-data").unwrap();
    fs::write(folder.join("cgroup"), "0::/system.slice/docker-4f1c.scope\n").unwrap();
    let of_host = "22 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n\
                   23 22 259:9 / /srv rw - xfs /dev/nvme1n1 rw\n";
    fs::write(dir.path().join("proc/1/mountinfo"), of_host).unwrap();
    let found = |mountinfo: &str| {
        fs::write(folder.join("mountinfo"), mountinfo).unwrap();
        let facts = detect(&host, &Overrides::default());
        (facts.primary().unwrap().datastore_dir.clone(), facts.datastore, facts.notes)
    };
    let bound = "90 80 0:51 / / rw - overlay overlay rw\n\
                 91 90 259:9 /etcd /etcd-data rw - xfs /dev/nvme1n1 rw\n";
    let (folder, place, _) = found(bound);
    assert_eq!(folder, path("/srv/etcd"));
    assert_eq!(place.unwrap().mount_point, Path::new("/srv"));
    let (folder, _, notes) = found("90 80 0:51 / / rw - overlay overlay rw\n");
    assert_eq!(folder, None);
    assert!(notes.iter().any(|note| note.contains("/etcd-data lies in a container")), "{notes:?}");
}

#[test]
fn k0s_on_kine_keeps_its_password_to_itself() {
    let (_dir, host) = copy_of("k0s");
    let text = "spec:\n  storage:\n    type: kine\n    kine: {dataSource: 'mysql://k0s:SECRET@tcp(db)/k'}\n";
    fs::write(host.path("/run/k0s/k0s.yaml"), text).unwrap();
    let facts = detect(&host, &Overrides::default());
    let k0s = facts.primary().unwrap();
    assert_eq!(k0s.datastore, Datastore::ExternalSql);
    assert_eq!(k0s.kine_socket, path("/run/k0s/kine/kine.sock:2379"));
    assert!(!serde_json::to_string(&facts).unwrap().contains("SECRET"));
}

#[test]
fn a_running_etcd_of_nobody_is_found_by_its_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host::at(dir.path());
    let folder = dir.path().join("proc/77");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("comm"), "etcd\n").unwrap();
    let args = [
        "/opt/etcd/etcd",
        "--data-dir=/data/etcd",
        "--wal-dir",
        "/wal/etcd",
        "--listen-client-urls=https://192.0.2.9:2379,https://0.0.0.0:4001",
        "--trusted-ca-file=/tls/ca.crt",
        "--cert-file=/tls/server.crt",
        "--key-file=/tls/server.key",
        "--quota-backend-bytes=8589934592",
    ];
    fs::write(folder.join("cmdline"), args.join("\0")).unwrap();
    let facts = detect(&host, &Overrides::default());
    let etcd = facts.primary().unwrap();
    assert_eq!(etcd.distribution, Distribution::Etcd);
    assert!(etcd.running);
    assert_eq!(endpoints(etcd), ["https://127.0.0.1:4001"]);
    assert_eq!(etcd.datastore_dir, path("/data/etcd"));
    assert_eq!(etcd.wal_dir, path("/wal/etcd"));
    let access = etcd.etcd.as_ref().unwrap();
    assert_eq!(access.ca_file, path("/tls/ca.crt"));
    assert_eq!(access.key_file, path("/tls/server.key"));
    assert_eq!(quota(etcd), Some((8_589_934_592, QuotaSource::Process)));
    // In a pod it is somebody's workload.
    fs::write(folder.join("cgroup"), "0::/kubepods.slice/kubepods-pod1.slice/x.scope\n").unwrap();
    assert_eq!(detect(&host, &Overrides::default()).installations, []);
}

/// A copy of a case that a test may damage.
fn copy_of(case: &str) -> (tempfile::TempDir, Host) {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type().unwrap();
            if kind.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(from).unwrap(), to).unwrap();
            } else if kind.is_dir() {
                copy(&from, &to);
            } else {
                fs::copy(from, to).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(host(case).rootfs(), dir.path());
    let host = Host::at(dir.path());
    (dir, host)
}

#[test]
fn a_distribution_that_is_told_comes_first_even_where_another_one_runs() {
    let overrides: Overrides = serde_json::from_str(r#"{"distribution": "talos"}"#).unwrap();
    let facts = detect(&host("kubeadm"), &overrides);
    assert_eq!(facts.primary().unwrap().distribution, Distribution::Talos);
}
