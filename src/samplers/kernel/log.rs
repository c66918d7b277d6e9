//! Where records come from: the kernel's ring, or a plain file of records in its place.
//!
//! The ring is opened without blocking at its oldest record and hands out one record per read.
//! Below `--path.rootfs` there may be a plain file instead; there a record is a line that ends in
//! a newline, and the lines after it that begin with a blank. A file that was replaced or cut is
//! read from its beginning again, and so is the ring after an error.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::io::Errno;

use super::record::MAX_BYTES;

/// How much of a plain file is read at once, in bytes.
const CHUNK: usize = 64 * 1024;

/// What the next read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A record, not yet parsed.
    Record(&'a [u8]),
    /// Records were overwritten before they were read; the next one tells how many.
    Overrun,
    /// A record that is longer than any may be; it was skipped.
    TooLong,
    /// Nothing is left for now.
    End,
}

/// The kernel log.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    source: Option<Source>,
}

#[derive(Debug)]
enum Source {
    Ring { file: File, buffer: Vec<u8> },
    Plain(Plain),
}

/// Whether a log is read on or from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    /// It goes on where the last run ended.
    Same,
    /// It is the kernel's ring, at its oldest record.
    Ring,
    /// It is a plain file, at its beginning.
    Plain,
}

impl Log {
    /// The log at `path`, which is opened later.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, source: None }
    }

    /// Opens the log unless it is open, and says whether it begins anew.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is neither a device nor a plain file.
    pub(super) fn open(&mut self) -> io::Result<Opened> {
        match &self.source {
            Some(Source::Ring { .. }) => return Ok(Opened::Same),
            Some(Source::Plain(plain)) if plain.is_still_at(&self.path)? => {
                return Ok(Opened::Same);
            }
            _ => self.source = None,
        }
        let mut options = OpenOptions::new();
        // Without O_NONBLOCK the end of the ring, or a pipe in its place, would hold this thread.
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        options.read(true).custom_flags(flags.bits().cast_signed());
        let file = options.open(&self.path)?;
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if kind.is_char_device() {
            self.source = Some(Source::Ring { file, buffer: vec![0; MAX_BYTES] });
            Ok(Opened::Ring)
        } else if kind.is_file() {
            let id = (metadata.dev(), metadata.ino());
            self.source = Some(Source::Plain(Plain::new(file, id)));
            Ok(Opened::Plain)
        } else {
            Err(io::Error::other("it is neither the kernel's log nor a plain file"))
        }
    }

    /// The next record.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub(super) fn next(&mut self) -> io::Result<Next<'_>> {
        match &mut self.source {
            None => Ok(Next::End),
            Some(Source::Ring { file, buffer }) => read_ring(file, buffer),
            Some(Source::Plain(plain)) => plain.next(),
        }
    }

    /// Closes the log, so that the next [`Log::open`] begins anew.
    pub(super) fn close(&mut self) {
        self.source = None;
    }
}

fn read_ring<'a>(file: &mut File, buffer: &'a mut [u8]) -> io::Result<Next<'a>> {
    loop {
        let error = match file.read(buffer) {
            Ok(0) => return Ok(Next::End),
            Ok(n) => return Ok(Next::Record(&buffer[..n.min(buffer.len())])),
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::INTR) => {}
            Some(Errno::AGAIN) => return Ok(Next::End),
            // The position has moved to the oldest record that is left.
            Some(Errno::PIPE) => return Ok(Next::Overrun),
            // The record is longer than the buffer; the kernel has moved past it.
            Some(Errno::INVAL) => return Ok(Next::TooLong),
            _ => return Err(error),
        }
    }
}

#[derive(Debug)]
struct Plain {
    file: File,
    /// Device and inode.
    id: (u64, u64),
    /// Bytes taken from the file so far.
    offset: u64,
    /// What was taken from the file.
    buffer: Vec<u8>,
    /// Where in the buffer the next record begins.
    start: usize,
    /// The record that begins here is the rest of one that was too long.
    skipping: bool,
}

impl Plain {
    fn new(file: File, id: (u64, u64)) -> Self {
        Self { file, id, offset: 0, buffer: Vec::new(), start: 0, skipping: false }
    }

