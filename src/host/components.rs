//! How the programs of the control plane are set up: their flags, from wherever the distribution keeps them.
//!
//! | distribution | read |
//! |---|---|
//! | k3s, RKE2 | the environment, `config.yaml` and its folder, the unit's command; RKE2's static pod manifests |
//! | kubeadm, Talos | static pod manifests |
//! | MicroK8s, Canonical Kubernetes | files of arguments |
//! | k0s | its configuration, and the command lines of what it has started |
//!
//! Read in a child process, bounded, links followed inside the host's root only. What may be a secret is taken out here:
//! of a flag with such a name it is only known that it is set, and an address loses its user and password. A program whose
//! settings could not be read whole is left out, since half of them would look like a difference.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::flags::{Flags, words_of_file};
use super::manifest::StaticPod;
use super::rancher_config::{RancherConfig, known_variable};
use super::read::Probe;
use super::{Datastore, Distribution, Host, Installation, Role, k0s, kubeadm, snaps, units};

/// A program of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Component {
    /// `k3s`, `rke2`, `k0s`, or the program's own name.
    pub(crate) name: &'static str,
    /// Its flags without dashes, in their order, secrets taken out.
    pub(crate) flags: Vec<(String, String)>,
    /// The files that it takes over at its next start, of those that exist; empty where kubelet starts it anew at once.
    pub(crate) files: Vec<PathBuf>,
    /// The version, where its image tells it.
    pub(crate) version: Option<String>,
}

/// Programs that are a process of their own in most distributions.
const PROGRAMS: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"];

/// The range of services of k3s and RKE2 where none is set.
const SERVICE_CIDR: &str = "10.43.0.0/16";
/// Settings of k3s that all servers must share, and `disable`, which k3s lets differ: the server that leads deletes what
/// it has disabled, everywhere. The second is the value that is meant where none is set; that of `cluster-dns` follows
/// from `service-cidr`.
pub(super) const K3S: &[(&str, &str)] = &[
    ("agent-token", ""),
    ("cluster-cidr", "10.42.0.0/16"),
    ("cluster-dns", ""),
    ("cluster-domain", "cluster.local"),
    ("datastore-endpoint", ""),
    ("disable", ""),
    ("disable-cloud-controller", "false"),
    ("disable-helm-controller", "false"),
    ("disable-kube-proxy", "false"),
    ("disable-network-policy", "false"),
    ("egress-selector-mode", "agent"),
    ("embedded-registry", "false"),
    ("flannel-backend", "vxlan"),
    ("flannel-external-ip", "false"),
    ("flannel-ipv6-masq", "false"),
    ("secrets-encryption", "false"),
    ("secrets-encryption-provider", "aescbc"),
    ("service-cidr", SERVICE_CIDR),
];
/// The same for RKE2.
const RKE2: &[(&str, &str)] = &[
    ("agent-token", ""),
    ("cluster-cidr", "10.42.0.0/16"),
    ("cluster-dns", ""),
    ("cluster-domain", "cluster.local"),
    ("cni", "canal"),
    ("datastore-endpoint", ""),
    ("disable", ""),
    ("disable-cloud-controller", "false"),
    ("disable-kube-proxy", "false"),
    ("egress-selector-mode", "agent"),
    ("embedded-registry", "false"),
    ("ingress-controller", ""),
    ("profile", ""),
    ("service-cidr", SERVICE_CIDR),
];
/// Settings of k3s that hold the flags of the programs inside it, and whose they are.
const K3S_ARGS: [(&str, &str); 4] = [
    ("kube-apiserver-arg", "kube-apiserver"),
    ("kube-controller-manager-arg", "kube-controller-manager"),
    ("kube-scheduler-arg", "kube-scheduler"),
    ("etcd-arg", "etcd"),
];
/// The programs of this node's control plane, and what could not be read: sentences that name the path and the reason.
/// A worker has none.
pub(crate) fn components(host: &Host) -> (Vec<Component>, Vec<String>) {
    let Some(node) = host.facts().primary().filter(|node| node.role == Role::Server) else {
        return (Vec::new(), Vec::new());
    };
    let probe = Probe::new(host);
    let mut found = match node.distribution {
        Distribution::K3s => k3s(&probe, node),
        Distribution::Rke2 => rke2(&probe, node),
        Distribution::Kubeadm => static_pods(&probe, Path::new(kubeadm::MANIFESTS), ""),
        Distribution::Talos => static_pods(&probe, Path::new(kubeadm::MANIFESTS), "talos-"),
        Distribution::Microk8s => snap(&probe, snaps::MICROK8S),
        Distribution::CanonicalK8s => snap(&probe, snaps::CANONICAL),
        Distribution::K0s => k0s(&probe, node),
        Distribution::Etcd => processes(&probe, &["etcd"]),
    };
    for component in &mut found {
        for (name, value) in &mut component.flags {
            *value = without_secrets(name, std::mem::take(value));
        }
    }
    (found, probe.into_notes())
}

