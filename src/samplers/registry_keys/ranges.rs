//! A prefix as contiguous ranges, so that one count never blocks the server for long.
//!
//! etcd counts keys one by one and makes writers wait meanwhile: a million in one request delays
//! writes by a second, in 256 requests by some 15 ms. Names do not spread evenly from their first
//! character (`…/orphans/longhorn-system/orphan-3f…`), so the ranges are learnt: one with too many
//! keys is split where the names in it begin to differ, and small neighbours are merged. Whatever
//! the names are, the ranges touch, so that their sum is exact.

/// What names of Kubernetes objects are made of, in the order of their bytes.
const ALPHABET: &[u8] = b"-./0123456789:abcdefghijklmnopqrstuvwxyz";
/// A prefix with more keys than this is counted in several requests.
pub(super) const SHARD_ABOVE: u64 = 20_000;
/// A range with more keys than this is split.
const SPLIT_ABOVE: u64 = 5_000;
/// Neighbours with together no more keys than this are merged.
const MERGE_BELOW: u64 = 2_500;
/// No prefix is counted in more requests.
const MAX_RANGES: usize = 1_024;

/// Keys from `from` up to `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) from: Vec<u8>,
    pub(super) to: Vec<u8>,
    /// How many there were at the last count.
    pub(super) keys: u64,
    /// It cannot be split.
    solid: bool,
}

impl Range {
    fn new(from: Vec<u8>, to: Vec<u8>) -> Self {
        Self { from, to, keys: 0, solid: false }
    }
}

/// The first key after all that begin with `prefix`; a zero byte when there is none, which etcd
/// takes for the end of all keys.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The ranges of one prefix.
#[derive(Debug)]
pub(super) struct Ranges(pub(super) Vec<Range>);

impl Ranges {
    /// One range.
    pub(super) fn whole(prefix: &str) -> Self {
        Self(vec![Range::new(prefix.as_bytes().to_vec(), end_of(prefix.as_bytes()))])
    }

    /// The keys of the last count.
    pub(super) fn keys(&self) -> u64 {
        self.0.iter().map(|range| range.keys).sum()
    }

    /// A range that has too many keys.
    pub(super) fn too_big(&self) -> Option<usize> {
        if self.0.len() >= MAX_RANGES || self.keys() <= SHARD_ABOVE {
            return None;
        }
        self.0.iter().position(|range| range.keys > SPLIT_ABOVE && !range.solid)
    }

    /// Splits range `at` behind `stem`, with which every key in it begins, into about twice as many parts as it would need if its
    /// keys spread evenly: each is a request, and what is still too big is split again. Returns the new ranges,
    /// which are to be counted; none when it cannot be split.
    pub(super) fn split(&mut self, at: usize, stem: &[u8]) -> std::ops::Range<usize> {
        let old = &self.0[at];
        let inside = |bound: &Vec<u8>| *bound > old.from && (*bound < old.to || old.to == [0]);
        let bounds: Vec<_> =
            ALPHABET.iter().map(|c| [stem, &[*c]].concat()).filter(inside).collect();
        let wanted = usize::try_from(2 * old.keys / SPLIT_ABOVE).unwrap_or(usize::MAX);
        let cuts = wanted.max(1).min(bounds.len());
        // Evenly among the bounds, each at most once.
        let chosen =
            (1..=cuts).map(|cut| bounds[cut * (bounds.len() + 1) / (cuts + 1) - 1].clone());
        let mut parts = Vec::new();
        let mut from = old.from.clone();
        for bound in chosen.chain([old.to.clone()]) {
            parts.push(Range::new(std::mem::replace(&mut from, bound.clone()), bound));
        }
        if parts.len() < 2 {
            self.0[at].solid = true;
            return at..at;
        }
        let new = at..at + parts.len();
        self.0.splice(at..=at, parts);
        new
    }

