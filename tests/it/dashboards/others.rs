//! Nodes beside the etcd cluster of the incident: two of a dqlite cluster, one with TLS on its own, one with kine, and one
//! with a journal.
//!
//! kine is an etcd on a socket, which answers the same two calls. What is fake is the process that a file of arguments
//! belongs to: the sampler looks for one of that name below a snap.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::lab;
use crate::lab::agent::{self, Agent};
use crate::lab::dqlite::{self, Dqlite};
use crate::lab::etcd::{Cluster, Etcd, Listen, Options};
use crate::lab::process::{Daemon, bound_command};
use crate::lab::systemd::Container;

const SECOND: Duration = Duration::from_secs(1);
const SERVICE: &str = "k8s-dqlite";
/// Prints this log each time that it is started.
const LOGGER: &str = "rke2-server.service";
const LOG: &str = r#"{"level":"warn","ts":"2026-04-20T22:43:00Z","msg":"slow fdatasync","took":"1.2s","expected-duration":"1s"}
{"level":"warn","ts":"2026-04-20T22:43:01Z","msg":"leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk","heartbeat-interval":"100ms","expected-duration":"200ms","exceeded-duration":"350ms"}
I0420 22:43:02.000000    8976 mount_linux.go:356] Disk "/dev/longhorn/pvc-1" appears to be unformatted, attempting to format as type: "ext4" with options: [-F -m0 /dev/longhorn/pvc-1]
time="2026-04-20T22:43:03Z" level=fatal msg="starting kubernetes: preparing server: connection refused"
"#;

/// The samplers that would find what is not these nodes' own.
const OFF: &str = "etcd: {enabled: false}\nregistry_keys: {enabled: false}\nfdatasync: {enabled: false}\n\
                   filesystem: {enabled: false}\nkernel: {enabled: false}\nsystemd: {enabled: false}\n\
                   snap: {enabled: false}\n";
/// This machine's journal is nobody's.
const NO_LOG: &str = "journal: {enabled: false}\n";

pub(super) struct Others {
    /// With job and instance: `mk-1` to lose its member, `mk-2`, `ck-1` with TLS, `lg-1` with a journal,
    /// `ks-1` with kine.
    agents: [(&'static str, &'static str, Agent); 5],
    dqlite: dqlite::Cluster,
    /// The member beside `mk-1`, which leads.
    first: usize,
    kine: Cluster,
    args: PathBuf,
    _single: dqlite::Cluster,
    _service: Daemon,
    _folder: tempfile::TempDir,
}

impl Others {
    pub(super) fn start(container: &Container) -> Self {
        let dqlite = dqlite::Cluster::start(Dqlite::V118, 3);
        let single = dqlite::Cluster::start(Dqlite::V118Tls, 1);
        let options = Options { listen: Listen::Unix, ..Options::default() };
        let kine = Cluster::start_with(Etcd::V35, 1, options);
        let folder = lab::temp_dir("microk8s");
        let (args, bin) = (folder.path().join("args"), folder.path().join("snap/microk8s/1/bin"));
        std::fs::create_dir(&args).unwrap();
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(args.join(SERVICE), "--storage-dir=/backend\n").unwrap();
        std::fs::write(args.join("kubelet"), "--root-dir=/var/lib/kubelet\n").unwrap();
        symlink(lab::program("sleep"), bin.join(SERVICE)).unwrap();
        let mut command = bound_command(bin.join(SERVICE));
        command.arg("1000");
        let service = Daemon::start(SERVICE, command, &folder.path().join("service.log"));

        std::fs::write(container.root().join("etc/log"), LOG).unwrap();
        let logger = "[Service]\nType=oneshot\nExecStart=/bin/cat /etc/log\n";
        container.install_unit(LOGGER, logger);
        let first = dqlite.leader();
        let host = |distribution: &str, datastore: &str| {
            format!(
                "host: {{distribution: {distribution}, version: v1.34.5, role: server, \
                 datastore: {datastore}}}\n"
            )
        };
        let member = |cluster: &dqlite::Cluster, i: usize| {
            format!(
                "dqlite: {{dir: '{}', interval: 400ms, timeout: 2s}}\n",
                cluster.dir(i).display()
            )
        };
        let with_args = format!("args: {{dir: '{}', interval: 500ms}}\n", args.display());
        let without = "args: {enabled: false}\n";
        let start = |parts: [&str; 3]| Agent::start(&format!("{OFF}{NO_LOG}{}", parts.concat()));
        let logs = agent::Options {
            config: format!("{OFF}{without}journal: {{units: [{LOGGER}, k3s.service]}}\n"),
            rootfs: Some(container.root()),
            ..agent::Options::default()
        };
        let microk8s = host("microk8s", "dqlite");
        let socket = format!(
            "kine: {{endpoint: '{}', interval: 500ms, timeout: 2s}}\n",
            kine.socket(0).display()
        );
        let agents = [
            ("microk8s", "mk-1", start([&microk8s, &member(&dqlite, first), &with_args])),
            ("microk8s", "mk-2", start([&microk8s, &member(&dqlite, (first + 1) % 3), without])),
            (
                "single",
                "ck-1",
                start([&host("canonical-k8s", "dqlite"), &member(&single, 0), without]),
            ),
            ("single", "lg-1", Agent::start_with(logs)),
            ("kine", "ks-1", start([&host("k3s", "external-sql"), &socket, without])),
        ];
        Self {
            agents,
            dqlite,
            first,
            kine,
            args,
            _single: single,
            _service: service,
            _folder: folder,
        }
    }

