//! The metrics of the sampler, in the order of `/metrics`.

use crate::metric::{Desc, Metric};

/// Every metric, in the order of `/metrics`.
pub(super) const ALL: &[Desc] = &[
    UP.desc(),
    HAS_LEADER.desc(),
    IS_LEADER.desc(),
    ROLE.desc(),
    LEADER_CHANGES.desc(),
    TERM.desc(),
    METADATA_VERSION.desc(),
    VOTE.desc(),
    VOTERS_LISTED.desc(),
    VOTERS_REACHABLE.desc(),
    MEMBER_UP.desc(),
    MEMBERS.desc(),
    DIFFERENCES.desc(),
    OWN_LISTED.desc(),
    REQUEST_DURATION.desc(),
    REQUEST_FAILURES.desc(),
    REQUEST_SUCCESS.desc(),
    CERTIFICATE.desc(),
    CLUSTER_FILE.desc(),
    DIRECTORY.desc(),
    SEGMENTS.desc(),
    SEGMENT_BYTES.desc(),
    FIRST_INDEX.desc(),
    LAST_INDEX.desc(),
    SNAPSHOTS.desc(),
    SNAPSHOT_TERM.desc(),
    SNAPSHOT_INDEX.desc(),
    SNAPSHOT_TIME.desc(),
    SNAPSHOT_BYTES.desc(),
    UNPAIRED.desc(),
    UNPAIRED_BYTES.desc(),
    PAGE_BYTES.desc(),
    PAGES.desc(),
    FREE_PAGES.desc(),
    WAL_BYTES.desc(),
];

