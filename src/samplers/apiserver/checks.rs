//! The API server's own checks, as it lists them with `?verbose` and whenever it is not well.

use std::collections::BTreeSet;

/// Checks by their whole names.
const KNOWN: [&str; 9] = [
    "autoregister-completion",
    "data-encryption-config",
    "etcd",
    "etcd-readiness",
    "informer-sync",
    "log",
    "ping",
    "shutdown",
    "storage-object-count-tracker-hook",
];
/// Checks of which there may be many, by how their names begin.
const FAMILIES: [(&str, &str); 4] = [
    ("poststarthook/", "poststarthook"),
    ("kms-provider", "kms-providers"),
    ("apiservice-", "apiservice"),
    ("crd-", "crd"),
];

/// The checks that fail, as one of a closed set of words; the lines of those begin with `[-]`.
pub(super) fn failing(body: &str) -> BTreeSet<&'static str> {
    body.lines()
        .filter_map(|line| line.trim_start().strip_prefix("[-]"))
        .map(|rest| word(rest.split_whitespace().next().unwrap_or_default()))
        .collect()
}

fn word(name: &str) -> &'static str {
    let known = KNOWN.into_iter().find(|known| *known == name);
    let family = || FAMILIES.into_iter().find(|(start, _)| name.starts_with(start)).map(|(_, w)| w);
    known.or_else(family).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kube-apiserver 1.33 answers `/readyz?verbose` while it cannot reach etcd.
    const ANSWER: &str = "\
[+]ping ok
[+]log ok
[-]etcd failed: reason withheld
[-]etcd-readiness failed: reason withheld
[+]informer-sync ok
[+]poststarthook/start-apiserver-admission-initializer ok
[-]poststarthook/rbac/bootstrap-roles failed: reason withheld
[-]poststarthook/scheduling/bootstrap-system-priority-classes failed: reason withheld
[+]shutdown ok
readyz check failed
";

    #[test]
    fn a_real_servers_answer_while_its_etcd_hangs_names_etcd_alone() {
        let of = |body| failing(body).into_iter().collect::<Vec<_>>();
        assert_eq!(
            of(include_str!("../../../tests/data/apiserver/readyz-etcd-hangs.txt")),
            ["etcd"]
        );
        assert_eq!(
            of(include_str!("../../../tests/data/apiserver/livez-etcd-hangs.txt")),
            ["etcd"]
        );
        let well: [&str; 0] = [];
        assert_eq!(of(include_str!("../../../tests/data/apiserver/readyz-well.txt")), well);
    }

    #[test]
    fn failing_checks_are_named_and_the_others_are_not() {
        let found: Vec<_> = failing(ANSWER).into_iter().collect();
        assert_eq!(found, ["etcd", "etcd-readiness", "poststarthook"]);
        assert!(failing("ok").is_empty());
        assert!(failing("").is_empty());
    }

    #[test]
    fn what_is_unknown_becomes_one_word() {
        let found = failing("[-]tomorrow failed\n[-]\n[-]kms-provider-0 failed\n [-]ping failed");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["kms-providers", "other", "ping"]);
    }

    proptest::proptest! {
        #[test]
        fn no_answer_is_too_much(text in ".{0,200}") {
            proptest::prop_assert!(failing(&text).len() <= KNOWN.len() + FAMILIES.len() + 1);
        }
    }
}
