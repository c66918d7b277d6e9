//! The agent's side of the readers: a task for each source keeps a child running and takes what it writes.
//!
//! Both children write the journal's export format, so there is one reader. It takes at most [`RATE`] entries a second:
//! when more are written, the pipe fills, the child waits, and neither of them takes the machine. A reader of the journal that stays
//! behind goes on near the end; what it passed over is counted by the journal's own numbers. What the
//! child of a broken disk does not deliver costs nothing here: the task waits for the pipe alone.

use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr};
use tokio::sync::oneshot;

use super::cells::{Cells, Source, Trouble};
use super::export::{FIELDS, Parser};
use super::line::Classifier;
use super::pods;
use crate::child;

/// Entries taken in a second.
const RATE: u32 = 10_000;
/// Entries that were there before the first start, and are looked through for the timeline.
const HISTORY: u32 = 5_000;
/// An entry that comes later than this is one of a reader that is behind.
const LATE: Duration = Duration::from_secs(30);
/// A reader that is behind for so long, though it has taken so many entries meanwhile, goes on at the end. A clock that was
/// set makes entries look late as well, but not so many.
const BEHIND: (Duration, u32) = (Duration::from_mins(2), 100_000);
/// An entry that comes later than this is not the last one.
const TRAILING: Duration = Duration::from_secs(2);
/// A reader of the journal that trails and gives nothing for so long has come to the end after all, or has lost its place:
/// journalctl can wait for ever when the file that it reads is vacuumed. A new one begins after the last entry, which is right
/// for both.
const SILENT: Duration = Duration::from_secs(10);
/// The last entries before the end are taken even then: what follows a flood says what it did.
const AT_END: u32 = 5_000;
/// Bytes read at a time.
const PIECE: usize = 64 << 10;
/// Bytes kept of what a child says on standard error.
const COMPLAINT: u64 = 4 << 10;
/// So much less urgent than anything else is a child.
const NICE: i32 = 10;

/// What a child is to read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Question {
    /// The journal, with this program and these arguments.
    Journal { program: PathBuf, args: Vec<String> },
    /// Files of static pods.
    Pods(pods::Question),
}

/// What is followed.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    /// These units of the journal, below this root where it is not `/`.
    Journal { program: PathBuf, root: Option<PathBuf>, units: Vec<String> },
    /// These containers of static pods, below this root.
    Pods { rootfs: PathBuf, pods: Vec<pods::Pod> },
}

impl Wanted {
    pub(super) fn source(&self) -> Source {
        match self {
            Self::Journal { .. } => Source::Journal,
            Self::Pods { .. } => Source::Pods,
        }
    }

    /// The units whose lines it brings.
    pub(super) fn units(&self) -> Vec<String> {
        match self {
            Self::Journal { units, .. } => units.clone(),
            Self::Pods { pods, .. } => pods.iter().map(|pod| pod.container.clone()).collect(),
        }
    }
}

/// Where in the journal a child begins.
#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    /// What is there, and no more.
    History,
    /// After this place.
    After(String),
    /// What was written since then, in Unix seconds.
    Since(u64),
    /// Near the end.
    End,
}

fn journal_args(root: Option<&Path>, units: &[String], from: &From) -> Vec<String> {
    let mut args = vec![
        "--output=export".to_owned(),
        format!("--output-fields={FIELDS}"),
        "--no-pager".to_owned(),
        "--quiet".to_owned(),
        "--system".to_owned(),
    ];
    args.extend(root.map(|root| format!("--root={}", root.display())));
    args.extend(units.iter().map(|unit| format!("--unit={unit}")));
    match from {
        From::History => args.push(format!("--lines={HISTORY}")),
        From::After(cursor) => {
            args.extend(["--follow".to_owned(), "--no-tail".to_owned()]);
            args.push(format!("--after-cursor={cursor}"));
        }
        From::Since(time) => {
            args.extend(["--follow".to_owned(), "--no-tail".to_owned()]);
            args.push(format!("--since=@{time}"));
        }
        From::End => args.extend(["--follow".to_owned(), format!("--lines={AT_END}")]),
    }
    args
}