fn k3s(probe: &Probe, node: &Installation) -> Vec<Component> {
    let before = probe.notes();
    let keys = K3S.iter().map(|(key, _)| *key).chain(K3S_ARGS.map(|(key, _)| key));
    let keys = keys.chain(["disable-apiserver", "disable-controller-manager", "disable-scheduler"]);
    let (config, files) = rancher_config(probe, node, "k3s", keys.collect());
    if probe.notes() > before {
        return Vec::new();
    }
    // Also those that nothing is set for: what another server sets differs from that.
    let runs = |name: &str| match name {
        "etcd" => node.datastore == Datastore::Etcd,
        other => !config.is_true(&other.replacen("kube-", "disable-", 1)),
    };
    let inside = K3S_ARGS.iter().filter(|(_, name)| runs(name)).map(|(key, name)| {
        let args = config.all(key).unwrap_or_default().iter().filter_map(|arg| {
            let (name, value) = arg.trim_start_matches('-').split_once('=')?;
            Some((spelt(name), value.to_owned()))
        });
        Component { name, flags: args.collect(), files: Vec::new(), version: None }
    });
    let own = Component { name: "k3s", flags: shared(&config, K3S), files, version: None };
    std::iter::once(own).chain(inside).collect()
}

fn rke2(probe: &Probe, node: &Installation) -> Vec<Component> {
    let before = probe.notes();
    let keys = RKE2.iter().map(|(key, _)| *key).collect();
    let (config, files) = rancher_config(probe, node, "rke2", keys);
    let mut found = Vec::new();
    if probe.notes() == before {
        found.push(Component { name: "rke2", flags: shared(&config, RKE2), files, version: None });
    }
    let data = node.data_dir.as_deref().unwrap_or(Path::new("/var/lib/rancher/rke2"));
    found.extend(static_pods(probe, &data.join("agent/pod-manifests"), ""));
    found
}

/// The configuration, and the files that it comes from.
fn rancher_config(
    probe: &Probe,
    node: &Installation,
    name: &str,
    keys: Vec<&'static str>,
) -> (RancherConfig, Vec<PathBuf>) {
    let unit = node.units.first().map(|unit| unit.name.as_str());
    let loaded = unit.and_then(|unit| units::load(probe, unit, &known_variable));
    let config = RancherConfig::read(probe, name, &loaded.unwrap_or_default(), keys);
    let mut files = config.files.clone();
    files.extend(unit.and_then(|unit| units::find(probe, unit)));
    let variables = ["/etc/default", "/etc/sysconfig"].map(|folder| Path::new(folder).join(name));
    files.extend(variables.into_iter().filter(|file| probe.exists(file)));
    let beside = unit.map(|unit| Path::new("/etc/systemd/system").join(format!("{unit}.env")));
    files.extend(beside.filter(|file| probe.exists(file)));
    (config, files)
}

/// What all servers must share, with the value that is meant where none is set; nothing where that is no value.
pub(super) fn shared(config: &RancherConfig, keys: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut flags = Vec::new();
    for (key, default) in keys {
        let mut values = items(config, key, default);
        if values.is_empty() && *key == "cluster-dns" {
            let ranges = items(config, "service-cidr", SERVICE_CIDR);
            values = ranges.iter().filter_map(|range| dns_address(range)).collect();
        }
        flags.extend(values.into_iter().map(|value| ((*key).to_owned(), value)));
    }
    flags
}

