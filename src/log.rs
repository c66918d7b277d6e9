//! The way of the agent's own log: lines wait in a queue, and a thread writes them to standard error.
//!
//! Standard error is a pipe or a socket, and whoever reads it may hang: journald does, with the disk under it. A worker
//! of the runtime that waited there would take scrapes and samples with it. So nobody but this thread ever waits. A line
//! that finds the queue full is lost; how many were is told when the reader has caught up.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// So many lines wait at most.
const WAITING: usize = 1024;
/// How long the end of the agent waits for the last lines.
const LAST: Duration = Duration::from_millis(500);

enum Job {
    Line(Vec<u8>),
    /// Everything before it has been written when this is answered.
    Flush(Sender<()>),
}

/// Where lines are handed in. It never waits.
#[derive(Debug, Clone)]
pub struct Queue {
    jobs: SyncSender<Job>,
    lost: Arc<AtomicU64>,
}

impl Queue {
    /// A queue with a thread that writes to `out`.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (jobs, waiting) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let thread = std::thread::Builder::new().name("log".into()).stack_size(256 << 10);
        thread.spawn(move || write_all(out, &waiting, &counted))?;
        Ok(Self { jobs, lost })
    }

    /// Waits until what was handed in so far is written, but not for long.
    pub fn flush(&self) {
        let (written, is_written) = channel();
        if self.jobs.try_send(Job::Flush(written)).is_ok() {
            // A reader that hangs does not keep the agent from ending.
            is_written.recv_timeout(LAST).ok();
        }
    }
}

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Flushes the queue when it is dropped.
#[derive(Debug)]
pub struct FlushAtEnd(pub Queue);

fn write_all(mut out: impl Write, jobs: &Receiver<Job>, lost: &AtomicU64) {
    loop {
        // It is a line like the others, so it waits until there is room for it.
        let next = match jobs.try_recv() {
            Err(TryRecvError::Empty) => {
                let lines = lost.swap(0, Ordering::Relaxed);
                if lines > 0 {
                    tracing::warn!(lines, "lines of this log were lost, for nobody read it");
                }
                jobs.recv().ok()
            }
            waiting => waiting.ok(),
        };
        let Some(job) = next else { return };
        match job {
            // A log that cannot be written has nowhere to say so.
            Job::Line(line) => drop(out.write_all(&line)),
            // Whoever asked may have given up.
            Job::Flush(written) => {
                written.send(()).ok();
            }
        }
    }
}

/// Hands in one line; each event is one write.
#[derive(Debug)]
pub struct Line<'a>(&'a Queue);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.jobs.try_send(Job::Line(line.to_vec())).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};
    use std::time::Instant;

    use super::*;

    /// What has been written, by a writer that waits until it may.
    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<(bool, String)>, Condvar)>);

    impl Gate {
        fn open(&self) {
            self.0.0.lock().unwrap().0 = true;
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            self.0.0.lock().unwrap().1.clone()
        }
    }

    impl Write for Gate {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let held = self.0.0.lock().unwrap();
            let mut open = self.0.1.wait_while(held, |(open, _)| !*open).unwrap();
            open.1.push_str(std::str::from_utf8(line).unwrap());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue whose thread writes lines about itself into it, as in the agent.
    fn queue(out: Gate) -> Queue {
        let (jobs, waiting) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let (queue, counted) = (Queue { jobs, lost: Arc::clone(&lost) }, lost);
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(queue.clone()).finish();
        std::thread::spawn(move || {
            tracing::subscriber::with_default(log, || write_all(out, &waiting, &counted));
        });
        queue
    }

    #[test]
    fn nobody_waits_for_a_reader_that_hangs_and_what_is_lost_is_told_later() {
        let gate = Gate::default();
        let queue = queue(gate.clone());
        let started = Instant::now();
        let count = WAITING + 100;
        for number in 0..count {
            queue.make_writer().write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        queue.flush();
        assert!(started.elapsed() < 4 * LAST, "{:?}", started.elapsed());
        let lost = queue.lost.load(Ordering::Relaxed);
        // One of them is with the thread.
        assert!((99..=101).contains(&lost), "{lost}");
        gate.open();
        let told = format!("lines of this log were lost, for nobody read it lines={lost}\n");
        while !gate.text().contains(&told) {
            std::thread::yield_now();
            assert!(started.elapsed() < Duration::from_secs(20), "{}", gate.text());
        }
        assert!(gate.text().contains(&format!("\n{}\n", WAITING - 2)), "{}", gate.text());
        queue.make_writer().write_all(b"last\n").unwrap();
        queue.flush();
        assert!(gate.text().starts_with("0\n1\n2\n") && gate.text().ends_with("last\n"));
    }
}