/// A reader. Dropping this ends it, without waiting.
#[derive(Debug)]
pub(super) struct Follow(#[expect(dead_code, reason = "its drop is the message")] Stop);

type Stop = oneshot::Sender<Infallible>;

impl Follow {
    /// Starts the task that keeps a child running. Needs a runtime, whose worker does the forking: the child dies with
    /// the thread that started it.
    pub(super) fn start(cells: Arc<Cells>, classifier: Arc<Classifier>, wanted: Wanted) -> Self {
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(async move {
            let source = wanted.source();
            let mut task = Task { cells: &cells, classifier: &classifier, source, stopped };
            // The child of a sampler that this one replaces may be held by the disk.
            let _slot = tokio::select! {
                slot = cells.slot(source).lock() => slot,
                _ = &mut task.stopped => return,
            };
            task.keep(&wanted).await;
            cells.figures().reader(source).pid = None;
        });
        Self(stop)
    }
}

struct Task<'a> {
    cells: &'a Cells,
    classifier: &'a Classifier,
    source: Source,
    stopped: oneshot::Receiver<Infallible>,
}

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The sampler is gone.
    Stopped,
    /// It was ended because it is behind.
    Behind,
    /// It was ended because it trailed and gave nothing more.
    Silent,
    /// It came to its end.
    Well,
    /// It failed.
    Badly(Trouble),
}

