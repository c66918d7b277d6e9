//! Medians, quantiles, and what a process costs.

use crate::lab::process::children;
use std::fs;

/// The quantile of values in any order, by nearest rank; NaN of none.
pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is between 0 and the number of values"
    )]
    let at = (rank as usize).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The median of what is left when each value of `ours` divides that of `theirs` from the same round.
pub(crate) fn ratio(theirs: &[f64], ours: &[f64]) -> f64 {
    median(&theirs.iter().zip(ours).map(|(theirs, ours)| theirs / ours).collect::<Vec<_>>())
}

/// The larger of two by the smaller.
pub(crate) fn apart(one: f64, other: f64) -> f64 {
    one.max(other) / one.min(other)
}

/// The smallest and the largest.
pub(crate) fn range(values: &[f64]) -> (f64, f64) {
    (quantile(values, 0.0), quantile(values, 1.0))
}

/// A process and all below it.
pub(crate) fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        all.extend(children(pid));
        at += 1;
    }
    all
}

/// Seconds of CPU that a process has used, user and system, with its children, those that ended too.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let ticks: u64 = tree(pid).into_iter().map(ticks).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may contain anything, blanks and brackets too.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = fields.split_ascii_whitespace().skip(11).take(4);
    fields.map(|field| field.parse::<u64>().unwrap_or(0)).sum()
}

/// Bytes in memory.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Resident, of the process alone.
    pub(crate) rss: f64,
    /// Its share of what it has in common with others.
    pub(crate) pss: f64,
    /// The share of its children together.
    pub(crate) children_pss: f64,
}

pub(crate) fn memory(pid: u32) -> Memory {
    let of = |pid: u32, key: &str| -> f64 {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or(0.0) * 1024.0
    };
    Memory {
        rss: of(pid, "Rss:"),
        pss: of(pid, "Pss:"),
        children_pss: tree(pid).into_iter().skip(1).fold(0.0, |sum, pid| sum + of(pid, "Pss:")),
    }
}

/// The most that a process has had resident, in bytes.
pub(crate) fn peak(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0
}

/// The machine's load over one, five and fifteen minutes.
pub(crate) fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}
