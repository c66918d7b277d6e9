//! The directory of a node as a whole, read in a child process because its disk may be sick.
//!
//! Opens files for reading only, by their own names and not through links, and takes no lock. Files come and go while
//! they are looked at: one that has vanished makes it look again, and then counts as not there.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::metadata::{self, Metadata};
use super::names::{self, File as Name};
use super::{Malformed, Member, segment, snapshot, store};
use crate::certificate;
use crate::child;
use crate::host::{Host, read};
use crate::sample::{SampleError, WireError};

/// More names than this are no dqlite directory.
const MAX_NAMES: usize = 10_000;
/// More closed segments than this are not searched for a membership that is younger than the snapshot's.
const MAX_SEARCHED: usize = 64;
/// Bytes of `cluster.crt`; one has two thousand.
const CERTIFICATE_BYTES: u64 = 64 << 10;
/// How often it looks when files vanish meanwhile.
const LOOKS: usize = 3;

/// What the child is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Question {
    /// `--path.rootfs`.
    pub rootfs: PathBuf,
    /// The directory, as the host names it.
    pub dir: PathBuf,
}

/// Number and size of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Files {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// The newest snapshot that is whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Newest {
    /// Term of its last entry.
    pub term: u64,
    /// Index of its last entry.
    pub index: u64,
    /// When its data were last written; the timestamp in its name is none.
    pub modified: Option<SystemTime>,
    /// Bytes of its data, compressed.
    pub bytes: u64,
    /// The database in it.
    pub contents: Option<snapshot::Contents>,
    /// The members at that time.
    pub members: Option<Vec<Member>>,
}

/// What is in a directory. What is absent was not there, or failed.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Whether there is a `cluster.crt`: k8s-dqlite then speaks TLS only.
    pub tls: bool,
    /// When that certificate ends.
    pub certificate_ends: Option<SystemTime>,
    /// From `info.yaml`.
    pub own: Option<Member>,
    /// From `cluster.yaml`.
    pub listed: Option<Vec<Member>>,
    /// When `cluster.yaml` was last written.
    pub listed_modified: Option<SystemTime>,
    /// Term and vote.
    pub metadata: Option<Metadata>,
    /// Log segments that are written to or made ready.
    pub open: Files,
    /// Finished log segments.
    pub closed: Files,
    /// Log segments that dqlite moved aside.
    pub corrupt: Files,
    /// First index of the log on disk.
    pub first_index: Option<u64>,
    /// Last index of the log on disk; absent while segments change too fast.
    pub last_index: Option<u64>,
    /// Whole snapshots.
    pub snapshots: Files,
    /// Snapshot data without a `.meta` file.
    pub without_meta: Files,
    /// `.meta` files without data: a snapshot under way, or given up.
    pub without_data: Files,
    /// The newest whole snapshot.
    pub newest: Option<Newest>,
    /// The members after the newest snapshot and the log behind it, committed or not.
    pub members: Option<Vec<Member>>,
    /// Allocated bytes of all files.
    pub directory_bytes: u64,
    /// Parts that failed.
    pub failures: Vec<WireError>,
}

/// The child's side: looks at a directory.
///
/// # Errors
///
/// When the question cannot be read or answered.
pub fn run_child() -> io::Result<()> {
    child::answer(|question: Question| -> Result<Report, WireError> {
        look(&Host::at(question.rootfs), &question.dir).map_err(|error| error.to_wire())
    })
}

/// Looks at a directory of the host.
///
/// # Errors
///
/// When the directory itself cannot be read. Files that cannot are in the report.
pub fn look(host: &Host, dir: &Path) -> Result<Report, SampleError> {
    let inside = host.resolve(dir).map_err(|error| SampleError::read(dir, error))?;
    let path = host.path(&inside);
    let mut looks = 0;
    loop {
        let mut view = View::new(dir, &path)?;
        view.fill();
        looks += 1;
        if !view.vanished || looks == LOOKS {
            if view.vanished {
                view.report.last_index = None;
            }
            return Ok(view.report);
        }
    }
}

