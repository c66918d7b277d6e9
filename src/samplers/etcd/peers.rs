//! The other members, asked at their client URLs with the same TLS files.
//!
//! A member is up when an answer bears its own id: to the member list, which needs neither quorum
//! nor backend, or to a linearizable read, which is timed. A learner answers neither and gets a
//! serializable read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::GetOptions;
use futures_util::future::join_all;

use crate::etcd::client::{Consistency, Timed};
use crate::etcd::{Address, Client, TlsFiles};
use crate::sample::Batch;

use super::PROBE_KEY;
use super::members::{Roster, hex};
use super::metrics::{PEER_DURATION, PEER_UP};

/// What was seen of a member.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Seen {
    /// It answered; with the time of the linearizable read if that succeeded.
    Up(Option<Duration>),
    /// It did not.
    Down,
    /// It cannot be asked from here.
    Unknown,
}

/// Clients of the other members; they stay open between runs.
pub(super) struct Peers {
    tls: Arc<TlsFiles>,
    timeout: Duration,
    clients: HashMap<Address, Arc<Client>>,
}

impl Peers {
    pub(super) fn new(tls: Arc<TlsFiles>, timeout: Duration) -> Self {
        Self { tls, timeout, clients: HashMap::new() }
    }

    /// Asks every member but `own`, all at once.
    pub(super) async fn ask(
        &mut self,
        roster: &Roster,
        own: Option<u64>,
        local: &[&Address],
    ) -> Vec<(u64, Seen)> {
        let plan: Vec<_> = roster
            .peers(own)
            .map(|peer| (peer.clone(), roster.own_addresses(peer, local)))
            .collect();
        self.clients.retain(|address, _| plan.iter().any(|(_, all)| all.contains(address)));
        let mut asked = Vec::new();
        for (peer, addresses) in plan {
            let clients: Vec<_> = addresses.iter().map(|a| self.client(a)).collect();
            asked.push(async move { (peer.id, ask_one(peer.id, peer.learner, &clients).await) });
        }
        join_all(asked).await
    }

    fn client(&mut self, address: &Address) -> Arc<Client> {
        let new = || Client::new(address.clone(), None, Arc::clone(&self.tls), self.timeout);
        let client = self.clients.entry(address.clone()).or_insert_with(|| Arc::new(new()));
        Arc::clone(client)
    }
}

async fn ask_one(id: u64, learner: bool, clients: &[Arc<Client>]) -> Seen {
    let calls: Vec<_> = clients.iter().map(|client| ask_at(id, learner, client)).collect();
    let seen = join_all(calls).await;
    let first = |wanted: fn(&Seen) -> bool| seen.iter().copied().find(wanted);
    first(|s| matches!(s, Seen::Up(Some(_))))
        .or_else(|| first(|s| matches!(s, Seen::Up(None))))
        .or_else(|| first(|s| *s == Seen::Down))
        .unwrap_or(Seen::Unknown)
}

async fn ask_at(id: u64, learner: bool, client: &Client) -> Seen {
    // The id that answered, if one did.
    let alive = async {
        if learner {
            let read = client.get(PROBE_KEY, GetOptions::new(), Consistency::Serializable).await;
            read.map(|r| r.header().map_or(0, etcd_client::ResponseHeader::member_id))
        } else {
            let list = client.member_list().await;
            list.map(|l| l.header().map_or(0, etcd_client::ResponseHeader::member_id))
        }
    };
    let read = async {
        if learner {
            return None;
        }
        let options = GetOptions::new();
        let read = Timed::of(client.get(PROBE_KEY, options, Consistency::Linearizable)).await;
        let who = read.answer.ok()?.header()?.member_id();
        Some((who, read.took))
    };
    let (alive, read) = tokio::join!(alive, read);
    if let (Err(failure), None) = (&alive, read) {
        client.reset().await;
        // Without a CA of ours for it, or a descriptor, nobody was asked.
        return if failure.reason.is_ours() { Seen::Unknown } else { Seen::Down };
    }
    let took = read.filter(|(who, _)| *who == id).map(|(_, took)| took);
    if took.is_some() || alive.is_ok_and(|who| who == id) {
        return Seen::Up(took);
    }
    // Somebody else answered: here, because it is this machine's own address for everybody; else
    // the member is not where the list says.
    if client.address().is_loopback() { Seen::Unknown } else { Seen::Down }
}

