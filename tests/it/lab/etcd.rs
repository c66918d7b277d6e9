//! Real etcd: one member or a cluster of them on loopback, with TLS, plain HTTP or a Unix socket.
//!
//! Debian's 3.4 and 3.5, unpacked by `tests/setup.sh`. A cluster of three answers after one to three
//! seconds. Members are killed, stopped and restarted one by one; all end when the cluster is dropped.

use super::pki::{Leaf, Pki};
use super::process::{Daemon, Output, bound_command, output};
use super::{cached, free_port, temp_dir, wait_for};
use etcd_client::{Client, PutOptions, Txn, TxnOp};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// A version of etcd that `tests/setup.sh` installs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Etcd {
    V34,
    V35,
}

impl Etcd {
    fn binary(self, name: &str) -> PathBuf {
        match self {
            Self::V34 => cached(&format!("etcd-3.4/usr/bin/{name}")),
            Self::V35 => cached(&format!("etcd-3.5/usr/bin/{name}")),
        }
    }
}

/// How clients reach a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Listen {
    /// HTTPS with client certificates, peers too.
    #[default]
    Tls,
    /// Plain HTTP, peers too.
    Plain,
    /// A Unix socket in the member's folder without TLS, as kine and k8s-dqlite serve it.
    Unix,
}

/// What a cluster is started with beside version and size.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) listen: Listen,
    /// `--quota-backend-bytes`.
    pub(crate) quota: Option<u64>,
    /// Listen on `[::1]` beside 127.0.0.1, at the same port.
    pub(crate) ipv6: bool,
    /// Further flags for every member.
    pub(crate) extra: Vec<String>,
    /// The server certificate, if not the good one.
    pub(crate) server: Option<Leaf>,
    /// Folder for the data of member i (`{data_root}/m{i}`), for example on a slow disk of at least
    /// 512 MiB. Drop the cluster before the disk.
    pub(crate) data_root: Option<PathBuf>,
}

struct Member {
    client_port: u16,
    peer_port: u16,
    metrics_port: u16,
    folder: PathBuf,
    daemon: Option<Daemon>,
}

/// A running cluster. Members are counted from 0 and named `m0`, `m1`, …
pub(crate) struct Cluster {
    version: Etcd,
    options: Options,
    pub(crate) pki: Pki,
    members: Vec<Member>,
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// A TLS cluster that has a leader.
    #[track_caller]
    pub(crate) fn start(version: Etcd, members: usize) -> Self {
        Self::start_with(version, members, Options::default())
    }

    /// A cluster with options that has a leader.
    #[track_caller]
    pub(crate) fn start_with(version: Etcd, members: usize, options: Options) -> Self {
        let mut cluster = Self::prepare(version, members, options);
        for member in 0..members {
            cluster.launch(member);
        }
        cluster.wait_for_leader();
        cluster
    }

