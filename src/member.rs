//! What changed at a server between two runs: whether it answers, and, of a member of a datastore, who leads.

use std::time::SystemTime;

use crate::sample::Batch;

/// Whether a server answers.
#[derive(Debug, Default)]
pub struct Answers(Option<bool>);

impl Answers {
    /// Tells log and timeline when `who` ceases to answer, and when it answers again; `why` it does not. The events' kinds
    /// begin with `kind`.
    pub fn see(&mut self, kind: &str, who: &str, up: bool, why: &str, out: &mut Batch) {
        let now = SystemTime::now();
        match (self.0.replace(up), up) {
            (None | Some(true), false) => {
                tracing::warn!(why, "{who} does not answer");
                out.event(now, &format!("{kind}_down"), format!("{who} does not answer: {why}"));
            }
            (Some(false), true) => {
                tracing::info!("{who} answers again");
                out.event(now, &format!("{kind}_up"), format!("{who} answers again"));
            }
            _ => {}
        }
    }
}

/// Whether the local member knows a leader.
#[derive(Debug, Default)]
pub struct Leads(Option<bool>);

impl Leads {
    /// Tells log and timeline when the member of this `datastore` ceases to know a leader, and when it knows one again.
    pub fn see(&mut self, datastore: &str, leads: bool, out: &mut Batch) {
        let now = SystemTime::now();
        match (self.0.replace(leads), leads) {
            (None | Some(true), false) => {
                tracing::warn!("{datastore} has no leader");
                out.event(now, "leader_lost", format!("{datastore} has no leader"));
            }
            (Some(false), true) => {
                tracing::info!("{datastore} has a leader again");
                out.event(now, "leader_found", format!("{datastore} has a leader again"));
            }
            _ => {}
        }
    }
}

/// Elections, by leader and term.
#[derive(Debug, Default)]
pub struct Elections {
    /// The last leader, and the term that was known with it.
    last: Option<(u64, Option<u64>)>,
    count: u64,
}

impl Elections {
    /// Whether there was an election since the last look. The first sight is none.
    ///
    /// Leader and term are no snapshot: a new leader may come with the old term, or with none. There is one leader
    /// in a term, so the new term is then taken over without being counted again.
    pub fn see(&mut self, leader: u64, term: Option<u64>) -> bool {
        let (changed, term) = match self.last {
            None => (false, term),
            Some((before, known)) if before == leader => {
                (known.zip(term).is_some_and(|(known, term)| known != term), term.or(known))
            }
            Some((_, known)) => (true, term.filter(|term| known != Some(*term))),
        };
        self.last = Some((leader, term));
        self.count += u64::from(changed);
        changed
    }

    /// Elections seen since the start.
    pub fn count(&self) -> u64 {
        self.count
    }
}
