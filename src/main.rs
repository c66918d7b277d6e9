//! Arguments, logs, configuration, runtime, signals, exit codes; nothing else.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use controlplane_exporter as agent;
use controlplane_exporter::check;
use controlplane_exporter::config::{self, Config, Flags, LogFormat, LogLevel};
use controlplane_exporter::log::{FlushAtEnd, Queue};
use rustix::io::Errno;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// An agent that watches what kills Kubernetes control planes and serves it to Prometheus.
#[derive(Parser)]
#[command(version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: CliOptions,
}

#[derive(Args)]
struct CliOptions {
    /// Configuration file; without it the agent finds out everything by itself
    #[arg(long = "config.file", value_name = "FILE", global = true)]
    config_file: Option<PathBuf>,
    /// Where to listen, as often as wanted [default: :10379]
    #[arg(long = "web.listen-address", value_name = "ADDRESS", global = true)]
    listen_address: Vec<String>,
    /// Path of the figures [default: /metrics]
    #[arg(long = "web.telemetry-path", value_name = "PATH", global = true)]
    telemetry_path: Option<String>,
    /// Web configuration file of the exporter toolkit: TLS, passwords, headers
    #[arg(long = "web.config.file", value_name = "FILE", global = true)]
    web_config_file: Option<String>,
    /// So many requests for figures or status at a time, 503 above; 0 for any number [default: 40]
    #[arg(long = "web.max-requests", value_name = "NUMBER", global = true)]
    max_requests: Option<usize>,
    /// The host's files are below this path [default: /]
    #[arg(long = "path.rootfs", value_name = "PATH", global = true)]
    rootfs: Option<String>,
    /// Least severe lines to print [default: info]
    #[arg(long = "log.level", value_name = "LEVEL", global = true)]
    log_level: Option<LogLevel>,
    /// How a log line looks [default: logfmt]
    #[arg(long = "log.format", value_name = "FORMAT", global = true)]
    log_format: Option<LogFormat>,
}

#[derive(Subcommand)]
enum Command {
    /// Say how this node is, to a monitoring system or to a person
    ///
    /// Exit codes: 0 all is well, 1 warning, 2 critical, 3 unknown or wrong usage. It asks the running agent; without one it
    /// takes one round of samples itself.
    Check(CheckOptions),
    /// Print what was detected, which samplers are on, which are off and why
    Inspect,
    /// Print the effective configuration; exit 1 with file, key and reason when it is wrong
    Config,
    /// Print METRICS.md
    Catalog,
    /// Run a sampler once for the agent that started this process
    #[command(hide = true)]
    Sampler { name: String },
    /// Look at the node for the agent that started this process
    #[command(hide = true)]
    Detect,
    /// Sync a file again and again for the agent that started this process
    #[command(hide = true)]
    Probe,
    /// Look at volumes for the agent that started this process
    #[command(hide = true)]
    Volume,
    /// Look at one path's filesystem for the agent that started this process
    #[command(hide = true)]
    Statfs,
    /// Read the configuration file for the agent that started this process
    #[command(hide = true)]
    ConfigFile,
    /// Read the web configuration file for the agent that started this process
    #[command(hide = true)]
    WebConfig,
    /// Try permissions for the agent that started this process
    #[command(hide = true)]
    Access,
    /// Read files for the agent that started this process
    #[command(hide = true)]
    Read,
    /// Look at a dqlite node's directory for the agent that started this process
    #[command(hide = true)]
    Dqlite,
    /// Follow logs for the agent that started this process
    #[command(hide = true)]
    Follow,
}

/// How `check` prints what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CheckFormat {
    /// One line with performance data
    Nagios,
    /// Lines for a person
    Text,
    /// One JSON object
    Json,
}

