//! Snapshots: the `.meta` file with its membership, and the size of the database from the head of the data.
//!
//! A snapshot holds every page of the database, free ones included, and dqlite never gives free pages back:
//! their share is what a rebuild would save.

use serde::{Deserialize, Serialize};

use super::bytes::{Bytes, crc32};
use super::membership::{self, Member};
use super::{Malformed, lz4};

/// dqlite itself reads no longer membership than this many bytes.
const MAX_MEMBERSHIP: u64 = 1 << 20;
/// No `.meta` file is longer.
pub const META_LIMIT: u64 = MAX_MEMBERSHIP + 32;
/// How much of the data file is enough for [`contents`].
pub const HEAD: u64 = 4096;
/// How much of the decompressed data is looked at.
const WANTED: usize = 512;
/// No name of a database is longer; it is `k8s`.
const MAX_NAME: usize = 255;
/// The smallest and the largest page that SQLite knows.
const PAGES: std::ops::RangeInclusive<u32> = 512..=65_536;

/// What a `.meta` file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Index of the log entry whose membership this is.
    pub index: u64,
    /// The membership.
    pub members: Vec<Member>,
}

/// Reads a `.meta` file.
///
/// # Errors
///
/// When it is cut off, damaged, or beyond the limits.
pub fn meta(bytes: &[u8]) -> Result<Meta, Malformed> {
    let cut = || Malformed::new("it is cut off");
    let mut head = Bytes(bytes);
    let format = head.u64().ok_or_else(cut)?;
    if format != 1 {
        return Err(Malformed::new(format!("a snapshot of format {format}")));
    }
    let sum = head.u64().ok_or_else(cut)?;
    let covered = head.0;
    let index = head.u64().ok_or_else(cut)?;
    let length = head.u64().ok_or_else(cut)?;
    if length > MAX_MEMBERSHIP {
        return Err(Malformed::new(format!("a membership of {length} bytes")));
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let membership = head.take(length).ok_or_else(cut)?;
    if sum & u64::from(u32::MAX) != u64::from(crc32(&[&covered[..16], membership])) {
        return Err(Malformed::new("its checksum is wrong"));
    }
    Ok(Meta { index, members: membership::parse(membership)? })
}

/// The database in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Bytes of a page.
    pub page_bytes: u32,
    /// All pages. Of a snapshot with a write-ahead log (before dqlite 1.17): those at the last checkpoint.
    pub pages: u32,
    /// Pages that hold nothing.
    pub free_pages: u32,
    /// Bytes of the write-ahead log beside them.
    pub wal_bytes: u64,
}

