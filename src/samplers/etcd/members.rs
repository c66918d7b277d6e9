//! The member list: how many members there are, which of them vote, and where the others are.

use std::collections::HashMap;

use crate::etcd::Address;
use crate::sample::{Batch, LABEL_BYTES};

use super::metrics::{LEARNERS, LISTED, PEER, STARTED, VOTERS_LISTED};

/// No more members than this are told by id, and no more are asked.
pub(super) const MAX_MEMBERS: usize = 50;
/// No more client URLs of one member than this are looked at.
const MAX_URLS: usize = 4;

/// A member id as etcdctl prints it.
pub(super) fn hex(id: u64) -> String {
    format!("{id:x}")
}

/// One member of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: u64,
    /// Empty while it has never been started.
    pub(super) name: String,
    pub(super) learner: bool,
    pub(super) addresses: Vec<Address>,
}

impl Member {
    /// A member with these fields of the reply, cut to a sensible length.
    pub(super) fn new(id: u64, name: &str, learner: bool, urls: &[String]) -> Self {
        let mut end = name.len().min(LABEL_BYTES);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        let addresses = urls.iter().take(MAX_URLS).filter_map(|url| Address::parse(url).ok());
        // A socket in the list is one of the other machine.
        let addresses = addresses.filter(|address| matches!(address, Address::Tcp { .. }));
        Self { id, name: name[..end].to_owned(), learner, addresses: addresses.collect() }
    }

    pub(super) fn started(&self) -> bool {
        !self.name.is_empty() || !self.addresses.is_empty()
    }
}

/// The newest member list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Roster {
    listed: usize,
    started: usize,
    learners: usize,
    /// At most [`MAX_MEMBERS`], the local one first.
    pub(super) members: Vec<Member>,
}

impl Roster {
    /// The list as a member with the id `own` gave it.
    pub(super) fn new(all: impl IntoIterator<Item = Member>, own: u64) -> Self {
        let mut roster = Self::default();
        for member in all {
            roster.listed += 1;
            roster.started += usize::from(member.started());
            roster.learners += usize::from(member.learner);
            if member.id == own {
                roster.members.insert(0, member);
                roster.members.truncate(MAX_MEMBERS);
            } else if roster.members.len() < MAX_MEMBERS {
                roster.members.push(member);
            }
        }
        roster
    }

    /// How many members the caps left out.
    pub(super) fn left_out(&self) -> usize {
        self.listed - self.members.len()
    }

    pub(super) fn find(&self, id: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The members other than `own` that have been started.
    pub(super) fn peers(&self, own: Option<u64>) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| Some(member.id) != own && member.started())
    }

    /// The addresses at which `peer` itself can be expected. One that several members share
    /// (a balancer, or `127.0.0.1:2379` as k0s lets every member say) or a loopback address with the
    /// port of our own endpoint, whatever that is called, tells nothing about a single member.
    pub(super) fn own_addresses(&self, peer: &Member, local: &[&Address]) -> Vec<Address> {
        let mut holders: HashMap<&Address, usize> = HashMap::new();
        for member in &self.members {
            for address in &member.addresses {
                *holders.entry(address).or_default() += 1;
            }
        }
        let alone = |address: &&Address| {
            holders.get(address) == Some(&1)
                && !address.is_unspecified()
                && !(address.is_loopback() && local.iter().any(|own| own.port() == address.port()))
        };
        peer.addresses.iter().filter(alone).cloned().collect()
    }

    /// The figures of the list itself.
    pub(super) fn export(&self, own: Option<u64>, out: &mut Batch) {
        out.push(&LISTED, [], self.listed);
        out.push(&STARTED, [], self.started);
        out.push(&LEARNERS, [], self.learners);
        out.push(&VOTERS_LISTED, [], self.listed - self.learners);
        for peer in self.peers(own) {
            out.info(&PEER, [&hex(peer.id), &peer.name]);
        }
        out.dropped(self.left_out() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str, learner: bool, url: &str) -> Member {
        let urls: Vec<_> =
            [url].iter().filter(|u| !u.is_empty()).map(ToString::to_string).collect();
        Member::new(id, name, learner, &urls)
    }

    #[test]
    fn an_id_is_written_as_etcdctl_writes_it() {
        assert_eq!(hex(0x9f0d_fbdd_7fee_b65a), "9f0dfbdd7feeb65a");
        assert_eq!(hex(0x00a0_0000_0000_0001), "a0000000000001");
    }

    #[test]
    fn unstarted_members_vote_and_have_no_peer_series() {
        let roster = Roster::new(
            [
                member(1, "a", false, "https://10.0.0.1:2379"),
                member(2, "", false, ""),
                member(3, "c", true, "https://10.0.0.3:2379"),
            ],
            1,
        );
        let mut out = Batch::default();
        roster.export(Some(1), &mut out);
        let value = |metric| out.value(metric, []);
        assert_eq!((value(&LISTED), value(&STARTED)), (Some(3.0), Some(2.0)));
        assert_eq!((value(&LEARNERS), value(&VOTERS_LISTED)), (Some(1.0), Some(2.0)));
        assert_eq!(out.series(&PEER), 1);
        assert_eq!(out.value(&PEER, ["3", "c"]), Some(1.0));
    }

    #[test]
    fn five_thousand_members_and_a_name_of_a_million_bytes_are_cut() {
        let long = "é".repeat(500_000);
        let all = (1..=5_000).map(|id| member(id, &long, false, "https://10.0.0.1:2379"));
        let roster = Roster::new(all, 4_999);
        assert_eq!((roster.members.len(), roster.left_out()), (MAX_MEMBERS, 4_950));
        assert!(roster.find(4_999).is_some_and(|own| own.name.len() <= LABEL_BYTES));
        let mut out = Batch::default();
        roster.export(Some(4_999), &mut out);
        assert_eq!(out.value(&LISTED, []), Some(5_000.0));
        assert_eq!((out.series(&PEER), out.dropped_count()), (MAX_MEMBERS - 1, 4_950));
    }

    #[test]
    fn a_shared_address_says_nothing_about_a_single_member() {
        let k0s = "https://127.0.0.1:2379";
        let roster = Roster::new([member(1, "a", false, k0s), member(2, "b", false, k0s)], 1);
        assert_eq!(roster.own_addresses(&roster.members[1], &[]), []);
        let local = Address::parse("https://localhost:2379").unwrap();
        let roster = Roster::new(
            [
                member(1, "a", false, "https://10.0.0.1:2379"),
                member(2, "b", false, k0s),
                member(3, "c", false, "https://10.0.0.3:2379"),
                member(4, "d", false, "https://0.0.0.0:2379"),
                member(5, "e", false, "http://127.0.0.1:12379"),
            ],
            1,
        );
        let count = |i: usize| roster.own_addresses(&roster.members[i], &[&local]).len();
        assert_eq!([count(1), count(2), count(3), count(4)], [0, 1, 0, 1]);
        // Another member's word for it does not make it ours, when we listen elsewhere.
        let elsewhere = Address::parse("https://10.0.0.1:12379").unwrap();
        assert_eq!(roster.own_addresses(&roster.members[1], &[&elsewhere]).len(), 1);
    }
}
