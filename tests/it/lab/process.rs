//! Child processes: daemons with a log, and commands that run to their end within a limit.

use super::{program, tail};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// A command whose process is killed when the test process dies, however it dies.
pub(crate) fn bound_command(program_name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program("setpriv"));
    command.args(["--pdeathsig", "KILL", "--"]).arg(program_name).stdin(Stdio::null());
    command
}

/// A [`bound_command`] that runs in the process namespace of `leader`, with files and network of the host.
///
/// The process started is `nsenter`; the program is its one child, and is killed with it.
pub(crate) fn command_inside(leader: u32, program_name: impl AsRef<OsStr>) -> Command {
    let mut command = bound_command(program("nsenter"));
    command.arg(format!("--target={leader}")).args(["--pid", "--"]);
    command.arg(program("setpriv")).args(["--pdeathsig", "KILL", "--"]).arg(program_name);
    command
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a command from a thread that lives as long as the test process.
///
/// The parent death signal is sent when the *thread* that forked ends, and a test's thread ends with the
/// test, while what it started may be shared with other tests.
#[track_caller]
pub(crate) fn spawn(command: Command) -> Child {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in queue {
                answer.send(command.spawn()).ok();
            }
        });
        Mutex::new(orders)
    });
    let what = format!("{command:?}");
    let (answer, child) = mpsc::channel();
    let orders = spawner.lock().unwrap_or_else(PoisonError::into_inner);
    orders.send((command, answer)).expect("the spawning thread lives");
    drop(orders);
    child
        .recv()
        .expect("the spawning thread answers")
        .unwrap_or_else(|error| panic!("cannot start {what}: {error}"))
}

/// A running program that writes its output to a log. Killed when dropped.
pub(crate) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` (see [`bound_command`]) with standard output and error appended to `log`.
    #[track_caller]
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a daemon's log");
        command.stdout(file.try_clone().expect("a second handle")).stderr(file);
        Self { name: name.to_owned(), child: spawn(command), log: log.to_owned() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; a process that is already gone is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        self::signal(self.pid(), signal);
    }

    /// The exit status if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the daemon is our child")
    }

    /// Waits for the end of the process. Fails after `limit`.
    #[track_caller]
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(started.elapsed() < limit, "{} still runs after {limit:?}", self.describe());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the process at once, as a crash or the OOM killer would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Whole text of the log so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    /// Fails with the end of the log if the process has ended.
    pub(crate) fn check_alive(&mut self) -> Result<(), String> {
        match self.ended() {
            None => Ok(()),
            Some(status) => Err(format!("it ended ({status}): {}", self.describe())),
        }
    }

    /// Name, process id and the end of the log, for messages.
    pub(crate) fn describe(&self) -> String {
        format!("{} (pid {}), end of its log:\n{}", self.name, self.pid(), tail(&self.log, 15))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A stopped process takes SIGKILL too; one in an uninterruptible wait is left to the kernel.
        self.child.kill().ok();
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None))
            && started.elapsed() < Duration::from_secs(3)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        if std::thread::panicking() {
            eprintln!("--- {}", self.describe());
        }
    }
}

/// Sends a signal; a process that is already gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).ok();
}

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program to its end within a minute and gives its standard output. Fails unless it exits 0.
#[track_caller]
pub(crate) fn run<S: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = S>) -> String {
    let mut command = bound_command(program(name));
    command.args(args);
    let what = format!("{command:?}");
    let output = output(command, Duration::from_mins(1));
    assert!(
        output.status.success(),
        "{what} ended with {}\n{}{}",
        output.status,
        output.stdout,
        output.stderr
    );
    output.stdout
}

/// Runs a command to its end. Fails when it takes longer than `limit`; it is killed then.
#[track_caller]
pub(crate) fn output(mut command: Command, limit: Duration) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let what = format!("{command:?}");
    let mut child = spawn(command);
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our child") {
            break status;
        }
        if started.elapsed() > limit {
            child.kill().ok();
            panic!("{what} still runs after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let text = |bytes: mpsc::Receiver<String>| bytes.recv_timeout(Duration::from_secs(5));
    Output {
        status,
        stdout: text(stdout).unwrap_or_default(),
        stderr: text(stderr).unwrap_or_default(),
    }
}

/// Reads a pipe to its end in a thread of its own: a child that fills one pipe must not wait for us.
fn reader(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).ok();
        }
        send.send(String::from_utf8_lossy(&bytes).into_owned()).ok();
    });
    receive
}

/// The children of a process, whichever of its threads started them; oldest first for each thread.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_thread = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<_>>()
    };
    threads.flat_map(of_thread).collect()
}
