"""The datastore: its members side by side, etcd's database, and what fills it."""

import dqlite
from parts import (
    DQLITE_STATE, ETCD_STATE, KINE_ALONE, MEMBER_STATES, STATES, Board, Column, appeared, describe, lanes, limits,
    lines, rows_of, steps_of,
)  # fmt: skip

SNAPSHOT = limits("ControlPlaneEtcdSnapshotOld", "age of the newest snapshot")
ETCD = {code: STATES[code] for code in (41, 42, 43, 44, 45, 46)}


def build():
    b = Board(
        "controlplane-datastore",
        "Control plane / Datastore",
        "The members side by side: who leads, who is slow, how full the database is and what fills it. For dqlite and "
        "kine open their rows.",
        "now-6h",
    )
    b.add(members())
    b.add(lanes(
        "Roles",
        describe(
            "What each member of etcd or dqlite is, and whether kine answers. Blue that moves from lane to lane is a leader "
            "that moves; its disk is the usual cause.",
            "red or orange; more than one blue lane at a time in one cluster", alert="ControlPlaneEtcdLeaderFlapping"),
        [(ETCD_STATE, "{{instance}}"), (DQLITE_STATE, "{{instance}}"), (KINE_ALONE, "{{instance}}")],
        MEMBER_STATES, size=(24, 6), none="no datastore is watched"))  # fmt: skip

    b.row("dqlite, of MicroK8s and Canonical Kubernetes: members, log, snapshots", dqlite.dqlite())
    b.row("kine and k8s-dqlite: what the API server talks to where there is no etcd", dqlite.kine())

    slow = limits("ControlPlaneEtcdMemberSlow", "reads through the member, median of 5 minutes")
    b.row("Latency: which member is slower than the rest")
    b.add(
        lines(
            "Reads through each member",
            describe(
                "Time of a linearizable read through each member, as the quickest of the other nodes' agents sees it. "
                "The member that stands out has the fault.",
                rows=slow),
            [("min by (cluster, job, member_id) (@etcd_peer_request_duration_seconds)"
              " * on (cluster, job, member_id) group_left (member)"
              " group by (cluster, job, member_id, member) (@etcd_peer_info)", "{{member}}")],
            "s", none="no other member, or none can be asked", log=True, thresholds=steps_of(slow),
        ),
        lines(
            "Reads through the local member, p90 of 5 minutes",
            describe("Time of the agents' linearizable reads, which need the leader and a majority.",
                     rows=limits("ControlPlaneEtcdRequestsSlow", "linearizable reads, p90 of 10 minutes")
                     + limits("ControlPlaneEtcdRequestsSlow", "linearizable reads, p90 of 5 minutes")),
            [('histogram_quantile(0.9, sum by (%n, le)'
              ' (rate(@etcd_request_duration_seconds_bucket{request="linearizable_read"}[5m])))', "{{instance}}")],
            "s", none="no etcd member is watched", log=True,
            thresholds=steps_of(limits("ControlPlaneEtcdRequestsSlow", "linearizable reads, p90 of 10 minutes")
                                + limits("ControlPlaneEtcdRequestsSlow", "linearizable reads, p90 of 5 minutes")),
        ),
        lines(
            "Longest sync of each member's disk",
            describe("The longest sync of the 60 s before, the one under way included.",
                     "above 1 s again and again", limits("ControlPlaneDiskSyncStuck", "sync in flight")),
            [("max by (%n, device) (max_over_time(@fdatasync_max_seconds[%w]))", "{{instance}} {{device}}")],
            "s", none="sync probe off", log=True,
            thresholds=steps_of(limits("ControlPlaneDiskSyncStuck", "sync in flight")),
        ),
        lines(
            "Calls to etcd that failed, by reason",
            describe("The agents' own calls to their members. refused: nobody listens. timeout: it hangs. tls_…: "
                     "certificates.",
                     "any at all, except while etcd is restarted on purpose", alert="ControlPlaneEtcdMemberDown"),
            [(f"{appeared('etcd_request_failures_total', '%n, reason')} > 0", "{{instance}} {{reason}}")],
            "short", none="no call failed in this time", bars=True, floor=0, decimals=0,
        ),
    )  # fmt: skip

    b.row("Raft: elections and lag")
    b.add(
        lines(
            "Elections in 15 minutes",
            describe("How far the raft term rose in 15 minutes; each election raises it.",
                     rows=limits("ControlPlaneEtcdLeaderFlapping", "elections in 15 minutes")),
            [("max by (cluster, job) (max_over_time(@etcd_raft_term[15m]))"
              " - min by (cluster, job) (min_over_time(@etcd_raft_term[15m]))", "{{cluster}} elections")],
            "short", size=(8, 8), none="no etcd member is watched", floor=0, decimals=0,
            thresholds=steps_of(limits("ControlPlaneEtcdLeaderFlapping", "elections in 15 minutes")),
        ),
        lines(
            "Committed, not yet applied",
            describe("Raft entries that a member has agreed to and not yet written to its database.",
                     "a climb: its database is blocked by a defragmentation or by the disk",
                     alert="ControlPlaneEtcdBackendBlocked"),
            [("max by (%n) (@etcd_raft_index - @etcd_raft_applied_index)", "{{instance}}")],
            "short", size=(8, 8), none="no etcd member is watched", floor=0, decimals=0,
        ),
        lines(
            "Revisions written, per second",
            describe("How fast the key space changes.",
                     "many times the usual: something writes without end", alert="ControlPlaneEtcdDatabaseUnusual"),
            [("max by (cluster, job) (deriv(@etcd_revision[%w]))", "{{cluster}} revisions")],
            "wps", size=(8, 8), none="no etcd member is watched", floor=0,
        ),
    )  # fmt: skip

    quota = limits("ControlPlaneEtcdQuotaLow", "database size of its quota")
    reclaim = limits("ControlPlaneEtcdDatabaseFragmented", "reclaimable share of the database")
    forecast = limits("ControlPlaneEtcdQuotaForecast", "database size of its quota")
    unusual = limits("ControlPlaneEtcdDatabaseUnusual", "database size")
    b.row("Database: size, quota, fragmentation, compaction")
    b.add(
        lines(
            "Share of the quota",
            describe("At 100 % etcd raises NOSPACE and refuses every write.", rows=quota),
            [("max by (%n) (@etcd_db_size_bytes / @etcd_quota_bytes)", "{{instance}}")],
            "percentunit", size=(8, 8), none="no etcd member is watched", floor=0, decimals=1,
            thresholds=steps_of(quota),
        ),
        lines(
            "Size, and what is in use",
            describe("The file, and the part of it that holds data. The gap is what a defragmentation gives back.",
                     "twice the usual size", unusual),
            [("max by (%n) (@etcd_db_size_bytes)", "{{instance}} file"),
             ("max by (%n) (@etcd_db_size_in_use_bytes)", "{{instance}} in use")],
            "bytes", size=(8, 8), none="no etcd member is watched", floor=0,
        ),
        lines(
            "Share that defragmentation would give back",
            describe("Free pages inside the file. They count for the quota.",
                     "only with more than 100 MiB to gain", reclaim),
            [("max by (%n) (1 - @etcd_db_size_in_use_bytes / @etcd_db_size_bytes)", "{{instance}}")],
            "percentunit", size=(8, 8), none="no etcd member is watched", floor=0, top=1,
            thresholds=steps_of(reclaim),
        ),
        lines(
            "Share of the quota in a day",
            describe("Where the growth of the last 6 hours leads in 24 hours, for databases that are large enough to tell.",
                     "above 100 %", forecast),
            [("max by (%n) (predict_linear(@etcd_db_size_bytes[6h], 86400) / @etcd_quota_bytes"
              f" and @etcd_db_size_bytes / @etcd_quota_bytes > {forecast[0].value:g})", "{{instance}}")],
            "percentunit", size=(8, 8), floor=0, none=f"no database is {forecast[0].words} of its quota",
        ),
        lines(
            "Revisions since the last compaction",
            describe("Old revisions that the database still keeps. The API server compacts every five minutes, so this is "
                     "a saw.",
                     "a line that only climbs", alert="ControlPlaneEtcdCompactionStalled"),
            [("max by (%n) (@etcd_revision - @etcd_compact_revision)", "{{instance}}")],
            "short", size=(8, 8), none="no etcd member is watched", floor=0, decimals=0,
        ),
        lanes(
            "Alarms",
            describe("NOSPACE: the quota is reached, writes are refused. CORRUPT: the members' data differ.",
                     "red", alert="ControlPlaneEtcdAlarm"),
            [("max by (cluster, job, member_id, alarm) (max_over_time(@etcd_alarm[%w])) * 83",
              "{{alarm}} {{member_id}}")],
            {0: ("no", "green"), 83: ("raised", "red")}, size=(8, 8), none="no etcd member is watched",
        ),
    )  # fmt: skip

    orphans = limits("ControlPlaneLonghornOrphans", "orphans")
    growing = limits("ControlPlaneLonghornOrphansGrowing", "orphans more than within the last hour")
    b.row("Snapshots: the way back", snapshots())
    b.row("Keys: what fills it")
    b.add(
        lines(
            "Keys, by resource",
            describe("Objects in the datastore, also counted while the API server is down. The resource that grows is "
                     "the one to look at.",
                     "one resource that grows without end", alert="ControlPlaneEtcdDatabaseUnusual"),
            [("max by (cluster, job, resource) (@registry_keys) > 0", "{{cluster}} {{resource}}")],
            "none", none="no kind of object is counted", log=True, decimals=0,
        ),
        lines(
            "Longhorn orphans",
            describe("Longhorn writes one object for each directory that no replica owns. Thousands of them fill etcd.",
                     rows=orphans),
            [('max by (cluster, job) (@registry_keys{resource="orphans.longhorn.io"})', "{{cluster}} orphans")],
            "none", none="orphans.longhorn.io is not counted", floor=0, decimals=0, thresholds=steps_of(orphans),
        ),
        lines(
            "Longhorn orphans that came within an hour",
            describe("How many there are more than at the smallest count of the last hour.", rows=growing),
            [('max by (cluster, job) (@registry_keys{resource="orphans.longhorn.io"})'
              ' - min by (cluster, job) (min_over_time(@registry_keys{resource="orphans.longhorn.io"}[1h]))',
              "{{cluster}} new")],
            "none", size=(12, 10), none="orphans.longhorn.io is not counted", floor=0, decimals=0,
            thresholds=steps_of(growing),
        ),
        rows_of(
            "Largest resources",
            describe("Objects by resource, now, and how many more than at the smallest count of a day.",
                     "a resource that should be small", alert="ControlPlaneEtcdDatabaseUnusual"),
            [
                Column("Cluster", label="cluster"),
                Column("Resource", label="resource"),
                Column("Keys", "max by (cluster, job, resource) (@registry_keys)", unit="none", decimals=0),
                Column("Growth within a day",
                       "max by (cluster, job, resource) (@registry_keys - min_over_time(@registry_keys[1d]))",
                       unit="none", decimals=0),
                Column("Counted ago",
                       "min by (cluster, job, resource) (time() - @registry_keys_last_success_timestamp_seconds)",
                       unit="s", decimals=0),
            ],
            size=(12, 10), none="no kind of object is counted", sort=("Keys", True),
        ),
    )  # fmt: skip
    return b.build()


