//! What the name of a file in the directory says.

/// What a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// `open-N`: a part of the log that is written to, or made ready for that.
    Open(u64),
    /// `FIRST-LAST`: a finished part of the log, with its first and its last index.
    Closed(u64, u64),
    /// `corrupt-…`: a part of the log that dqlite could not read and moved aside.
    Corrupt,
    /// `snapshot-TERM-INDEX-TIMESTAMP`: the data of a snapshot.
    Snapshot(Snapshot),
    /// The same with `.meta`: its index and membership, written first.
    SnapshotMeta(Snapshot),
    /// Anything else.
    Other,
}

/// Which snapshot. The timestamp is no date but counts milliseconds of the node that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Snapshot {
    /// Term of the last entry in it.
    pub term: u64,
    /// Index of the last entry in it.
    pub index: u64,
    /// Tells apart what else would have the same name.
    pub timestamp: u64,
}

/// Reads a name.
pub fn parse(name: &str) -> File {
    if let Some(counter) = name.strip_prefix("open-") {
        return number(counter).map_or(File::Other, File::Open);
    }
    if name.starts_with("corrupt-") {
        return File::Corrupt;
    }
    if let Some(rest) = name.strip_prefix("snapshot-") {
        let (rest, meta) = rest.strip_suffix(".meta").map_or((rest, false), |rest| (rest, true));
        let mut numbers = rest.split('-').map(number);
        let next = &mut || numbers.next().flatten();
        let (Some(term), Some(index), Some(timestamp)) = (next(), next(), next()) else {
            return File::Other;
        };
        let snapshot = Snapshot { term, index, timestamp };
        return match (numbers.next(), meta) {
            (Some(_), _) => File::Other,
            (None, true) => File::SnapshotMeta(snapshot),
            (None, false) => File::Snapshot(snapshot),
        };
    }
    match name.split_once('-').map(|(first, last)| (padded(first), padded(last))) {
        Some((Some(first), Some(last))) if first <= last => File::Closed(first, last),
        _ => File::Other,
    }
}

fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// A number of at least sixteen digits.
fn padded(text: &str) -> Option<u64> {
    number(text).filter(|_| text.len() >= 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_kind_of_file_is_told_by_its_name() {
        let snapshot = Snapshot { term: 3, index: 3072, timestamp: 2_286_721 };
        for (name, file) in [
            ("open-1", File::Open(1)),
            ("0000000000000002-0000000000001021", File::Closed(2, 1021)),
            ("0000000000000001-0000000000000001", File::Closed(1, 1)),
            ("10000000000000000-18446744073709551615", File::Closed(10_u64.pow(16), u64::MAX)),
            ("snapshot-3-3072-2286721", File::Snapshot(snapshot)),
            ("snapshot-3-3072-2286721.meta", File::SnapshotMeta(snapshot)),
            ("corrupt-1663-open-4", File::Corrupt),
        ] {
            assert_eq!(parse(name), file, "{name}");
        }
        for other in [
            "cluster.yaml",
            "metadata1",
            "dqlite-lock",
            "kine.sock:12379",
            "tmp-XXXXXX",
            "open-",
            "open-x",
            "open-+1",
            "1-2",
            "0000000000000002-0000000000000001",
            "0000000000000001-0000000000000001-0000000000000001",
            "99999999999999999999-99999999999999999999",
            "snapshot-1-2",
            "snapshot-1-2-3-4",
            "snapshot-1-2-3.meta.meta",
            "",
        ] {
            assert_eq!(parse(other), File::Other, "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_name_panics(name in "(open-|snapshot-|corrupt-)?\\PC{0,30}(\\.meta)?") {
            parse(&name);
        }

        #[test]
        fn the_names_that_dqlite_writes_read_back(a: u64, b: u64, c: u64) {
            let (first, last) = (a.min(b), a.max(b));
            prop_assert_eq!(parse(&format!("{first:016}-{last:016}")), File::Closed(first, last));
            let snapshot = Snapshot { term: a, index: b, timestamp: c };
            prop_assert_eq!(parse(&format!("snapshot-{a}-{b}-{c}")), File::Snapshot(snapshot));
        }
    }
}
