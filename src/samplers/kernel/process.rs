//! Names of processes as label values: a closed list, since any process can call itself anything.

/// The kernel keeps this many bytes of a name.
const COMM_BYTES: usize = 15;

/// Processes that are told apart: what a control plane is made of, what sits beside it on the
/// node, and the kernel's own threads that write to disks.
const KNOWN: &[&str] = &[
    "etcd",
    "k3s",
    "k3s-server",
    "k3s-agent",
    "rke2",
    "k0s",
    "kine",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubelite",
    "k8s-dqlite",
    "containerd",
    "containerd-shim",
    "crio",
    "dockerd",
    "runc",
    "calico-node",
    "cilium-agent",
    "coredns",
    "flanneld",
    "longhorn",
    "longhorn-manager",
    "longhorn-instance-manager",
    "tgtd",
    "iscsid",
    "multipathd",
    "prometheus",
    "postgres",
    "mysqld",
    "mariadbd",
    "snapd",
    "systemd",
    "systemd-journald",
    "systemd-logind",
    "systemd-udevd",
    "rsyslogd",
    "kworker",
    "jbd2",
    "xfsaild",
    "txg_sync",
    "btrfs-transaction",
];

/// The label value for a name as the kernel prints it, which is cut after 15 bytes. Kernel threads
/// have a suffix (`kworker/u8:3`, `jbd2/dm-13-8`) that does not count. `other` for all the rest.
pub(super) fn known(comm: &str) -> &'static str {
    let comm = comm.split('/').next().unwrap_or_default();
    let cut = |name: &&&str| name.get(..COMM_BYTES).unwrap_or(name) == comm;
    KNOWN.iter().find(cut).copied().unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_the_kernel_cut_is_known_by_its_whole_name() {
        for (comm, name) in [
            ("etcd", "etcd"),
            ("kube-controller", "kube-controller-manager"),
            ("longhorn-instan", "longhorn-instance-manager"),
            ("systemd-journal", "systemd-journald"),
            ("kworker/4:2", "kworker"),
            ("jbd2/dm-13-8", "jbd2"),
            ("etcd2", "other"),
            ("", "other"),
            ("a\"} 1\n", "other"),
        ] {
            assert_eq!(known(comm), name, "{comm}");
        }
    }

    #[test]
    fn the_processes_that_alerts_name_are_told_apart() {
        for name in crate::thresholds::CONTROL_PLANE.iter().chain(&crate::thresholds::WRITERS) {
            assert!(KNOWN.contains(name), "{name} would be exported as `other`");
        }
    }

    #[test]
    fn no_two_names_are_cut_to_the_same() {
        for name in KNOWN {
            assert_eq!(known(&name[..name.len().min(COMM_BYTES)]), *name);
        }
    }
}