/// One look.
struct View<'a> {
    /// The directory as the host names it, for messages.
    shown: &'a Path,
    path: &'a Path,
    report: Report,
    open: Vec<u64>,
    /// First and last index, by first.
    closed: Vec<(u64, u64)>,
    data: Vec<(names::Snapshot, fs::Metadata)>,
    metas: Vec<(names::Snapshot, u64)>,
    vanished: bool,
}

impl<'a> View<'a> {
    fn new(shown: &'a Path, path: &'a Path) -> Result<Self, SampleError> {
        let mut view = Self {
            shown,
            path,
            report: Report::default(),
            open: Vec::new(),
            closed: Vec::new(),
            data: Vec::new(),
            metas: Vec::new(),
            vanished: false,
        };
        let failed = |error: io::Error| SampleError::read(shown, error);
        for (n, entry) in fs::read_dir(path).map_err(failed)?.enumerate() {
            if n == MAX_NAMES {
                return Err(SampleError::parse(shown, format!("more than {MAX_NAMES} names")));
            }
            let entry = entry.map_err(failed)?;
            // Temporary files come and go all the time, and are not looked into.
            let Ok(found) = entry.metadata() else { continue };
            view.sort(&entry.file_name().to_string_lossy(), found);
        }
        view.open.sort_unstable();
        view.closed.sort_unstable();
        Ok(view)
    }

    fn sort(&mut self, name: &str, found: fs::Metadata) {
        self.report.directory_bytes += found.blocks() * 512;
        if !found.is_file() {
            return;
        }
        let report = &mut self.report;
        match names::parse(name) {
            Name::Open(counter) => {
                self.open.push(counter);
                report.open.add(found.len());
            }
            Name::Closed(first, last) => {
                self.closed.push((first, last));
                report.closed.add(found.len());
            }
            Name::Corrupt => report.corrupt.add(found.len()),
            Name::Snapshot(snapshot) => self.data.push((snapshot, found)),
            Name::SnapshotMeta(snapshot) => self.metas.push((snapshot, found.len())),
            Name::Other if name == "cluster.crt" => report.tls = true,
            Name::Other => {}
        }
    }

    fn fill(&mut self) {
        self.yaml();
        self.certificate();
        self.metadata();
        self.snapshots();
        self.log();
    }

    fn yaml(&mut self) {
        if let Some((bytes, _)) = self.read("info.yaml", store::LIMIT) {
            self.report.own =
                self.parsed("info.yaml", store::own(&String::from_utf8_lossy(&bytes)));
        }
        if let Some((bytes, modified)) = self.read("cluster.yaml", store::LIMIT) {
            self.report.listed_modified = modified;
            let members = store::members(&String::from_utf8_lossy(&bytes));
            self.report.listed = self.parsed("cluster.yaml", members);
        }
    }

    fn certificate(&mut self) {
        if !self.report.tls {
            return;
        }
        if let Some((pem, _)) = self.read("cluster.crt", CERTIFICATE_BYTES) {
            let ends = certificate::not_after(&pem).map_err(Malformed::new);
            self.report.certificate_ends = self.parsed("cluster.crt", ends);
        }
    }

    fn metadata(&mut self) {
        let [first, second] = ["metadata1", "metadata2"].map(|name| {
            let (bytes, _) = self.read(name, metadata::LENGTH as u64)?;
            self.parsed(name, metadata::parse(&bytes)).flatten()
        });
        self.report.metadata = self.parsed("metadata1", metadata::newest(first, second)).flatten();
    }