pub(super) static UP: Metric<0> = Metric::gauge(
    "controlplane_dqlite_up",
    "Whether the local member answered the agent on its port.",
    [],
);
pub(super) static HAS_LEADER: Metric<0> = Metric::gauge(
    "controlplane_dqlite_has_leader",
    "Whether a voter names a leader: the local member if it votes, else the others; absent when none could be asked. A leader that died is named for four seconds more.",
    [],
);
pub(super) static IS_LEADER: Metric<0> = Metric::gauge(
    "controlplane_dqlite_is_leader",
    "Whether the local member leads; absent while it does not answer.",
    [],
);
pub(super) static ROLE: Metric<1> = Metric::gauge(
    "controlplane_dqlite_role",
    "What the local member does for the cluster, 1 for one of voter, stand-by (replicates) and spare (holds no data). As it says itself, else its log, else cluster.yaml.",
    ["role"],
);
pub(super) static LEADER_CHANGES: Metric<0> = Metric::counter(
    "controlplane_dqlite_leader_changes_total",
    "Elections seen since the agent started: a new leader, or the same one in a new term.",
    [],
);
pub(super) static TERM: Metric<0> = Metric::gauge(
    "controlplane_dqlite_term",
    "Raft term of the local member, from metadata1 and metadata2. It stands still without a quorum.",
    [],
);
pub(super) static METADATA_VERSION: Metric<0> = Metric::gauge(
    "controlplane_dqlite_metadata_version",
    "How often term or vote were written: it grows with each election.",
    [],
);
pub(super) static VOTE: Metric<1> = Metric::info(
    "controlplane_dqlite_vote_info",
    "The member that the local one voted for in its term, usually the leader; its id where its address is not known.",
    ["member"],
);
pub(super) static VOTERS_LISTED: Metric<0> = Metric::gauge(
    "controlplane_dqlite_voters_listed",
    "Members that vote; more than half of them make a quorum. As the local member says, else from its log, else from cluster.yaml.",
    [],
)
.remembered();
pub(super) static VOTERS_REACHABLE: Metric<0> = Metric::gauge(
    "controlplane_dqlite_voters_reachable",
    "Voting members that answered this agent, the local one included.",
    [],
);
pub(super) static MEMBER_UP: Metric<1> = Metric::gauge(
    "controlplane_dqlite_member_up",
    "Whether the member at this address answered this agent, the local one included. At most 50.",
    ["member"],
);
pub(super) static MEMBERS: Metric<2> = Metric::gauge(
    "controlplane_dqlite_members",
    "Members by role and by where they are listed: live (the local member's answer), cluster_file (cluster.yaml), log (snapshot and log), snapshot.",
    ["source", "role"],
);
pub(super) static DIFFERENCES: Metric<1> = Metric::gauge(
    "controlplane_dqlite_membership_differences",
    "Members, by id and address, that are listed in one of two places only. cluster_file lags by 30 s, snapshot until the next one; a start goes by the log.",
    ["between"],
);
pub(super) static OWN_LISTED: Metric<1> = Metric::gauge(
    "controlplane_dqlite_own_member_listed",
    "Whether the local member's id is listed with its own address.",
    ["source"],
);
/// The calls, by the word in the label.
pub(super) const REQUESTS: [&str; 4] = ["cluster", "connect", "describe", "leader"];
/// Upper bounds of their times, in seconds.
pub(super) const REQUEST_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
pub(super) static REQUEST_DURATION: Metric<1> = Metric::histogram(
    "controlplane_dqlite_request_duration_seconds",
    "Time of the agent's own calls to the local member, answered or given up: connect (with TLS), cluster, leader, describe.",
    ["request"],
);
pub(super) static REQUEST_FAILURES: Metric<2> = Metric::counter(
    "controlplane_dqlite_request_failures_total",
    "The agent's own calls to the local member that failed.",
    ["request", "reason"],
);
pub(super) static REQUEST_SUCCESS: Metric<1> = Metric::gauge(
    "controlplane_dqlite_request_last_success_timestamp_seconds",
    "When the call to the local member last succeeded, in Unix time.",
    ["request"],
);
pub(super) static CERTIFICATE: Metric<0> = Metric::gauge(
    "controlplane_dqlite_certificate_not_after_timestamp_seconds",
    "When cluster.crt ends, in Unix time. All members share it, so all of them end at once.",
    [],
);
pub(super) static CLUSTER_FILE: Metric<0> = Metric::gauge(
    "controlplane_dqlite_cluster_file_timestamp_seconds",
    "When cluster.yaml was last written, in Unix time. The node writes it every 30 s while it finds a leader.",
    [],
);
pub(super) static DIRECTORY: Metric<0> = Metric::gauge(
    "controlplane_dqlite_directory_bytes",
    "Allocated bytes of the files in the node's directory.",
    [],
);
pub(super) static SEGMENTS: Metric<1> = Metric::gauge(
    "controlplane_dqlite_segments",
    "Log segments: open (three are usual), closed, and corrupt ones that dqlite moved aside.",
    ["state"],
);
pub(super) static SEGMENT_BYTES: Metric<1> = Metric::gauge(
    "controlplane_dqlite_segment_bytes",
    "Bytes of the log segments of this state.",
    ["state"],
);
pub(super) static FIRST_INDEX: Metric<0> = Metric::gauge(
    "controlplane_dqlite_log_first_index",
    "Index of the first entry of the log on disk.",
    [],
);
pub(super) static LAST_INDEX: Metric<0> = Metric::gauge(
    "controlplane_dqlite_log_last_index",
    "Index of the last entry of the log on disk; its rate is the rate of writes.",
    [],
);
pub(super) static SNAPSHOTS: Metric<0> = Metric::gauge(
    "controlplane_dqlite_snapshots",
    "Whole snapshots on disk; dqlite keeps two.",
    [],
);
pub(super) static SNAPSHOT_TERM: Metric<0> = Metric::gauge(
    "controlplane_dqlite_snapshot_term",
    "Term of the last entry in the newest snapshot.",
    [],
);
pub(super) static SNAPSHOT_INDEX: Metric<0> = Metric::gauge(
    "controlplane_dqlite_snapshot_index",
    "Index of the last entry in the newest snapshot.",
    [],
);
pub(super) static SNAPSHOT_TIME: Metric<0> = Metric::gauge(
    "controlplane_dqlite_snapshot_timestamp_seconds",
    "When the newest snapshot was written, in Unix time.",
    [],
);
pub(super) static SNAPSHOT_BYTES: Metric<0> = Metric::gauge(
    "controlplane_dqlite_snapshot_bytes",
    "Bytes of the newest snapshot on disk, compressed.",
    [],
);
pub(super) static UNPAIRED: Metric<1> = Metric::gauge(
    "controlplane_dqlite_snapshot_unpaired",
    "Snapshot files of which one half is missing: meta (debris that nothing removes), or data (a snapshot under way, or given up).",
    ["missing"],
);
pub(super) static UNPAIRED_BYTES: Metric<1> = Metric::gauge(
    "controlplane_dqlite_snapshot_unpaired_bytes",
    "Bytes of such files.",
    ["missing"],
);
pub(super) static PAGE_BYTES: Metric<0> = Metric::gauge(
    "controlplane_dqlite_database_page_bytes",
    "Bytes of a page of the database, from the newest snapshot.",
    [],
);
pub(super) static PAGES: Metric<0> = Metric::gauge(
    "controlplane_dqlite_database_pages",
    "Pages of the database, free ones included, from the newest snapshot; before dqlite 1.17 those of its last checkpoint.",
    [],
);
pub(super) static FREE_PAGES: Metric<0> = Metric::gauge(
    "controlplane_dqlite_database_free_pages",
    "Pages of the database that hold nothing; they are never given back, and each snapshot holds them.",
    [],
);
pub(super) static WAL_BYTES: Metric<0> = Metric::gauge(
    "controlplane_dqlite_database_wal_bytes",
    "Bytes of write-ahead log beside the pages in the newest snapshot; none from dqlite 1.17.",
    [],
);