def snapshots():
    none = "no snapshots are expected here, or none was made"
    return [
        lines(
            "Age of the newest snapshot",
            describe("How long ago k3s or RKE2 last wrote a snapshot of its etcd on each node. It falls to zero with each.",
                     rows=SNAPSHOT),
            [("min by (%n) (time() - @etcd_snapshot_timestamp_seconds)", "{{cluster}} {{instance}}")],
            "s", size=(12, 8), none=none, floor=0, thresholds=steps_of(SNAPSHOT),
        ),
        rows_of(
            "Snapshots",
            describe("What lies in each node's folder of snapshots.", "none; a newest one that is much smaller than the database",
                     alert="ControlPlaneEtcdSnapshotMissing"),
            [
                Column("Node", label="instance"),
                Column("Snapshots", "max by (%n) (@etcd_snapshot_files)", states={0: ("none", "red")}),
                Column("Written ago", "min by (%n) (time() - @etcd_snapshot_timestamp_seconds)", unit="s", decimals=0,
                       rows=SNAPSHOT),
                Column("Newest", "max by (%n) (@etcd_snapshot_bytes)", unit="bytes"),
                Column("All", "max by (%n) (@etcd_snapshot_directory_bytes)", unit="bytes"),
                Column("Age of the data", "max by (%n) (time() - @etcd_snapshot_datastore_timestamp_seconds)", unit="s",
                       decimals=0),
            ],
            size=(12, 8), none=none,
        ),
    ]  # fmt: skip