    /// Whether the path still leads to this file, and the file is not shorter than before.
    fn is_still_at(&self, path: &std::path::Path) -> io::Result<bool> {
        let metadata = std::fs::metadata(path)?;
        Ok((metadata.dev(), metadata.ino()) == self.id && metadata.len() >= self.offset)
    }

    fn next(&mut self) -> io::Result<Next<'_>> {
        let mut at_end = false;
        loop {
            let held = self.buffer.get(self.start..).unwrap_or_default();
            if let Some(length) = record_length(held, at_end) {
                let from = self.start;
                let is_rest = std::mem::take(&mut self.skipping) || held.starts_with(b" ");
                self.start += length;
                if is_rest {
                    continue;
                }
                return Ok(if length > MAX_BYTES {
                    Next::TooLong
                } else {
                    Next::Record(&self.buffer[from..self.start])
                });
            }
            if held.len() > MAX_BYTES {
                // It is too long already: count it once, and drop what else there is of it.
                self.buffer.clear();
                self.start = 0;
                if !std::mem::replace(&mut self.skipping, true) {
                    return Ok(Next::TooLong);
                }
            }
            if at_end {
                return Ok(Next::End);
            }
            at_end = !self.fill()?;
        }
    }

    /// Takes more from the file; returns whether there was any.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + CHUNK, 0);
        let read = loop {
            match self.file.read_at(&mut self.buffer[held..], self.offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(held + *read.as_ref().unwrap_or(&0));
        let read = read?;
        self.offset += read as u64;
        Ok(read > 0)
    }
}