impl Task<'_> {
    /// Runs one child after the other until told to stop.
    async fn keep(&mut self, wanted: &Wanted) {
        let mut backoff = child::Backoff::default();
        let mut from = None;
        loop {
            let started = Instant::now();
            let ended = match wanted {
                Wanted::Journal { program, root, units } => {
                    let begin = match from.take() {
                        Some(from) => Ok(from),
                        None => self.begin(program, root.as_deref(), units).await,
                    };
                    match begin {
                        Ok(begin) => {
                            let args = journal_args(root.as_deref(), units, &begin);
                            let question = Question::Journal { program: program.clone(), args };
                            self.run(&question, false).await
                        }
                        Err(ended) => ended,
                    }
                }
                Wanted::Pods { rootfs, pods } => {
                    let cursors = self.cells.figures().reader(self.source).cursors.clone();
                    let question = pods::Question {
                        rootfs: rootfs.clone(),
                        pods: pods.clone(),
                        resume: cursors,
                    };
                    self.run(&Question::Pods(question), false).await
                }
            };
            let trouble = match ended {
                Ended::Stopped => return,
                Ended::Behind => {
                    tracing::warn!(
                        "the journal grows faster than it can be read; going on at its end"
                    );
                    self.cells.figures().pass_over(self.source);
                    from = Some(From::End);
                    continue;
                }
                Ended::Silent => continue,
                Ended::Well => Trouble { text: "it ended".into(), refused: false },
                Ended::Badly(trouble) => trouble,
            };
            {
                let mut figures = self.cells.figures();
                let reader = figures.reader(self.source);
                reader.pid = None;
                reader.settled = true;
                if reader.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!(
                        source = self.source.as_str(),
                        error = trouble.text,
                        "logs are not read"
                    );
                }
                reader.trouble = Some(trouble);
            }
            self.cells.settled.notify_waiters();
            tokio::select! {
                () = tokio::time::sleep(backoff.next(started.elapsed())) => {}
                _ = &mut self.stopped => return,
            }
        }
    }

    /// Where to begin: where this process or the one before was, after a look at what is there for the timeline.
    async fn begin(
        &mut self,
        program: &Path,
        root: Option<&Path>,
        units: &[String],
    ) -> Result<From, Ended> {
        let settled = {
            let mut figures = self.cells.figures();
            let reader = figures.reader(self.source);
            reader.settled && reader.trouble.is_none()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if !settled {
            let args = journal_args(root, units, &From::History);
            let question = Question::Journal { program: program.to_owned(), args };
            match self.run(&question, true).await {
                Ended::Well => {}
                other => return Err(other),
            }
        }
        let mut figures = self.cells.figures();
        figures.settle(self.source);
        let known = figures.reader(self.source).cursors.get("").cloned();
        let from = known.map_or(From::Since(now.as_secs()), From::After);
        drop(figures);
        self.cells.settled.notify_waiters();
        Ok(from)
    }

    /// Runs one child to its end and reaps it.
    async fn run(&mut self, question: &Question, history: bool) -> Ended {
        let mut child = match start(question).await {
            Ok(child) => child,
            Err(error) => return Ended::Badly(Trouble { text: error.to_string(), refused: false }),
        };
        {
            let mut figures = self.cells.figures();
            // What an earlier child has looked at without coming to the end.
            figures.reader(self.source).looked.clear();
            if !history {
                figures.started(self.source, child.id());
            }
        }
        let complaint = child.stderr.take().map(|stderr| tokio::spawn(complaint(stderr)));
        let ended = match child.stdout.take() {
            Some(stdout) => self.read(stdout, history).await,
            None => None,
        };
        if ended.is_some()
            && let Err(error) = child.start_kill()
        {
            tracing::debug!(%error, "a reader could not be killed");
        }
        // As long as the disk holds it, this waits, and the slot stays taken.
        let status = child.wait().await;
        if let Some(ended) = ended {
            return ended;
        }
        let said = match complaint {
            Some(complaint) => complaint.await.unwrap_or_default(),
            None => String::new(),
        };
        match status {
            Ok(status) if status.success() => Ended::Well,
            Ok(status) => Ended::Badly(trouble(&status.to_string(), &said)),
            Err(error) => Ended::Badly(Trouble { text: error.to_string(), refused: false }),
        }
    }

    /// Takes what a child writes; nothing when it has ended by itself.
    async fn read(&mut self, mut stdout: impl AsyncRead + Unpin, history: bool) -> Option<Ended> {
        let mut parser = Parser::default();
        let mut piece = vec![0; PIECE];
        let mut late: Option<Late> = None;
        let mut trails = false;
        loop {
            let begun = Instant::now();
            let length = tokio::select! {
                biased;
                _ = &mut self.stopped => return Some(Ended::Stopped),
                read = stdout.read(&mut piece) => read.unwrap_or_default(),
                () = tokio::time::sleep(SILENT), if trails && !history => return Some(Ended::Silent),
            };
            if length == 0 {
                return None;
            }
            let mut entries = 0;
            let mut last = None;
            {
                let mut figures = self.cells.figures();
                parser.feed(&piece[..length], |entry| {
                    figures.take(self.source, &entry, self.classifier, history);
                    entries += 1;
                    last = Some(UNIX_EPOCH + Duration::from_micros(entry.micros));
                });
            }
            if self.source == Source::Pods {
                self.cells.settled.notify_waiters();
            }
            // Only journalctl loses its place or is left behind; the reader of files is ours, and as quiet as they are. The
            // end of what was there before has no time, either.
            let last = last.filter(|_| self.source == Source::Journal);
            let age = last.and_then(|last| SystemTime::now().duration_since(last).ok());
            if let Some(age) = age {
                trails = age > TRAILING;
                let before = late.unwrap_or_else(Late::begin);
                late = (age > LATE).then(|| Late { entries: before.entries + entries, ..before });
            }
            if late.is_some_and(Late::is_hopeless) {
                return Some(Ended::Behind);
            }
            let pause = (Duration::from_secs(1) * entries / RATE).saturating_sub(begun.elapsed());
            if !pause.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = &mut self.stopped => return Some(Ended::Stopped),
                }
            }
        }
    }
}

/// A reader that is behind: since when, and how much it has read meanwhile.
#[derive(Debug, Clone, Copy)]
struct Late {
    since: Instant,
    entries: u32,
}

impl Late {
    fn begin() -> Self {
        Self { since: Instant::now(), entries: 0 }
    }

    fn is_hopeless(self) -> bool {
        self.since.elapsed() > BEHIND.0 && self.entries > BEHIND.1
    }
}

/// What a child that failed means, with the way out.
fn trouble(status: &str, said: &str) -> Trouble {
    let said = said.lines().last().unwrap_or_default().trim();
    let refused = said.contains("insufficient permissions") || said.contains("Permission denied");
    let text = match (refused, said) {
        (true, said) => format!(
            "{said} Run the agent in the group systemd-journal (SupplementaryGroups=systemd-journal)."
        ),
        (false, "") => status.to_owned(),
        (false, said) => format!("{said} ({status})"),
    };
    Trouble { text, refused }
}

