"""dqlite and kine: the datastore board's rows for MicroK8s, Canonical Kubernetes, and k3s and k0s with SQL."""

from parts import (
    DQLITE_STATE, KINE_STATE, STATES, Column, appeared, describe, lanes, limits, lines, rows_of, steps_of,
)  # fmt: skip

NO_DQLITE = "no dqlite member is watched"
NO_SNAPSHOT = "no dqlite member is watched, or it has no snapshot yet"
NO_KINE = "no kine is watched"
# As old as it was when the agent last looked, as the alert has it: between two looks it only seems to grow.
FILE_AGE = (
    'max by (%n) (@sampler_last_success_timestamp_seconds{sampler="dqlite"})'
    " - max by (%n) (@dqlite_cluster_file_timestamp_seconds)"
)
# It is missing from a look at segments that change meanwhile.
LAST_ENTRY = "last_over_time(@dqlite_log_last_index[5m])"

FROZEN = limits("ControlPlaneDqliteClusterFileFrozen", "age of cluster.yaml")
FLAPPING = limits("ControlPlaneDqliteLeaderFlapping", "elections in 15 minutes")
LARGE = limits("ControlPlaneDqliteSnapshotLarge", "newest snapshot")
FREE = limits("ControlPlaneDqliteSnapshotLarge", "free share of the database's pages")
WASTE = limits("ControlPlaneDqliteSnapshotLarge", "free pages of the database")
GROWING = limits("ControlPlaneDqliteBackendGrowing", "directory")
TIMES = limits("ControlPlaneDqliteBackendGrowing", "directory against the newest snapshot")
BEHIND = limits("ControlPlaneDqliteBackendGrowing", "log entries after the newest snapshot")
EXPIRES = limits("ControlPlaneDqliteCertificateExpires", "time until the certificate ends")
SILENT = limits("ControlPlaneKineNotAnswering", "time since a read succeeded")
SLOW = limits("ControlPlaneKineReadsSlow", "reads, p90 of 5 minutes")


def dqlite():
    return [members(), peers(), *raft(), *snapshots(), *files()]


def members():
    return rows_of(
        "dqlite's members",
        describe(
            "A row for each member with an agent beside it. A member that is down is red; the figures of its files "
            "stay. With fewer than three members only one votes, and a spare holds no data.",
            "any coloured cell; two leaders; terms that differ for minutes", alert="ControlPlaneDqliteMemberDown"),
        [
            Column("Cluster", label="cluster"),
            Column("Node", label="instance"),
            Column("State", DQLITE_STATE, states={code: STATES[code] for code in (41, 42, 44, 46, 47, 48, 49)}),
            Column("", "group by (%n, role) (@dqlite_role == 1)"),
            Column("Role", label="role"),
            Column("Term", "max by (%n) (@dqlite_term)", decimals=0),
            Column("Voters reachable", "max by (%n) (@dqlite_voters_reachable)"),
            Column("Voters listed", "max by (%n) (@dqlite_voters_listed)"),
            Column("Leader found ago", FILE_AGE, unit="s", decimals=0, rows=FROZEN),
            Column("Last entry", f"max by (%n) ({LAST_ENTRY})", decimals=0),
            Column("Snapshot", "max by (%n) (@dqlite_snapshot_bytes)", unit="bytes", rows=LARGE),
            Column("Written ago", "min by (%n) (time() - @dqlite_snapshot_timestamp_seconds)", unit="s", decimals=0),
            Column("Free pages", "max by (%n) (@dqlite_database_free_pages / @dqlite_database_pages)",
                   unit="percentunit", decimals=0),
            Column("Directory", "max by (%n) (@dqlite_directory_bytes)", unit="bytes", rows=GROWING),
            Column("Certificate ends in", "min by (%n) (@dqlite_certificate_not_after_timestamp_seconds - time())",
                   unit="s", decimals=0, rows=EXPIRES),
        ],
        size=(24, 7), none=NO_DQLITE,
    )  # fmt: skip