    /// Merges small neighbours; a prefix that has become small is one range again.
    pub(super) fn merge(&mut self) {
        let small = self.keys() <= SHARD_ABOVE / 2;
        let mut merged: Vec<Range> = Vec::new();
        for range in self.0.drain(..) {
            match merged.last_mut() {
                Some(last)
                    if small
                        || last.keys + range.keys <= MERGE_BELOW
                        || (last.keys.min(range.keys) == 0 && !(last.solid || range.solid)) =>
                {
                    last.to = range.to;
                    last.keys += range.keys;
                    last.solid = false;
                }
                _ => merged.push(range),
            }
        }
        self.0 = merged;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// What the sampler does with a server, on a set of keys.
    fn count(ranges: &mut Ranges, keys: &BTreeSet<Vec<u8>>) -> u64 {
        let within = |range: &Range| keys.range(range.from.clone()..range.to.clone());
        for range in &mut ranges.0 {
            range.keys = within(range).count() as u64;
        }
        let sum = ranges.keys();
        while let Some(at) = ranges.too_big() {
            let first = within(&ranges.0[at]).next().unwrap().clone();
            let last = within(&ranges.0[at]).next_back().unwrap().clone();
            let common = first.iter().zip(&last).take_while(|(a, b)| a == b).count();
            for new in ranges.split(at, &first[..common]) {
                ranges.0[new].keys = within(&ranges.0[new]).count() as u64;
            }
        }
        ranges.merge();
        sum
    }

    fn touch(ranges: &Ranges) -> bool {
        ranges.0.windows(2).all(|pair| pair[0].to == pair[1].from && pair[0].from < pair[0].to)
    }

    fn orphans(n: u64) -> BTreeSet<Vec<u8>> {
        let name = |i: u64| {
            format!("/o/longhorn-system/orphan-{:016x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        };
        (0..n).map(|i| name(i).into_bytes()).collect()
    }

    #[test]
    fn a_small_prefix_is_one_request() {
        let mut ranges = Ranges::whole("/o/");
        assert_eq!(count(&mut ranges, &orphans(20_000)), 20_000);
        assert_eq!(ranges.0.len(), 1);
        assert_eq!((&*ranges.0[0].from, &*ranges.0[0].to), (&b"/o/"[..], &b"/o0"[..]));
    }

    #[test]
    fn a_large_prefix_is_split_where_its_names_differ_and_the_sum_is_exact() {
        let mut keys = orphans(60_000);
        keys.extend([b"/o/another/thing".to_vec(), b"/o/zz/\xff\xff".to_vec(), b"/o/".to_vec()]);
        let mut ranges = Ranges::whole("/o/");
        for round in 0..2 {
            assert_eq!(count(&mut ranges, &keys), 60_003, "round {round}");
            assert!(touch(&ranges));
            assert!((16..40).contains(&ranges.0.len()), "{}", ranges.0.len());
            assert!(ranges.0.iter().all(|range| range.keys <= SPLIT_ABOVE));
        }
        assert_eq!(count(&mut ranges, &orphans(100)), 100);
        assert_eq!(ranges.0.len(), 1, "it has become small");
    }

    #[test]
    fn names_that_cannot_be_told_apart_stay_one_range() {
        let keys: BTreeSet<_> = (0..30_000_u32)
            .map(|i| {
                format!(
                    "/o/{}",
                    char::from_u32(0x4e00 + i % 20_000).unwrap().to_string()
                        + &"x".repeat(i as usize / 20_000)
                )
                .into_bytes()
            })
            .collect();
        let mut ranges = Ranges::whole("/o/");
        assert_eq!(count(&mut ranges, &keys), 30_000);
        assert!(touch(&ranges) && ranges.0.len() <= 3, "{}", ranges.0.len());
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(end_of(b"/registry/pods/"), b"/registry/pods0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), [0]);
        assert_eq!(end_of(b""), [0]);
    }
}