#[derive(Args)]
#[command(version)]
struct CheckOptions {
    /// What to look at
    #[arg(long, value_enum, default_value = "all")]
    profile: check::Profile,
    /// How to print it [default: text on a terminal, else nagios]
    #[arg(long, value_enum)]
    format: Option<CheckFormat>,
    /// Say more, up to -vvv
    #[arg(short, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Warn by this range instead of the alert's limit, such as `sync_p90=0.05`; repeatable
    #[arg(short, long, value_name = "NAME=RANGE")]
    warning: Vec<check::Limit>,
    /// Critical by this range instead of the alert's limit; repeatable
    #[arg(short, long, value_name = "NAME=RANGE")]
    critical: Vec<check::Limit>,
    /// Seconds after which it ends, whatever hangs
    #[arg(short, long, value_name = "SECONDS", default_value = "8", value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    /// Ask the agent on this host instead, over plain HTTP
    #[arg(short = 'H', long, value_name = "HOST", conflicts_with = "own")]
    host: Option<String>,
    /// The port of that agent
    #[arg(short, long, default_value_t = 10379, requires = "host")]
    port: u16,
    /// Only whether the agent itself answers, for a container's health check
    #[arg(long = "self")]
    own: bool,
}

/// Called by this name it is the plugin, so that monitoring systems find it among theirs.
const PLUGIN: &str = "check_controlplane";

/// The arguments, with the command that the program's name stands for; and whether it is a check.
fn arguments() -> (Vec<OsString>, bool) {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| name == PLUGIN) {
        args.insert(1, "check".into());
        if !args.iter().any(|arg| arg.to_string_lossy().starts_with("--format")) {
            args.insert(2, "--format=nagios".into());
        }
    }
    let is_check = args.iter().skip(1).any(|arg| arg == "check");
    (args, is_check)
}

