//! The log files of static pods, followed through rotation: what kubeadm's and RKE2's etcd says is in no journal.
//!
//! Runs in a child process, because the files may lie on a disk that hangs. Twice a second it looks into
//! `/var/log/pods/<namespace>_<pod>-…/<container>/` for the file with the highest number, `N.log`: kubelet starts a new one with
//! each restart of the container, and moves a large one aside; then the log of the container before is the highest for a moment,
//! and is not read again. What comes is written to standard output in the
//! journal's export format, with the file and the place in it as cursor.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::export::{FIELD_BYTES, write};
use crate::host::Host;
use crate::host::read::open_regular;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(500);
/// Of a file that was there before, so much is read for the timeline, in bytes.
const HISTORY: u64 = 1 << 20;
/// Bytes read at a time.
const PIECE: usize = 64 << 10;
const PODS: &str = "/var/log/pods";

/// A container of a static pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pod {
    /// How the name of the pod's directory begins: `kube-system_etcd-`.
    pub(super) prefix: String,
    /// The container, and the unit that its lines are counted for.
    pub(super) container: String,
}

/// What is to be followed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) rootfs: PathBuf,
    pub(super) pods: Vec<Pod>,
    /// Where the reading went on to, by container.
    pub(super) resume: BTreeMap<String, String>,
}

/// Follows until nobody listens.
///
/// # Errors
///
/// When standard output is closed.
pub(super) fn follow(question: &Question) -> io::Result<()> {
    let host = Host::at(&question.rootfs);
    let mut tails: Vec<Tail> = question
        .pods
        .iter()
        .map(|pod| Tail::new(pod.clone(), question.resume.get(&pod.container).map(String::as_str)))
        .collect();
    let mut stdout = io::stdout().lock();
    let mut looked = false;
    loop {
        for tail in &mut tails {
            tail.advance(&host, &mut stdout)?;
        }
        if !std::mem::replace(&mut looked, true) {
            // An entry without anything: what was there before has been read.
            stdout.write_all(b"HISTORY=1\n\n")?;
            stdout.flush()?;
        }
        std::thread::sleep(EVERY);
    }
}

/// A log as it lies there.
#[derive(Debug)]
struct Log {
    /// In our view.
    path: PathBuf,
    number: u64,
    inode: u64,
    modified: Option<SystemTime>,
}

/// The file that is read, and how far.
#[derive(Debug)]
pub(super) struct Open {
    file: File,
    /// Where it lay when it was opened.
    path: PathBuf,
    inode: u64,
    number: u64,
    /// The place up to which whole lines were handed on.
    offset: u64,
    /// Up to here everything was written before the last process read.
    history: u64,
    /// What has been read after `offset`: the beginning of a line, and how many bytes of the file that were.
    rest: Vec<u8>,
    taken: u64,
    /// The parts so far of a line that the runtime divided.
    parts: Vec<u8>,
}

/// One container's log.
#[derive(Debug)]
struct Tail {
    pod: Pod,
    open: Option<Open>,
    /// Inode and offset of an earlier process.
    resume: Option<(u64, u64)>,
    /// Whether it has looked before: then a new file was written since.
    begun: bool,
}

impl Tail {
    fn new(pod: Pod, resume: Option<&str>) -> Self {
        let place = |text: &str| {
            let (inode, offset) = text.split_once(':')?;
            Some((inode.parse().ok()?, offset.parse().ok()?))
        };
        Self { pod, open: None, resume: resume.and_then(place), begun: false }
    }

    /// Hands on what has come.
    fn advance(&mut self, host: &Host, out: &mut impl Write) -> io::Result<()> {
        let newest = newest(host, &self.pod);
        if let Some(open) = &mut self.open {
            open.drain(&self.pod.container, out)?;
            let moved = newest.as_ref().is_some_and(|log| open.is_followed_by(log));
            if !moved {
                return Ok(());
            }
            self.open = None;
        }
        let Some(log) = newest else {
            self.begun |= self.resume.is_none();
            return Ok(());
        };
        // It may have been moved since; the next look finds the one in its place.
        let Ok(file) = open_regular(&log.path) else { return Ok(()) };
        let length = file.metadata().map_or(0, |now| now.len());
        let (from, history) = match self.resume.take() {
            _ if self.begun => (0, 0),
            Some((known, offset)) if known == log.inode && offset <= length => {
                (offset.saturating_sub(HISTORY), offset)
            }
            // Another file: all of it was written since.
            Some(_) => (0, 0),
            None => (length.saturating_sub(HISTORY), length),
        };
        self.begun = true;
        let mut open = Open {
            file,
            path: log.path,
            inode: log.inode,
            number: log.number,
            offset: from,
            history,
            rest: Vec::new(),
            taken: 0,
            parts: Vec::new(),
        };
        if open.file.seek(SeekFrom::Start(from)).is_ok() {
            open.drain(&self.pod.container, out)?;
            self.open = Some(open);
        }
        Ok(())
    }
}

