//! Real dqlite: clusters of Debian's `dqlite-demo`, 1.11 without TLS and 1.18 with or without it.
//!
//! The first member starts the cluster, the others join it; three are voters after some seconds. Members are killed,
//! ended and started again one by one; all end when the cluster is dropped.

use super::process::{Daemon, bound_command, output};
use super::{cached, free_port, temp_dir, wait_for};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A version of dqlite that `tests/setup.sh` installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dqlite {
    V111,
    V118,
    /// 1.18 with one certificate for all members, as k8s-dqlite has it.
    V118Tls,
}

impl Dqlite {
    /// The folder with its programs, and `run`, which runs one of them.
    pub(crate) fn folder(self) -> PathBuf {
        cached(if self == Self::V111 { "dqlite-1.11" } else { "dqlite-1.18" })
    }

    fn command(self, program: &str) -> Command {
        let mut command = bound_command(self.folder().join("run"));
        command.arg(program);
        command
    }

    /// The member under another name, which the kernel takes from the file that is executed: that of the loader.
    fn command_as(self, name: &str, at: &Path) -> Command {
        let folder = self.folder().join("usr");
        let libraries = folder.join("lib/x86_64-linux-gnu");
        let loader = at.join(name);
        if !loader.exists() {
            std::os::unix::fs::symlink(libraries.join("ld-linux-x86-64.so.2"), &loader)
                .expect("a link to the loader");
        }
        let mut command = bound_command(loader);
        command.arg("--library-path").arg(libraries).arg(folder.join("bin/dqlite-demo"));
        command
    }
}

/// Certificate and key in a folder.
fn pair(folder: &Path) -> [PathBuf; 2] {
    ["cluster.crt", "cluster.key"].map(|name| folder.join(name))
}

struct Member {
    api: u16,
    port: u16,
    /// Where its directory is, unless with the others'.
    folder: Option<PathBuf>,
    daemon: Option<Daemon>,
}

impl Member {
    fn new(folder: Option<&Path>) -> Self {
        let folder = folder.map(Path::to_owned);
        Self { api: free_port(), port: free_port(), folder, daemon: None }
    }
}

/// A running cluster. Members are counted from 0.
pub(crate) struct Cluster {
    version: Dqlite,
    /// What the kernel is to call its processes.
    name: Option<&'static str>,
    members: Vec<Member>,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// A cluster in which all have joined, and as many vote as can: three, or one of fewer than three.
    #[track_caller]
    pub(crate) fn start(version: Dqlite, members: usize) -> Self {
        Self::start_on(version, members, None)
    }

    /// The same, with the directory of the last member in this folder.
    #[track_caller]
    pub(crate) fn start_on(version: Dqlite, members: usize, last: Option<&Path>) -> Self {
        Self::start_named(version, members, last, None)
    }

    /// A cluster whose processes have this name.
    #[track_caller]
    pub(crate) fn start_as(name: &'static str, version: Dqlite, members: usize) -> Self {
        Self::start_named(version, members, None, Some(name))
    }

    #[track_caller]
    fn start_named(
        version: Dqlite,
        members: usize,
        last: Option<&Path>,
        name: Option<&'static str>,
    ) -> Self {
        let folder = temp_dir("dqlite");
        let place = |i| if i + 1 == members { last } else { None };
        let members = (0..members).map(|i| Member::new(place(i))).collect();
        let mut cluster = Self { version, name, members, folder };
        cluster.certificate();
        for i in 0..cluster.members.len() {
            cluster.launch(i);
            cluster.wait_for_roles(i + 1, 0);
        }
        let all = cluster.members.len();
        cluster.wait_for_roles(all, if all < 3 { 1 } else { 3 });
        cluster
    }

    /// A further member that somebody else starts, with its directory in this folder: its number.
    pub(crate) fn expect(&mut self, folder: &Path) -> usize {
        self.members.push(Member::new(Some(folder)));
        self.members.len() - 1
    }

    /// Long flags of a member, with a value each.
    pub(crate) fn flags(&self, i: usize) -> Vec<String> {
        let member = &self.members[i];
        let folder = member.folder.as_deref().unwrap_or(self.folder.path());
        let mut flags = vec![
            format!("--api=127.0.0.1:{}", member.api),
            format!("--db={}", self.address(i)),
            format!("--dir={}", folder.display()),
        ];
        flags.extend((i > 0).then(|| format!("--join={}", self.address(0))));
        flags
    }

    /// Starts (or starts again) a member and returns at once.
    #[track_caller]
    pub(crate) fn launch(&mut self, i: usize) {
        let mut command = match self.name {
            Some(name) => self.version.command_as(name, self.folder.path()),
            None => self.version.command("dqlite-demo"),
        };
        command.args(self.flags(i)).arg("--verbose");
        if self.version == Dqlite::V118Tls {
            let [cert, key] = pair(self.folder.path());
            command.arg("-c").arg(cert).arg("-k").arg(key);
            // Where k8s-dqlite has them.
            std::fs::create_dir_all(self.dir(i)).expect("the member's folder");
            for (from, to) in pair(self.folder.path()).iter().zip(pair(&self.dir(i))) {
                std::fs::copy(from, to).expect("the member's certificate");
            }
        }
        let log = self.folder.path().join(format!("m{i}.log"));
        self.members[i].daemon = Some(Daemon::start(&format!("dqlite m{i}"), command, &log));
    }

