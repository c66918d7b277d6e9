//! Which flags all nodes should share, in one form however they are written, and what is told of them.

use std::collections::{BTreeMap, BTreeSet};

use ring::digest::{SHA256, digest};

use crate::host::components::Component;
use crate::sample::Batch;

use super::{COMPONENT, FLAG};

/// Flags named for each program.
const MAX_FLAGS: usize = 64;
/// Hexadecimal digits of a digest.
const DIGITS: usize = 12;

/// Flags that name the node itself, and so differ.
const OWN: &[&str] = &[
    "address",
    "advertise-address",
    "advertise-client-urls",
    "bind-address",
    "config-file",
    "hostname-override",
    "initial-advertise-peer-urls",
    "initial-cluster",
    "initial-cluster-state",
    "initial-cluster-token",
    "listen-client-http-urls",
    "listen-client-urls",
    "listen-metrics-urls",
    "listen-peer-urls",
    "name",
    "node-external-ip",
    "node-ip",
    "node-name",
];

/// Flags whose values are told, since they change how the program behaves and are no secrets.
const TOLD: &[(&str, &[&str])] = &[
    (
        "kube-apiserver",
        &[
            "admission-control-config-file",
            "anonymous-auth",
            "audit-policy-file",
            "authorization-mode",
            "default-watch-cache-size",
            "disable-admission-plugins",
            "enable-admission-plugins",
            "encryption-provider-config",
            "etcd-compaction-interval",
            "etcd-servers",
            "event-ttl",
            "feature-gates",
            "goaway-chance",
            "max-mutating-requests-inflight",
            "max-requests-inflight",
            "request-timeout",
            "runtime-config",
            "service-account-issuer",
            "service-cluster-ip-range",
            "service-node-port-range",
            "storage-backend",
            "watch-cache",
        ],
    ),
    (
        "kube-controller-manager",
        &[
            "allocate-node-cidrs",
            "cluster-cidr",
            "controllers",
            "feature-gates",
            "leader-elect",
            "leader-elect-lease-duration",
            "leader-elect-renew-deadline",
            "node-cidr-mask-size",
            "node-monitor-grace-period",
            "service-cluster-ip-range",
            "terminated-pod-gc-threshold",
        ],
    ),
    (
        "kube-scheduler",
        &[
            "config",
            "feature-gates",
            "leader-elect",
            "leader-elect-lease-duration",
            "leader-elect-renew-deadline",
        ],
    ),
    (
        "etcd",
        &[
            "auto-compaction-mode",
            "auto-compaction-retention",
            "backend-batch-interval",
            "election-timeout",
            "feature-gates",
            "heartbeat-interval",
            "max-request-bytes",
            "max-txn-ops",
            "quota-backend-bytes",
            "snapshot-count",
            "unsafe-no-fsync",
        ],
    ),
    (
        "k8s-dqlite",
        &[
            "datastore-max-idle-connections",
            "disk-mode",
            "enable-tls",
            "low-available-storage-action",
            "storage-dir",
            "watch-storage-available-size-min-bytes",
        ],
    ),
];

/// Tells the digest of the program's flags, and those that matter by name.
pub(super) fn tell(component: &Component, out: &mut Batch) {
    let flags = shared(component);
    let name = component.name;
    out.info(&COMPONENT, [name, &digest_of(&flags)]);
    let told = TOLD.iter().find(|(program, _)| *program == name).map(|(_, flags)| *flags);
    let is_told = |flag: &str| told.is_none_or(|flags| flags.contains(&flag));
    let pairs: Vec<(&str, &str)> = flags
        .iter()
        .filter(|(flag, _)| is_told(flag))
        .flat_map(|(flag, values)| values.iter().map(|value| (*flag, *value)))
        .collect();
    for (flag, value) in pairs.iter().take(MAX_FLAGS) {
        out.info(&FLAG, [name, flag, value]);
    }
    out.dropped(pairs.len().saturating_sub(MAX_FLAGS) as u64);
}

/// The flags that all nodes should share, by name; each item of a list is a value, so that its order does not matter.
fn shared(component: &Component) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut flags: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, value) in &component.flags {
        if !OWN.contains(&name.as_str()) {
            flags.entry(name).or_default().extend(value.split(',').map(str::trim));
        }
    }
    flags
}

fn digest_of(flags: &BTreeMap<&str, BTreeSet<&str>>) -> String {
    let lines = flags
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}={value}\n")));
    let digest = digest(&SHA256, lines.collect::<String>().as_bytes());
    let mut hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(DIGITS);
    hex
}