def members():
    return rows_of(
        "Members",
        describe(
            "A row for each member of etcd with an agent beside it. Without an answer its figures are empty and its state "
            "is red.",
            "any coloured cell; members that differ in version, cluster or expected count", alert="ControlPlaneEtcdMemberDown"),
        [
            Column("Cluster", label="cluster"),
            Column("Node", label="instance"),
            Column("State", ETCD_STATE, states=ETCD),
            Column("", "group by (%n, member, member_id, version) (@etcd_member_info)"),
            Column("Member", label="member"),
            Column("Id", label="member_id"),
            Column("Version", label="version"),
            Column("Term", "max by (%n) (@etcd_raft_term)", decimals=0),
            Column("Voters reachable", "max by (%n) (@etcd_voters_reachable)"),
            Column("Voters listed", "max by (%n) (@etcd_voters_listed)"),
            Column("Expected", "max by (%n) (@etcd_members_expected)"),
            Column("Database", "max by (%n) (@etcd_db_size_bytes)", unit="bytes"),
            Column("Quota", "max by (%n) (@etcd_quota_bytes)", unit="bytes"),
            Column("Of quota", "max by (%n) (@etcd_db_size_bytes / @etcd_quota_bytes)", unit="percentunit", decimals=1,
                   rows=limits("ControlPlaneEtcdQuotaLow", "database size of its quota")),
            Column("Would be given back", "max by (%n) (@etcd_db_size_bytes - @etcd_db_size_in_use_bytes)",
                   unit="bytes", rows=limits("ControlPlaneEtcdDatabaseFragmented", "reclaimable bytes")),
        ],
        size=(24, 7), none="no etcd member is watched; dqlite and kine have rows of their own below",
    )  # fmt: skip