impl Open {
    /// A file from its beginning, up to `history` written before.
    #[cfg(any(test, fuzzing))]
    pub(super) fn beginning(file: File, history: u64) -> Self {
        let (path, rest, parts) = (PathBuf::new(), Vec::new(), Vec::new());
        Self { file, path, inode: 1, number: 0, offset: 0, history, rest, taken: 0, parts }
    }

    /// Whether the reading goes on at the beginning of this log: a later container's, one in the place of ours, or ours if
    /// it was cut short. An earlier container's is none of them; that it is the highest only means that ours was moved aside.
    /// Another pod's, or any when ours was deleted, follows when it was written to later.
    fn is_followed_by(&self, log: &Log) -> bool {
        let Ok(now) = self.file.metadata() else { return false };
        let is_same_pod = log.path.parent() == self.path.parent();
        if is_same_pod && log.number >= self.number {
            let is_ours = (log.number, log.inode) == (self.number, self.inode);
            return !is_ours || now.len() < self.offset;
        }
        (!is_same_pod || now.nlink() == 0) && log.modified > now.modified().ok()
    }

    pub(super) fn drain(&mut self, container: &str, out: &mut impl Write) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        // A disk that fails now may answer later.
        while let Ok(length @ 1..) = self.file.read(&mut piece) {
            let mut text = Vec::new();
            for part in piece[..length].split_inclusive(|byte| *byte == b'\n') {
                if self.rest.len() < FIELD_BYTES {
                    self.rest.extend(part);
                }
                self.taken += part.len() as u64;
                if part.ends_with(b"\n") {
                    let line = std::mem::take(&mut self.rest);
                    self.offset += std::mem::take(&mut self.taken);
                    self.line(line.strip_suffix(b"\n").unwrap_or(&line), container, &mut text);
                }
            }
            out.write_all(&text)?;
        }
        out.flush()
    }

    /// A line of the container runtime: time, stream, `P` for a part or `F` for the last one, text.
    fn line(&mut self, line: &[u8], container: &str, out: &mut Vec<u8>) {
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let (time, _, tag) = (words.next(), words.next(), words.next());
        let text = words.next().unwrap_or_default();
        let micros = time.and_then(|time| micros(std::str::from_utf8(time).ok()?));
        let is_part = match (micros, tag) {
            (Some(_), Some(tag)) if tag == b"F" || tag.starts_with(b"F:") => false,
            (Some(_), Some(tag)) if tag == b"P" || tag.starts_with(b"P:") => true,
            // Not of a runtime that speaks CRI; after a jump into the middle, the end of a line.
            _ => return,
        };
        if self.parts.len() < FIELD_BYTES {
            self.parts.extend(text);
        }
        if is_part {
            return;
        }
        write(out, "__CURSOR", format!("{}:{}", self.inode, self.offset).as_bytes());
        write(out, "__REALTIME_TIMESTAMP", micros.unwrap_or_default().to_string().as_bytes());
        write(out, "_SYSTEMD_UNIT", container.as_bytes());
        if self.offset <= self.history {
            write(out, "HISTORY", b"1");
        }
        write(out, "MESSAGE", &std::mem::take(&mut self.parts));
        out.push(b'\n');
    }
}

/// The container's newest log: of each pod that of its last container.
fn newest(host: &Host, pod: &Pod) -> Option<Log> {
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let root = host.path(PODS);
    let last = |folder: PathBuf| {
        let logs = names(&folder).into_iter().filter_map(|name| {
            let number = name.strip_suffix(".log")?.parse().ok()?;
            let path = folder.join(name);
            let meta = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
            Some(Log { path, number, inode: meta.ino(), modified: meta.modified().ok() })
        });
        logs.max_by_key(|log| log.number)
    };
    let folders = names(&root).into_iter().filter(|name| name.starts_with(&pod.prefix));
    folders
        .filter_map(|name| last(root.join(name).join(&pod.container)))
        // A pod whose manifest changed has another directory; the one that is written to is the newer.
        .max_by_key(|log| (log.modified, log.number))
}