fn main() -> ExitCode {
    let (args, is_check) = arguments();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // A monitoring system reads standard output, and takes 2 for critical.
        Err(error) if is_check => {
            drop(print(&error.render().to_string()));
            return ExitCode::from(3);
        }
        Err(error) => error.exit(),
    };
    if let Some(Command::Check(options)) = &cli.command {
        return run_check(&cli, options);
    }
    let ended = match &cli.command {
        Some(Command::Sampler { name }) => agent::scheduler::run_isolated(name),
        Some(Command::Detect) => agent::run_detect().map_err(Into::into),
        Some(Command::Statfs) => agent::samplers::filesystem::run_child().map_err(Into::into),
        Some(Command::Volume) => agent::samplers::volume::run_child().map_err(Into::into),
        Some(Command::Probe) => agent::samplers::fdatasync::run_probe().map_err(Into::into),
        Some(Command::ConfigFile) => agent::run_read_config().map_err(Into::into),
        Some(Command::WebConfig) => agent::web::lock::run_read().map_err(Into::into),
        Some(Command::Access) => agent::access::run_access().map_err(Into::into),
        Some(Command::Follow) => agent::samplers::journal::run_follow().map_err(Into::into),
        Some(Command::Dqlite) => agent::dqlite::directory::run_child().map_err(Into::into),
        Some(Command::Read) => agent::etcd::files::run_read().map_err(Into::into),
        Some(Command::Catalog) => print(&agent::catalog::markdown()),
        Some(Command::Config) => load(&cli).and_then(|(config, _)| {
            config.web.config_file.as_deref().map_or(Ok(()), agent::web::lock::check)?;
            print(&config.to_yaml())
        }),
        Some(Command::Check(_)) => unreachable!("it has returned"),
        Some(Command::Inspect) => load(&cli).and_then(|(config, _)| inspect(&config)),
        None => load(&cli).and_then(|(config, flags)| serve(config, flags)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone; there is nowhere else to say it.
            drop(writeln!(io::stderr(), "controlplane-exporter: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints what was found and returns the exit code for it.
fn run_check(cli: &Cli, options: &CheckOptions) -> ExitCode {
    let service = options.profile.service();
    let within = Duration::from_secs(options.timeout);
    let said = Arc::new(AtomicBool::new(false));
    // Whoever is first says it.
    let say = |said: &AtomicBool, text: &str| {
        if !said.swap(true, Ordering::SeqCst) {
            drop(print(text));
        }
    };
    let watched = Arc::clone(&said);
    std::thread::spawn(move || {
        std::thread::sleep(within);
        let text = format!(
            "{service} CRITICAL: no result within {within:?}: something on this node hangs\n"
        );
        say(&watched, &text);
        #[expect(clippy::exit, reason = "the rest of the process hangs")]
        std::process::exit(2);
    });
    // A child that a sick disk holds would keep standard error open, and whoever reads it waiting.
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        rustix::stdio::dup2_stderr(null).ok();
    }
    let until = tokio::time::Instant::now() + within;
    let found = std::panic::catch_unwind(|| {
        let runtime = runtime()?;
        let found = runtime.block_on(checked(cli, options, until));
        // What hangs must not keep the result from being read.
        runtime.shutdown_background();
        anyhow::Ok(found)
    });
    let (text, code) = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => (format!("{service} UNKNOWN: {error:#}\n"), 3),
        Err(_) => {
            (format!("{service} UNKNOWN: the check itself failed, which is a mistake in it\n"), 3)
        }
    };
    say(&said, &text);
    ExitCode::from(code)
}

async fn checked(cli: &Cli, options: &CheckOptions, until: tokio::time::Instant) -> (String, u8) {
    let profile = options.profile;
    let seen = if let Some(host) = &options.host {
        check::look_from_afar(host, options.port, until).await
    } else {
        let config = match agent::load_config(&agent::child::Slot::default(), &flags(cli)).await {
            Ok(config) => config,
            Err(error) => return (format!("{} UNKNOWN: {error}\n", profile.service()), 3),
        };
        if options.own {
            return match check::healthy(&config, until).await {
                Ok(()) => ("CONTROLPLANE-EXPORTER OK: the agent answers\n".to_owned(), 0),
                Err(error) => (format!("CONTROLPLANE-EXPORTER CRITICAL: {error}\n"), 2),
            };
        }
        check::look(&config, profile, until).await
    };
    let seen = seen.narrowed(profile, &options.warning, &options.critical);
    let by_default =
        if io::stdout().is_terminal() { CheckFormat::Text } else { CheckFormat::Nagios };
    let text = match options.format.unwrap_or(by_default) {
        CheckFormat::Nagios => check::nagios(&seen, profile, options.verbose),
        CheckFormat::Text => check::text(&seen, profile, options.verbose),
        CheckFormat::Json => check::json(&seen),
    };
    (text, check::exit_code(seen.status.health))
}

fn flags(cli: &Cli) -> Flags {
    let options = &cli.options;
    let word = |value: Option<String>| value.map(|text| text.trim_matches('"').to_owned());
    let set = [
        ("web.telemetry_path", options.telemetry_path.clone()),
        ("web.config_file", options.web_config_file.clone()),
        ("web.max_requests", options.max_requests.map(|number| number.to_string())),
        ("path.rootfs", options.rootfs.clone()),
        ("log.level", word(options.log_level.and_then(|l| serde_json::to_string(&l).ok()))),
        ("log.format", word(options.log_format.and_then(|f| serde_json::to_string(&f).ok()))),
    ];
    Flags {
        file: options.config_file.clone(),
        set: set.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(),
        listen: options.listen_address.clone(),
    }
}

fn load(cli: &Cli) -> anyhow::Result<(Config, Flags)> {
    let flags = flags(cli);
    Ok((Config::load(&flags)?, flags))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(256 << 10)
        .max_blocking_threads(32)
        .enable_all()
        .build()
        .context("starting the runtime")
}

fn inspect(config: &Config) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let (facts, lacks) = runtime.block_on(async {
        let facts = agent::detect(&agent::child::Slot::default(), config)
            .await
            .context("looking at this node")?;
        let lacks = agent::access::lacking(config, &facts).await;
        anyhow::Ok((facts, lacks.map_err(|error| error.to_string())))
    })?;
    print(&agent::inspect::report(config, &facts, lacks.as_deref().map_err(String::as_str)))
}

fn serve(config: Config, flags: Flags) -> anyhow::Result<()> {
    let _log = start_log(&config.log)?;
    log_panics();
    raise_file_limit();
    let passed = passed_sockets()?;
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let lock =
            config.web.config_file.as_deref().map(agent::web::lock::Lock::open).transpose()?;
        let listeners = listen(&config.web.listen_address, passed)?;
        let socket = listen_for_checks(&config.web.socket);
        let (stop, stopped) = watch::channel(false);
        let signals = agent::Signals::new(stopped);
        let reload = signals.reload_sender.clone();
        let handle = tokio::spawn(wait_for_signals(stop, reload)?);
        tokio::spawn(keep_watchdog_fed());
        agent::run(config, flags, listeners, lock, socket, signals, || {
            lock_memory();
            notify(&[sd_notify::NotifyState::Ready]);
        })
        .await;
        handle.abort();
        anyhow::Ok(())
    });
    notify(&[sd_notify::NotifyState::Stopping]);
    // A thread that a sick disk holds must not keep the agent from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// The TCP sockets that systemd listens on and passes when it starts the agent (`sd_listen_fds(3)`), if any.
