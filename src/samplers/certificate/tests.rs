use std::fs;
use std::os::unix::fs::symlink;
use std::time::UNIX_EPOCH;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use time::OffsetDateTime;

use super::*;
use crate::host::{Distribution, Installation};

const DAY: Duration = Duration::from_hours(24);

/// A certificate that ends in so many days, in PEM; without a usage a CA's.
fn pem(days: i64, usages: &[ExtendedKeyUsagePurpose]) -> String {
    let mut params = CertificateParams::new(vec!["one.example".into()]).unwrap();
    params.not_before = OffsetDateTime::now_utc() - time::Duration::days(400);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days);
    params.extended_key_usages = usages.to_vec();
    if usages.is_empty() {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn server(days: i64) -> String {
    pem(days, &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
}

fn client(days: i64) -> String {
    pem(days, &[ExtendedKeyUsagePurpose::ClientAuth])
}

/// A kubeconfig with an embedded pair, of which the key is none.
fn kubeconfig(certificate: &str) -> String {
    let (certificate, key) = (STANDARD.encode(certificate), STANDARD.encode("the key is SECRET"));
    format!(
        "kind: Config\nusers:\n- name: admin\n  user:\n    client-certificate-data: {certificate}\n    \
         client-key-data: {key}\n    token: SECRET\n"
    )
}

/// A node of this distribution that booted 1,000 days ago.
struct Node {
    root: tempfile::TempDir,
    facts: Facts,
    boot: SystemTime,
}

impl Node {
    fn new(distribution: Distribution, data: &str) -> Self {
        let mut node = Installation::new(distribution);
        node.data_dir = Some(data.into());
        let boot = SystemTime::now() - 1000 * DAY;
        let boot_time = boot.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let installations = vec![node];
        let facts = Facts { installations, boot_time: Some(boot_time), ..Facts::default() };
        Self { root: tempfile::tempdir().unwrap(), facts, boot }
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// A process that began so many days ago.
    fn process(&self, name: &str, command: &str, cgroup: &str, days: u32) {
        let begun = SystemTime::now() - days * DAY;
        let after_boot = begun.duration_since(self.boot).unwrap().as_secs();
        let start = after_boot * rustix::param::clock_ticks_per_second();
        let mut fields = vec!["0".to_owned(); 52];
        fields[0] = "77".to_owned();
        fields[1] = format!("({name})");
        fields[2] = "S".to_owned();
        fields[21] = start.to_string();
        self.write("proc/77/stat", &format!("{}\n", fields.join(" ")));
        self.write("proc/77/comm", &format!("{name}\n"));
        self.write("proc/77/cmdline", command);
        self.write("proc/77/cgroup", cgroup);
    }

    fn build(&self, own: serde_json::Value) -> Result<Box<dyn BlockingSampler>, String> {
        let host = Host::at(self.root.path()).with_facts(self.facts.clone());
        sampler::isolated(&SAMPLER, &host, &own)
    }

    fn run(&self) -> Batch {
        let mut out = Batch::default();
        self.build(serde_json::json!({})).unwrap().sample(&mut out).unwrap();
        out
    }
}

const K3S: &str = "/var/lib/rancher/k3s";
const TLS: &str = "/var/lib/rancher/k3s/server/tls";

/// Days until the certificate at `path` ends.
fn days(out: &Batch, path: &str, role: &str) -> Option<i64> {
    let end = out.value(&NOT_AFTER, [path, role])?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    #[expect(clippy::cast_possible_truncation, reason = "some hundred days")]
    Some(((end - now) / 86_400.0).round() as i64)
}

#[test]
fn each_file_has_the_earliest_end_of_its_chain_and_a_role() {
    let node = Node::new(Distribution::K3s, K3S);
    node.write(&format!("{TLS}/serving-kube-apiserver.crt"), &(server(365) + &pem(3650, &[])));
    node.write(&format!("{TLS}/client-admin.crt"), &(client(300) + &pem(20, &[])));
    node.write(&format!("{TLS}/server-ca.crt"), &pem(3650, &[]));
    node.write(&format!("{TLS}/server-ca.key"), "SECRET");
    node.write("/etc/rancher/k3s/k3s.yaml", &kubeconfig(&client(200)));
    node.write(
        &format!("{K3S}/server/cred/admin.kubeconfig"),
        "users:\n- user: {client-key: /x}\n",
    );
    let out = node.run();
    let path = |name: &str| format!("{TLS}/{name}");
    assert_eq!(days(&out, &path("serving-kube-apiserver.crt"), "server"), Some(365));
    assert_eq!(days(&out, &path("client-admin.crt"), "client"), Some(20));
    assert_eq!(days(&out, &path("server-ca.crt"), "ca"), Some(3650));
    assert_eq!(days(&out, "/etc/rancher/k3s/k3s.yaml", "kubeconfig"), Some(200));
    assert_eq!((out.series(&NOT_AFTER), out.failures().len()), (4, 0));
    // No k3s runs here.
    assert_eq!(out.series(&RESTART_DUE), 0);
}

#[test]
fn what_releases_of_before_have_left_behind_is_nobodys_unless_it_is_asked_for() {
    let of = |distribution: Distribution, name: &str, files: &[&str]| {
        let data = format!("/var/lib/rancher/{name}");
        let node = Node::new(distribution, &data);
        for file in files {
            node.write(&format!("{data}/server/tls/{file}.crt"), &client(5));
        }
        node.write(&format!("{data}/agent/client-kube-proxy.crt"), &client(300));
        node.run().series(&NOT_AFTER) - 1
    };
    let old = ["client-kube-proxy", "client-k3s-controller"];
    assert_eq!(of(Distribution::K3s, "k3s", &old), 0);
    assert_eq!(of(Distribution::Rke2, "rke2", &["client-rke2-controller"]), 0);
    assert_eq!(of(Distribution::K3s, "k3s", &["client-cloud-controller"]), 1, "still in use");
    let both = ["client-cloud-controller", "client-k3s-cloud-controller"];
    assert_eq!(of(Distribution::K3s, "k3s", &both), 1);
}

#[test]
fn the_pair_that_all_members_of_dqlite_share_has_a_role_of_its_own() {
    let mut node = Node::new(Distribution::Microk8s, "/var/snap/microk8s/current");
    let backend = "/var/snap/microk8s/current/var/kubernetes/backend";
    node.facts.installations[0].datastore = Datastore::Dqlite;
    node.facts.installations[0].datastore_dir = Some(backend.into());
    node.write("/var/snap/microk8s/8695/var/kubernetes/backend/cluster.crt", &server(3000));
    node.write("/var/snap/microk8s/8695/certs/server.crt", &server(100));
    node.write("/var/snap/microk8s/8695/certs/csr.conf", "[ req ]\n");
    symlink("8695", node.root.path().join("var/snap/microk8s/current")).unwrap();
    let out = node.run();
    assert_eq!(days(&out, &format!("{backend}/cluster.crt"), "dqlite"), Some(3000));
    let path = "/var/snap/microk8s/current/certs/server.crt";
    assert_eq!(days(&out, path, "server"), Some(100));
    assert_eq!((out.series(&NOT_AFTER), out.failures().len()), (2, 0));
}

#[test]
fn a_restart_is_due_when_the_process_began_before_the_window_of_renewal() {
    let path = format!("{TLS}/client-admin.crt");
    let due = |left: i64, began: u32, cgroup: &str| {
        let node = Node::new(Distribution::K3s, K3S);
        node.write(&path, &client(left));
        node.write(&format!("{TLS}/server-ca.crt"), &pem(left, &[]));
        node.process("k3s-server", "/usr/local/bin/k3s server", cgroup, began);
        let out = node.run();
        assert_eq!(out.value(&RESTART_DUE, [&format!("{TLS}/server-ca.crt")]), None);
        out.value(&RESTART_DUE, [&path])
    };
    let unit = "0::/system.slice/k3s.service\n";
    assert_eq!(due(100, 265, unit), Some(0.0), "not yet in the window");
    assert_eq!(due(80, 285, unit), Some(1.0));
    assert_eq!(due(80, 5, unit), Some(0.0), "it began within the window and did not renew it");
    assert_eq!(due(-5, 370, unit), Some(1.0));
    assert_eq!(due(80, 285, "0::/kubepods/pod1/x\n"), None, "a k3s in a pod is none of ours");
}

#[test]
fn what_scheduler_and_controller_manager_have_signed_themselves_waits_for_no_restart() {
    for (distribution, name) in [(Distribution::K3s, "k3s"), (Distribution::Rke2, "rke2")] {
        let tls = format!("/var/lib/rancher/{name}/server/tls");
        let node = Node::new(distribution, &format!("/var/lib/rancher/{name}"));
        let own = ["kube-controller-manager", "kube-scheduler"];
        let own = own.map(|program| format!("{tls}/{program}/{program}.crt"));
        for path in &own {
            node.write(path, &server(20));
        }
        let renewed = format!("{tls}/client-admin.crt");
        node.write(&renewed, &client(20));
        let cgroup = format!("0::/system.slice/{name}.service\n");
        node.process(name, &format!("/usr/local/bin/{name} server"), &cgroup, 345);
        let out = node.run();
        assert_eq!(out.value(&RESTART_DUE, [&renewed]), Some(1.0));
        for path in &own {
            assert_eq!(days(&out, path, "server"), Some(20), "{path}");
            assert_eq!(out.value(&RESTART_DUE, [path]), None, "{path}");
        }
    }
}

#[test]
fn what_kubeadm_renews_is_in_use_after_a_restart_of_its_user() {
    let node = Node::new(Distribution::Kubeadm, "/etc/kubernetes");
    let file = node.write("/etc/kubernetes/scheduler.conf", &kubeconfig(&client(360)));
    node.write("/etc/kubernetes/admin.conf", &kubeconfig(&client(360)));
    let command = "kube-scheduler\0--kubeconfig=/etc/kubernetes/scheduler.conf";
    node.process("kube-scheduler", command, "", 10);
    let path = "/etc/kubernetes/scheduler.conf";
    let out = node.run();
    assert_eq!(out.value(&RESTART_DUE, [path]), Some(1.0));
    assert_eq!(out.series(&RESTART_DUE), 1, "nothing runs with the administrator's");
    let old = SystemTime::now() - 20 * DAY;
    fs::File::options().append(true).open(file).unwrap().set_modified(old).unwrap();
    assert_eq!(node.run().value(&RESTART_DUE, [path]), Some(0.0));
}

#[test]
fn what_cannot_be_read_is_named_beside_the_good_ones_and_holds_nothing_up() {
    let node = Node::new(Distribution::K3s, K3S);
    let folder = node.write(&format!("{TLS}/good.crt"), &server(100));
    let folder = folder.parent().unwrap();
    node.write(&format!("{TLS}/broken.crt"), "-----BEGIN CERTIFICATE-----\nSECRET\n");
    node.write(&format!("{K3S}/server/cred/broken.kubeconfig"), "users: [SECRET\n");
    let huge = fs::File::create(folder.join("huge.crt")).unwrap();
    huge.set_len(1 << 40).unwrap();
    let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, folder.join("fifo.crt"), fifo, mode, 0).unwrap();
    // Outside of the root there is a certificate; inside, nothing.
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("out.crt"), server(50)).unwrap();
    symlink(outside.path().join("out.crt"), folder.join("link.crt")).unwrap();
    let out = node.run();
    assert_eq!(out.series(&NOT_AFTER), 1);
    let mut said: Vec<String> = out.failures().iter().map(ToString::to_string).collect();
    said.sort();
    assert_eq!(said.len(), 4, "{said:?}");
    let expected = ["broken.kubeconfig", "broken.crt", "fifo.crt", "huge.crt"];
    for name in expected {
        assert!(said.iter().any(|line| line.contains(name)), "{name}: {said:?}");
    }
    assert!(!said.concat().contains("SECRET"), "{said:?}");
    let mut reasons = out.reasons();
    reasons.sort_unstable();
    assert_eq!(reasons, ["parse", "parse", "read", "read"]);
}

#[test]
fn a_run_that_reads_no_certificate_at_all_has_failed() {
    let node = Node::new(Distribution::K3s, K3S);
    node.write(&format!("{TLS}/broken.crt"), "");
    let mut sampler = node.build(serde_json::json!({})).unwrap();
    let error = sampler.sample(&mut Batch::default()).unwrap_err();
    assert!(error.to_string().contains("holds no certificate"), "{error}");
}

#[test]
fn folders_of_the_configuration_are_looked_at_and_must_be_there() {
    let mut node = Node::new(Distribution::K3s, K3S);
    node.facts.installations.clear();
    assert!(node.build(serde_json::json!({})).is_err_and(|why| why.contains("certificate.paths")));
    let relative = node.build(serde_json::json!({"paths": ["tls"]}));
    assert!(relative.is_err_and(|why| why.contains("no absolute path")));
    node.write("/srv/tls/member.pem", &server(10));
    node.write("/srv/tls/member-key.pem", "SECRET");
    let paths = serde_json::json!({"paths": ["/srv/tls", "/srv/missing"]});
    let mut out = Batch::default();
    node.build(paths).unwrap().sample(&mut out).unwrap();
    assert_eq!(days(&out, "/srv/tls/member.pem", "server"), Some(10));
    assert_eq!(out.reasons(), ["not_found"]);
}

#[test]
fn no_more_than_64_files_are_read() {
    let node = Node::new(Distribution::K3s, K3S);
    let text = server(10);
    for n in 0..70 {
        node.write(&format!("{TLS}/{n}.crt"), &text);
    }
    let out = node.run();
    assert_eq!((out.series(&NOT_AFTER), out.dropped_count()), (64, 6));
}
