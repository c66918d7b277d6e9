//! The last compaction revision, by reads of an absent key at chosen revisions.
//!
//! Such a read touches etcd's index in memory only (0.5 ms). While nothing is compacted one read a
//! run is enough. A watch from revision 1 would tell the same, and would make the server read its
//! whole history.

use etcd_client::GetOptions;

use crate::etcd::client::Consistency;
use crate::etcd::{Answer, Client};

/// A key that nobody writes.
const ABSENT: &str = "\0controlplane-exporter/absent";

/// What an earlier run found, and of which data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) cluster: u64,
    pub(super) member: u64,
    pub(super) revision: i64,
    pub(super) compacted: i64,
}

impl Hint {
    /// The compaction revision to start from: 0 when the data are others than they were, for
    /// example after a restore from a snapshot.
    fn start(hint: Option<Self>, cluster: u64, member: u64, revision: i64) -> i64 {
        hint.filter(|h| h.cluster == cluster && h.member == member && h.revision <= revision)
            .map_or(0, |h| h.compacted)
    }
}

/// Finds the compaction revision of a member that is at `revision`.
///
/// # Errors
///
/// That of the first read that failed.
pub(super) async fn find(
    client: &Client,
    hint: Option<Hint>,
    cluster: u64,
    member: u64,
    revision: i64,
) -> Answer<Hint> {
    let mut search = Search::new(revision, Hint::start(hint, cluster, member, revision));
    while let Some(at) = search.next() {
        let options = GetOptions::new().with_revision(at);
        match client.get(ABSENT, options, Consistency::Serializable).await {
            Ok(_) => search.told(at, true),
            Err(failure) if failure.text.contains("has been compacted") => search.told(at, false),
            Err(failure) => return Err(failure),
        }
    }
    Ok(Hint { cluster, member, revision, compacted: search.high })
}

/// The search for the smallest readable revision.
struct Search {
    /// Not readable.
    low: i64,
    /// Readable.
    high: i64,
    /// What was the smallest in an earlier run, until it has been looked at.
    hint: Option<i64>,
}

impl Search {
    /// A search up to `newest`, which is readable. `hint` is one that once was the smallest, or 0.
    fn new(newest: i64, hint: i64) -> Self {
        let hint = Some(hint).filter(|hint| (1..=newest).contains(hint));
        Self { low: 0, high: newest, hint }
    }

    /// The revision to look at next.
    fn next(&self) -> Option<i64> {
        let middle = self.low + (self.high - self.low) / 2;
        self.hint.or_else(|| (self.high - self.low > 1).then_some(middle))
    }

    /// What was seen there.
    fn told(&mut self, at: i64, readable: bool) {
        if readable {
            self.high = at;
        } else {
            self.low = at;
        }
        if self.hint.take().is_some() && readable {
            // What was compacted stays so: below it nothing can be read.
            self.low = at - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in a history compacted at `compacted`, and with how many reads.
    fn found(compacted: i64, newest: i64, hint: i64) -> (i64, u32) {
        let mut search = Search::new(newest, hint);
        let mut reads = 0;
        while let Some(at) = search.next() {
            assert!(at > 0 && at <= newest, "a read at {at}");
            reads += 1;
            search.told(at, at >= compacted);
        }
        (search.high, reads)
    }

    #[test]
    fn the_revision_is_found_from_scratch_and_confirmed_with_one_read() {
        for (compacted, newest) in [(1, 1), (1, 2), (2, 2), (1, 45_000), (44_999, 45_000), (7, 8)] {
            assert_eq!(found(compacted, newest, 0).0, compacted);
            assert_eq!(found(compacted, newest, compacted), (compacted, 1));
        }
        assert!(found(31_234, 45_000, 0).1 <= 17);
    }

    #[test]
    fn a_new_compaction_is_found_between_the_old_one_and_now() {
        let (revision, reads) = found(1_000_300, 1_000_500, 1_000_000);
        assert_eq!(revision, 1_000_300);
        assert!(reads <= 10, "{reads}");
    }

    #[test]
    fn a_hint_of_other_data_is_dropped() {
        let hint = Some(Hint { cluster: 1, member: 2, revision: 50, compacted: 40 });
        assert_eq!(Hint::start(hint, 1, 2, 50), 40);
        assert_eq!(Hint::start(hint, 1, 2, 49), 0);
        assert_eq!(Hint::start(hint, 1, 3, 60), 0);
        assert_eq!(Hint::start(hint, 2, 2, 60), 0);
        assert_eq!(Hint::start(None, 1, 2, 60), 0);
    }
}