/// Reads the head of a data file; `None` when the database is empty.
///
/// # Errors
///
/// When it is not what dqlite writes.
pub fn contents(head: &[u8]) -> Result<Option<Contents>, Malformed> {
    let bytes = lz4::first_bytes(head, WANTED)?;
    let mut bytes = Bytes(&bytes);
    let cut = || Malformed::new("it is cut off");
    let format = bytes.u64().ok_or_else(cut)?;
    if format != 1 {
        return Err(Malformed::new(format!("snapshot data of format {format}")));
    }
    if bytes.u64().ok_or_else(cut)? == 0 {
        return Ok(None);
    }
    bytes.padded_text(MAX_NAME).ok_or_else(|| Malformed::new("a database without a name"))?;
    let main = bytes.u64().ok_or_else(cut)?;
    let wal_bytes = bytes.u64().ok_or_else(cut)?;
    if main == 0 {
        return Ok(None);
    }
    let header = bytes.take(100).ok_or_else(cut)?;
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(Malformed::new("no SQLite database in it"));
    }
    let number = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let page_bytes = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        bytes => u32::from(bytes),
    };
    let (pages, free_pages) = (number(28), number(36));
    if !PAGES.contains(&page_bytes) || !page_bytes.is_power_of_two() || free_pages > pages {
        return Err(Malformed::new("an impossible page size or number of free pages"));
    }
    Ok(Some(Contents { page_bytes, pages, free_pages, wal_bytes }))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::dqlite::Role::{self, Spare, StandBy, Voter};
    use proptest::prelude::*;

    const NEW: &str = "v1.18.7-voter/snapshot-3-3072-2286721";

    #[test]
    fn the_memberships_of_real_snapshots_are_read() {
        let cases: [(&str, u64, &[Role]); 3] = [
            ("v1.11.1-voter/snapshot-1-2048-1248063", 6, &[Voter; 3]),
            (NEW, 2219, &[StandBy, Spare, Voter, Voter, Voter]),
            ("v1.18.7-voter/snapshot-3-2048-2210865", 1115, &[Spare, Voter, Spare, Voter, Voter]),
        ];
        for (name, index, roles) in cases {
            let meta = meta(&sample(&format!("{name}.meta"))).unwrap();
            let found: Vec<_> = meta.members.iter().map(|member| member.role).collect();
            assert_eq!((meta.index, &found[..]), (index, roles), "{name}");
        }
    }

    #[test]
    fn a_changed_or_missing_byte_of_the_meta_file_is_noticed() {
        let whole = sample(&format!("{NEW}.meta"));
        assert_eq!(whole.len(), 168);
        for at in 0..whole.len() {
            assert!(meta(&whole[..at]).is_err(), "cut at {at}");
            // Half of the checksum's field is not used.
            if !(12..16).contains(&at) {
                let mut bytes = whole.clone();
                bytes[at] ^= 1;
                assert!(meta(&bytes).is_err(), "changed at {at}");
            }
        }
    }

    #[test]
    fn the_pages_of_real_snapshots_are_read_from_their_head() {
        let of = |name: &str| {
            let bytes = sample(name);
            contents(&bytes[..bytes.len().min(4096)]).unwrap().unwrap()
        };
        let new = of(NEW);
        assert_eq!((new.page_bytes, new.pages, new.free_pages, new.wal_bytes), (4096, 3, 0, 0));
        let old = of("v1.11.1-voter/snapshot-1-2048-1248063");
        assert_eq!((old.page_bytes, old.wal_bytes), (4096, 296_672));
    }

    /// Snapshot data as dqlite writes them, not compressed.
    fn data(page_bytes: u16, pages: u32, free: u32) -> Vec<u8> {
        let mut bytes: Vec<u8> = [1, 1].into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.extend(b"k8s\0\0\0\0\0");
        bytes.extend([65_536_u64, 0].into_iter().flat_map(u64::to_le_bytes));
        let mut header = [0; 100];
        header[..16].copy_from_slice(b"SQLite format 3\0");
        header[16..18].copy_from_slice(&page_bytes.to_be_bytes());
        header[28..32].copy_from_slice(&pages.to_be_bytes());
        header[36..40].copy_from_slice(&free.to_be_bytes());
        bytes.extend(header);
        bytes
    }

    #[test]
    fn free_pages_are_told_and_impossible_ones_refused() {
        let found = contents(&data(4096, 268_790, 257_710)).unwrap().unwrap();
        assert_eq!((found.pages, found.free_pages), (268_790, 257_710));
        assert_eq!(contents(&data(1, 9, 0)).unwrap().unwrap().page_bytes, 65_536);
        for (page, pages, free) in [(4096, 1, 2), (0, 1, 0), (3000, 1, 0), (256, 1, 0)] {
            assert!(contents(&data(page, pages, free)).is_err(), "{page} {pages} {free}");
        }
        assert_eq!(contents(&[&1_u64.to_le_bytes()[..], &[0; 8]].concat()).unwrap(), None);
        let mut other = data(4096, 1, 0);
        other[40] = b'X';
        assert!(contents(&other).is_err());
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>, cut: usize, byte: u8) {
            drop(meta(&bytes));
            drop(contents(&bytes));
            let mut long = data(4096, 3, 1);
            let at = cut % long.len();
            drop(contents(&long[..at]));
            long[at] = byte;
            drop(contents(&long));
            let mut real = sample(&format!("{NEW}.meta"));
            let at = cut % real.len();
            real[at] = byte;
            drop(meta(&real));
        }
    }
}
