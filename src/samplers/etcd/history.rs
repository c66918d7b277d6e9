//! What changed since the run before: leader, alarms, whether the member answers.

use std::collections::BTreeSet;
use std::time::SystemTime;

use crate::member::{Answers, Elections, Leads};
use crate::sample::Batch;

use super::alarms::Alarm;
use super::members::{Roster, hex};

/// What earlier runs saw.
#[derive(Debug, Default)]
pub(super) struct History {
    answers: Answers,
    leads: Leads,
    elections: Elections,
    alarms: BTreeSet<Alarm>,
}

impl History {
    /// Whether the local member answers; `why` it does not.
    pub(super) fn up(&mut self, up: bool, why: &str, out: &mut Batch) {
        self.answers.see("etcd", "etcd", up, why, out);
    }

    /// Elections seen since the start.
    pub(super) fn leader_changes(&self) -> u64 {
        self.elections.count()
    }

    /// Who leads in which term; 0 when nobody does.
    pub(super) fn leader(
        &mut self,
        leader: u64,
        term: u64,
        roster: Option<&Roster>,
        out: &mut Batch,
    ) {
        self.leads.see("etcd", leader != 0, out);
        if leader != 0 && self.elections.see(leader, Some(term)) {
            let name = roster.and_then(|r| r.find(leader)).map_or("", |member| &member.name);
            let text = format!("etcd member {name} ({}) was elected leader", hex(leader));
            out.event(SystemTime::now(), "leader_changed", text.replace("  ", " "));
        }
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
        let mut see = |leader, term| {
            history.leader(leader, term, None, &mut out);
            history.leader_changes()
        };
        assert_eq!(see(1, 5), 0, "the first sight is no change");
        assert_eq!(see(0, 6), 0, "an election under way");
        assert_eq!(see(2, 7), 1, "another leader");
        assert_eq!(see(2, 8), 2, "the same one, elected again");
        assert_eq!(see(3, 8), 3, "the new leader with the old term");
        assert_eq!(see(3, 9), 3, "and its term a run later");
        assert_eq!(see(3, 10), 4);
        let mut told = kinds(out);
        told.retain(|kind| kind != "leader_changed");
        assert_eq!(told, ["leader_lost", "leader_found"]);
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
