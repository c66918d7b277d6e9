//! Work in a child process: whatever touches a disk that may be sick.
//!
//! The agent runs itself again with a hidden command, hands it a question as JSON on standard
//! input and reads the answer as JSON from standard output. A child that the disk holds in the
//! kernel cannot be killed; the agent then goes on without it, keeps its port, exits when told to,
//! and starts no second child in the same [`Slot`] before the first is reaped.

use std::io::{self, Read, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex as Lock, PoisonError, mpsc};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

/// How long a question waits for the child before it, which may have answered and not be gone yet.
const GRACE: Duration = Duration::from_millis(500);
/// No question and no answer is longer than this many bytes.
const MESSAGE_BYTES: u64 = 8 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// An earlier child is still held by the kernel.
    #[error("an earlier child process has not come back yet")]
    Busy,
    /// No answer in time; the child was killed.
    #[error("no answer within {0:?}; killed")]
    Timeout(Duration),
    /// It could not be started, or the pipe broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ended without an answer.
    #[error("ended without an answer ({0})")]
    NoAnswer(String),
}

/// Room for one child at a time.
#[derive(Debug, Clone, Default)]
pub struct Slot(Arc<Mutex<()>>);

impl Slot {
    /// Runs `controlplane-exporter <args>` with `question` and waits for its answer.
    ///
    /// Dropping the future leaves the child to end by itself: it finds its pipe closed.
    ///
    /// # Errors
    ///
    /// See [`ChildError`]. After [`ChildError::Timeout`] the child is killed, and the slot stays
    /// taken until the kernel lets it go.
    pub async fn ask<A: DeserializeOwned>(
        &self,
        args: &[&str],
        question: &impl Serialize,
        deadline: Duration,
    ) -> Result<A, ChildError> {
        let started = tokio::time::Instant::now();
        let free = tokio::time::timeout(GRACE.min(deadline), self.0.clone().lock_owned()).await;
        let taken = free.map_err(|_| ChildError::Busy)?;
        let question = serde_json::to_vec(question).map_err(io::Error::from)?;
        let mut command = command(args)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut starting = start(command)?;
        let Ok(child) = tokio::time::timeout_at(started + deadline, &mut starting).await else {
            tokio::spawn(async move {
                if let Ok(Ok(child)) = starting.await {
                    reap(child, taken);
                }
            });
            return Err(ChildError::Timeout(deadline));
        };
        let mut child = child.map_err(gone)??;
        let talked = tokio::time::timeout_at(started + deadline, talk(&mut child, question)).await;
        let Ok(answer) = talked else {
            reap(child, taken);
            return Err(ChildError::Timeout(deadline));
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                reap(child, taken);
                return Err(error.into());
            }
        };
        let parsed = serde_json::from_slice(&answer);
        if parsed.is_err()
            && let Ok(Ok(status)) =
                tokio::time::timeout(Duration::from_millis(200), child.wait()).await
        {
            return Err(ChildError::NoAnswer(status.to_string()));
        }
        reap(child, taken);
        parsed.map_err(|error| ChildError::NoAnswer(error.to_string()))
    }

    /// Whether there is no child in it.
    pub fn is_free(&self) -> bool {
        self.0.try_lock().is_ok()
    }

    /// Waits until the slot's child, if there is one, is gone.
    pub async fn reaped(&self) {
        drop(self.0.lock().await);
    }
}

/// Starts a child that stays, and hands it its question as a line.
///
/// # Errors
///
/// When it cannot be started. One that does not take its question shows at its output.
pub async fn stay(mut command: Command, question: &impl Serialize) -> io::Result<Child> {
    let mut text = serde_json::to_vec(question)?;
    text.push(b'\n');
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = start(command)?.await.map_err(gone)??;
    // It fits into the pipe; a child that is gone already shows at the other pipe.
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(&text).await
    {
        tracing::debug!(%error, "a child process did not take its question");
    }
    Ok(child)
}

/// A command, the runtime that watches its pipes, and who waits for it.
type Order = (Command, Handle, oneshot::Sender<io::Result<Child>>);

