//! Distributions that programs in the kernel fill: what one looks like, and what is new in it since the last look.
//!
//! The kernel sorts each value into a cell that ends at a bound of the classic or of the native buckets, so that no cell lies in two
//! of either, and the figures come out as if each value had been observed one by one.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use crate::bpf::Map;
use crate::sample::Histogram;

use super::programs::{CELLS, FIGURES};

/// Cells lie between 2 to the power of these, in seconds: from 8 µs to 68 minutes. Less is told as 8 µs.
const POWERS: std::ops::Range<i32> = -17..12;

/// Upper bounds of the classic buckets in seconds: those of the alerts, and few others, since there are several distributions.
const BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// What counts as a stall, in seconds; one of [`BOUNDS`].
pub(super) const STALL: f64 = 1.0;

/// What was counted of one kind.
#[derive(Debug)]
pub(super) struct Figures {
    /// What went well, in seconds.
    pub(super) well: Histogram,
    pub(super) failures: u64,
    /// How many took longer than [`STALL`].
    pub(super) stalls: u64,
}

impl Default for Figures {
    fn default() -> Self {
        Self { well: Histogram::new(&BOUNDS), failures: 0, stalls: 0 }
    }
}

/// Upper bounds of the cells in seconds; the last is infinite.
pub(super) fn bounds() -> Vec<f64> {
    Histogram::new(&BOUNDS).cells(POWERS)
}

/// Upper bounds of all cells; a whole number of nanoseconds is not above a bound when it is not above its whole part.
pub(super) fn nanoseconds(bounds: &[f64]) -> [u64; CELLS] {
    let mut all = [u64::MAX; CELLS];
    for (cell, bound) in all.iter_mut().zip(bounds) {
        if bound.is_finite() {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is cut on purpose"
            )]
            let nanos = (bound * 1e9) as u64;
            *cell = nanos;
        }
    }
    all
}

/// A distribution as it is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Read {
    nanos: u64,
    failures: u64,
    cells: Vec<u32>,
}

impl Read {
    fn of(bytes: &[u8]) -> Self {
        let number = |at: usize| {
            let eight = bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok());
            eight.map_or(0, u64::from_ne_bytes)
        };
        let (four, _) = bytes.get(16..).unwrap_or_default().as_chunks::<4>();
        let cells = four.iter().map(|four| u32::from_ne_bytes(*four));
        Self { nanos: number(0), failures: number(8), cells: cells.collect() }
    }

    /// Whether `other` can have grown from this. One that the kernel forgot and began anew may have come further in all
    /// than the one before, but hardly in each cell.
    fn is_before(&self, other: &Self) -> bool {
        let forward = |(before, now): (&u32, &u32)| now.wrapping_sub(*before) < 1 << 31;
        self.nanos <= other.nanos
            && self.failures <= other.failures
            && self.cells.iter().zip(&other.cells).all(forward)
    }
}

/// A distribution now, and when it was looked at before.
#[derive(Debug)]
pub(super) struct Growth {
    before: Option<Read>,
    now: Read,
}

impl Growth {
    /// Whether anything is new.
    pub(super) fn is_new(&self) -> bool {
        self.before.as_ref() != Some(&self.now)
    }

    /// Adds what is new. What the kernel forgot in between begins from zero.
    pub(super) fn add_to(&self, figures: &mut Figures, bounds: &[f64]) {
        let (before, now) =
            (self.before.as_ref().filter(|before| before.is_before(&self.now)), &self.now);
        for (at, (count, bound)) in now.cells.iter().zip(bounds).enumerate() {
            // A cell begins anew after four thousand million.
            let known = before.map_or(0, |before| before.cells.get(at).copied().unwrap_or(0));
            let grown = u64::from(count.wrapping_sub(known));
            figures.well.observe_cell(*bound, grown);
            if *bound > STALL {
                figures.stalls += grown;
            }
        }
        let nanos = now.nanos - before.map_or(0, |before| before.nanos);
        figures.well.add_sum(Duration::from_nanos(nanos).as_secs_f64());
        figures.failures += now.failures - before.map_or(0, |before| before.failures);
    }
}

/// Remembers what was read of a map.
#[derive(Debug, Default)]
pub(super) struct Reader(HashMap<[u8; 8], Read>);

impl Reader {
    /// All distributions of a map, of which no more than `most` have room.
    pub(super) fn look(&mut self, map: &Map, most: usize) -> io::Result<Vec<([u8; 8], Growth)>> {
        let mut bytes = vec![0; FIGURES];
        let (mut all, mut seen) = (Vec::new(), HashSet::new());
        for key in map.keys(2 * most)? {
            let Ok(key) = <[u8; 8]>::try_from(key) else { continue };
            if seen.insert(key) && matches!(map.get(&key, &mut bytes), Ok(true)) {
                let now = Read::of(&bytes);
                let before = self.0.insert(key, now.clone());
                all.push((key, Growth { before, now }));
            }
        }
        self.0.retain(|key, _| seen.contains(key));
        Ok(all)
    }

    /// This one is gone from the map.
    pub(super) fn forget(&mut self, key: [u8; 8]) {
        self.0.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(nanos: u64, failures: u64, cells: &[(usize, u32)]) -> Read {
        let mut all = vec![0; CELLS];
        for (at, count) in cells {
            all[*at] = *count;
        }
        Read { nanos, failures, cells: all }
    }

    #[test]
    fn a_look_adds_what_is_new_and_all_of_what_was_forgotten_in_between() {
        let (mut figures, bounds) = (Figures::default(), bounds());
        let mut before = None;
        for (now, count, failures) in [
            (read(3_000_000, 0, &[(60, 2), (70, 1)]), 3, 0),
            (read(5_000_000, 1, &[(60, 2), (70, 2)]), 4, 1),
            (read(1_000_000, 0, &[(60, 1)]), 5, 1),
            // Forgotten and further on, but of other syncs.
            (read(9_000_000, 0, &[(80, 1)]), 6, 1),
        ] {
            let growth = Growth { before: before.replace(now.clone()), now };
            assert!(growth.is_new());
            growth.add_to(&mut figures, &bounds);
            assert_eq!((figures.well.count(), figures.failures), (count, failures));
        }
        assert!((figures.well.sum() - 0.015).abs() < 1e-9);
    }

    #[test]
    fn what_is_sorted_into_cells_is_found_in_both_kinds_of_bucket_as_if_it_had_been_observed() {
        let bounds = bounds();
        assert!(bounds.len() <= CELLS, "{}", bounds.len());
        assert!(bounds.is_sorted());
        let nanos = nanoseconds(&bounds);
        assert_eq!(nanos[bounds.len() - 1], u64::MAX);
        for value in [9_000_u64, 500_000, 500_001, 1_000_000, 8_000_000, 12_345_678, 99_999_999_999]
        {
            let cell = nanos.partition_point(|bound| *bound < value);
            let (mut exact, mut sorted) = (Histogram::new(&BOUNDS), Histogram::new(&BOUNDS));
            let seconds = value as f64 / 1e9;
            exact.observe(seconds);
            sorted.observe_cell(bounds[cell], 1);
            sorted.add_sum(seconds);
            assert_eq!(exact, sorted, "{value} ns");
        }
    }
}
