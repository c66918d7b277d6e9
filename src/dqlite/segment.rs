//! Segments: how many entries one holds, and the newest membership in it.
//!
//! Only headers are read, and the payload of batches with a membership; everything else is skipped. The headers' own
//! checksum is held against them. The server may be writing to an open segment at the same moment, so what does not
//! add up at its end is taken for writing in progress.

use std::io::{self, BufReader, ErrorKind, Read, Seek};

use super::Malformed;
use super::bytes::{Bytes, crc32};
use super::membership::{self, Member};

/// No segment is read beyond this many bytes; dqlite makes them of 8 MiB.
const MAX_LENGTH: u64 = 64 << 20;
/// No batch has more entries.
const MAX_ENTRIES: u64 = 1 << 16;
/// No segment has more batches. One per write of a page or more is usual, which makes two thousand at most.
const MAX_BATCHES: usize = 1 << 16;
/// No batch with a membership is longer than this many bytes.
const MAX_PAYLOAD: u64 = 4 << 20;
/// The type of an entry that holds a membership.
const CHANGE: u8 = 3;

/// What a segment holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// How many entries.
    pub entries: u64,
    /// The newest membership, and how many entries are before it in the segment.
    pub membership: Option<(u64, Vec<Member>)>,
    /// What is wrong with what follows, if anything.
    pub damage: Option<Malformed>,
}

enum Batch {
    Entries(u64, Option<(u64, Vec<Member>)>),
    End,
}

enum Problem {
    Read(io::Error),
    Damage(Malformed),
}

impl From<Malformed> for Problem {
    fn from(damage: Malformed) -> Self {
        Self::Damage(damage)
    }
}

fn damage<T>(what: &str) -> Result<T, Problem> {
    Err(Problem::Damage(Malformed::new(what)))
}

/// Reads a segment from its beginning.
///
/// # Errors
///
/// When it cannot be read; damage is part of what is found.
pub fn scan(source: impl Read + Seek) -> io::Result<Scan> {
    let mut source = Source { reader: BufReader::with_capacity(4096, source), left: MAX_LENGTH };
    let mut scan = Scan::default();
    let ended = read(&mut source, &mut scan);
    match ended {
        Ok(()) => {}
        Err(Problem::Damage(damage)) => scan.damage = Some(damage),
        Err(Problem::Read(error)) => return Err(error),
    }
    Ok(scan)
}

fn read<R: Read + Seek>(source: &mut Source<R>, scan: &mut Scan) -> Result<(), Problem> {
    match source.u64()? {
        // Made ready, and never written to.
        None | Some(0) => return Ok(()),
        Some(1) => {}
        Some(format) => {
            return Err(Malformed::new(format!("a segment of format {format}")).into());
        }
    }
    for _ in 0..MAX_BATCHES {
        match batch(source)? {
            Batch::End => return Ok(()),
            Batch::Entries(entries, membership) => {
                if let Some((before, members)) = membership {
                    scan.membership = Some((scan.entries + before, members));
                }
                scan.entries = scan.entries.saturating_add(entries);
            }
        }
    }
    damage("more batches than a segment has room for")
}

fn batch<R: Read + Seek>(source: &mut Source<R>) -> Result<Batch, Problem> {
    let Some(sums) = source.u64()? else { return Ok(Batch::End) };
    let Some(n) = source.u64()? else { return damage("a batch is cut off") };
    if n == 0 {
        return Ok(Batch::End);
    }
    if n > MAX_ENTRIES {
        return damage("a batch has more entries than it can have");
    }
    let Some(headers) = source.bytes(n * 16)? else { return damage("a batch is cut off") };
    let sums = sums.to_le_bytes();
    let mut sums = Bytes(&sums);
    let (header_sum, data_sum) = (sums.u32(), sums.u32());
    if header_sum != Some(crc32(&[&n.to_le_bytes(), &headers])) {
        return damage("the checksum of a batch's headers is wrong");
    }
    let (mut payload, mut change) = (0_u64, None);
    for (position, header) in (0..).zip(headers.chunks_exact(16)) {
        let mut header = Bytes(header);
        let _term = header.u64();
        let (kind, _) = (header.u8(), header.take(3));
        let length = u64::from(header.u32().unwrap_or_default());
        if kind == Some(CHANGE) {
            change = Some((position, payload, length));
        }
        payload += length.next_multiple_of(8);
    }
    let Some((position, from, length)) = change else {
        if !source.skip(payload)? {
            return damage("a batch is cut off");
        }
        return Ok(Batch::Entries(n, None));
    };
    if payload > MAX_PAYLOAD {
        return damage("a batch with a membership is too long to be looked into");
    }
    let Some(data) = source.bytes(payload)? else { return damage("a batch is cut off") };
    if data_sum != Some(crc32(&[&data])) {
        return damage("the checksum of a batch with a membership is wrong");
    }
    let part = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let members = data.get(part(from)..part(from + length)).unwrap_or_default();
    Ok(Batch::Entries(n, Some((position, membership::parse(members)?))))
}

