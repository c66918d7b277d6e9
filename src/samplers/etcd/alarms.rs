//! Alarms, from the texts in `Status.errors`. `AlarmList` would say the same, but it is a proposal
//! to raft: it writes, and it fails without a quorum.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use regex::Regex;

use super::members::MAX_MEMBERS;

/// An alarm by the id of the member it names, which need not be the one that was asked.
pub(super) type Alarm = (u64, &'static str);

/// The kinds that etcd knows.
pub(super) const KINDS: [&str; 2] = ["NOSPACE", "CORRUPT"];

/// No more alarms than this are told: both kinds of every member that is told by id, and some.
const MAX_ALARMS: usize = 3 * MAX_MEMBERS;

/// The alarms in these texts, and how many more there were than are told:
/// `memberID:3187703414960536871 alarm:NOSPACE ` and the like. Other texts say other things; a kind
/// of a newer etcd is `OTHER`.
pub(super) fn parse(errors: &[String]) -> (BTreeSet<Alarm>, u64) {
    static ALARM: OnceLock<Option<Regex>> = OnceLock::new();
    let pattern = ALARM.get_or_init(|| Regex::new(r"memberID:([0-9]+) alarm:([A-Z_]+)").ok());
    let (mut alarms, mut left_out) = (BTreeSet::new(), 0);
    let found = pattern.iter().flat_map(|p| errors.iter().flat_map(|text| p.captures_iter(text)));
    for alarm in found {
        let Ok(id) = alarm[1].parse() else { continue };
        let kind = KINDS.into_iter().find(|kind| *kind == &alarm[2]).unwrap_or("OTHER");
        if alarms.len() < MAX_ALARMS {
            alarms.insert((id, kind));
        } else {
            left_out += u64::from(!alarms.contains(&(id, kind)));
        }
    }
    (alarms, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let found: Vec<_> = parse(&errors).0.into_iter().collect();
        assert_eq!(
            found,
            [(1, "CORRUPT"), (2, "NOSPACE"), (3, "OTHER"), (3_187_703_414_960_536_871, "NOSPACE")]
        );
        assert!(parse(&[]).0.is_empty());
    }

    #[test]
    fn alarms_without_end_are_cut_and_counted() {
        let flood: String =
            (0..100_000).map(|id| format!("memberID:{id} alarm:NOSPACE ")).collect();
        let (told, left_out) = parse(&[flood]);
        assert_eq!((told.len(), left_out), (MAX_ALARMS, 100_000 - MAX_ALARMS as u64));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(texts in proptest::collection::vec(any::<String>(), 0..8)) {
            parse(&texts);
        }

        #[test]
        fn an_alarm_is_found_whatever_stands_around_it(
            id: u64,
            kind in 0..KINDS.len(),
            before in "[^\\w]*",
            after in "[^\\w]*",
        ) {
            let text = format!("{before}memberID:{id} alarm:{}{after}", KINDS[kind]);
            prop_assert_eq!(parse(&[text]).0, BTreeSet::from([(id, KINDS[kind])]));
        }
    }
}