    /// A cluster of which no member has been started: see [`Self::launch`].
    pub(crate) fn prepare(version: Etcd, members: usize, options: Options) -> Self {
        let folder = temp_dir("etcd");
        let root = options.data_root.clone().unwrap_or_else(|| folder.path().to_owned());
        let members = (0..members)
            .map(|i| {
                let folder = root.join(format!("m{i}"));
                std::fs::create_dir_all(&folder).expect("a member's folder");
                let (client_port, peer_port, metrics_port) =
                    (free_port(), free_port(), free_port());
                Member { client_port, peer_port, metrics_port, folder, daemon: None }
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime for the laboratory's own client");
        Self { version, options, pki: Pki::new(), members, folder, runtime }
    }

    /// Starts (or starts again) one member and returns at once.
    #[track_caller]
    pub(crate) fn launch(&mut self, i: usize) {
        let command = self.command(i);
        let log = self.log_file(i);
        self.members[i].daemon = Some(Daemon::start(&format!("etcd m{i}"), command, &log));
    }

    /// Ends member `i` and starts it again as the only member of a new cluster with its data, which is how
    /// distributions reset a cluster whose other members are lost.
    #[track_caller]
    pub(crate) fn force_new(&mut self, i: usize) {
        self.kill(i);
        let mut command = self.command(i);
        command.arg("--force-new-cluster");
        let log = self.log_file(i);
        self.members[i].daemon = Some(Daemon::start(&format!("etcd m{i}"), command, &log));
        self.wait_until_up(i);
    }

    fn command(&self, i: usize) -> Command {
        let member = &self.members[i];
        let tls = self.options.listen == Listen::Tls;
        let scheme = if tls { "https" } else { "http" };
        let peer = |m: &Member| format!("{scheme}://127.0.0.1:{}", m.peer_port);
        let cluster: Vec<String> =
            self.members.iter().enumerate().map(|(n, m)| format!("m{n}={}", peer(m))).collect();
        let client = self.client_url(i);
        let listen = if self.options.ipv6 {
            format!("{client},{}", client.replace("127.0.0.1", "[::1]"))
        } else {
            client.clone()
        };
        let mut command = bound_command(self.version.binary("etcd"));
        command.current_dir(&member.folder).arg(format!("--name=m{i}")).args([
            "--data-dir=data".to_owned(),
            "--logger=zap".to_owned(),
            "--log-outputs=stderr".to_owned(),
            format!("--listen-client-urls={listen}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={}", peer(member)),
            format!("--initial-advertise-peer-urls={}", peer(member)),
            format!("--initial-cluster={}", cluster.join(",")),
            format!("--listen-metrics-urls=http://127.0.0.1:{}", member.metrics_port),
        ]);
        if tls {
            let server = self.options.server.as_ref().unwrap_or(&self.pki.server);
            command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
            for (flag, file) in [
                ("--cert-file", &server.cert),
                ("--key-file", &server.key),
                ("--trusted-ca-file", &self.pki.ca),
                ("--peer-cert-file", &self.pki.server.cert),
                ("--peer-key-file", &self.pki.server.key),
                ("--peer-trusted-ca-file", &self.pki.ca),
            ] {
                command.arg(flag).arg(file);
            }
        }
        if let Some(quota) = self.options.quota {
            command.arg(format!("--quota-backend-bytes={quota}"));
        }
        command.args(&self.options.extra);
        command
    }

    /// The URL that clients of member `i` use. The path of a Unix socket is [`Self::socket`].
    pub(crate) fn client_url(&self, i: usize) -> String {
        let port = self.members[i].client_port;
        match self.options.listen {
            Listen::Tls => format!("https://127.0.0.1:{port}"),
            Listen::Plain => format!("http://127.0.0.1:{port}"),
            // Relative to the member's folder; etcd 3.4 insists on a port and refuses a path.
            Listen::Unix => "unix://socket:1".to_owned(),
        }
    }

    /// The Unix socket of member `i` when it listens on one.
    pub(crate) fn socket(&self, i: usize) -> PathBuf {
        self.members[i].folder.join("socket:1")
    }

    /// The data directory of member `i`; it contains `member/wal` and `member/snap/db`.
    pub(crate) fn data_dir(&self, i: usize) -> PathBuf {
        self.members[i].folder.join("data")
    }

    /// The port of member `i` that serves `/metrics` and `/health` without TLS.
    pub(crate) fn metrics_port(&self, i: usize) -> u16 {
        self.members[i].metrics_port
    }

    /// The process id of member `i`.
    #[track_caller]
    pub(crate) fn pid(&self, i: usize) -> u32 {
        self.daemon(i).pid()
    }

    /// What member `i` has logged, restarts included.
    #[track_caller]
    pub(crate) fn log(&self, i: usize) -> String {
        self.daemon(i).log()
    }

    /// Where member `i` logs.
    pub(crate) fn log_file(&self, i: usize) -> PathBuf {
        self.folder.path().join(format!("m{i}.log"))
    }

    #[track_caller]
    fn daemon(&self, i: usize) -> &Daemon {
        self.members[i].daemon.as_ref().unwrap_or_else(|| panic!("member {i} was never started"))
    }

    /// Ends member `i` at once.
    #[track_caller]
    pub(crate) fn kill(&mut self, i: usize) {
        self.members[i].daemon.as_mut().expect("a member that was started").kill();
    }

    /// Freezes member `i`: its ports stay open and nothing answers.
    pub(crate) fn stop(&self, i: usize) {
        self.daemon(i).signal(Signal::STOP);
    }

    /// Lets member `i` go on.
    pub(crate) fn cont(&self, i: usize) {
        self.daemon(i).signal(Signal::CONT);
    }

    /// Ends member `i` if it runs, starts it again with its data, and waits until it answers.
    #[track_caller]
    pub(crate) fn restart(&mut self, i: usize) {
        self.kill(i);
        self.launch(i);
        self.wait_until_up(i);
    }

    /// Waits until member `i` itself answers and knows a leader.
    #[track_caller]
    pub(crate) fn wait_until_up(&mut self, i: usize) {
        let started = std::time::Instant::now();
        loop {
            let reason = match self.status(i) {
                Ok((_, leader)) if leader != 0 => return,
                Ok(_) => "it knows no leader".to_owned(),
                Err(reason) => reason,
            };
            self.fail_when(i, started.elapsed() > Duration::from_secs(30), &reason);
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    #[track_caller]
    fn fail_when(&mut self, i: usize, overdue: bool, reason: &str) {
        let daemon = self.members[i].daemon.as_mut().expect("a member that was started");
        if let Err(end) = daemon.check_alive() {
            panic!("etcd m{i} does not come up: {end}");
        }
        assert!(
            !overdue,
            "etcd m{i} does not come up within 30 s: {reason}\n{}",
            daemon.describe()
        );
    }

    #[track_caller]
    fn wait_for_leader(&mut self) {
        for i in 0..self.members.len() {
            self.wait_until_up(i);
        }
    }

    /// Member id and the leader's member id as member `i` tells them, from a Status call of its own.
    pub(crate) fn status(&self, i: usize) -> Result<(u64, u64), String> {
        self.on_member(i, |mut client| async move {
            let status = client.status().await?;
            let id = status.header().map_or(0, etcd_client::ResponseHeader::member_id);
            Ok((id, status.leader()))
        })
    }

    /// The member that leads. Fails when there is none within 15 s.
    #[track_caller]
    pub(crate) fn leader(&self) -> usize {
        wait_for("a leader of the etcd cluster", Duration::from_secs(15), || {
            let mut seen = String::new();
            for i in 0..self.members.len() {
                match self.status(i) {
                    Ok((id, leader)) if id == leader => return Ok(i),
                    other => seen = format!("m{i}: {other:?}"),
                }
            }
            Err(seen)
        })
    }

    /// Puts `n` keys `{prefix}{number:08}` of `value_len` random bytes, in transactions of 128 or of one MB.
    ///
    /// 100,000 small keys take a few seconds.
    #[track_caller]
    pub(crate) fn put_many(&self, prefix: &str, n: usize, value_len: usize) {
        const AT_ONCE: usize = 4;
        let batch = (1_000_000 / value_len.max(1)).clamp(1, 128);
        let value: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(value_len).collect();
        let batches: Vec<usize> = (0..n).step_by(batch).collect();
        let put = |mut client: Client, mine: Vec<usize>| {
            let (prefix, value) = (prefix.to_owned(), value.clone());
            async move {
                for from in mine {
                    let puts = (from..n.min(from + batch)).map(|key| {
                        let key = format!("{prefix}{key:08}");
                        TxnOp::put(key, value.clone(), None::<PutOptions>)
                    });
                    client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await?;
                }
                Ok::<(), etcd_client::Error>(())
            }
        };
        let through = self.first_running();
        let all = async {
            let client = self.connect(through).await?;
            let writers = (0..AT_ONCE).map(|writer| {
                put(client.clone(), batches.iter().copied().skip(writer).step_by(AT_ONCE).collect())
            });
            futures_util::future::try_join_all(writers).await.map_err(|error| error.to_string())
        };
        let limit = Duration::from_mins(2);
        let done = self.runtime.block_on(async { tokio::time::timeout(limit, all).await });
        done.expect("put_many within two minutes")
            .unwrap_or_else(|error| panic!("put_many: {error}"));
    }

    /// Puts values of 1.4 MB, nearly the largest that etcd takes, under two keys through member `i`; `etcdctl`
    /// does it, since this client is slow with large values in a test build.
    #[track_caller]
    pub(crate) fn put_large(&self, i: usize, prefix: &str, n: usize) {
        let value = self.folder.path().join("value");
        let random = std::iter::repeat_with(fastrand::alphanumeric).take(1_400_000);
        std::fs::write(&value, random.collect::<String>()).expect("a value");
        let script = r#"value=$1 prefix=$2 n=$3; shift 3
            for k in $(seq "$n"); do "$@" put "$prefix$((k % 2))" < "$value" > /dev/null || exit 1; done"#;
        let mut command = bound_command("sh");
        command.env("ETCDCTL_API", "3").args(["-c", script, "sh"]).arg(&value);
        command.args([prefix, &n.to_string()]).arg(self.version.binary("etcdctl"));
        command.args(["--endpoints", &self.client_url(i), "--command-timeout=30s"]);
        command.arg("--cacert").arg(&self.pki.ca);
        command.arg("--cert").arg(&self.pki.client.cert);
        command.arg("--key").arg(&self.pki.client.key);
        let output = output(command, Duration::from_mins(3));
        assert!(output.status.success(), "put_large: {}{}", output.stdout, output.stderr);
    }

    /// The size of member `i`'s database in bytes, which is what its quota counts.
    #[track_caller]
    pub(crate) fn db_size(&self, i: usize) -> i64 {
        let size =
            self.on_member(i, |mut client| async move { Ok(client.status().await?.db_size()) });
        size.unwrap_or_else(|error| panic!("the size of m{i}: {error}"))
    }

    fn first_running(&self) -> usize {
        (0..self.members.len()).find(|&i| self.status(i).is_ok()).unwrap_or(0)
    }

    /// Runs one call against member `i` alone, within two seconds.
    pub(crate) fn on_member<T, F>(
        &self,
        i: usize,
        call: impl FnOnce(Client) -> F,
    ) -> Result<T, String>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let all = async {
            let client = self.connect(i).await?;
            call(client).await.map_err(|error| error.to_string())
        };
        self.runtime.block_on(async {
            let limited = tokio::time::timeout(Duration::from_secs(2), all).await;
            limited.unwrap_or_else(|_| Err("no answer within 2 s".to_owned()))
        })
    }

    /// A client of member `i` alone.
    pub(crate) async fn connect(&self, i: usize) -> Result<Client, String> {
        connect(self.target(i)).await
    }

    fn target(&self, i: usize) -> Target {
        match self.options.listen {
            Listen::Unix => Target::Unix(self.socket(i)),
            Listen::Plain => Target::Tcp(self.members[i].client_port, None),
            Listen::Tls => Target::Tcp(
                self.members[i].client_port,
                Some(tls_client(&self.pki.ca, &self.pki.client)),
            ),
        }
    }

    /// Puts `value_len` bytes under ten keys through member `i`, one after the other with a pause between
    /// them, until the value is dropped. What fails is tried again.
    pub(crate) fn keep_writing(
        &self,
        i: usize,
        prefix: &str,
        value_len: usize,
        pause: Duration,
    ) -> Writer {
        let (target, prefix) = (self.target(i), prefix.to_owned());
        let value: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(value_len).collect();
        let puts = async move {
            loop {
                let Ok(mut client) = connect(target.clone()).await else {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                };
                for number in 0.. {
                    let put = client.put(format!("{prefix}{}", number % 10), value.clone(), None);
                    if !matches!(
                        tokio::time::timeout(Duration::from_secs(10), put).await,
                        Ok(Ok(_))
                    ) {
                        break;
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        };
        Writer(self.runtime.spawn(puts))
    }

    /// `etcdctl` against all members of a TLS or plain cluster; fails unless it exits 0.
    #[track_caller]
    pub(crate) fn etcdctl(&self, args: &[&str]) -> String {
        let output = self.try_etcdctl(args);
        let (out, err) = (&output.stdout, &output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {}\n{out}{err}", output.status);
        output.stdout
    }

    /// `etcdctl` against all members, whatever comes of it.
    #[track_caller]
    pub(crate) fn try_etcdctl(&self, args: &[&str]) -> Output {
        let mut command = bound_command(self.version.binary("etcdctl"));
        let urls: Vec<String> = (0..self.members.len()).map(|i| self.client_url(i)).collect();
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", urls.join(",")));
        // Five seconds are too few for a slow disk.
        command.arg("--command-timeout=30s");
        if self.options.listen == Listen::Unix {
            command.current_dir(&self.members[0].folder);
        }
        if self.options.listen == Listen::Tls {
            for (flag, file) in [
                ("--cacert", &self.pki.ca),
                ("--cert", &self.pki.client.cert),
                ("--key", &self.pki.client.key),
            ] {
                command.arg(flag).arg(file);
            }
        }
        command.args(args);
        output(command, Duration::from_mins(1))
    }
}

/// Puts that go on until this is dropped: see [`Cluster::keep_writing`].
pub(crate) struct Writer(tokio::task::JoinHandle<()>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect(target: Target) -> Result<Client, String> {
    let connector = tower::service_fn(move |_| dial(target.clone()));
    let channel = tonic::transport::Endpoint::from_static("http://member")
        .connect_with_connector(connector)
        .await
        .map_err(|error| format!("{error:?}"))?;
    let channel = etcd_client::Channel::Tonic(channel);
    Client::from_channel(channel, None).await.map_err(|error| error.to_string())
}

/// TLS settings of a client that trusts `ca` and shows `leaf`.
pub(crate) fn tls_client(ca: &Path, leaf: &Leaf) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(&leaf.cert).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&leaf.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[derive(Clone)]
enum Target {
    Tcp(u16, Option<Arc<rustls::ClientConfig>>),
    Unix(PathBuf),
}

trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Stream for T {}

async fn dial(target: Target) -> std::io::Result<TokioIo<Box<dyn Stream>>> {
    let stream: Box<dyn Stream> = match target {
        Target::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
        Target::Tcp(port, tls) => {
            let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("127.0.0.1").expect("an address is a server name");
            match tls {
                None => Box::new(tcp),
                Some(tls) => {
                    Box::new(tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await?)
                }
            }
        }
    };
    Ok(TokioIo::new(stream))
}