/// What is set, item by item; else the default, if that is a value.
fn items(config: &RancherConfig, key: &str, default: &str) -> Vec<String> {
    let values = match key {
        // Of the datastore only its kind: the address may hold a password.
        "datastore-endpoint" => config.datastore_scheme().map(|kind| vec![kind.to_owned()]),
        key => config.all(key).map(<[String]>::to_vec),
    };
    let values = values.unwrap_or_default();
    let mut items: Vec<String> = values
        .iter()
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect();
    if items.is_empty() && !default.is_empty() {
        items.push(default.to_owned());
    }
    items
}

/// The address that k3s and RKE2 give the cluster's DNS in a range of services where none is set: the network's plus ten.
/// With a range that has no room for it they do not start.
fn dns_address(range: &str) -> Option<String> {
    let (address, length) = range.split_once('/')?;
    let length: u32 = length.parse().ok()?;
    let address: IpAddr = address.parse().ok()?;
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32_u32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    // Ten takes four bits.
    let free = width.checked_sub(length).filter(|free| *free >= 4)?;
    let network = bits & u128::MAX.checked_shl(free).unwrap_or_default();
    let dns = network + 10;
    Some(match address {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::try_from(dns).ok()?).to_string(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(dns).to_string(),
    })
}

fn static_pods(probe: &Probe, folder: &Path, prefix: &str) -> Vec<Component> {
    let pods = PROGRAMS.into_iter().filter_map(|name| {
        let pod = StaticPod::read(probe, &folder.join(format!("{prefix}{name}.yaml")))?;
        let version = pod.image_tag().map(str::to_owned);
        Some(Component { name, flags: owned(&pod.flags), files: Vec::new(), version })
    });
    pods.collect()
}

fn snap(probe: &Probe, (name, args): (&str, &str)) -> Vec<Component> {
    let mount = PathBuf::from(format!("/snap/{name}/current"));
    let programs = PROGRAMS.into_iter().chain(["k8s-dqlite"]).filter_map(|program| {
        let file = Path::new(args).join(program);
        let text = probe.text(&file)?;
        // What bash refuses is told by the sampler `args`, and so is what changed since the start.
        let words =
            words_of_file(&text, |variable| snaps::variable(name, &mount, variable)).ok()?;
        let flags = owned(&Flags::parse(&words));
        Some(Component { name: program, flags, files: Vec::new(), version: None })
    });
    programs.collect()
}

fn k0s(probe: &Probe, node: &Installation) -> Vec<Component> {
    let before = probe.notes();
    let unit = node.units.first().map(|unit| unit.name.as_str());
    let exec = unit.and_then(|unit| units::load(probe, unit, &|_| false)).map(|unit| unit.exec);
    let flags = Flags::parse(&exec.unwrap_or_default());
    let (settings, file) = k0s::shared_settings(probe, &flags);
    let mut found = Vec::new();
    if probe.notes() == before {
        let unit = unit.and_then(|unit| units::find(probe, unit));
        let files = file.into_iter().chain(unit).collect();
        found.push(Component { name: "k0s", flags: settings, files, version: None });
    }
    found.extend(processes(probe, &PROGRAMS));
    found
}

