//! The metrics of the sampler, in the order of `/metrics`.

use crate::metric::{Desc, Metric};

/// Every metric, in the order of `/metrics`.
pub(super) const ALL: &[Desc] = &[
    UP.desc(),
    MEMBER.desc(),
    HAS_LEADER.desc(),
    IS_LEADER.desc(),
    IS_LEARNER.desc(),
    LEADER_CHANGES.desc(),
    RAFT_TERM.desc(),
    RAFT_INDEX.desc(),
    RAFT_APPLIED.desc(),
    DB_SIZE.desc(),
    DB_IN_USE.desc(),
    QUOTA.desc(),
    QUOTA_SOURCE.desc(),
    REVISION.desc(),
    COMPACT_REVISION.desc(),
    ALARM.desc(),
    REQUEST_DURATION.desc(),
    REQUEST_FAILURES.desc(),
    REQUEST_SUCCESS.desc(),
    LISTED.desc(),
    STARTED.desc(),
    LEARNERS.desc(),
    EXPECTED.desc(),
    VOTERS_LISTED.desc(),
    VOTERS_REACHABLE.desc(),
    PEER_UP.desc(),
    PEER_DURATION.desc(),
    PEER.desc(),
];

pub(super) static UP: Metric<0> = Metric::gauge(
    "controlplane_etcd_up",
    "Whether the local member answered any of the calls of the last run.",
    [],
);
pub(super) static MEMBER: Metric<4> = Metric::info(
    "controlplane_etcd_member_info",
    "The local member: its name from the member list, its ids in hexadecimal, and etcd's version. From Status.",
    ["member", "member_id", "cluster_id", "version"],
);
pub(super) static HAS_LEADER: Metric<0> = Metric::gauge(
    "controlplane_etcd_has_leader",
    "Whether the local member knows a leader; up to two seconds late, and 1 proves little. From Status.",
    [],
);
pub(super) static IS_LEADER: Metric<0> = Metric::gauge(
    "controlplane_etcd_is_leader",
    "Whether the local member takes itself for the leader. From Status.",
    [],
);
pub(super) static IS_LEARNER: Metric<0> = Metric::gauge(
    "controlplane_etcd_is_learner",
    "Whether the local member is a learner, which does not vote. From Status.",
    [],
);
pub(super) static LEADER_CHANGES: Metric<0> = Metric::counter(
    "controlplane_etcd_leader_changes_total",
    "Elections seen since the agent started: a new leader, or the same one in a new term. From Status.",
    [],
);
pub(super) static RAFT_TERM: Metric<0> = Metric::gauge(
    "controlplane_etcd_raft_term",
    "Raft term of the local member; where two members claim to lead, the higher term is right. From Status.",
    [],
);
pub(super) static RAFT_INDEX: Metric<0> =
    Metric::gauge("controlplane_etcd_raft_index", "Committed raft index. From Status.", []);
