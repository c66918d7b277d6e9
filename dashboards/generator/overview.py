"""All clusters: a row for each node, and which of them needs somebody."""

from parts import (
    AGENT_SILENT, DQLITE_STATE, ETCD_STATE, EXPECTED_NOT_RUNNING, GREEN, GREY, KINE_ALONE, MEMBER_STATES, ORANGE,
    PURPLE, RED, STATES, WATCHDOG, Board, Column, describe, firing, lanes, limits, lines, mappings, number, rows_of,
    steps, steps_of, syncs_p90,
)  # fmt: skip

VERDICT = {
    -1: ("rules not loaded", GREY),
    0: ("ok", GREEN),
    2: ("warning", ORANGE),
    3: ("critical", RED),
    4: ("agent silent", PURPLE),
}
# The worst severity of each alert, under its name without our prefix, so that it fits.
ALERT_SEVERITY = "max by (cluster, instance, alert) (label_replace(%s, 'alert', '$1', 'alertname', 'ControlPlane(.+)'))" % (
    " or ".join(f"{firing(severity)} * 0 + {code}" for severity, code in (("critical", 83), ("warning", 82), ("info", 81)))
)

REACHABLE = "@etcd_voters_reachable or @dqlite_voters_reachable"
LISTED = "@etcd_voters_listed or @dqlite_voters_listed"
# Where no agent can ask the others' members, as on k0s, answers are added up as the rules do it.
REACHABLE_VOTERS = (
    f"max by (cluster, job) ({REACHABLE}) or sum by (cluster, job) (max by (%n) (@etcd_up unless @etcd_is_learner == 1))"
    " + clamp_min(max by (cluster, job) (@etcd_voters_listed)"
    " - count by (cluster, job) (group by (%n) (@etcd_up unless @etcd_is_learner == 1)), 0)"
)


def build():
    b = Board(
        "controlplane-overview",
        "Control plane / Overview",
        "Every control-plane node, and which one needs somebody. A click on a node leads to what happened there first.",
        "now-3h",
    )
    b.add(
        number(
            "Agents that answer",
            describe("Nodes whose agent Prometheus reaches.", "fewer than there are nodes",
                     alert="ControlPlaneExporterGone"),
            "count(group by (%n) (@exporter_build_info))", "none",
            none="no agent is scraped",
        ),
        number(
            "Agents gone silent",
            describe("Nodes whose agent answered within the last day and does not now. Nobody watches them.",
                     "1 or more", alert="ControlPlaneExporterDown"),
            f"count({AGENT_SILENT}) or 0 * count(group by (%n) (last_over_time(@exporter_build_info[1d])))",
            "none", none="no agent in a day",
            states=mappings({0: ("0", GREEN)}),
            thresholds=steps_from(PURPLE),
        ),
        number(
            "Critical alerts",
            describe("Alerts of severity critical that fire now.", "1 or more", alert="README"),
            f"count({firing('critical')}) or 0 * count({WATCHDOG})", "none",
            none="rules not loaded", states=mappings({0: ("0", GREEN)}), thresholds=steps_from(RED),
        ),
        number(
            "Warnings",
            describe("Alerts of severity warning that fire now.", "1 or more", alert="README"),
            f"count({firing('warning')}) or 0 * count({WATCHDOG})", "none",
            none="rules not loaded", states=mappings({0: ("0", GREEN)}), thresholds=steps_from(ORANGE),
        ),
        number(
            "Members that may still fail",
            describe(
                "Voting members of etcd or dqlite that the worst cluster can lose before it has no majority. "
                "Single-member clusters are left out.",
                "0, for the next failure stops that control plane; below 0 it has stopped",
                alert="ControlPlaneEtcdQuorumAtRisk"),
            f"min(({REACHABLE_VOTERS})"
            f" - floor(max by (cluster, job) ({LISTED}) / 2) - 1"
            f" and max by (cluster, job) ({LISTED}) > 1)", "none",
            none="no cluster of several members",
            states=mappings({**{-n: ("no quorum", RED) for n in range(1, 6)}, 0: ("0", ORANGE)}),
            thresholds=steps_from(GREEN),
        ),
        number(
            "Longest sync under way",
            describe("How long the slowest sync of any node has been waiting for its disk.",
                     rows=limits("ControlPlaneDiskSyncStuck", "sync in flight")),
            "max(@fdatasync_inflight_seconds or @fdatasync_datastore_inflight_seconds)", "s", none="sync probe off everywhere", decimals=1,
            thresholds=steps_of(limits("ControlPlaneDiskSyncStuck", "sync in flight")),
        ),
    )  # fmt: skip
    b.add(nodes())
    b.add(
        lanes(
            "Members of the datastores",
            describe(
                "What each member of etcd or dqlite is: leader, follower, or in trouble; and whether kine answers. An "
                "outage shorter than a step is still shown. Blue that moves from lane to lane is a leader that moves.",
                "red or orange; more than one blue lane at a time in one cluster", alert="ControlPlaneEtcdMemberDown"),
            [(state, "{{cluster}} {{instance}}") for state in (ETCD_STATE, DQLITE_STATE, KINE_ALONE)],
            MEMBER_STATES, size=(24, 6), none="no datastore is watched", left=330,
        ),
        lanes(
            "Firing alerts",
            describe("When each alert fired. The first one is closest to the cause.",
                     "red is critical, orange warning, yellow for information", alert="README"),
            [(ALERT_SEVERITY, "{{cluster}} {{instance}} {{alert}}")],
            {code: STATES[code] for code in (81, 82, 83)},
            size=(24, 10), none="no alert fires, or the rules are not loaded", left=330,
        ),
        lines(
            "Longest sync",
            describe("The longest sync of each node's datastore disk in the 60 s before.",
                     "above 1 s again and again", limits("ControlPlaneDiskSyncStuck", "sync in flight")),
            [("max by (%n) (max_over_time(@fdatasync_max_seconds[%w]))", "{{cluster}} {{instance}}")],
            "s", none="sync probe off everywhere", log=True,
            thresholds=steps_of(limits("ControlPlaneDiskSyncStuck", "sync in flight")),
        ),
        lines(
            "Database, share of its quota",
            describe("Size of each etcd database, free pages included, of the size at which etcd refuses writes.",
                     rows=limits("ControlPlaneEtcdQuotaLow", "database size of its quota")),
            [("max by (%n) (@etcd_db_size_bytes / @etcd_quota_bytes)", "{{cluster}} {{instance}}")],
            "percentunit", none="no etcd member is watched", floor=0, decimals=1,
            thresholds=steps_of(limits("ControlPlaneEtcdQuotaLow", "database size of its quota")),
        ),
    )  # fmt: skip
    return b.build()