async fn complaint(stderr: ChildStderr) -> String {
    let mut said = Vec::new();
    // What goes wrong here only leaves an error without its reason.
    drop(stderr.take(COMPLAINT).read_to_end(&mut said).await);
    String::from_utf8_lossy(&said).into_owned()
}

async fn start(question: &Question) -> io::Result<Child> {
    let mut command = child::command(&["follow"])?;
    command.stderr(Stdio::piped());
    child::stay(command, question).await
}

/// The child's side: reads what it is asked for until it is killed, or nobody listens.
///
/// # Errors
///
/// When the question cannot be read, or journalctl cannot be started.
pub(super) fn run_child() -> io::Result<()> {
    child::die_with_parent()?;
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        // A kindness only.
        tracing::debug!(%error, "the reader is as urgent as the agent");
    }
    let question = io::read_to_string(io::stdin().lock())?;
    match serde_json::from_str(&question)? {
        Question::Journal { program, args } => {
            let mut command = std::process::Command::new(&program);
            command.args(args).env_clear().env("LC_ALL", "C").stdin(Stdio::null());
            let error = command.exec();
            Err(io::Error::new(error.kind(), format!("{}: {error}", program.display())))
        }
        Question::Pods(question) => pods::follow(&question),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::samplers::journal::table;

    /// How the reading of a child ends that writes this, and for a minute nothing more.
    async fn ended(source: Source, output: &[u8]) -> Option<Ended> {
        let cells = Cells::default();
        let classifier = Classifier::new(table::with(&[]).unwrap()).unwrap();
        let (_stop, stopped) = oneshot::channel();
        let mut task = Task { cells: &cells, classifier: &classifier, source, stopped };
        let (mut child, ours) = tokio::io::duplex(1 << 10);
        child.write_all(output).await.unwrap();
        let minute = async move {
            tokio::time::sleep(Duration::from_mins(1)).await;
            drop(child);
        };
        tokio::join!(task.read(ours, false), minute).0
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_says_nothing_is_no_reader_that_lost_its_place() {
        // The end of what was there before, which has no time.
        assert_eq!(ended(Source::Pods, b"HISTORY=1\n\n").await, None);
        let old = b"__CURSOR=7:9\n__REALTIME_TIMESTAMP=1710451017048001\nMESSAGE=x\n\n";
        assert_eq!(ended(Source::Pods, old).await, None);
        assert_eq!(ended(Source::Journal, old).await, Some(Ended::Silent));
    }

    #[test]
    fn the_journal_is_asked_for_units_from_a_place() {
        let units = ["k3s.service".to_owned(), "a.service".to_owned()];
        let args = |from| journal_args(Some(Path::new("/host")), &units, &from).join(" ");
        let after = args(From::After("s=a;i=1".into()));
        assert!(
            after.contains("--unit=k3s.service --unit=a.service --follow --no-tail"),
            "{after}"
        );
        assert!(
            after.ends_with("--after-cursor=s=a;i=1") && after.contains("--root=/host"),
            "{after}"
        );
        assert!(args(From::History).ends_with("--lines=5000"));
        assert!(!args(From::History).contains("--follow"));
        assert!(args(From::End).ends_with("--follow --lines=5000"));
        assert!(args(From::Since(5)).ends_with("--since=@5"));
    }

    #[test]
    fn a_reader_that_was_refused_says_what_would_help() {
        let refused = trouble(
            "exit status: 1",
            "No journal files were opened due to insufficient permissions.\n",
        );
        assert!(refused.refused && refused.text.contains("SupplementaryGroups=systemd-journal"));
        let other = trouble("exit status: 1", "Failed to add match\n");
        assert_eq!(
            other,
            Trouble { text: "Failed to add match (exit status: 1)".into(), refused: false }
        );
        assert_eq!(trouble("signal: 9 (SIGKILL)", "").text, "signal: 9 (SIGKILL)");
    }
}