/// Microseconds of Unix time of `2024-03-14T21:16:57.04800154Z`, or with an offset in place of the Z.
fn micros(time: &str) -> Option<u64> {
    let (seconds, rest) = (time.get(..19)?, time.get(19..)?);
    let whole = humantime::parse_rfc3339(&format!("{seconds}Z")).ok()?;
    let whole =
        i64::try_from(whole.duration_since(std::time::UNIX_EPOCH).ok()?.as_micros()).ok()?;
    let zone = rest.find(['Z', '+', '-'])?;
    let (fraction, zone) = rest.split_at(zone);
    let digits = format!("{:0<6}", fraction.trim_start_matches('.'));
    let fraction: i64 = digits.get(..6)?.parse().ok()?;
    let offset = match zone.as_bytes()[0] {
        b'Z' => 0,
        sign => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let minutes =
                i64::from(hours.parse::<u8>().ok()?) * 60 + i64::from(minutes.parse::<u8>().ok()?);
            minutes * 60_000_000 * if sign == b'-' { -1 } else { 1 }
        }
    };
    u64::try_from(whole + fraction - offset).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::journal::export::{Entry, Parser};

    struct Lab {
        dir: tempfile::TempDir,
        tail: Tail,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { dir, tail: tail(None) }
        }

        fn folder(&self) -> PathBuf {
            let folder = self.dir.path().join("var/log/pods/kube-system_etcd-a_1f2e/etcd");
            fs::create_dir_all(&folder).unwrap();
            folder
        }

        fn append(&self, name: &str, text: &str) {
            let mut file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.folder().join(name))
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        /// Makes a log of another pod's, written to so many seconds after now, or before.
        fn other(&self, pod: &str, text: &str, seconds: i64) {
            let folder = self.dir.path().join("var/log/pods").join(pod).join("etcd");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("0.log"), line(text)).unwrap();
            set_time(&folder.join("0.log"), seconds);
        }

        fn advance(&mut self) -> Vec<Entry> {
            let mut out = Vec::new();
            self.tail.advance(&Host::at(self.dir.path()), &mut out).unwrap();
            let mut entries = Vec::new();
            Parser::default().feed(&out, |entry| entries.push(entry));
            entries
        }

        fn texts(&mut self) -> Vec<String> {
            let text = |entry: Entry| String::from_utf8(entry.message).unwrap();
            self.advance().into_iter().map(text).collect()
        }
    }

    fn set_time(path: &Path, seconds: i64) {
        let away = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        let time = if seconds < 0 { now - away } else { now + away };
        File::options().append(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn tail(resume: Option<&str>) -> Tail {
        let pod = Pod { prefix: "kube-system_etcd-".into(), container: "etcd".into() };
        Tail::new(pod, resume)
    }

    fn line(text: &str) -> String {
        format!("2024-03-14T21:16:57.04800154Z stderr F {text}\n")
    }

    #[test]
    fn what_was_there_is_history_and_what_comes_is_not() {
        let mut lab = Lab::new();
        lab.append("0.log", &line("old"));
        let old = lab.advance();
        assert_eq!((old.len(), old[0].history, &*old[0].by), (1, true, "etcd"));
        assert_eq!(old[0].micros, 1_710_451_017_048_001);
        lab.append("0.log", &line("new"));
        let new = lab.advance();
        assert_eq!((new.len(), new[0].history), (1, false));
        assert_eq!(lab.texts(), Vec::<String>::new());
    }

    #[test]
    fn a_pod_that_starts_later_is_new() {
        let mut lab = Lab::new();
        assert_eq!(lab.texts(), Vec::<String>::new());
        lab.append("0.log", &line("a"));
        assert!(!lab.advance()[0].history);
    }

    #[test]
    fn a_line_that_the_runtime_or_a_write_divided_is_put_together() {
        let mut lab = Lab::new();
        lab.append("0.log", &line("old"));
        lab.texts();
        lab.append("0.log", "2024-03-14T21:16:57.1Z stderr P one \n2024-03-14T21:16:57.2Z stderr F two\n2024-03-14T21");
        assert_eq!(lab.texts(), ["one two"]);
        lab.append("0.log", ":16:57.3Z stderr F three\nnot of a runtime\n");
        assert_eq!(lab.texts(), ["three"]);
    }

    #[test]
    fn rotation_and_a_restart_of_the_container_lose_nothing() {
        let mut lab = Lab::new();
        lab.append("0.log", &line("a"));
        lab.texts();
        lab.append("0.log", &line("b"));
        fs::rename(lab.folder().join("0.log"), lab.folder().join("0.log.20240314-211657")).unwrap();
        // The runtime goes on in the old file for a moment.
        lab.append("0.log.20240314-211657", &line("c"));
        assert_eq!(lab.texts(), ["b", "c"]);
        lab.append("0.log", &line("d"));
        assert_eq!(lab.texts(), ["d"]);
        lab.append("1.log", &line("e"));
        lab.append("0.log", &line("f"));
        assert_eq!(lab.texts(), ["f", "e"]);
        fs::write(lab.folder().join("1.log"), "").unwrap();
        lab.texts();
        lab.append("1.log", &line("g"));
        assert_eq!(lab.texts(), ["g"]);
    }

    #[test]
    fn while_a_log_is_moved_aside_no_older_one_is_read_again() {
        let mut lab = Lab::new();
        lab.append("16.log", &line("the container before"));
        lab.append("17.log", &line("a"));
        lab.other("kube-system_etcd-a_9c8d", "the pod before", -3_600);
        assert_eq!(lab.texts(), ["a"]);
        fs::rename(lab.folder().join("17.log"), lab.folder().join("17.log.20240314-211657"))
            .unwrap();
        lab.append("17.log.20240314-211657", &line("b"));
        assert_eq!(lab.texts(), ["b"]);
        // Without one of its own pod's the other's is the highest.
        fs::remove_file(lab.folder().join("16.log")).unwrap();
        assert_eq!(lab.texts(), Vec::<String>::new());
        lab.append("17.log", &line("c"));
        assert_eq!(lab.texts(), ["c"]);
    }

    #[test]
    fn the_last_container_is_read_even_if_the_one_before_wrote_later() {
        let mut lab = Lab::new();
        lab.append("16.log", &line("its end"));
        lab.append("17.log", &line("a"));
        set_time(&lab.folder().join("16.log"), 60);
        assert_eq!(lab.texts(), ["a"]);
        assert_eq!(lab.texts(), Vec::<String>::new());
    }

    #[test]
    fn another_pod_is_followed_when_it_writes_and_one_that_was_made_anew_from_its_first_log() {
        let mut lab = Lab::new();
        lab.append("17.log", &line("a"));
        assert_eq!(lab.texts(), ["a"]);
        fs::remove_dir_all(lab.folder()).unwrap();
        assert_eq!(lab.texts(), Vec::<String>::new());
        lab.append("0.log", &line("b"));
        set_time(&lab.folder().join("0.log"), 60);
        assert_eq!(lab.texts(), ["b"]);
        lab.other("kube-system_etcd-a_9c8d", "c", 120);
        assert_eq!(lab.texts(), ["c"]);
    }

    #[test]
    fn another_process_goes_on_where_the_last_one_was() {
        let mut lab = Lab::new();
        lab.append("0.log", &line("a"));
        let cursor = lab.advance().remove(0).cursor;
        lab.append("0.log", &line("b"));
        lab.tail = tail(Some(&cursor));
        let entries = lab.advance();
        let seen: Vec<_> = entries.iter().map(|e| (e.message.as_slice(), e.history)).collect();
        assert_eq!(seen, [(&b"a"[..], true), (b"b", false)]);
        // Nothing of another file is history.
        lab.tail = tail(Some("1:10"));
        assert!(lab.advance().iter().all(|entry| !entry.history));
    }

    #[test]
    fn only_regular_files_with_a_number_are_read() {
        let mut lab = Lab::new();
        let folder = lab.folder();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.join("7.log"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("8.log")).unwrap();
        fs::write(folder.join("x.log"), line("x")).unwrap();
        assert_eq!(lab.texts(), Vec::<String>::new());
        lab.append("0.log", &line("a"));
        assert_eq!(lab.texts(), ["a"]);
    }

    #[test]
    fn times_are_read_with_any_fraction_and_zone() {
        assert_eq!(micros("1970-01-01T00:00:01Z"), Some(1_000_000));
        assert_eq!(micros("1970-01-01T01:00:01.5+01:00"), Some(1_500_000));
        assert_eq!(micros("1970-01-01T00:00:01.123456789Z"), Some(1_123_456));
        for wrong in [
            "",
            "x",
            "1970-01-01T00:00:01",
            "1970-01-01T00:00:01.é5Z",
            "1970-01-01T00:00:01+1",
            "1970-01-01T00:00:01+9223372036854775807:00",
        ] {
            assert_eq!(micros(wrong), None, "{wrong}");
        }
    }
}