def peers():
    return lanes(
        "dqlite's members, as each node sees them",
        describe(
            "Whether each member answers each node's agent. One that is silent for all is down; one that is silent for "
            "one node is cut off from it. Over TLS nobody is asked more often than every 30 s.",
            "red", alert="ControlPlaneDqliteVoterUnreachable"),
        [("46 * (1 - min by (%n, member) (min_over_time(@dqlite_member_up[%w])))", "{{instance}} → {{member}}")],
        {0: ("answers", "green"), 46: STATES[46]}, size=(24, 7), none=NO_DQLITE, left=330,
    )  # fmt: skip


def raft():
    return [
        lines(
            "dqlite: voters that answer",
            describe("Voters that each node's agent reaches, and how many the members list.",
                     "half of those listed, or fewer: nothing can be written", alert="ControlPlaneDqliteQuorumLost"),
            [("max by (%n) (@dqlite_voters_reachable)", "{{instance}} reaches"),
             ("max by (cluster, job) (@dqlite_voters_listed)", "{{cluster}} {{job}} listed")],
            "none", size=(8, 8), none=NO_DQLITE, floor=0, decimals=0,
        ),
        lines(
            "dqlite: elections in 15 minutes",
            describe("How far the term rose in 15 minutes; each election raises it. Without a quorum it stands still.",
                     rows=FLAPPING),
            [("max by (cluster, job) (max_over_time(@dqlite_term[15m]))"
              " - min by (cluster, job) (min_over_time(@dqlite_term[15m]))", "{{cluster}} {{job}} elections")],
            "short", size=(8, 8), none=NO_DQLITE, floor=0, decimals=0, thresholds=steps_of(FLAPPING),
        ),
        lines(
            "dqlite: time since a leader was found",
            describe("Age of cluster.yaml, which a node writes every 30 s while it finds a leader.", rows=FROZEN),
            [(FILE_AGE, "{{instance}}")],
            "s", size=(8, 8), none=NO_DQLITE, floor=0, thresholds=steps_of(FROZEN),
        ),
        lines(
            "dqlite: entries written, per second",
            describe("How fast each node's log grows. A spare's log stands still.",
                     "many times the usual: something writes without end", alert="ControlPlaneDqliteBackendGrowing"),
            [("max by (%n) (deriv(@dqlite_log_last_index[%w]))", "{{instance}}")],
            "wps", size=(8, 8), none=NO_DQLITE, floor=0,
        ),
        lines(
            "dqlite: entries behind the longest log",
            describe("How many entries each log is shorter than the longest one. The files are read every 30 s, so "
                     "some are normal; a spare's log stands still.",
                     "a climb, of a member that is no spare", alert="ControlPlaneDqliteLogStopped"),
            [(f"max by (cluster, job) ({LAST_ENTRY}) - on (cluster, job) group_right max by (%n) ({LAST_ENTRY})",
              "{{instance}}")],
            "short", size=(8, 8), none=NO_DQLITE, floor=0, decimals=0,
        ),
        lines(
            "dqlite: entries kept, and since the snapshot",
            describe("Entries of the log on disk, and those that came after the newest snapshot. A snapshot is due "
                     "every 512 or 1024 entries.",
                     "a line that only climbs: no snapshot is written", BEHIND),
            [("max by (%n) (@dqlite_log_last_index - @dqlite_log_first_index)", "{{instance}} kept"),
             ("max by (%n) (@dqlite_log_last_index - @dqlite_snapshot_index)", "{{instance}} since")],
            "short", size=(8, 8), none=NO_DQLITE, floor=0, decimals=0, thresholds=steps_of(BEHIND),
        ),
    ]  # fmt: skip


