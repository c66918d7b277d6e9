//! The figures of the directory.

use std::collections::BTreeSet;

use crate::dqlite::directory::Report;
use crate::dqlite::{Member, Role};
use crate::sample::Batch;

use super::metrics::{
    CERTIFICATE, CLUSTER_FILE, DIFFERENCES, DIRECTORY, FIRST_INDEX, FREE_PAGES, LAST_INDEX,
    MEMBERS, METADATA_VERSION, OWN_LISTED, PAGE_BYTES, PAGES, SEGMENT_BYTES, SEGMENTS,
    SNAPSHOT_BYTES, SNAPSHOT_INDEX, SNAPSHOT_TERM, SNAPSHOT_TIME, SNAPSHOTS, TERM, UNPAIRED,
    UNPAIRED_BYTES, WAL_BYTES,
};

/// What the files say of themselves.
pub(super) fn export(report: &Report, out: &mut Batch) {
    out.push(&DIRECTORY, [], report.directory_bytes);
    if let Some(modified) = report.listed_modified {
        out.push(&CLUSTER_FILE, [], modified);
    }
    if let Some(ends) = report.certificate_ends {
        out.push(&CERTIFICATE, [], ends);
    }
    if let Some(metadata) = &report.metadata {
        out.push(&TERM, [], metadata.term);
        out.push(&METADATA_VERSION, [], metadata.version);
    }
    for (state, files) in
        [("open", report.open), ("closed", report.closed), ("corrupt", report.corrupt)]
    {
        out.push(&SEGMENTS, [state], files.count);
        out.push(&SEGMENT_BYTES, [state], files.bytes);
    }
    if let Some(first) = report.first_index {
        out.push(&FIRST_INDEX, [], first);
    }
    if let Some(last) = report.last_index {
        out.push(&LAST_INDEX, [], last);
    }
    out.push(&SNAPSHOTS, [], report.snapshots.count);
    for (missing, files) in [("meta", report.without_meta), ("data", report.without_data)] {
        out.push(&UNPAIRED, [missing], files.count);
        out.push(&UNPAIRED_BYTES, [missing], files.bytes);
    }
    let Some(newest) = &report.newest else { return };
    out.push(&SNAPSHOT_TERM, [], newest.term);
    out.push(&SNAPSHOT_INDEX, [], newest.index);
    out.push(&SNAPSHOT_BYTES, [], newest.bytes);
    if let Some(modified) = newest.modified {
        out.push(&SNAPSHOT_TIME, [], modified);
    }
    if let Some(contents) = &newest.contents {
        out.push(&PAGE_BYTES, [], contents.page_bytes);
        out.push(&PAGES, [], contents.pages);
        out.push(&FREE_PAGES, [], contents.free_pages);
        out.push(&WAL_BYTES, [], contents.wal_bytes);
    }
}

/// The members by where they are listed, and where these places disagree.
pub(super) fn export_memberships(report: &Report, live: Option<&[Member]>, out: &mut Batch) {
    let file = report.listed.as_deref();
    let log = report.members.as_deref();
    let snapshot = report.newest.as_ref().and_then(|newest| newest.members.as_deref());
    for (source, members) in
        [("live", live), ("cluster_file", file), ("log", log), ("snapshot", snapshot)]
    {
        let Some(members) = members else { continue };
        for role in Role::ALL {
            let count = members.iter().filter(|member| member.role == role).count();
            out.push(&MEMBERS, [source, role.as_str()], count);
        }
        if let Some(own) = &report.own {
            let listed = members.iter().any(|m| m.id == own.id && m.address == own.address);
            out.push(&OWN_LISTED, [source], listed);
        }
    }
    for (between, a, b) in [
        ("cluster_file_live", file, live),
        ("log_live", log, live),
        ("log_cluster_file", log, file),
        ("snapshot_cluster_file", snapshot, file),
    ] {
        if let (Some(a), Some(b)) = (a, b) {
            let set = |members: &[Member]| {
                members.iter().map(|m| (m.id, m.address.clone())).collect::<BTreeSet<_>>()
            };
            out.push(&DIFFERENCES, [between], set(a).symmetric_difference(&set(b)).count());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dqlite::directory::Newest;

    fn member(id: u64, role: Role) -> Member {
        Member { id, address: format!("10.0.0.{id}:19001"), role }
    }

    #[test]
    fn places_that_disagree_are_counted_by_id_and_address_and_not_by_role() {
        let three = vec![member(1, Role::Voter), member(2, Role::Voter), member(3, Role::Voter)];
        let four = [&three[..2], &[member(3, Role::Spare), member(4, Role::Spare)]].concat();
        let newest = Newest {
            term: 1,
            index: 1024,
            modified: None,
            bytes: 1,
            contents: None,
            members: Some(three.clone()),
        };
        let report = Report {
            own: Some(Member { address: "10.9.9.9:19001".into(), ..member(4, Role::Voter) }),
            listed: Some(four.clone()),
            members: Some(four.clone()),
            newest: Some(newest),
            ..Report::default()
        };
        let mut out = Batch::default();
        export_memberships(&report, Some(&four), &mut out);
        for (between, count) in [
            ("cluster_file_live", 0.0),
            ("log_live", 0.0),
            ("log_cluster_file", 0.0),
            ("snapshot_cluster_file", 1.0),
        ] {
            assert_eq!(out.value(&DIFFERENCES, [between]), Some(count), "{between}");
        }
        assert_eq!(out.value(&MEMBERS, ["snapshot", "voter"]), Some(3.0));
        assert_eq!(out.value(&MEMBERS, ["live", "spare"]), Some(2.0));
        assert_eq!(out.value(&OWN_LISTED, ["live"]), Some(0.0), "with another address");
    }

    #[test]
    fn what_was_not_there_has_no_figure_but_counts_are_zero() {
        let mut out = Batch::default();
        export(&Report::default(), &mut out);
        export_memberships(&Report::default(), None, &mut out);
        assert_eq!(out.value(&SEGMENTS, ["corrupt"]), Some(0.0));
        assert_eq!(out.value(&UNPAIRED, ["meta"]), Some(0.0));
        assert_eq!((out.series(&TERM), out.series(&LAST_INDEX), out.series(&PAGES)), (0, 0, 0));
        assert_eq!((out.series(&MEMBERS), out.series(&DIFFERENCES)), (0, 0));
    }
}
