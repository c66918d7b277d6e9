//! `cluster.yaml` and `info.yaml`: the members as this node last heard of them, and the node itself.
//!
//! Not read with the configuration's own reader, which has no numbers above `i64::MAX`.

use super::membership::{MAX_ADDRESS, MAX_MEMBERS};
use super::{Malformed, Member, Role};
use crate::host::yaml::Node;

/// No file of the two is longer than this many bytes.
pub const LIMIT: u64 = 1 << 17;

/// Reads `cluster.yaml`.
///
/// # Errors
///
/// When it is no list of members.
pub fn members(text: &str) -> Result<Vec<Member>, Malformed> {
    let node = Node::parse(text).map_err(Malformed::new)?;
    // A file caught between its creation and its first write is empty.
    if !matches!(node, Node::List(_)) {
        return Err(Malformed::new("no list of members"));
    }
    if node.items().len() > MAX_MEMBERS {
        return Err(Malformed::new(format!("more than {MAX_MEMBERS} members")));
    }
    node.items().iter().map(member).collect()
}

/// Reads `info.yaml`. Its role means nothing.
///
/// # Errors
///
/// When it does not name a member.
pub fn own(text: &str) -> Result<Member, Malformed> {
    member(&Node::parse(text).map_err(Malformed::new)?)
}

fn member(node: &Node) -> Result<Member, Malformed> {
    let number = |key: &str| node.text_at(&[key])?.parse::<u64>().ok();
    let id = number("ID").ok_or_else(|| Malformed::new("a member without a numeric ID"))?;
    let address = node.text_at(&["Address"]).filter(|address| {
        address.len() <= MAX_ADDRESS && address.bytes().all(|byte| byte.is_ascii_graphic())
    });
    let address = address.ok_or_else(|| Malformed::new(format!("no Address of member {id}")))?;
    // Left out where it is 0, by some versions.
    let role = if node.at(&["Role"]).is_none() { Some(0) } else { number("Role") };
    let role = role.and_then(Role::of_wire);
    let role = role.ok_or_else(|| Malformed::new(format!("an unknown Role of member {id}")))?;
    Ok(Member { id, address: address.to_owned(), role })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use proptest::prelude::*;

    fn text(name: &str) -> String {
        String::from_utf8(sample(name)).unwrap()
    }

    #[test]
    fn the_files_of_real_nodes_are_read_in_both_orders_of_keys() {
        use Role::{Spare, StandBy, Voter};
        let old = members(&text("v1.11.1-voter/cluster.yaml")).unwrap();
        assert_eq!(old.len(), 4);
        assert_eq!(old[0].id, 3_297_041_220_608_546_238);
        let new = members(&text("v1.18.7-voter/cluster.yaml")).unwrap();
        let roles: Vec<_> = new.iter().map(|member| member.role).collect();
        assert_eq!(roles, [StandBy, Spare, Voter, Voter, Voter]);
        assert_eq!(new[4].id, 13_481_146_306_611_809_278, "beyond i64");
        for node in ["v1.11.1-voter", "v1.18.7-voter"] {
            let own = own(&text(&format!("{node}/info.yaml"))).unwrap();
            assert!(own.address.starts_with("127.0.0.1:19"), "{own:?}");
        }
    }

    #[test]
    fn ipv6_and_a_role_that_is_left_out_are_understood() {
        let found = members("- Address: '[fd00::1]:19001'\n  ID: 18446744073709551615\n").unwrap();
        let expected =
            Member { id: u64::MAX, address: "[fd00::1]:19001".into(), role: Role::Voter };
        assert_eq!(found, [expected]);
        assert_eq!(members("[]\n").unwrap(), []);
    }

    #[test]
    fn anything_else_is_refused_without_a_word_of_it() {
        for text in [
            "",
            "secret",
            "- secret",
            "- ID: secret\n  Address: h:1\n",
            "- ID: 18446744073709551616\n  Address: h:1\n",
            "- ID: 1\n",
            "- ID: 1\n  Address: h:1\n  Role: 3\n",
            "- ID: 1\n  Address: h:1\n  Role: secret\n",
            "- ID: 1\n  Address: \"secret\\n\"\n",
            "- &a {ID: 1}\n- *a\n",
        ] {
            let error = members(text).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{text}: {error}");
        }
        assert!(members(&"- {ID: 1, Address: a}\n".repeat(257)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), head in "(- )?(ID|Address|Role): \\PC{0,20}\n") {
            drop(members(&text));
            drop(members(&format!("{head}{text}")));
            drop(own(&format!("{head}{text}")));
        }
    }
}