def steps_from(color):
    return steps((None, color))


def nodes():
    alive = "group by (%n) (@exporter_build_info)"
    verdict = (
        f"({AGENT_SILENT}) * 0 + 4"
        f" or max by (%n) ({firing('critical')} and on (%n) @exporter_build_info) * 0 + 3"
        f" or max by (%n) ({firing('warning')} and on (%n) @exporter_build_info) * 0 + 2"
        f" or ({alive} and on () {WATCHDOG}) * 0"
        f" or {alive} * 0 - 1"
    )
    recent = limits("ControlPlaneKernelIOErrors", "time since the datastore device's last error")
    columns = [
        Column("Cluster", label="cluster"),
        Column("Job", label="job"),
        Column("Node", label="instance", width=170, link=(
            "What happened first on ${__value.text}",
            "/d/controlplane-node?${datasource:queryparam}&${cluster:queryparam}"
            "&var-job=${__data.fields.Job}&var-instance=${__value.text}&${__url_time_range}")),
        Column("Verdict", verdict, states=VERDICT, width=130),
        Column("", "group by (%n, distribution, role) (@exporter_node_info)"),
        Column("Distribution", label="distribution"),
        Column("Role", label="role"),
        Column("Datastore", f"{ETCD_STATE} or {DQLITE_STATE} or {KINE_ALONE}", states=MEMBER_STATES),
        Column("Units not running", f"count by (%n) ({EXPECTED_NOT_RUNNING}) or 0 * {alive}",
               states={0: ("0", "transparent"), **{n: (str(n), RED) for n in range(1, 6)}}),
        Column("Restarts, 24 h", "max by (%n) (sum by (%n, unit) (increase(@systemd_unit_restarts_total[24h])))", decimals=0,
               rows=limits("ControlPlaneUnitRestarting", "restarts in 24 hours")),
        Column("Sync p90, 15 min", syncs_p90("15m"), unit="s",
               rows=limits("ControlPlaneDiskSyncSlow", "syncs, p90 of 15 minutes")),
        # Without a label of its own the second source of a disk would give way to an older error in the kernel's log.
        Column("Datastore I/O error",
               "time() - max by (%n) (@kernel_io_error_last_timestamp_seconds"
               " unless on (%n, device) @kernel_device_holds_datastore == 0"
               " or label_replace(@fdatasync_device_error_last_timestamp_seconds, 'source', 'block', '', ''))",
               unit="s", rows=recent, decimals=0),
        Column("Datastore disk left",
               'min by (%n) (@filesystem_avail_bytes{role="datastore"} / @filesystem_size_bytes{role="datastore"})',
               unit="percentunit", decimals=0, rows=limits("ControlPlaneDatastoreSpaceLow", "space left")),
        Column("Database of quota", "max by (%n) (@etcd_db_size_bytes / @etcd_quota_bytes)", unit="percentunit",
               decimals=1, rows=limits("ControlPlaneEtcdQuotaLow", "database size of its quota")),
        Column("Up since", "max by (%n) (time() - @exporter_node_boot_timestamp_seconds)", unit="s", decimals=0),
    ]  # fmt: skip
    return rows_of(
        "Nodes",
        describe(
            "A row for each node that answered within the last day; a click on its name leads to its own board. An "
            "empty cell is a figure that nobody can read now: the sampler is off, or its source does not answer. "
            "The verdict is the worst alert of the node; alerts about a whole cluster are counted above.",
            "any coloured cell; the colours are the alerts' thresholds", alert="README"),
        columns, size=(24, 8), none="no agent is scraped", sort=("Verdict", True),
    )  # fmt: skip