    fn snapshots(&mut self) {
        for (snapshot, bytes) in &self.metas {
            if !self.data.iter().any(|(other, _)| other == snapshot) {
                self.report.without_data.add(*bytes);
            }
        }
        let mut newest: Option<(names::Snapshot, Newest)> = None;
        for (snapshot, found) in &self.data {
            if !self.metas.iter().any(|(other, _)| other == snapshot) {
                self.report.without_meta.add(found.len());
                continue;
            }
            self.report.snapshots.add(found.len());
            if newest.as_ref().is_none_or(|(before, _)| before < snapshot) {
                let names::Snapshot { term, index, .. } = *snapshot;
                let modified = found.modified().ok();
                let bytes = found.len();
                let (contents, members) = (None, None);
                let found = Newest { term, index, modified, bytes, contents, members };
                newest = Some((*snapshot, found));
            }
        }
        let Some((name, mut newest)) = newest else { return };
        let name = format!("snapshot-{}-{}-{}", name.term, name.index, name.timestamp);
        if let Some((head, _)) = self.head(&name, snapshot::HEAD) {
            newest.contents = self.parsed(&name, snapshot::contents(&head)).flatten();
        }
        let meta = format!("{name}.meta");
        if let Some((bytes, _)) = self.read(&meta, snapshot::META_LIMIT) {
            let found = self.parsed(&meta, snapshot::meta(&bytes));
            newest.members = found.map(|meta| meta.members);
        }
        self.report.newest = Some(newest);
    }

    /// Indices of the log, and the members that it ends with.
    fn log(&mut self) {
        let newest = self.report.newest.as_ref();
        let in_snapshot = newest.map_or(0, |newest| newest.index);
        let mut members = newest.and_then(|newest| newest.members.clone());
        let mut known = newest.is_none_or(|newest| newest.members.is_some());
        // A snapshot that came from the leader is ahead of the log that it replaces.
        let before_open =
            self.closed.last().map_or(in_snapshot, |(_, last)| in_snapshot.max(*last));
        let mut last = before_open;
        let mut found = false;
        for counter in self.open.clone() {
            let name = format!("open-{counter}");
            let Some(scan) = self.scan(&name) else { continue };
            // Damage at the end of what is written is the server's writing at this moment.
            if let Some((before, then)) = scan.membership
                && last.saturating_add(before) >= in_snapshot
            {
                (members, found) = (Some(then), true);
            }
            last = last.saturating_add(scan.entries);
        }
        self.report.first_index = self
            .closed
            .first()
            .map(|(first, _)| *first)
            .or_else(|| (last > before_open).then(|| before_open.saturating_add(1)));
        self.report.last_index = (last > 0).then_some(last);
        let younger = |(_, last): &&(u64, u64)| *last > in_snapshot;
        let later: Vec<_> = self.closed.iter().rev().take_while(younger).copied().collect();
        if later.len() > MAX_SEARCHED {
            known = false;
        }
        for (first, last) in later.into_iter().take(MAX_SEARCHED) {
            if found {
                break;
            }
            let name = format!("{first:016}-{last:016}");
            let Some(scan) = self.scan(&name) else {
                known = false;
                continue;
            };
            if let Some(damage) = scan.damage {
                self.failed(SampleError::parse(self.shown.join(&name), damage));
                known = false;
            }
            if let Some((before, then)) = scan.membership
                && first.saturating_add(before) > in_snapshot
            {
                (members, found) = (Some(then), true);
            }
        }
        self.report.members = members.filter(|_| known || found);
    }

    fn scan(&mut self, name: &str) -> Option<segment::Scan> {
        let file = self.opened(name)?;
        match segment::scan(file) {
            Ok(scan) => Some(scan),
            Err(error) => {
                self.failed(SampleError::read(self.shown.join(name), error));
                None
            }
        }
    }

    /// The whole of a file, and when it was last written; a longer one than `limit` is a failure.
    fn read(&mut self, name: &str, limit: u64) -> Option<(Vec<u8>, Option<SystemTime>)> {
        let (bytes, modified) = self.head(name, limit + 1)?;
        if bytes.len() as u64 > limit {
            let what = format!("longer than {limit} bytes");
            self.failed(SampleError::parse(self.shown.join(name), what));
            return None;
        }
        Some((bytes, modified))
    }