/// The figures of the other members.
pub(super) fn export(seen: &[(u64, Seen)], out: &mut Batch) {
    for (id, seen) in seen {
        let id = hex(*id);
        match seen {
            Seen::Up(took) => {
                out.push(&PEER_UP, [&id], true);
                if let Some(took) = took {
                    out.push(&PEER_DURATION, [&id], *took);
                }
            }
            Seen::Down => out.push(&PEER_UP, [&id], false),
            Seen::Unknown => {}
        }
    }
}

/// How many voting members are reachable, the local one included; `None` when some cannot be asked.
pub(super) fn voters_reachable(
    roster: &Roster,
    own: Option<u64>,
    up: bool,
    seen: &[(u64, Seen)],
) -> Option<usize> {
    if roster.left_out() > 0 {
        return None;
    }
    let mut reachable = 0;
    for member in roster.members.iter().filter(|member| !member.learner) {
        if Some(member.id) == own {
            reachable += usize::from(up);
        } else if member.started() {
            match seen.iter().find(|(id, _)| *id == member.id).map(|(_, seen)| *seen) {
                Some(Seen::Up(_)) => reachable += 1,
                Some(Seen::Down) => {}
                Some(Seen::Unknown) | None => return None,
            }
        }
    }
    Some(reachable)
}

#[cfg(test)]
mod tests {
    use super::super::members::Member;
    use super::*;
    use crate::host::Host;

    fn roster() -> Roster {
        let url = |host: &str| vec![format!("https://{host}:2379")];
        Roster::new(
            [
                Member::new(1, "a", false, &url("10.0.0.1")),
                Member::new(2, "b", false, &url("10.0.0.2")),
                Member::new(3, "c", true, &url("10.0.0.3")),
                Member::new(4, "", false, &[]),
            ],
            1,
        )
    }

    #[test]
    fn reachable_voters_include_the_local_one_and_neither_learners_nor_the_unstarted() {
        let up = Seen::Up(None);
        let count = |own_up, b| voters_reachable(&roster(), Some(1), own_up, &[(2, b), (3, up)]);
        assert_eq!(count(true, up), Some(2));
        assert_eq!(count(false, up), Some(1));
        assert_eq!(count(true, Seen::Down), Some(1));
    }

    #[test]
    fn a_voter_that_cannot_be_asked_makes_the_number_unknown_but_a_learner_does_not() {
        let up = Seen::Up(None);
        let count = |b, c| voters_reachable(&roster(), Some(1), true, &[(2, b), (3, c)]);
        assert_eq!(count(Seen::Unknown, up), None);
        assert_eq!(count(up, Seen::Unknown), Some(2));
    }

    #[tokio::test]
    async fn a_peer_that_speaks_tls_is_not_down_for_want_of_a_ca_of_ours() {
        let tls = Arc::new(TlsFiles::new(&Host::at("/"), None, None, None));
        let ask = async |url: &str| {
            let address = Address::parse(url).unwrap();
            let client = Client::new(address, None, Arc::clone(&tls), Duration::from_secs(5));
            ask_at(2, false, &client).await
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(
            ask(&format!("https://{}", listener.local_addr().unwrap())).await,
            Seen::Unknown
        );
        assert_eq!(ask("https://127.0.0.1:1").await, Seen::Down, "nobody is there");
    }

    #[test]
    fn an_unknown_peer_has_no_verdict() {
        let mut out = Batch::default();
        let took = Duration::from_millis(3);
        export(&[(1, Seen::Unknown), (2, Seen::Down), (0xab, Seen::Up(Some(took)))], &mut out);
        assert_eq!((out.series(&PEER_UP), out.series(&PEER_DURATION)), (2, 1));
        assert_eq!(out.value(&PEER_UP, ["2"]), Some(0.0));
        assert_eq!(out.value(&PEER_DURATION, ["ab"]), Some(0.003));
    }
}