/// The flags with which these programs run on the node itself.
fn processes(probe: &Probe, names: &[&'static str]) -> Vec<Component> {
    let running = names.iter().filter_map(|name| {
        let process = probe
            .processes
            .named(super::processes::comm(name))
            .find(|process| !process.contained())?;
        let flags = owned(&Flags::parse(&process.words));
        Some(Component { name, flags, files: Vec::new(), version: None })
    });
    running.collect()
}

pub(super) fn owned(flags: &Flags) -> Vec<(String, String)> {
    flags.iter().map(|(name, value)| (spelt(name), value.to_owned())).collect()
}

/// The programs of Kubernetes take `event_ttl` for `event-ttl`.
fn spelt(name: &str) -> String {
    name.replace('_', "-")
}

/// Parts of the names of flags whose values are secrets. `-file` and `-key-file` are paths.
const SECRET: [&str; 8] =
    ["token", "password", "passwd", "secret", "credential", "endpoint", "dsn", "private"];

/// The value, or that there is one.
pub(super) fn without_secrets(name: &str, value: String) -> String {
    let lower = name.to_ascii_lowercase();
    let harmless = lower.ends_with("-file") || lower.starts_with("secrets-encryption");
    // Only what the reader itself wrote: the kind of the datastore.
    let kind = lower == "datastore-endpoint" && value.chars().all(|c| c.is_ascii_lowercase());
    if !harmless && !kind && SECRET.iter().any(|part| lower.contains(part)) {
        return "set".to_owned();
    }
    if !value.contains('@') {
        return value;
    }
    // An address, of which there may be several: what stands before the host goes.
    let parts = value.split(',').map(|part| match part.rsplit_once('@') {
        Some((before, host)) => match before.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://{host}"),
            None => host.to_owned(),
        },
        None => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::{Facts, Unit};

    /// What is found on a server of this distribution with these files.
    fn found(distribution: Distribution, files: &[(&str, &str)]) -> (Vec<Component>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut node = Installation::new(distribution);
        node.role = Role::Server;
        node.datastore = Datastore::Etcd;
        let unit = match distribution {
            Distribution::Rke2 => "rke2-server.service",
            Distribution::K0s => "k0scontroller.service",
            _ => "k3s.service",
        };
        node.units = vec![Unit { name: unit.to_owned(), expected: true }];
        let facts = Facts { installations: vec![node], ..Facts::default() };
        components(&Host::at(dir.path()).with_facts(facts))
    }

    fn values<'a>(component: &'a Component, flag: &str) -> Vec<&'a str> {
        let flags = component.flags.iter().filter(|(name, _)| name == flag);
        flags.map(|(_, value)| value.as_str()).collect()
    }

    #[test]
    fn every_setting_of_k3s_and_rke2_is_asked_for() {
        let text = |keys: &mut dyn Iterator<Item = &str>| {
            keys.map(|key| format!("{key}: [x=y]\n")).collect::<String>()
        };
        let keys = K3S.iter().map(|(key, _)| *key).chain(K3S_ARGS.map(|(key, _)| key));
        let config = text(&mut keys.into_iter());
        let (all, _) = found(Distribution::K3s, &[("etc/rancher/k3s/config.yaml", &config)]);
        let told = |component: &Component, keys: &[(&str, &str)]| {
            for (key, default) in keys {
                let values = values(component, key);
                assert!(values.len() == 1 && values[0] != *default, "{key}: {values:?}");
            }
        };
        told(&all[0], K3S);
        let inside: Vec<_> = all[1..].iter().map(|one| (one.name, values(one, "x"))).collect();
        assert_eq!(inside, K3S_ARGS.map(|(_, program)| (program, vec!["y"])));
        let config = text(&mut RKE2.iter().map(|(key, _)| *key));
        let (all, _) = found(Distribution::Rke2, &[("etc/rancher/rke2/config.yaml", &config)]);
        told(&all[0], RKE2);
    }

    #[test]
    fn a_program_that_k3s_does_not_run_has_no_flags_that_could_differ() {
        let names = |config: &str| {
            let (all, _) = found(Distribution::K3s, &[("etc/rancher/k3s/config.yaml", config)]);
            all.iter().map(|one| one.name).collect::<Vec<_>>()
        };
        assert_eq!(names("disable-scheduler: true\n").len(), 4);
        let etcd_alone =
            "disable-apiserver: true\ndisable-controller-manager: true\ndisable-scheduler: true\n";
        assert_eq!(names(etcd_alone), ["k3s", "etcd"]);
    }

    #[test]
    fn k3s_settings_are_merged_as_k3s_does_it_and_have_its_defaults() {
        let (all, notes) = found(
            Distribution::K3s,
            &[
                ("etc/rancher/k3s/config.yaml", "disable: [traefik]\ncluster-domain: c.example\n"),
                (
                    "etc/rancher/k3s/config.yaml.d/10.yaml",
                    "disable+: [servicelb]\nkube-apiserver-arg: [event-ttl=2h, feature-gates=B=true]\n",
                ),
                (
                    "etc/systemd/system/k3s.service",
                    "[Service]\nExecStart=/usr/local/bin/k3s server --flannel-backend=none --secrets-encryption\n",
                ),
                ("etc/default/k3s", "K3S_AGENT_TOKEN=hunter2\n"),
            ],
        );
        assert_eq!(notes, Vec::<String>::new());
        let names: Vec<_> = all.iter().map(|c| c.name).collect();
        assert_eq!(names[..2], ["k3s", "kube-apiserver"]);
        assert_eq!(
            names[2..],
            ["kube-controller-manager", "kube-scheduler", "etcd"],
            "with no flag"
        );
        let k3s = &all[0];
        assert_eq!(values(k3s, "disable"), ["traefik", "servicelb"]);
        assert_eq!(values(k3s, "cluster-domain"), ["c.example"]);
        assert_eq!(values(k3s, "cluster-cidr"), ["10.42.0.0/16"]);
        assert_eq!(values(k3s, "flannel-backend"), ["none"]);
        assert_eq!(values(k3s, "secrets-encryption"), ["true"]);
        assert_eq!(values(k3s, "agent-token"), ["set"]);
        assert_eq!(values(k3s, "datastore-endpoint"), Vec::<&str>::new());
        assert_eq!(values(&all[1], "event-ttl"), ["2h"]);
        assert_eq!(values(&all[1], "feature-gates"), ["B=true"]);
        let files: Vec<_> = k3s.files.iter().map(|path| path.display().to_string()).collect();
        assert_eq!(
            files,
            [
                "/etc/rancher/k3s/config.yaml",
                "/etc/rancher/k3s/config.yaml.d/10.yaml",
                "/etc/systemd/system/k3s.service",
                "/etc/default/k3s"
            ]
        );
    }

    #[test]
    fn the_dns_that_is_meant_where_none_is_set_follows_from_each_range_of_services() {
        for (config, expected) in [
            ("", &["10.43.0.10"][..]),
            ("service-cidr: 10.96.0.0/12\n", &["10.96.0.10"]),
            ("service-cidr: 10.43.200.7/17\n", &["10.43.128.10"]),
            ("service-cidr: fd00:43::/112\n", &["fd00:43::a"]),
            ("service-cidr: 10.43.0.0/16,fd00:43::/112\n", &["10.43.0.10", "fd00:43::a"]),
            ("service-cidr: ['fd00:43::/108', 10.96.0.0/28]\n", &["fd00:43::a", "10.96.0.10"]),
            ("service-cidr: 0.0.0.0/0,::/0\n", &["0.0.0.10", "::a"]),
            ("service-cidr: 10.0.0.0/29,10.0.0.0/33,10.0.0.0,x/16\n", &[]),
            ("service-cidr: 10.96.0.0/12\ncluster-dns: 10.96.0.53\n", &["10.96.0.53"]),
        ] {
            for (distribution, name) in [(Distribution::K3s, "k3s"), (Distribution::Rke2, "rke2")] {
                let path = format!("etc/rancher/{name}/config.yaml");
                let (all, notes) = found(distribution, &[(&path, config)]);
                assert_eq!(values(&all[0], "cluster-dns"), expected, "{name}: {config}{notes:?}");
            }
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_its_program_out() {
        let (all, notes) =
            found(Distribution::K3s, &[("etc/rancher/k3s/config.yaml", "disable: [traefik\n")]);
        assert_eq!(all, []);
        assert!(
            notes[0].starts_with("/etc/rancher/k3s/config.yaml could not be read"),
            "{notes:?}"
        );
    }

    #[test]
    fn static_pods_tell_flags_and_version() {
        let pod = "spec:\n  containers:\n  - command: [kube-apiserver, --event-ttl=1h]\n    image: r/kube-apiserver:v1.33.1\n";
        let path = "etc/kubernetes/manifests/kube-apiserver.yaml";
        let (all, _) = found(Distribution::Kubeadm, &[(path, pod)]);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].version.as_deref(), Some("v1.33.1"));
        assert_eq!(values(&all[0], "event-ttl"), ["1h"]);
        let path = "etc/kubernetes/manifests/talos-kube-apiserver.yaml";
        assert_eq!(found(Distribution::Talos, &[(path, pod)]).0, all);
        let path = "var/lib/rancher/rke2/agent/pod-manifests/kube-apiserver.yaml";
        let (rke2, _) = found(Distribution::Rke2, &[(path, pod)]);
        assert_eq!((rke2[0].name, &rke2[1]), ("rke2", &all[0]));
    }

    #[test]
    fn files_of_arguments_are_read_without_their_revision() {
        let path = "var/snap/microk8s/current/args/kube-apiserver";
        let text = "--client-ca-file=${SNAP_DATA}/certs/ca.crt\n--event_ttl=5m # short\n";
        let (all, _) = found(Distribution::Microk8s, &[(path, text)]);
        assert_eq!(values(&all[0], "client-ca-file"), ["/var/snap/microk8s/current/certs/ca.crt"]);
        assert_eq!(values(&all[0], "event-ttl"), ["5m"]);
        // What bash refuses says nothing.
        assert_eq!(found(Distribution::Microk8s, &[(path, "--a='b")]).0, []);
    }

    #[test]
    fn k0s_tells_its_configuration_and_what_it_has_started() {
        let (all, _) = found(
            Distribution::K0s,
            &[
                (
                    "etc/k0s/k0s.yaml",
                    "spec:\n  network:\n    podCIDR: 10.244.0.0/16\n    provider: calico\n",
                ),
                (
                    "etc/systemd/system/k0scontroller.service",
                    "[Service]\nExecStart=/usr/local/bin/k0s controller --config=/etc/k0s/k0s.yaml --disable-components=metrics-server,coredns --token-file=/t\n",
                ),
                ("proc/7/comm", "kube-controller\n"),
                (
                    "proc/7/cmdline",
                    "/var/lib/k0s/bin/kube-controller-manager\0--cluster-cidr=10.244.0.0/16\0",
                ),
                ("proc/7/cgroup", "0::/system.slice/k0scontroller.service\n"),
            ],
        );
        assert_eq!(
            all.iter().map(|c| c.name).collect::<Vec<_>>(),
            ["k0s", "kube-controller-manager"]
        );
        assert_eq!(values(&all[0], "network.podCIDR"), ["10.244.0.0/16"]);
        assert_eq!(values(&all[0], "network.provider"), ["calico"]);
        assert_eq!(values(&all[0], "disable-components"), ["metrics-server", "coredns"]);
        assert_eq!(values(&all[1], "cluster-cidr"), ["10.244.0.0/16"]);
        assert_eq!(all[0].files.len(), 2);
    }

    #[test]
    fn a_worker_has_no_settings_to_share() {
        let mut node = Installation::new(Distribution::K3s);
        node.role = Role::Agent;
        let facts = Facts { installations: vec![node], ..Facts::default() };
        let host = Host::at("/nowhere").with_facts(facts);
        assert_eq!(components(&host), (Vec::new(), Vec::new()));
    }

    #[test]
    fn secrets_are_taken_out_and_the_rest_stays() {
        let shown = |name: &str, value: &str| without_secrets(name, value.to_owned());
        for name in
            ["token", "agent-token", "oidc-client-secret", "db-password", "datastore-endpoint"]
        {
            assert_eq!(shown(name, "Hunter2"), "set", "{name}");
        }
        assert_eq!(shown("datastore-endpoint", "mysql"), "mysql");
        assert_eq!(shown("token-auth-file", "/etc/tokens"), "/etc/tokens");
        assert_eq!(shown("secrets-encryption", "true"), "true");
        assert_eq!(shown("secrets-encryption-provider", "secretbox"), "secretbox");
        assert_eq!(
            shown("etcd-servers", "https://u:hunter2@e1:2379,https://e2:2379"),
            "https://e1:2379,https://e2:2379"
        );
        assert_eq!(shown("x", "u:hunter2@tcp(db)/k3s"), "tcp(db)/k3s");
    }
}