pub(super) static RAFT_APPLIED: Metric<0> = Metric::gauge(
    "controlplane_etcd_raft_applied_index",
    "Applied raft index; it stands still behind the committed one while the backend is blocked. From Status.",
    [],
);
pub(super) static DB_SIZE: Metric<0> = Metric::gauge(
    "controlplane_etcd_db_size_bytes",
    "Size of the backend file; it shrinks only by defragmentation, and the quota counts it. From Status.",
    [],
);
pub(super) static DB_IN_USE: Metric<0> = Metric::gauge(
    "controlplane_etcd_db_size_in_use_bytes",
    "Bytes of the backend file that hold data, half-empty pages included. From Status.",
    [],
);
pub(super) static QUOTA: Metric<0> = Metric::gauge(
    "controlplane_etcd_quota_bytes",
    "Size of the backend at which etcd refuses writes; where from, etcd_quota_source_info says.",
    [],
);
pub(super) static QUOTA_SOURCE: Metric<1> = Metric::info(
    "controlplane_etcd_quota_source_info",
    "Where the quota is known from: status (etcd 3.6), process, config, manifest, or etcd's default.",
    ["source"],
);
pub(super) static REVISION: Metric<0> = Metric::gauge(
    "controlplane_etcd_revision",
    "Newest revision of the key space. From Status.",
    [],
);
pub(super) static COMPACT_REVISION: Metric<0> = Metric::gauge(
    "controlplane_etcd_compact_revision",
    "Oldest revision that can still be read, which is the last compaction's; 1 before the first. Found by reads of an absent key.",
    [],
);
pub(super) static ALARM: Metric<2> = Metric::gauge(
    "controlplane_etcd_alarm",
    "Whether the alarm (NOSPACE, CORRUPT) is raised for the member, 0 or 1 for every listed member, at most 50. From Status.",
    ["member_id", "alarm"],
);
/// The calls, by the word in the label.
pub(super) const REQUESTS: [&str; 4] =
    ["status", "serializable_read", "linearizable_read", "member_list"];
/// With the limits of the alert on slow requests: between two bounds a quantile is a guess.
pub(super) const REQUEST_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.4, 0.5, 1.0, 2.5, 5.0, 10.0];
pub(super) static REQUEST_DURATION: Metric<1> = Metric::histogram(
    "controlplane_etcd_request_duration_seconds",
    "Time of the agent's own calls to the local member, answered or given up after the time-out.",
    ["request"],
);
pub(super) static REQUEST_FAILURES: Metric<2> = Metric::counter(
    "controlplane_etcd_request_failures_total",
    "The agent's own calls to the local member that failed; `learner` is what a learner answers and no fault.",
    ["request", "reason"],
);
pub(super) static REQUEST_SUCCESS: Metric<1> = Metric::gauge(
    "controlplane_etcd_request_last_success_timestamp_seconds",
    "When the call last succeeded, in Unix time. `status` late while `member_list` is not: the backend is blocked by defragmentation or disk.",
    ["request"],
);
pub(super) static LISTED: Metric<0> = Metric::gauge(
    "controlplane_etcd_members_listed",
    "Members in the newest member list that the local member gave.",
    [],
)
.remembered();
pub(super) static STARTED: Metric<0> = Metric::gauge(
    "controlplane_etcd_members_started",
    "Listed members that have been started at least once.",
    [],
)
.remembered();
pub(super) static LEARNERS: Metric<0> =
    Metric::gauge("controlplane_etcd_members_learner", "Listed members that do not vote.", [])
        .remembered();
pub(super) static EXPECTED: Metric<0> = Metric::gauge(
    "controlplane_etcd_members_expected",
    "Members that the cluster should have, as configured by etcd.expected_members.",
    [],
);
pub(super) static VOTERS_LISTED: Metric<0> = Metric::gauge(
    "controlplane_etcd_voters_listed",
    "Listed members that vote; more than half of them make a quorum.",
    [],
)
.remembered();
pub(super) static VOTERS_REACHABLE: Metric<0> = Metric::gauge(
    "controlplane_etcd_voters_reachable",
    "Voting members that answered this agent, the local one included; absent when some cannot be asked from here.",
    [],
);
pub(super) static PEER_UP: Metric<1> = Metric::gauge(
    "controlplane_etcd_peer_up",
    "Whether the other member answered this agent under its own id; absent when its client URL leads nowhere else than here. At most 50.",
    ["member_id"],
);
pub(super) static PEER_DURATION: Metric<1> = Metric::gauge(
    "controlplane_etcd_peer_request_duration_seconds",
    "Time of a linearizable read through the other member.",
    ["member_id"],
);
pub(super) static PEER: Metric<2> = Metric::info(
    "controlplane_etcd_peer_info",
    "The other members: id in hexadecimal and name. At most 50. From the member list.",
    ["member_id", "member"],
)
.remembered();