def snapshots():
    return [
        lines(
            "dqlite: size of the newest snapshot",
            describe("It holds the whole database, compressed, free pages as well, and is written again and again.",
                     rows=LARGE),
            [("max by (%n) (@dqlite_snapshot_bytes)", "{{instance}}")],
            "bytes", size=(8, 8), none=NO_SNAPSHOT, floor=0, thresholds=steps_of(LARGE),
        ),
        lines(
            "dqlite: age of the newest snapshot",
            describe("A saw with a tooth for each snapshot. An idle cluster of three nodes writes one every two to four "
                     "minutes.",
                     "teeth of seconds; a climb while entries are written", LARGE),
            [("min by (%n) (time() - @dqlite_snapshot_timestamp_seconds)", "{{instance}}")],
            "s", size=(8, 8), none=NO_SNAPSHOT, floor=0,
        ),
        lines(
            "dqlite: share of free pages",
            describe("Pages of the database that hold nothing. They are never given back, and each snapshot holds them.",
                     f"only where they are {WASTE[0].words}", FREE),
            [("max by (%n) (@dqlite_database_free_pages / @dqlite_database_pages)", "{{instance}}")],
            "percentunit", size=(8, 8), none=NO_SNAPSHOT, floor=0, top=1, thresholds=steps_of(FREE),
        ),
        lines(
            "dqlite: database, and what is in use",
            describe("Pages of the newest snapshot, not compressed. The gap is free pages.",
                     "a gap of more than half", WASTE),
            [("max by (%n) (@dqlite_database_pages * @dqlite_database_page_bytes)", "{{instance}} database"),
             ("max by (%n) ((@dqlite_database_pages - @dqlite_database_free_pages) * @dqlite_database_page_bytes)",
              "{{instance}} in use")],
            "bytes", size=(8, 8), none=NO_SNAPSHOT, floor=0,
        ),
        lines(
            "dqlite: snapshots of which one half is missing",
            describe("Files without their .meta are debris that nothing removes; .meta without data is a snapshot "
                     "under way, or given up.",
                     "any without meta; any without data for long", alert="ControlPlaneDqliteSnapshotDebris"),
            [("max by (%n, missing) (max_over_time(@dqlite_snapshot_unpaired[%w]))",
              "{{instance}} without {{missing}}")],
            "short", size=(8, 8), none=NO_DQLITE, floor=0, decimals=0,
        ),
    ]  # fmt: skip


def files():
    return [
        lines(
            "dqlite: its directory, log and debris",
            describe("Two snapshots, the log, three open segments of 8 MiB.",
                     f"only where it is {TIMES[0].words} the snapshot", GROWING),
            [("max by (%n) (@dqlite_directory_bytes)", "{{instance}} all"),
             ("sum by (%n) (@dqlite_segment_bytes)", "{{instance}} log"),
             ("sum by (%n) (@dqlite_snapshot_unpaired_bytes)", "{{instance}} debris")],
            "bytes", size=(8, 8), none=NO_DQLITE, floor=0, thresholds=steps_of(GROWING),
        ),
        lines(
            "dqlite: segments of the log",
            describe("Three open ones are usual. Closed ones go when a snapshot has made them needless.",
                     "any corrupt one, which dqlite moved aside; no open one, as on a full disk; ever more closed ones",
                     alert="ControlPlaneDqliteLogStopped"),
            [("max by (%n, state) (@dqlite_segments)", "{{instance}} {{state}}")],
            "short", size=(8, 8), none=NO_DQLITE, floor=0, decimals=0,
        ),
        lines(
            "dqlite: places that disagree about the members",
            describe(
                "Members that only one of two places lists: the member's own answer (live), cluster.yaml, the log, the "
                "snapshot. cluster.yaml lags by 30 s, the snapshot until the next one; a start goes by the log alone.",
                "anything between log and live or cluster.yaml for minutes; an own entry that is missing",
                alert="ControlPlaneDqliteMembershipMismatch"),
            [("max by (%n, between) (@dqlite_membership_differences)", "{{instance}} {{between}}"),
             ("max by (%n, source) (1 - @dqlite_own_member_listed)", "{{instance}} own entry not in {{source}}")],
            "short", size=(8, 8), none=NO_DQLITE, floor=0, decimals=0,
        ),
        lines(
            "dqlite: time until the certificate ends",
            describe("All members share one certificate; when it ends, none of them talks to any other.", rows=EXPIRES),
            [("min by (%n) (@dqlite_certificate_not_after_timestamp_seconds - time())", "{{instance}}")],
            "s", size=(8, 8), none="no dqlite member with a certificate is watched", floor=0, thresholds=steps_of(EXPIRES),
        ),
        rows_of(
            "dqlite's members, by where they are listed",
            describe("A start goes by the log alone; editing cluster.yaml changes nothing. Roles move at each restart.",
                     "more voters in the log than there are nodes: they count for the quorum for ever",
                     alert="ControlPlaneDqliteMembershipMismatch"),
            [
                Column("Node", label="instance"),
                Column("Listed in", label="source"),
                *[Column(name, f'max by (%n, source) (@dqlite_members{{role="{role}"}})')
                  for name, role in (("Voters", "voter"), ("Stand-bys", "stand-by"), ("Spares", "spare"))],
                Column("Own entry", "max by (%n, source) (@dqlite_own_member_listed)",
                       states={0: ("missing", "red"), 1: ("listed", "green")}),
            ],
            size=(12, 10), none=NO_DQLITE,
        ),
        lines(
            "dqlite: calls that failed, by reason",
            describe("The agents' own calls to their members. refused: nobody listens. timeout: it hangs. tls_…: "
                     "certificates.",
                     "any at all, except while a node is restarted on purpose", alert="ControlPlaneDqliteMemberDown"),
            [(f"{appeared('dqlite_request_failures_total', '%n, request, reason')} > 0",
              "{{instance}} {{request}} {{reason}}")],
            "short", size=(12, 10), none="no call failed in this time", bars=True, floor=0, decimals=0,
        ),
    ]  # fmt: skip


