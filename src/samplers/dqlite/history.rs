//! What changed since the run before: whether the member answers, who leads.

use std::time::SystemTime;

use crate::member::{Answers, Elections, Leads};
use crate::sample::Batch;

/// What earlier runs saw.
#[derive(Debug, Default)]
pub(super) struct History {
    answers: Answers,
    leads: Leads,
    elections: Elections,
}

impl History {
    /// Whether the local member answers; `why` it does not.
    pub(super) fn up(&mut self, up: bool, why: &str, out: &mut Batch) {
        self.answers.see("dqlite", "dqlite", up, why, out);
    }

    /// Who leads, and the term of the moment; `None` when the voters know nobody.
    pub(super) fn leader(
        &mut self,
        leader: Option<(u64, &str)>,
        term: Option<u64>,
        out: &mut Batch,
    ) {
        self.leads.see("dqlite", leader.is_some(), out);
        let Some((id, address)) = leader else { return };
        // The term is read from a file before the question, so a new leader may come with the old one.
        if self.elections.see(id, term) {
            let text = format!("dqlite member {address} was elected leader");
            out.event(SystemTime::now(), "leader_changed", text);
        }
    }

    /// Elections seen since the start.
    pub(super) fn leader_changes(&self) -> u64 {
        self.elections.count()
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
        let mut see = |leader: u64, term| {
            history.leader((leader != 0).then_some((leader, "h:1")), Some(term), &mut out);
            history.leader_changes()
        };
        assert_eq!(see(1, 5), 0, "the first sight is no change");
        assert_eq!(see(2, 7), 1, "another leader");
        assert_eq!(see(2, 8), 2, "the same one, elected again");
        assert_eq!(see(3, 8), 3, "the new leader with the old term");
        assert_eq!(see(3, 9), 3, "and its term a run later");
        assert_eq!(see(0, 9), 3, "nobody leads");
        assert_eq!(see(3, 10), 4);
        let mut told = kinds(out);
        assert_eq!(told.iter().filter(|kind| *kind == "leader_changed").count(), 4);
        told.retain(|kind| kind != "leader_changed");
        assert_eq!(told, ["leader_lost", "leader_found"]);
    }

    #[test]
    fn a_term_that_could_not_be_read_is_no_election() {
        let mut history = History::default();
        for term in [Some(5), None, Some(5), None] {
            history.leader(Some((1, "h:1")), term, &mut Batch::default());
        }
        assert_eq!(history.leader_changes(), 0);
    }

    #[test]
    fn a_member_that_never_answered_is_told_once() {
        let mut history = History::default();
        let mut out = Batch::default();
        for up in [false, false, true, true, false] {
            history.up(up, "refused", &mut out);
        }
        assert_eq!(kinds(out), ["dqlite_down", "dqlite_up", "dqlite_down"]);
    }
}
