//! Alarms, from the texts in `Status.errors`. `AlarmList` would say the same, but it is a proposal
//! to raft: it writes, and it fails without a quorum.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use regex::Regex;

/// An alarm by the id of the member it names, which need not be the one that was asked.
pub(super) type Alarm = (u64, &'static str);

/// The kinds that etcd knows.
pub(super) const KINDS: [&str; 2] = ["NOSPACE", "CORRUPT"];

/// The alarms in these texts: `memberID:3187703414960536871 alarm:NOSPACE ` and the like. Other
/// texts say other things; a kind of a newer etcd is `OTHER`.
pub(super) fn parse(errors: &[String]) -> BTreeSet<Alarm> {
    static ALARM: OnceLock<Option<Regex>> = OnceLock::new();
    let pattern = ALARM.get_or_init(|| Regex::new(r"memberID:(\d+) alarm:(\w+)").ok());
    let Some(pattern) = pattern else { return BTreeSet::new() };
    let found = errors.iter().flat_map(|text| pattern.captures_iter(text));
    found
        .filter_map(|alarm| {
            let kind = KINDS.into_iter().find(|kind| *kind == &alarm[2]).unwrap_or("OTHER");
            Some((alarm[1].parse().ok()?, kind))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_read_from_the_texts_that_etcd_writes() {
        let errors = [
            "memberID:3187703414960536871 alarm:NOSPACE ",
            "etcdserver: no leader",
            "memberID:1 alarm:CORRUPT  memberID:2 alarm:NOSPACE",
            "memberID:3 alarm:MELTED ",
            "memberID:99999999999999999999999 alarm:NOSPACE ",
        ]
        .map(ToString::to_string);
        let found: Vec<_> = parse(&errors).into_iter().collect();
        assert_eq!(
            found,
            [(1, "CORRUPT"), (2, "NOSPACE"), (3, "OTHER"), (3_187_703_414_960_536_871, "NOSPACE")]
        );
        assert!(parse(&[]).is_empty());
    }
}