fn passed_sockets() -> anyhow::Result<Vec<std::net::TcpListener>> {
    let mut passed = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for n in 0..passed.len() {
        let listener = passed.take_tcp_listener(n).context("taking a socket of systemd")?;
        if let Some(listener) = listener {
            listener.set_nonblocking(true)?;
            listeners.push(listener);
        }
    }
    Ok(listeners)
}

/// The ports: those that systemd passed, else those of the configuration.
fn listen(
    addresses: &[String],
    passed: Vec<std::net::TcpListener>,
) -> anyhow::Result<Vec<TcpListener>> {
    let version = env!("CARGO_PKG_VERSION");
    let mut listeners = Vec::new();
    for socket in passed {
        let listener = TcpListener::from_std(socket).context("taking a socket of systemd")?;
        tracing::info!(address = %listener.local_addr()?, version, "listening on a socket of systemd");
        listeners.push(listener);
    }
    if !listeners.is_empty() {
        return Ok(listeners);
    }
    for address in addresses {
        let socket = config::listen_addresses(address).map_err(anyhow::Error::msg)?;
        let listener = bind(socket, address.starts_with(':')).with_context(|| {
            format!(
                "listening on {address} (change it with --web.listen-address, or see who has \
                 the port: ss -ltnp 'sport = {}')",
                socket.port()
            )
        })?;
        tracing::info!(address = %listener.local_addr()?, version, "listening");
        listeners.push(listener);
    }
    Ok(listeners)
}

/// A port. `everywhere` is every address of both protocols, whatever `net.ipv6.bindv6only` says, or of IPv4 where the
/// kernel has no other.
fn bind(address: SocketAddr, everywhere: bool) -> io::Result<TcpListener> {
    let bound = bind_to(address, everywhere);
    let none = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].map(|errno| Some(errno.raw_os_error()));
    match bound {
        Err(error) if everywhere && none.contains(&error.raw_os_error()) => {
            bind_to((Ipv4Addr::UNSPECIFIED, address.port()).into(), false)
        }
        bound => bound,
    }
}

fn bind_to(address: SocketAddr, everywhere: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if everywhere {
        set_ipv6_v6only(&socket, false)?;
    }
    socket.bind(address)?;
    // So many clients may wait to be let in as the kernel allows (`net.core.somaxconn`). With 128 a burst of connections
    // makes a scraper wait a second or three until it knocks again.
    socket.listen(i32::MAX.unsigned_abs())
}

