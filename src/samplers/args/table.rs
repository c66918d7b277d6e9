//! Which flags a program knows, from `releases.yaml`.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::yaml::Node;

const RELEASES: &str = include_str!("releases.yaml");
/// What every program knows that is made with cobra.
const ALWAYS: [&str; 2] = ["help", "h"];

/// The flags that the installed version of a program knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The program and its version, for people.
    pub(super) release: String,
    pub(super) flags: BTreeSet<String>,
}

/// Major, minor and patch.
type Version = [u32; 3];

/// What the program knows that reads the file of arguments `program`; nothing where that is not known.
///
/// `components` are the versions of the bill of materials, `snap` and `version` those of the snap, for when it does
/// not name the program.
pub(super) fn known(
    program: &str,
    components: &BTreeMap<String, String>,
    snap: &str,
    version: Option<&str>,
) -> Option<Known> {
    let table = Node::parse(RELEASES).ok()?;
    let (from, to) = match components.get(program) {
        Some(exact) => {
            let exact = parse(exact)?;
            (exact, exact)
        }
        None => of_snap(&table, program, snap, version?)?,
    };
    let program_table = table.at(&["programs", program])?;
    if to > parse(program_table.text_at(&["until"])?)? {
        return None;
    }
    let mut flags: BTreeSet<String> = ALWAYS.map(str::to_owned).into();
    let mut first = None;
    for step in program_table.get("versions")?.items() {
        let since = parse(step.text_at(&["since"])?)?;
        first = first.or(Some(since));
        if since > to {
            break;
        }
        let named = |key| step.get(key).map(Node::texts).unwrap_or_default();
        flags.extend(named("added"));
        if since <= from {
            for flag in named("removed") {
                flags.remove(&flag);
            }
        }
    }
    if from < first? {
        return None;
    }
    let shown = |[major, minor, patch]: Version| format!("{major}.{minor}.{patch}");
    let release = if from == to {
        format!("{program} {}", shown(to))
    } else {
        format!("{program} {} to {}", shown(from), shown(to))
    };
    Some(Known { release, flags })
}

/// The oldest and the newest version that a snap of this release may carry.
fn of_snap(table: &Node, program: &str, snap: &str, version: &str) -> Option<(Version, Version)> {
    let [major, minor, _] = parse(version)?;
    let carried = |minor: u32| {
        let release = format!("{major}.{minor}");
        parse(table.at(&["snaps", snap, &release])?.text_at(&[program])?)
    };
    let newest = carried(minor)?;
    Some((minor.checked_sub(1).and_then(carried).unwrap_or(newest), newest))
}

/// `v1.34.5`, `1.8.1` or `1.34`; whatever follows the numbers is left out.
fn parse(text: &str) -> Option<Version> {
    let text = text.trim().trim_start_matches('v');
    let text = text.split(['-', '+']).next()?;
    let mut version = [0; 3];
    for (n, part) in text.split('.').enumerate() {
        *version.get_mut(n)? = part.parse().ok()?;
    }
    Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: &str) -> Option<Known> {
        let components = BTreeMap::from([("k8s-dqlite".to_owned(), version.to_owned())]);
        known("k8s-dqlite", &components, "microk8s", Some("v1.30.0"))
    }

    fn knows(known: Option<&Known>, flag: &str) -> bool {
        known.unwrap().flags.contains(flag)
    }

    #[test]
    fn the_bill_of_materials_counts_before_the_snaps_release() {
        let exact = of("v1.8.1");
        assert_eq!(exact.as_ref().unwrap().release, "k8s-dqlite 1.8.1");
        assert!(knows(exact.as_ref(), "log-level") && knows(exact.as_ref(), "storage-dir"));
        assert!(!knows(exact.as_ref(), "admission-control-policy"), "removed in 1.3.0");
        assert!(knows(of("1.2.0").as_ref(), "admission-control-policy"));
        assert!(!knows(of("1.1.7").as_ref(), "metrics"));
    }

    #[test]
    fn what_an_older_snap_of_the_same_release_knows_counts_as_known() {
        let of = |version| known("k8s-dqlite", &BTreeMap::new(), "microk8s", Some(version));
        let known = of("v1.32.3").unwrap();
        assert_eq!(known.release, "k8s-dqlite 1.2.2 to 1.3.5");
        assert!(known.flags.contains("admission-control-policy"));
        assert!(known.flags.contains("datastore-max-idle-connections"));
        assert!(!of("1.33").unwrap().flags.contains("admission-control-policy"));
        assert_eq!(of("v1.23.17").unwrap().release, "k8s-dqlite 1.0.3");
    }

    #[test]
    fn no_version_that_was_ever_released_knows_the_flags_for_snapshots() {
        for minor in 23..=36 {
            let version = format!("v1.{minor}.1");
            let known = known("k8s-dqlite", &BTreeMap::new(), "microk8s", Some(&version)).unwrap();
            assert!(!known.flags.contains("snapshot-threshold"), "{version}");
            assert!(!known.flags.contains("snapshot-trailing-logs"), "{version}");
            assert!(known.flags.contains("storage-dir"), "{version}");
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_not_guessed() {
        assert_eq!(of("1.9.0"), None, "newer than what was read");
        assert_eq!(of("0.9.0"), None);
        assert_eq!(of("main"), None);
        let snap = |program, snap, version| known(program, &BTreeMap::new(), snap, version);
        assert_eq!(snap("k8s-dqlite", "microk8s", Some("v1.37.0")), None);
        assert_eq!(snap("k8s-dqlite", "microk8s", Some("latest")), None);
        assert_eq!(snap("k8s-dqlite", "microk8s", None), None);
        assert_eq!(snap("k8s-dqlite", "k8s", Some("v1.34.0")), None, "its bill tells, or nobody");
        assert_eq!(snap("kubelet", "microk8s", Some("v1.34.0")), None);
    }

    #[test]
    fn the_table_itself_is_in_order() {
        let table = Node::parse(RELEASES).unwrap();
        for (program, entry) in table.get("programs").unwrap().entries() {
            let until = parse(entry.text_at(&["until"]).unwrap()).unwrap();
            let mut before = None;
            let mut flags = BTreeSet::new();
            for step in entry.get("versions").unwrap().items() {
                let since = parse(step.text_at(&["since"]).unwrap());
                assert!(since > before && since.unwrap() <= until, "{program} {since:?}");
                before = since;
                for flag in step.get("added").map(Node::texts).unwrap_or_default() {
                    assert!(flags.insert(flag.clone()), "{flag} is added twice");
                }
                for flag in step.get("removed").map(Node::texts).unwrap_or_default() {
                    assert!(flags.contains(&flag), "{flag} was not there");
                }
                assert!(
                    step.entries()
                        .iter()
                        .all(|(key, _)| { ["since", "added", "removed"].contains(&key.as_str()) })
                );
            }
        }
        for (snap, releases) in table.get("snaps").unwrap().entries() {
            let versions: Vec<_> = releases.entries().iter().map(|(r, _)| parse(r)).collect();
            assert!(versions.is_sorted() && versions.iter().all(Option::is_some), "{snap}");
        }
    }
}