/// What is left of a segment.
struct Source<R> {
    reader: BufReader<R>,
    left: u64,
}

impl<R: Read + Seek> Source<R> {
    /// The next bytes; `None` when there are fewer.
    fn bytes(&mut self, n: u64) -> Result<Option<Vec<u8>>, Problem> {
        if n > self.left {
            return Ok(None);
        }
        self.left -= n;
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(n).read_to_end(&mut bytes);
        read.map_err(Problem::Read)?;
        Ok((bytes.len() as u64 == n).then_some(bytes))
    }

    fn u64(&mut self) -> Result<Option<u64>, Problem> {
        if self.left < 8 {
            return Ok(None);
        }
        self.left -= 8;
        let mut bytes = [0; 8];
        match self.reader.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(u64::from_le_bytes(bytes))),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(Problem::Read(error)),
        }
    }

    /// Goes on behind the next `n` bytes; false when there are fewer. The last of them is read, because one can go
    /// beyond the end of a file without an error.
    fn skip(&mut self, n: u64) -> Result<bool, Problem> {
        let Some(last) = n.checked_sub(1) else { return Ok(true) };
        let (true, Ok(offset)) = (n <= self.left, i64::try_from(last)) else { return Ok(false) };
        self.left -= last;
        self.reader.seek_relative(offset).map_err(Problem::Read)?;
        Ok(self.bytes(1)?.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::{Role, sample};
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "v1.11.1-voter/head-of-0000000000000002-0000000000001021";
    const FIRST: &str = "v1.11.1-voter/0000000000000001-0000000000000001";
    const ONE: &str = "v1.18.7-voter/0000000000002048-0000000000002048";

    fn of(bytes: &[u8]) -> Scan {
        scan(Cursor::new(bytes)).unwrap()
    }

    #[test]
    fn memberships_of_real_segments_are_found_among_their_entries() {
        let first = of(&sample(FIRST));
        let (before, members) = first.membership.unwrap();
        assert_eq!((first.entries, before, members.len(), first.damage), (1, 0, 1, None));
        assert_eq!(members[0].role, Role::Voter);
        // Entries 2 to 6 of the log: one command, then four memberships.
        let head = of(&sample(HEAD));
        let (before, members) = head.membership.unwrap();
        assert_eq!((head.entries, before, members.len(), head.damage), (5, 4, 3, None));
        assert!(members.iter().all(|member| member.role == Role::Voter));
        let one = of(&sample(ONE));
        assert_eq!(one, Scan { entries: 1, ..Scan::default() });
    }

    #[test]
    fn an_open_segment_ends_at_its_zeros() {
        let mut open = sample(ONE);
        open.resize(8 << 20, 0);
        assert_eq!(of(&open), Scan { entries: 1, ..Scan::default() });
        assert_eq!(of(&vec![0; 8 << 20]), Scan::default(), "never written to");
        assert_eq!(of(&[]), Scan::default());
    }

    #[test]
    fn what_is_whole_before_the_damage_still_counts() {
        let whole = sample(HEAD);
        for cut in 0..whole.len() {
            let found = of(&whole[..cut]);
            assert!(found.entries < 5, "cut at {cut}");
        }
        let mut damaged = whole.clone();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        let found = of(&damaged);
        assert_eq!(found.entries, 4);
        assert!(found.damage.unwrap().to_string().contains("checksum"));
        let mut header = sample(ONE);
        header[24] ^= 1;
        assert!(of(&header).damage.is_some());
    }

    #[test]
    fn impossible_lengths_are_refused_at_once() {
        let huge = |n: u64| {
            let words = [1, 0, n];
            of(&words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>())
        };
        assert!(huge(u64::MAX).damage.unwrap().to_string().contains("more entries"));
        assert!(huge(1 << 16).damage.unwrap().to_string().contains("cut off"));
        assert!(of(&[9; 64]).damage.unwrap().to_string().contains("format"));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>, n in 0_u64..4, at: usize, byte: u8) {
            of(&bytes);
            of(&[&1_u64.to_le_bytes()[..], &[0; 8], &n.to_le_bytes(), &bytes].concat());
            let mut real = sample(HEAD);
            let at = at % real.len();
            real[at] = byte;
            prop_assert!(of(&real).entries <= 5);
        }
    }
}
