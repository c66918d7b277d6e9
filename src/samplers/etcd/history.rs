//! What changed since the run before: leader, alarms, whether the member answers.

use std::collections::BTreeSet;
use std::time::SystemTime;

use crate::sample::Batch;

use super::alarms::Alarm;
use super::members::{Roster, hex};

/// What earlier runs saw.
#[derive(Debug, Default)]
pub(super) struct History {
    up: Option<bool>,
    leader: Option<(u64, Option<u64>)>,
    changes: u64,
    alarms: BTreeSet<Alarm>,
}

impl History {
    /// Whether the local member answers; `why` it does not.
    pub(super) fn up(&mut self, up: bool, why: &str, out: &mut Batch) {
        let before = self.up.replace(up);
        let now = SystemTime::now();
        match (before, up) {
            (None | Some(true), false) => {
                tracing::warn!(why, "etcd does not answer");
                out.event(now, "etcd_down", format!("etcd does not answer: {why}"));
            }
            (Some(false), true) => {
                tracing::info!("etcd answers again");
                out.event(now, "etcd_up", "etcd answers again");
            }
            _ => {}
        }
    }

    /// Who leads in which term; 0 when nobody does. Returns the elections since the first call.
    pub(super) fn leader(
        &mut self,
        leader: u64,
        term: u64,
        roster: Option<&Roster>,
        out: &mut Batch,
    ) -> u64 {
        if leader == 0 {
            return self.changes;
        }
        // A leader cannot change within a term: Status is no snapshot, and the new term is still to
        // come. It is taken over without being counted again.
        let (changed, term) = match self.leader {
            None => (false, Some(term)),
            Some((before, known)) if before == leader => {
                (known.is_some_and(|known| known != term), Some(term))
            }
            Some((_, known)) => (true, Some(term).filter(|term| known != Some(*term))),
        };
        self.leader = Some((leader, term));
        if changed {
            self.changes += 1;
            let name = roster.and_then(|r| r.find(leader)).map_or("", |member| &member.name);
            let text = format!("etcd member {name} ({}) was elected leader", hex(leader));
            out.event(SystemTime::now(), "leader_changed", text.replace("  ", " "));
        }
        self.changes
    }

    /// The alarms of now.
    pub(super) fn alarms(&mut self, alarms: BTreeSet<Alarm>, out: &mut Batch) {
        let now = SystemTime::now();
        for (id, alarm) in alarms.difference(&self.alarms) {
            tracing::warn!(member_id = hex(*id), alarm, "etcd raised an alarm");
            out.event(now, "alarm_raised", format!("etcd alarm {alarm} for member {}", hex(*id)));
        }
        for (id, alarm) in self.alarms.difference(&alarms) {
            out.event(
                now,
                "alarm_cleared",
                format!("etcd alarm {alarm} gone, member {}", hex(*id)),
            );
        }
        self.alarms = alarms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(mut out: Batch) -> Vec<String> {
        out.take_events().into_iter().map(|event| event.kind).collect()
    }

    #[test]
    fn an_election_counts_once_however_its_news_arrive() {
        let mut history = History::default();
        let mut out = Batch::default();
        let mut see = |leader, term| history.leader(leader, term, None, &mut out);
        assert_eq!(see(1, 5), 0, "the first sight is no change");
        assert_eq!(see(0, 6), 0, "an election under way");
        assert_eq!(see(2, 7), 1, "another leader");
        assert_eq!(see(2, 8), 2, "the same one, elected again");
        assert_eq!(see(3, 8), 3, "the new leader with the old term");
        assert_eq!(see(3, 9), 3, "and its term a run later");
        assert_eq!(see(3, 10), 4);
        assert_eq!(kinds(out), ["leader_changed"; 4]);
    }

    #[test]
    fn a_member_that_never_answered_is_told_once() {
        let mut history = History::default();
        let mut out = Batch::default();
        for up in [false, false, true, true, false] {
            history.up(up, "refused", &mut out);
        }
        assert_eq!(kinds(out), ["etcd_down", "etcd_up", "etcd_down"]);
        let mut out = Batch::default();
        History::default().up(true, "", &mut out);
        assert_eq!(kinds(out), [""; 0]);
    }

    #[test]
    fn an_alarm_is_told_when_it_comes_and_when_it_goes() {
        let mut history = History::default();
        let mut out = Batch::default();
        history.alarms([(1, "NOSPACE")].into(), &mut out);
        history.alarms([(1, "NOSPACE"), (2, "NOSPACE")].into(), &mut out);
        history.alarms(BTreeSet::new(), &mut out);
        let raised = ["alarm_raised"; 2];
        assert_eq!(kinds(out), [&raised[..], &["alarm_cleared"; 2]].concat());
    }
}
