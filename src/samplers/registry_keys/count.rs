//! Counting the keys of one prefix on one server.

use etcd_client::GetOptions;

use crate::etcd::client::Consistency;
use crate::etcd::{Answer, Client};

use super::ranges::Ranges;

/// One server, and which reads it serves.
pub(super) struct Counter<'a> {
    pub(super) client: &'a Client,
    /// kine and k8s-dqlite refuse serializable reads; once they did, they are not asked again.
    pub(super) consistency: &'a mut Consistency,
}

impl Counter<'_> {
    /// Counts all ranges, one after the other. The second figure says whether it is an etcd, which
    /// can count any range; kine understands whole prefixes only.
    ///
    /// # Errors
    ///
    /// That of the first range that failed.
    pub(super) async fn count(&mut self, ranges: &mut Ranges) -> Answer<(u64, bool)> {
        let mut etcd = true;
        for range in &mut ranges.0 {
            let (keys, is_etcd) = self.range(&range.from, &range.to).await?;
            range.keys = keys;
            etcd &= is_etcd;
        }
        Ok((ranges.keys(), etcd))
    }

    async fn range(&mut self, from: &[u8], to: &[u8]) -> Answer<(u64, bool)> {
        let answer = self.client.count(from, to, *self.consistency).await;
        match answer {
            Err(refusal)
                if *self.consistency == Consistency::Serializable
                    && refusal.text.contains("serializable") =>
            {
                *self.consistency = Consistency::Linearizable;
                self.client.count(from, to, *self.consistency).await
            }
            answer => answer,
        }
    }

    /// Makes ranges for the next count from what the last one found. Each split costs a count of
    /// its range or two, once.
    ///
    /// # Errors
    ///
    /// That of the first read that failed; the ranges stay usable.
    pub(super) async fn refine(&mut self, ranges: &mut Ranges) -> Answer<()> {
        while let Some(at) = ranges.too_big() {
            let (from, to) = (ranges.0[at].from.clone(), ranges.0[at].to.clone());
            let stem = self.stem(&from, &to).await?;
            for new in ranges.split(at, &stem) {
                let (from, to) = (ranges.0[new].from.clone(), ranges.0[new].to.clone());
                ranges.0[new].keys = self.range(&from, &to).await?.0;
            }
        }
        ranges.merge();
        Ok(())
    }

    /// What all keys from `from` up to `to` begin with. The first key is read; the last is not,
    /// since etcd would read all keys to sort them. Instead the beginning is made longer until keys
    /// lie behind it, which costs nothing as long as none do.
    async fn stem(&mut self, from: &[u8], to: &[u8]) -> Answer<Vec<u8>> {
        let options = GetOptions::new().with_range(to).with_keys_only().with_limit(1);
        let first = self.client.get(from, options, *self.consistency).await?;
        let Some(first) = first.kvs().first() else { return Ok(from.to_vec()) };
        let first = first.key();
        let known = first.iter().zip(from).take_while(|(a, b)| a == b).count();
        let mut length = known;
        while length < first.len() {
            let behind = super::ranges::end_of(&first[..=length]);
            if behind.as_slice() < to && self.range(&behind, to).await?.0 > 0 {
                break;
            }
            length += 1;
        }
        Ok(first[..length].to_vec())
    }
}