/// The length of the record at the beginning of `held`, dictionary included; None while it is not
/// all there. Only `at_end` of the file can a newline be known to end the record.
fn record_length(held: &[u8], at_end: bool) -> Option<usize> {
    let mut length = 0;
    loop {
        length += held[length..].iter().position(|&b| b == b'\n')? + 1;
        match held.get(length) {
            Some(b' ') => {}
            Some(_) => return Some(length),
            None => return at_end.then_some(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        log: Log,
    }

    impl Fixture {
        fn new(content: &[u8]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("kmsg");
            std::fs::write(&path, content).unwrap();
            Self { directory, log: Log::new(path) }
        }

        fn append(&self, content: &[u8]) {
            let path = self.directory.path().join("kmsg");
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(content).unwrap();
        }

        /// Everything up to the end; what is too long shows as `…`.
        fn drain(&mut self) -> Vec<String> {
            self.log.open().unwrap();
            let mut records = Vec::new();
            loop {
                match self.log.next().unwrap() {
                    Next::Record(bytes) => {
                        records.push(String::from_utf8_lossy(bytes).into_owned());
                    }
                    Next::TooLong => records.push("…".to_owned()),
                    Next::Overrun => panic!("a file has no overrun"),
                    Next::End => return records,
                }
            }
        }
    }

    #[test]
    fn a_record_is_a_line_and_its_dictionary() {
        let mut f = Fixture::new(b"6,1,2,-;a\n SUBSYSTEM=scsi\n DEVICE=b8:0\n6,2,3,-;b\n");
        assert_eq!(f.drain(), ["6,1,2,-;a\n SUBSYSTEM=scsi\n DEVICE=b8:0\n", "6,2,3,-;b\n"]);
        assert_eq!(f.drain(), [""; 0]);
    }

    #[test]
    fn a_record_counts_once_its_newline_is_there() {
        let mut f = Fixture::new(b"6,1,2,-;a\n6,2,3,-;b");
        assert_eq!(f.drain(), ["6,1,2,-;a\n"]);
        f.append(b"c\n6,3,4,-;d\n");
        assert_eq!(f.drain(), ["6,2,3,-;bc\n", "6,3,4,-;d\n"]);
    }

    #[test]
    fn a_dictionary_that_comes_late_is_no_record() {
        let mut f = Fixture::new(b"6,1,2,-;a\n");
        assert_eq!(f.drain(), ["6,1,2,-;a\n"]);
        f.append(b" SUBSYSTEM=scsi\n6,2,3,-;b\n");
        assert_eq!(f.drain(), ["6,2,3,-;b\n"]);
    }

    #[test]
    fn a_line_without_end_is_counted_once_and_what_follows_is_read() {
        let mut content = vec![b'x'; 300_000];
        content.extend(b"\n SUBSYSTEM=scsi\n6,2,3,-;b\n");
        assert_eq!(Fixture::new(&content).drain(), ["…", "6,2,3,-;b\n"]);
        let mut content = vec![b'x'; MAX_BYTES + 1];
        content.extend(b"\n6,2,3,-;b\n");
        assert_eq!(Fixture::new(&content).drain(), ["…", "6,2,3,-;b\n"]);
    }

    #[test]
    fn a_dictionary_without_end_is_a_record_that_is_too_long() {
        let mut content = b"6,1,2,-;a\n".to_vec();
        content.extend(b" SUBSYSTEM=scsi\n".repeat(20_000));
        content.extend(b"6,2,3,-;b\n");
        assert_eq!(Fixture::new(&content).drain(), ["…", "6,2,3,-;b\n"]);
    }

    #[test]
    fn a_file_that_was_cut_is_read_from_its_beginning() {
        let mut f = Fixture::new(b"6,1,2,-;a\n6,2,3,-;b\n");
        assert_eq!(f.log.open().unwrap(), Opened::Plain);
        assert_eq!(f.drain().len(), 2);
        assert_eq!(f.log.open().unwrap(), Opened::Same);
        std::fs::write(f.directory.path().join("kmsg"), b"6,3,4,-;c\n").unwrap();
        assert_eq!(f.log.open().unwrap(), Opened::Plain);
        assert_eq!(f.drain(), ["6,3,4,-;c\n"]);
    }

    #[test]
    fn a_file_that_was_replaced_is_read_from_its_beginning() {
        let mut f = Fixture::new(b"6,1,2,-;a\n");
        assert_eq!(f.drain().len(), 1);
        let fresh = f.directory.path().join("fresh");
        std::fs::write(&fresh, b"6,1,2,-;a\n6,2,3,-;b\n").unwrap();
        std::fs::rename(fresh, f.directory.path().join("kmsg")).unwrap();
        assert_eq!(f.log.open().unwrap(), Opened::Plain);
        assert_eq!(f.drain().len(), 2);
    }

    #[test]
    fn a_file_that_went_away_is_an_error_and_comes_back() {
        let mut f = Fixture::new(b"6,1,2,-;a\n");
        assert_eq!(f.drain().len(), 1);
        let path = f.directory.path().join("kmsg");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(f.log.open().unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, b"6,2,3,-;b\n").unwrap();
        assert_eq!(f.drain(), ["6,2,3,-;b\n"]);
    }

    #[test]
    fn a_directory_is_no_log() {
        let directory = tempfile::tempdir().unwrap();
        let error = Log::new(directory.path().to_owned()).open().unwrap_err();
        assert!(error.to_string().contains("neither"), "{error}");
    }

    #[test]
    fn a_device_with_nothing_in_it_is_a_ring_at_its_end() {
        let mut log = Log::new("/dev/null".into());
        assert_eq!(log.open().unwrap(), Opened::Ring);
        assert_eq!(log.next().unwrap(), Next::End);
        assert_eq!(log.open().unwrap(), Opened::Same);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn however_a_file_grows_each_whole_record_is_read_once(
            texts in proptest::collection::vec("[a-z;\\\\]{1,40}", 1..12),
            cuts in proptest::collection::vec(0_usize..600, 0..6),
        ) {
            let records: Vec<_> = (1..).zip(texts).map(|(n, t)| format!("6,{n},2,-;{t}\n")).collect();
            let whole = records.concat().into_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.sort_unstable();
            cuts.push(whole.len());
            let (mut f, mut from, mut read) = (Fixture::new(b""), 0, Vec::new());
            for cut in cuts {
                f.append(&whole[from..cut]);
                from = cut;
                read.extend(f.drain());
            }
            prop_assert_eq!(read, records);
        }

        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let ends = bytes.split(|byte| *byte == b'\n').count() - 1;
            prop_assert!(Fixture::new(&bytes).drain().len() <= ends);
        }
    }
}
