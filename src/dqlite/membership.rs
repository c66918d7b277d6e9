//! Who belongs to a cluster, as snapshots and log entries hold it.
//!
//! Roles are numbered differently here than in messages and YAML files; [`Role`] knows both.

use serde::{Deserialize, Serialize};

use super::Malformed;
use super::bytes::Bytes;

/// No membership has more members; real ones have up to a dozen or so.
pub(super) const MAX_MEMBERS: usize = 256;
/// No address is longer.
pub(super) const MAX_ADDRESS: usize = 255;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// A hash of its address; may exceed `i64::MAX`.
    pub id: u64,
    /// `host:port`, IPv6 in brackets.
    pub address: String,
    /// What it does for the cluster.
    pub role: Role,
}

/// What a member does for its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Replicates and votes.
    Voter,
    /// Replicates.
    StandBy,
    /// Holds no data.
    Spare,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Voter, Self::StandBy, Self::Spare];

    /// The word for it in labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Voter => "voter",
            Self::StandBy => "stand-by",
            Self::Spare => "spare",
        }
    }

    /// The role with this number in a snapshot or in the log.
    pub(super) fn of_raft(code: u8) -> Option<Self> {
        [Self::StandBy, Self::Voter, Self::Spare].get(usize::from(code)).copied()
    }

    /// The role with this number in a message or in a YAML file.
    pub(super) fn of_wire(code: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }
}

/// Reads a membership. What follows the last member is padding that dqlite leaves as it was.
///
/// # Errors
///
/// When it is cut off, of another version, or beyond the limits.
pub fn parse(bytes: &[u8]) -> Result<Vec<Member>, Malformed> {
    let mut bytes = Bytes(bytes);
    match bytes.u8() {
        Some(1) => {}
        Some(version) => return Err(Malformed::new(format!("a membership of version {version}"))),
        None => return Err(Malformed::new("an empty membership")),
    }
    let cut = || Malformed::new("a membership that is cut off or holds no address");
    let n = bytes.u64().ok_or_else(cut)?;
    let n = usize::try_from(n).unwrap_or(usize::MAX);
    if n > MAX_MEMBERS {
        return Err(Malformed::new(format!("a membership of more than {MAX_MEMBERS} members")));
    }
    let mut members = Vec::new();
    for _ in 0..n {
        let id = bytes.u64().ok_or_else(cut)?;
        let address = bytes.text(MAX_ADDRESS).ok_or_else(cut)?.to_owned();
        let role = bytes.u8().ok_or_else(cut)?;
        let role = Role::of_raft(role)
            .ok_or_else(|| Malformed::new(format!("a member with the unknown role {role}")))?;
        members.push(Member { id, address, role });
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The encoding that dqlite writes.
    fn encode(members: &[Member]) -> Vec<u8> {
        let mut bytes = vec![1];
        bytes.extend((members.len() as u64).to_le_bytes());
        for member in members {
            bytes.extend(member.id.to_le_bytes());
            bytes.extend(member.address.as_bytes());
            bytes.extend([
                0,
                match member.role {
                    Role::StandBy => 0,
                    Role::Voter => 1,
                    Role::Spare => 2,
                },
            ]);
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0xaa);
        bytes
    }

    #[test]
    fn roles_have_one_number_in_the_log_and_another_in_messages() {
        assert_eq!(Role::of_raft(0), Some(Role::StandBy));
        assert_eq!(Role::of_raft(1), Some(Role::Voter));
        assert_eq!(Role::of_wire(0), Some(Role::Voter));
        assert_eq!(Role::of_wire(1), Some(Role::StandBy));
        assert_eq!((Role::of_raft(2), Role::of_wire(2)), (Some(Role::Spare), Some(Role::Spare)));
        assert_eq!((Role::of_raft(3), Role::of_wire(u64::MAX)), (None, None));
    }

    #[test]
    fn what_is_cut_or_beyond_the_limits_is_refused() {
        let one = Member { id: u64::MAX, address: "[fd00::1]:19001".into(), role: Role::Spare };
        let good = encode(std::slice::from_ref(&one));
        assert_eq!(parse(&good).unwrap(), [one]);
        for length in 0..30 {
            assert!(parse(&good[..length]).is_err(), "{length} bytes");
        }
        let mut many = vec![1];
        many.extend(257_u64.to_le_bytes());
        assert!(parse(&many).unwrap_err().to_string().contains("more than 256"));
        assert!(parse(&[2; 64]).unwrap_err().to_string().contains("version 2"));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes: Vec<u8>) {
            drop(parse(&bytes));
            drop(parse(&[&[1, 2, 0, 0, 0, 0, 0, 0, 0], &bytes[..]].concat()));
        }

        #[test]
        fn every_membership_reads_back(ids: Vec<u64>, port: u16, role in 0..3_usize) {
            let members: Vec<_> = ids.iter().map(|id| {
                Member { id: *id, address: format!("10.0.0.1:{port}"), role: Role::ALL[role] }
            }).collect();
            prop_assert_eq!(parse(&encode(&members)).unwrap(), members);
        }
    }
}