def kine():
    return [
        lanes(
            "kine",
            describe("What stands between the API server and its SQL database, k8s-dqlite included. Its calls fail "
                     "while the database behind it does not answer, as without a leader.",
                     "red or orange", alert="ControlPlaneKineNotAnswering"),
            [(KINE_STATE, "{{instance}}")],
            {code: STATES[code] for code in (40, 46, 50)}, size=(24, 5), none=NO_KINE,
        ),
        lines(
            "kine: reads and status, p90 of 5 minutes",
            describe("Time of the agents' reads and status calls. Each is a query in the SQL database.", rows=SLOW),
            [("histogram_quantile(0.9, sum by (%n, request, le) (rate(@kine_request_duration_seconds_bucket[5m])))",
              "{{instance}} {{request}}")],
            "s", size=(8, 8), none=NO_KINE, log=True, thresholds=steps_of(SLOW),
        ),
        lines(
            "kine: database",
            describe("Size of the database as kine gives it; k8s-dqlite leaves free pages out, so compare with dqlite's "
                     "snapshot.",
                     "growth without end", alert="ControlPlaneKineReadsSlow"),
            [("max by (%n) (@kine_database_bytes)", "{{instance}}")],
            "bytes", size=(8, 8), none=NO_KINE, floor=0,
        ),
        lines(
            "kine: revisions written, per second",
            describe("How fast the key space changes. An idle cluster of three nodes writes about five.",
                     "many times the usual: something writes without end", alert="ControlPlaneKineReadsSlow"),
            [("max by (%n) (deriv(@kine_revision[%w]))", "{{instance}}")],
            "wps", size=(8, 8), none=NO_KINE, floor=0,
        ),
        lines(
            "kine: time since a call succeeded",
            describe("How long ago each kind of call last ended well; the alert is about reads.", rows=SILENT),
            [("max by (%n, request) (time() - @kine_request_last_success_timestamp_seconds)",
              "{{instance}} {{request}}")],
            "s", none=NO_KINE, floor=0, thresholds=steps_of(SILENT),
        ),
        lines(
            "kine: calls that failed, by reason",
            describe("The agents' own calls. refused: nobody listens. timeout: it hangs, or the database behind it does.",
                     "any at all, except while a node is restarted on purpose", alert="ControlPlaneKineNotAnswering"),
            [(f"{appeared('kine_request_failures_total', '%n, request, reason')} > 0",
              "{{instance}} {{request}} {{reason}}")],
            "short", none="no call failed in this time", bars=True, floor=0, decimals=0,
        ),
    ]  # fmt: skip