    /// As MicroK8s makes it: self-signed, named after the first host, no CA.
    fn certificate(&self) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["node-one".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, "k8s");
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.self_signed(&key).expect("a certificate");
        let [cert_file, key_file] = pair(self.folder.path());
        std::fs::write(cert_file, cert.pem()).expect("its file");
        std::fs::write(key_file, key.serialize_pem()).expect("its file");
    }

    /// `host:port` of a member.
    pub(crate) fn address(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.members[i].port)
    }

    /// The directory of a member.
    pub(crate) fn dir(&self, i: usize) -> PathBuf {
        let folder = self.members[i].folder.as_deref();
        folder.unwrap_or(self.folder.path()).join(self.address(i))
    }

    /// What a member has logged, restarts included.
    pub(crate) fn log(&self, i: usize) -> String {
        self.members[i].daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// Ends a member at once.
    pub(crate) fn kill(&mut self, i: usize) {
        self.members[i].daemon.as_mut().expect("a member that was started").kill();
    }

    /// Ends a member as a service manager does, which hands its role over.
    #[track_caller]
    pub(crate) fn terminate(&mut self, i: usize) {
        let daemon = self.members[i].daemon.as_mut().expect("a member that was started");
        daemon.signal(Signal::TERM);
        daemon.wait(Duration::from_secs(20));
    }

    #[track_caller]
    pub(crate) fn check_alive(&mut self, i: usize) {
        let daemon = self.members[i].daemon.as_mut().expect("a member that was started");
        daemon.check_alive().unwrap_or_else(|end| panic!("dqlite m{i}: {end}"));
    }

    /// What dqlite's own shell answers, asked of all members that were started.
    fn shell(&self, statement: &str) -> Result<String, String> {
        let started = self.members.iter().enumerate().filter(|(_, m)| m.daemon.is_some());
        let servers: Vec<_> = started.map(|(i, _)| self.address(i)).collect();
        let mut command = self.version.command("dqlite");
        command.arg("-s").arg(servers.join(","));
        if self.version == Dqlite::V118Tls {
            let [cert, key] = pair(self.folder.path());
            command.arg("-c").arg(cert).arg("-k").arg(key);
        }
        command.args(["demo", statement]);
        // Without a leader it tries for ever.
        let mut bounded = bound_command("timeout");
        bounded.arg("5").arg(command.get_program()).args(command.get_args());
        let output = output(bounded, Duration::from_secs(20));
        if output.status.success() { Ok(output.stdout) } else { Err(output.stderr) }
    }

    /// Addresses and roles of all members, by the word of dqlite's own shell.
    pub(crate) fn roles(&self) -> Result<Vec<(String, String)>, String> {
        let listed = self.shell(".cluster")?;
        let fields = listed.lines().map(|line| line.split('|').collect::<Vec<_>>());
        Ok(fields
            .filter(|fields| fields.len() == 3)
            .map(|fields| (fields[1].to_owned(), fields[2].to_owned()))
            .collect())
    }

    #[track_caller]
    pub(crate) fn wait_for_roles(&self, members: usize, voters: usize) {
        wait_for(&format!("{members} members, {voters} voters"), Duration::from_secs(40), || {
            let roles = self.roles()?;
            let voting = roles.iter().filter(|(_, role)| role == "voter").count();
            if roles.len() == members && voting >= voters {
                Ok(())
            } else {
                Err(format!("{roles:?}"))
            }
        });
    }

    /// The member that leads, by the word of dqlite's own shell.
    #[track_caller]
    pub(crate) fn leader(&self) -> usize {
        wait_for("a leader of dqlite", Duration::from_secs(30), || {
            let leader = self.shell(".leader")?;
            let found = (0..self.members.len()).find(|i| self.address(*i) == leader.trim());
            found.ok_or(leader)
        })
    }

    /// Writes `n` keys through a member, one after the other.
    #[track_caller]
    pub(crate) fn put_many(&self, through: usize, n: usize) {
        self.put_large(through, n, 5);
    }

    /// The same, with values of so many bytes.
    #[track_caller]
    pub(crate) fn put_large(&self, through: usize, n: usize, bytes: usize) {
        let mut command = bound_command("curl");
        command.args(["-sS", "-f", "-X", "PUT", "-o", "/dev/null"]);
        command.arg("-d").arg("x".repeat(bytes));
        command.arg(format!("http://127.0.0.1:{}/k[1-{n}]", self.members[through].api));
        let output = output(command, Duration::from_mins(1));
        assert!(output.status.success(), "{}{}", output.stderr, self.log(through));
    }
}