    /// The first bytes of a file, and when it was last written.
    fn head(&mut self, name: &str, limit: u64) -> Option<(Vec<u8>, Option<SystemTime>)> {
        let file = self.opened(name)?;
        let modified = file.metadata().and_then(|found| found.modified()).ok();
        let mut bytes = Vec::new();
        match file.take(limit).read_to_end(&mut bytes) {
            Ok(_) => Some((bytes, modified)),
            Err(error) => {
                self.failed(SampleError::read(self.shown.join(name), error));
                None
            }
        }
    }

    fn opened(&mut self, name: &str) -> Option<File> {
        let path = self.path.join(name);
        let opened = match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => Err(ErrorKind::InvalidInput.into()),
            Ok(_) => read::open_regular(&path),
            Err(error) => Err(error),
        };
        match opened {
            Ok(file) => Some(file),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Before the first election there is no metadata2, and before the first start nothing at all.
                let listed = !matches!(names::parse(name), Name::Other);
                self.vanished |= listed;
                None
            }
            Err(error) => {
                self.failed(SampleError::read(self.shown.join(name), error));
                None
            }
        }
    }

    fn parsed<T>(&mut self, name: &str, result: Result<T, Malformed>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(what) => {
                self.failed(SampleError::parse(self.shown.join(name), what));
                None
            }
        }
    }

    fn failed(&mut self, error: SampleError) {
        self.report.failures.push(error.to_wire());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::{Role, sample};
    use super::*;

    const FOLDER: &str = "v1.18.7-voter";

    /// A directory with the files of a real node.
    fn node(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), sample(&format!("{FOLDER}/{name}"))).unwrap();
        }
        dir
    }

    const FILES: &[&str] = &[
        "cluster.yaml",
        "info.yaml",
        "metadata1",
        "metadata2",
        "snapshot-3-2048-2210865.meta",
        "snapshot-3-3072-2286721",
        "snapshot-3-3072-2286721.meta",
    ];

    fn seen(dir: &Path) -> Report {
        look(&Host::at("/"), dir).unwrap()
    }

    fn reasons(report: Report) -> Vec<String> {
        report.failures.into_iter().map(|error| SampleError::Wire(error).to_string()).collect()
    }

    #[test]
    fn the_directory_of_a_real_node_is_understood() {
        let dir = node(FILES);
        let report = seen(dir.path());
        assert_eq!(report.own.as_ref().unwrap().address, "127.0.0.1:19204");
        assert_eq!(report.listed.as_ref().unwrap().len(), 5);
        assert!(report.listed_modified.unwrap().elapsed().unwrap().as_secs() < 60);
        assert_eq!(report.metadata.unwrap().term, 3);
        let newest = report.newest.as_ref().unwrap();
        assert_eq!((newest.term, newest.index, newest.bytes), (3, 3072, 1405));
        assert_eq!(newest.contents.unwrap().pages, 3);
        assert_eq!(newest.members, report.members);
        assert_eq!(report.members, report.listed, "in the same order");
        assert_eq!(report.snapshots, Files { count: 1, bytes: 1405 });
        assert_eq!(report.without_data, Files { count: 1, bytes: 168 });
        assert_eq!((report.first_index, report.last_index), (None, Some(3072)));
        assert!(!report.tls && report.directory_bytes > 0);
        assert_eq!(reasons(report), [""; 0]);
    }

    #[test]
    fn a_membership_in_the_log_after_the_snapshot_counts_and_one_before_it_does_not() {
        let dir = node(&["snapshot-3-3072-2286721", "snapshot-3-3072-2286721.meta"]);
        let old = sample("v1.11.1-voter/head-of-0000000000000002-0000000000001021");
        let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        put("0000000000000002-0000000000001021", &old);
        let report = seen(dir.path());
        assert_eq!((report.members.unwrap().len(), report.first_index), (5, Some(2)));
        assert_eq!(report.last_index, Some(3072), "the log is behind the snapshot");
        put("0000000000003070-0000000000003074", &old);
        let report = seen(dir.path());
        assert_eq!(report.members.unwrap().len(), 3, "its last membership is entry 3074");
        assert_eq!(report.last_index, Some(3074));
        // Beyond 3074 one membership of a single voter, still being written to.
        let mut open = sample("v1.11.1-voter/0000000000000001-0000000000000001");
        open.resize(1 << 16, 0);
        put("open-7", &open);
        put("open-8", &[0; 4096]);
        let report = seen(dir.path());
        assert_eq!((report.members.unwrap().len(), report.last_index), (1, Some(3075)));
        assert_eq!((report.open.count, report.closed.count), (2, 2));
    }

    #[test]
    fn damage_is_told_in_a_closed_segment_and_taken_for_writing_in_an_open_one() {
        let dir = node(&[]);
        let mut bytes = sample("v1.18.7-voter/0000000000002048-0000000000002048");
        bytes[24] ^= 1;
        fs::write(dir.path().join("open-1"), &bytes).unwrap();
        assert_eq!(reasons(seen(dir.path())), [""; 0]);
        fs::write(dir.path().join("0000000000000001-0000000000000009"), &bytes).unwrap();
        let report = seen(dir.path());
        assert_eq!(report.members, None, "it may have been in there");
        let told = reasons(report);
        assert!(told.len() == 1 && told[0].contains("checksum"), "{told:?}");
    }

    #[test]
    fn debris_is_counted_apart_from_what_counts() {
        let dir = node(&["snapshot-3-3072-2286721"]);
        for name in ["corrupt-1700-open-3", "tmp-abcdef", "dqlite-lock", "kine.sock:12379"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::write(dir.path().join("cluster.crt"), "").unwrap();
        let report = seen(dir.path());
        assert_eq!(report.corrupt, Files { count: 1, bytes: 1 });
        assert_eq!(report.without_meta, Files { count: 1, bytes: 1405 });
        assert_eq!((report.snapshots.count, report.newest.is_none(), report.tls), (0, true, true));
    }

    #[test]
    fn what_is_empty_garbage_or_no_file_is_told_and_hides_nothing_else() {
        let dir = node(FILES);
        let path = |name: &str| dir.path().join(name);
        fs::write(path("cluster.yaml"), "").unwrap();
        fs::remove_file(path("metadata1")).unwrap();
        symlink("/etc/passwd", path("metadata1")).unwrap();
        fs::remove_file(path("metadata2")).unwrap();
        fs::create_dir(path("metadata2")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("open-1"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        fs::write(path("info.yaml"), vec![b'x'; 1 << 18]).unwrap();
        let report = seen(dir.path());
        assert!(report.own.is_none() && report.listed.is_none() && report.metadata.is_none());
        assert_eq!(report.newest.as_ref().unwrap().members.as_ref().unwrap().len(), 5);
        let voters = report.members.iter().flatten().filter(|member| member.role == Role::Voter);
        assert_eq!(voters.count(), 3);
        assert_eq!(reasons(report).len(), 4);
    }

    #[test]
    fn a_directory_that_is_not_there_or_too_full_is_a_failure() {
        let of = |path: &Path| look(&Host::at("/"), path).unwrap_err();
        assert_eq!(of(Path::new("/nonexistent")).reason(), "not_found");
        let dir = tempfile::tempdir().unwrap();
        for i in 0..=MAX_NAMES {
            fs::write(dir.path().join(format!("{i}")), "").unwrap();
        }
        assert!(of(dir.path()).to_string().contains("more than 10000 names"));
    }

    #[test]
    fn a_link_to_the_directory_is_followed_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("8695")).unwrap();
        fs::write(root.path().join("8695/metadata1"), sample("v1.18.7-voter/metadata1")).unwrap();
        symlink("/8695", root.path().join("current")).unwrap();
        let report = look(&Host::at(root.path()), Path::new("/current")).unwrap();
        assert_eq!(report.metadata.unwrap().term, 3);
    }
}