    /// Job, instance and address of each.
    pub(super) fn targets(&self) -> Vec<(&'static str, String, String)> {
        let target = |(job, instance, agent): &(&'static str, &'static str, Agent)| {
            (*job, (*instance).to_owned(), agent.address().to_string())
        };
        self.agents.iter().map(target).collect()
    }

    /// Writes until there is a snapshot; then a flag that nobody knows, and a leader that dies.
    pub(super) fn incident(&mut self) {
        let [(_, _, first), (_, _, second), ..] = &self.agents;
        self.dqlite.put_many(self.first, 1_200);
        self.kine.put_many("/registry/pods/default/pod-", 100, 1_000);
        for agent in [first, second] {
            agent.wait_until("a snapshot", "controlplane_dqlite", 20 * SECOND, |scrape| {
                scrape.value("controlplane_dqlite_snapshots", &[]) >= Some(1.0)
            });
        }
        let file = self.args.join(SERVICE);
        let block = "# BEGIN ANSIBLE MANAGED BLOCK\n--snapshot-threshold=512\n# END ANSIBLE MANAGED BLOCK\n";
        std::fs::write(&file, block).unwrap();
        // Later than the grace that the sampler gives to the service's own wrapper.
        let later = SystemTime::now() + 30 * SECOND;
        std::fs::File::options().append(true).open(&file).unwrap().set_modified(later).unwrap();
        let unknown = [("file", SERVICE)];
        first.wait_value("controlplane_args_unknown_flags", &unknown, 1.0, 10 * SECOND);
        first.wait_value("controlplane_args_changed_since_start", &unknown, 1.0, 10 * SECOND);

        self.dqlite.kill(self.first);
        first.wait_until("a dead member", "controlplane_dqlite", 10 * SECOND, |scrape| {
            scrape.value("controlplane_dqlite_up", &[]) == Some(0.0)
                && scrape.sum("controlplane_dqlite_request_failures_total", &[]) >= 1.0
        });
        second.wait_value("controlplane_dqlite_voters_reachable", &[], 2.0, 10 * SECOND);
    }

    /// What a server logs before it ends.
    pub(super) fn logs(&self, container: &Container) {
        container.systemctl(&["start", LOGGER]);
        let [.., (_, _, agent), _] = &self.agents;
        let formatted = [("signature", "volume_formatting"), ("unit", LOGGER)];
        agent.wait_until("a formatted volume", "controlplane_journal", 10 * SECOND, |scrape| {
            scrape.value("controlplane_journal_events_total", &formatted) >= Some(1.0)
        });
    }

    /// Some seconds later, so that its figures have been scraped more than once.
    pub(super) fn kine_dies(&mut self) {
        self.kine.kill(0);
        let [.., (_, _, agent)] = &self.agents;
        agent.wait_value("controlplane_kine_up", &[], 0.0, 10 * SECOND);
    }
}