/// The socket of the check command; without it, a check samples by itself.
fn listen_for_checks(path: &std::path::Path) -> Option<agent::web::socket::Socket> {
    if path.as_os_str().is_empty() {
        return None;
    }
    match agent::web::socket::bind(path) {
        Ok(socket) => {
            tracing::info!(socket = %path.display(), "listening for checks");
            Some(socket)
        }
        Err(error) => {
            tracing::info!(socket = %path.display(), %error, "not listening for checks (web.socket)");
            None
        }
    }
}

/// From here on events are lines of the log; what is returned writes the last of them when it is dropped.
fn start_log(log: &config::Log) -> anyhow::Result<FlushAtEnd> {
    let level = match log.level {
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Error => tracing::Level::ERROR,
    };
    // Libraries speak up only about what is wrong.
    let filter = tracing_subscriber::filter::Targets::new()
        .with_target("controlplane_exporter", level)
        .with_default(tracing::Level::WARN.min(level));
    let registry = tracing_subscriber::registry().with(filter);
    let queue = Queue::start(io::stderr()).context("starting the log")?;
    let out = queue.clone();
    match log.format {
        LogFormat::Logfmt => {
            registry.with(tracing_logfmt::builder().layer().with_writer(out)).init();
        }
        LogFormat::Json => registry
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(out))
            .init(),
    }
    Ok(FlushAtEnd(queue))
}

/// A panic is a line of the log like any other, in the log's format.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, what = panic.payload_as_str(), "panicked");
    }));
}

/// SIGTERM and SIGINT stop the agent; SIGHUP reads the configuration again.
fn wait_for_signals(
    stop: watch::Sender<bool>,
    reload: tokio::sync::mpsc::Sender<agent::web::Reload>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {}
            }
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec / 1_000);
            notify(&[
                sd_notify::NotifyState::Reloading,
                sd_notify::NotifyState::MonotonicUsec(micros),
            ]);
            let reloaded = async {
                let (answer, answered) = oneshot::channel();
                if reload.send(answer).await.is_ok() {
                    // The outcome has been logged.
                    drop(answered.await);
                }
            };
            // A disk that hangs makes a reload long, and whoever stops the agent waits ten seconds.
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = reloaded => notify(&[sd_notify::NotifyState::Ready]),
            }
        }
        tracing::info!("stopping");
        stop.send_replace(true);
    })
}

/// Tells systemd that the agent lives, twice as often as it wants to hear it.
async fn keep_watchdog_fed() {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(within / 2);
    loop {
        tick.tick().await;
        notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

fn notify(state: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Allows as many open files as the clients of all doors may take, and the samplers beside them: each door has 512, and the
/// usual limit is 1,024. Children inherit it; they open few files, so none gets a number that is too high for `select(2)`.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const FILES: u64 = 8_192;
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES, |most| most.min(FILES));
    if limit.current.is_none_or(|now| now >= wanted) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// Keeps the agent in memory, so that it goes on when the root disk does not answer: all of the program at once, since its
/// parts would come from that disk, and what is allocated later when it is first used, since much of it never is. With a small
/// limit, locking would succeed and the next thread would fail to start: then it is left alone.
fn lock_memory() {
    use rustix::mm::{MlockAllFlags, mlockall};
    use rustix::process::{Resource, getrlimit};
    let capable = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::IPC_LOCK));
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    if !capable && !unlimited {
        tracing::info!(
            "memory is not locked: LimitMEMLOCK=infinity or CAP_IPC_LOCK would allow it"
        );
        return;
    }
    let later = MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    match mlockall(MlockAllFlags::CURRENT).and_then(|()| mlockall(later)) {
        Ok(()) => tracing::debug!("memory locked"),
        Err(error) => tracing::warn!(%error, "memory cannot be locked"),
    }
}