/// Has a child started by a thread that does nothing else: who starts a child waits until the kernel has its program, and
/// the runtime's few threads answer scrapes. The thread stays, since its end would be told to its children as their parent's.
fn start(command: Command) -> io::Result<oneshot::Receiver<io::Result<Child>>> {
    static STARTER: Lock<Option<mpsc::Sender<Order>>> = Lock::new(None);
    let (answer, waits) = oneshot::channel();
    let mut starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner);
    let orders = match starter.take() {
        Some(orders) => orders,
        None => {
            let (orders, waiting) = mpsc::channel();
            let thread = std::thread::Builder::new().name("children".into()).stack_size(256 << 10);
            thread.spawn(move || start_all(waiting))?;
            orders
        }
    };
    orders.send((command, Handle::current(), answer)).map_err(gone)?;
    *starter = Some(orders);
    Ok(waits)
}

fn start_all(waiting: mpsc::Receiver<Order>) {
    for (mut command, runtime, answer) in waiting {
        let _entered = runtime.enter();
        if !answer.is_closed() {
            // Who has gone meanwhile leaves a child that finds its pipe closed.
            drop(answer.send(command.spawn()));
        }
    }
}

fn gone<E>(_: E) -> io::Error {
    io::Error::other("nobody starts child processes any more")
}

/// The pause before a child that stays, and has ended, is started again: from a second to a minute, twice the one
/// before.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Backoff {
    const LONGEST: Duration = Duration::from_mins(1);
    const SHORTEST: Duration = Duration::from_secs(1);

    /// The next pause. One that has run for longer than the longest begins anew.
    pub fn next(&mut self, ran: Duration) -> Duration {
        if ran > Self::LONGEST {
            self.0 = Self::SHORTEST;
        }
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        pause
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self(Self::SHORTEST)
    }
}

/// This program, with the file descriptors of the agent closed and nothing inherited but
/// standard error.
///
/// # Errors
///
/// When `/proc/self/exe` is not there.
pub fn command(args: &[&str]) -> io::Result<Command> {
    let mut command = Command::new("/proc/self/exe");
    command.args(args).env_clear().stdin(Stdio::null());
    if let Some(level) = std::env::var_os("RUST_BACKTRACE") {
        command.env("RUST_BACKTRACE", level);
    }
    Ok(command)
}

async fn talk(child: &mut Child, question: Vec<u8>) -> io::Result<Vec<u8>> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let ask = async {
        // A child that answers without reading its question is no error.
        match stdin.write_all(&question).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => {
                drop(stdin);
                Ok(())
            }
        }
    };
    let mut answer = Vec::new();
    let mut stdout = stdout.take(MESSAGE_BYTES);
    let (asked, read) = tokio::join!(ask, stdout.read_to_end(&mut answer));
    asked?;
    read?;
    Ok(answer)
}

/// Kills the child and waits for it in the background; the slot is free when it is gone.
fn reap(mut child: Child, taken: OwnedMutexGuard<()>) {
    tokio::spawn(async move {
        // It may have ended already, and a child that the kernel holds cannot be waited for here.
        if let Err(error) = child.kill().await {
            tracing::debug!(%error, "a child process could not be killed");
        }
        drop(taken);
    });
}

/// The child's side: reads the question, answers it, and never outlives the agent.
///
/// # Errors
///
/// When the question is no JSON of type `Q`, or the pipe is closed.
pub fn answer<Q: DeserializeOwned, A: Serialize>(
    work: impl FnOnce(Q) -> A,
) -> Result<(), io::Error> {
    die_with_parent()?;
    let mut question = Vec::new();
    io::stdin().lock().take(MESSAGE_BYTES).read_to_end(&mut question)?;
    let answer = work(serde_json::from_slice(&question)?);
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, &answer)?;
    stdout.flush()
}

/// Asks the kernel to kill this process when the agent dies.
///
/// # Errors
///
/// When the kernel refuses.
pub fn die_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_ends_at_once_is_started_ever_more_rarely_and_one_that_ran_soon() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..8).map(|_| backoff.next(Duration::ZERO).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.next(Duration::from_secs(61)).as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_waits_a_moment_for_the_child_before_it_and_no_longer() {
        let slot = Slot::default();
        let ask = || slot.ask::<()>(&["--list"], &(), Duration::from_secs(5));
        let held = slot.0.clone().lock_owned().await;
        assert!(matches!(ask().await, Err(ChildError::Busy)), "one that does not come back");
        tokio::spawn(async move {
            tokio::time::sleep(GRACE / 2).await;
            drop(held);
        });
        let answer = ask().await;
        assert!(!matches!(answer, Err(ChildError::Busy)), "one that is just going: {answer:?}");
    }
}
